"""What stays the same over initialisations and what does not: counts, masks, places in kernels, magnitudes.

Networks come as :class:`snipnb.studies.shared.Ensemble`, and stacked masks as name -> bool [seeds, ...]. Results are tidy frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from snipnb.networks import WHOLE
from snipnb.pruning.masks import Mask
from snipnb.publish.comparisons import right_side as right_side  # notebooks take them from here
from snipnb.publish.comparisons import summarise
from snipnb.publish.comparisons import variance_split as variance_split
from snipnb.publish.stats import TableFit, table_fit
from snipnb.studies.shared import Ensemble, kept_counts, masks, place_reported, with_chance
from snipnb.studies.shared import under_conditions as under_conditions  # notebooks take it from here

BINS = 10  # bins of magnitude, with equal numbers of weights


def mask_overlaps(first: Mask, second: Mask) -> pd.DataFrame:
    """Overlap of pairs of masks, and the overlap that chance would give.

    **Definition.** Intersection over union of the kept sets. By chance, both sets keep their number of parameters in each tensor,
    at random places within the tensor. ``chance`` is the expected intersection over the expected union.

    Args:
        first: Name -> bool [pairs, ...].
        second: The same.

    Returns:
        One row per pair and tensor, and per pair for the ``"whole network"``: ``pair``, ``layer``, ``overlap``, ``chance``.
    """
    rows = []
    sums: dict[str, Tensor] = {}  # common, common by chance, sum of both sizes [3, pairs]
    for name, a in first.items():
        a, b = a.flatten(1), second[name].flatten(1)
        both, kept = (a & b).sum(1).double(), (a.sum(1).double(), b.sum(1).double())
        sums[name] = torch.stack([both, kept[0] * kept[1] / a.shape[1], kept[0] + kept[1]])
    for name, (both, expected, together) in {WHOLE: reduce(torch.add, sums.values()), **sums}.items():
        overlap, chance = (torch.where(together > 0, x / (together - x), 1.0).tolist() for x in (both, expected))
        pairs = {"pair": range(len(both)), "layer": name, "overlap": overlap, "chance": chance}
        rows.append(pd.DataFrame(pairs))
    return pd.concat(rows, ignore_index=True)


def next_seed(kept: Mask) -> Mask:
    """Each network's neighbour: the masks moved by one seed, so that every seed is in two pairs."""
    return {name: mask.roll(1, 0) for name, mask in kept.items()}


def overlap_summary(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Overlaps under several comparisons: ``comparison``, ``layer``, ``n``, ``mean``, ``smallest``, ``largest``, ``chance``."""
    pairs = pd.concat([frame.assign(comparison=comparison) for comparison, frame in frames.items()])
    return with_chance(pairs, ["comparison", "layer"])


def image_effect(some: Mapping[int, Ensemble], whole: Ensemble, *, sparsities: Sequence[float]) -> pd.DataFrame:
    """Does the number of images matter? Counts from fewer images against counts from all, in units of the seeds' spread.

    Args:
        some: Number of images -> ensemble.
        whole: The same seeds with all images.
        sparsities: Fractions removed.

    Returns:
        One row per number and sparsity: ``images``, ``sparsity``, ``n`` (seeds), ``largest_shift`` and ``typical_shift`` (largest
        and root mean square over tensors of the mean difference of the kept count, in standard deviations over seeds),
        ``overlap`` (mean over seeds, of the masks).
    """
    rows = []
    for number, networks in some.items():
        for sparsity in sparsities:
            kept = [masks(n, sparsity, ties="stable") for n in (networks, whole)]
            few, many = (pd.DataFrame({name: m.flatten(1).sum(1) for name, m in mask.items()}) for mask in kept)
            shift = (few - many).mean() / many.std(ddof=1).clip(lower=1)
            pairs = mask_overlaps(*kept)
            facts = {"largest_shift": float(shift.abs().max()), "typical_shift": float((shift**2).mean() ** 0.5)}
            facts |= {"overlap": float(pairs.loc[pairs["layer"] == WHOLE, "overlap"].mean())}
            rows.append({"images": number, "sparsity": sparsity, "n": len(networks.seeds)} | facts)
    return pd.DataFrame(rows)


def shuffled_labels(labels: Tensor) -> Tensor:
    """The same labels on other images, so that images say nothing about classes."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


# --- which initialisation made a table --------------------------------------------------------------------------------


def score_initialisations(counts: Mapping[str, pd.DataFrame], reported: pd.DataFrame) -> pd.DataFrame:
    """A published table of counts against the seeds of several initialisations, by :func:`snipnb.publish.stats.table_fit`.

    Args:
        counts: Initialisation -> frame as from :func:`snipnb.studies.shared.kept_counts`.
        reported: ``layer`` (the write-up's name), ``sparsity``, ``kept``.

    Returns:
        One row per initialisation: ``init``, ``n``, ``p_value``, ``counts_outside``, ``smallest_p``, ``worst_count``.
    """
    cells = list(zip(reported["sparsity"], reported["layer"], strict=True))
    rows = []
    for init, table in _tables(counts, cells).items():
        fit = table_fit(reported["kept"].to_numpy(), table)
        sparsity, label = cells[int(np.argmin(fit.cell_p))]
        facts = {"p_value": fit.p_value, "counts_outside": fit.outside, "smallest_p": fit.smallest_p}
        rows.append({"init": init, "n": len(table)} | facts | {"worst_count": f"{label} at {sparsity:g}"})
    return pd.DataFrame(rows)


def attribute_seeds(counts: Mapping[str, pd.DataFrame], cells: Sequence[tuple[float, str]]) -> pd.DataFrame:
    """Can the fit tell initialisations apart? Each seed's table is left out and given to the initialisation that fits it best.

    Args:
        counts: As for :func:`score_initialisations`.
        cells: (sparsity, label) of the counts that make up a table.

    Returns:
        One row per initialisation: ``init`` (the true initialisation), and for each initialisation the number of these seeds that are given to it.
    """
    tables = _tables(counts, cells)
    rows = []
    for init, own in tables.items():
        given = dict.fromkeys(tables, 0)
        for k, table in enumerate(own):
            fits = {
                other: table_fit(table, np.delete(reference, k, axis=0) if other == init else reference[: len(own) - 1])
                for other, reference in tables.items()
            }
            given[max(fits, key=lambda other: _rank(fits[other]))] += 1
        rows.append({"init": init} | given)
    return pd.DataFrame(rows)


def _rank(fit: TableFit) -> tuple[float, float, float]:
    return fit.p_value, -fit.outside, fit.smallest_p


def _tables(counts: Mapping[str, pd.DataFrame], cells: Sequence[tuple[float, str]]) -> dict[str, np.ndarray]:
    """Initialisation -> counts [seeds, cells]."""
    return {
        init: frame.pivot(index="seed", columns=["sparsity", "label"], values="kept")[list(cells)].to_numpy()
        for init, frame in counts.items()
    }


# --- places and magnitudes --------------------------------------------------------------------------------------------


def place_map(kept: Mask, name: str, shape: Sequence[int]) -> pd.DataFrame:
    """How often each place of a kernel, or of the image that a unit sees, is kept.

    Args:
        kept: Name -> bool [seeds, ...].
        name: Of the tensor.
        shape: Of one seed's tensor, with height and width last. Means are taken over all axes before.

    Returns:
        One row per place: ``layer``, ``row``, ``column``, ``kept`` (fraction), ``error`` (standard error over seeds).
    """
    each = kept[name].view(len(kept[name]), -1, *shape[-2:]).double().mean(1)  # [seeds, height, width]
    rows, columns = np.indices(each.shape[1:])
    error = each.std(0) / len(each) ** 0.5
    places = {"row": rows.ravel(), "column": columns.ravel()}
    return pd.DataFrame({"layer": name, **places, "kept": each.mean(0).ravel(), "error": error.ravel()})


def unit_counts(kept: Mask, names: Sequence[str]) -> pd.DataFrame:
    """Kept weights into each unit, in descending order, compared with the same number shuffled within the tensor.

    Returns:
        One row per tensor and rank: ``layer``, ``rank`` (from 1), ``mean``, ``smallest``, ``largest`` over seeds, ``shuffled`` (mean).
    """
    draw, frames = torch.Generator().manual_seed(0), []
    for name in names:
        each = kept[name].flatten(2)
        own = _descending(each)
        order = torch.rand(each.flatten(1).shape, generator=draw).argsort(1)
        shuffled = _descending(each.flatten(1).gather(1, order).view_as(each))
        facts = {"mean": own.mean(0), "smallest": own.amin(0), "largest": own.amax(0), "shuffled": shuffled.mean(0)}
        frames.append(pd.DataFrame({"layer": name, "rank": range(1, own.shape[1] + 1), **facts}))
    return pd.concat(frames, ignore_index=True)


def _descending(kept: Tensor) -> Tensor:
    return kept.double().sum(2).sort(1, descending=True).values  # [seeds, units]


def weight_histograms(networks: Ensemble, kept: Mask) -> pd.DataFrame:
    """Histograms of all weights and of kept weights, in units of the tensor's largest magnitude over all seeds.

    Returns:
        One row per weight tensor and bin: ``layer``, ``value`` (centre), ``before`` and ``kept`` (weights, all seeds together).
    """
    frames = []
    for name in _weights(networks):
        weights = networks.weights[name]
        scaled = (weights / weights.abs().max()).flatten().numpy()
        before, bins = np.histogram(scaled, bins=41, range=(-1, 1))
        left, _ = np.histogram(scaled[kept[name].flatten().numpy()], bins=41, range=(-1, 1))
        centres = (bins[1:] + bins[:-1]) / 2
        frames.append(pd.DataFrame({"layer": name, "value": centres, "before": before, "kept": left}))
    return pd.concat(frames, ignore_index=True)


def kept_by_magnitude(networks: Ensemble, kept: Mask) -> pd.DataFrame:
    """Kept share of weights, by tenth of magnitude within tensor and seed.

    Returns:
        One row per weight tensor and tenth: ``layer``, ``tenth`` (1: smallest), ``kept`` (fraction, all seeds together), ``low``,
        ``high`` (smallest and largest of the seeds).
    """
    rows = []
    for name in _weights(networks):
        size = networks.weights[name].flatten(1).abs()
        rank = size.argsort(1).argsort(1)
        tenth = rank * BINS // size.shape[1]
        mask = kept[name].flatten(1)
        for k in range(BINS):
            here = tenth == k
            share = ((mask & here).sum(1) / here.sum(1)).double()
            rows.append((name, k + 1, float(share.mean()), float(share.min()), float(share.max())))
    return pd.DataFrame(rows, columns=["layer", "tenth", "kept", "low", "high"])


def low_to_middle(by_magnitude: pd.DataFrame) -> pd.DataFrame:
    """How often the lowest tenth is kept, relative to the middle eight: ``layer``, ``lowest``, ``middle``, ``highest``, ``ratio``."""
    kept = by_magnitude.pivot(index="layer", columns="tenth", values="kept").loc[by_magnitude["layer"].unique()]
    middle = kept.loc[:, 2 : BINS - 1].mean(axis=1)
    found = pd.DataFrame({"lowest": kept[1], "middle": middle, "highest": kept[BINS]})
    return found.assign(ratio=kept[1] / middle.where(middle > 0)).reset_index()


def _weights(networks: Ensemble) -> list[str]:
    return [name for name in networks.weights if name.endswith("weight")]


def density_curves(counts: pd.DataFrame) -> pd.DataFrame:
    """Kept fraction of each tensor against sparsity: ``sparsity``, ``layer``, ``label``, ``mean``, ``smallest``, ``largest``."""
    fractions = counts.assign(fraction=counts["kept"] / counts["parameters"])
    return summarise(fractions, ["sparsity", "layer", "label"], "fraction").drop(columns="n")


# --- several ensembles at once ----------------------------------------------------------------------------------------


def placed_by_initialisation(counts: Mapping[str, pd.DataFrame], reported: pd.DataFrame) -> pd.DataFrame:
    """:func:`snipnb.studies.shared.place_reported` for each initialisation, with the column ``init``."""
    placed = [place_reported(frame, reported)[0].assign(init=init) for init, frame in counts.items()]
    return pd.concat(placed, ignore_index=True)


def by_initialisation(given: Mapping[str, tuple], frame_of: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Frames of a function, called with each initialisation's arguments, joined into one with the column ``init``."""
    return pd.concat([frame_of(*args).assign(init=init) for init, args in given.items()], ignore_index=True)


def places_over_sparsities(
    places: Mapping[str, tuple[Ensemble, str, Sequence[int]]], sparsities: Sequence[float]
) -> pd.DataFrame:
    """:func:`place_map` of tensors, title -> (ensemble, name, shape), with the columns ``title`` and ``sparsity``."""
    frames, known = [], {}
    for sparsity in sparsities:
        for title, (networks, name, shape) in places.items():
            key = sparsity, id(networks)
            if key not in known:
                known[key] = masks(networks, sparsity, ties="stable")
            frames.append(place_map(known[key], name, shape).assign(title=title, sparsity=sparsity))
    return pd.concat(frames, ignore_index=True)


def curves_of_networks(networks: Mapping[str, Ensemble], sparsities: Sequence[float]) -> pd.DataFrame:
    """:func:`density_curves` of ensembles by name, with the column ``network``."""
    frames = [
        density_curves(kept_counts(one, sparsities=sparsities, ties="stable")).assign(network=name)
        for name, one in networks.items()
    ]
    return pd.concat(frames, ignore_index=True)


def predictions_to_draw(compared: pd.DataFrame, *, fitted: Sequence[str], sparsity: float) -> pd.DataFrame:
    """Weight tensors of :func:`snipnb.studies.seed_consistency.prediction.compare` at one sparsity under PyTorch's initialisation, as the figure takes them."""
    chosen = compared[(compared["sparsity"] == sparsity) & (compared["init"] == "pytorch")]
    chosen = chosen[chosen["layer"].str.endswith("weight")].rename(columns={"density": "measured"})
    names = {"closed_form": "closed form", "erdos_renyi_kernel": "Erdos-Renyi-kernel", "uniform": "uniform"}
    chosen = chosen.assign(rule=chosen["rule"].map(names), fitted=chosen["network"].isin(fitted))
    return chosen[["rule", "network", "layer", "measured", "predicted", "fitted"]].reset_index(drop=True)
