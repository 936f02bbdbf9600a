"""What a criterion keeps, layer by layer, over many initialisations, and where published counts fall among them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._engine.ensembles import stacked
from snipnb._progress import track
from snipnb.networks import lenet5, published_label
from snipnb.pruning.masks import LayerCollapseWarning, Mask, keep_mask, num_removed
from snipnb.publish.stats import LEVEL, TableFit, prediction_interval, table_fit
from snipnb.saliences.snip import Salience, magnitude_salience
from snipnb.saliences.together import snip_together

AT_ONCE = 64  # networks that are built and measured together


@dataclass(frozen=True)
class Ensemble:
    """Networks that differ in their seed alone: what they start with, and their SNIP saliences.

    Attributes:
        seeds: Of the initialisations.
        weights: Parameter name -> [seeds, ...].
        saliences: Parameter name -> [seeds, ...], signed.
    """

    seeds: tuple[int, ...]
    weights: dict[str, Tensor]
    saliences: dict[str, Tensor]


def ensemble(
    images: Tensor,
    labels: Tensor,
    *,
    seeds: Iterable[int],
    network: Callable[..., nn.Module] = lenet5,
    init: str = "pytorch",
) -> Ensemble:
    """Initial weights and SNIP saliences of a network, for many initialisations.

    Args:
        images: [n, 1, 28, 28]; saliences are taken over all of them.
        labels: [n].
        seeds: Initialisations.
        network: Function of ``init`` and ``seed``.
        init: Initialisation.
    """
    seeds = tuple(seeds)
    weights: list[Mapping[str, Tensor]] = []
    saliences: list[Salience] = []
    for first in range(0, len(seeds), AT_ONCE):
        models = [network(init=init, seed=seed) for seed in seeds[first : first + AT_ONCE]]
        saliences += snip_together(models, images, labels)
        weights += [magnitude_salience(model) for model in models]
    return Ensemble(seeds, stacked(weights), stacked(saliences))


RANKINGS: dict[str, Callable[[Salience, Salience, int], Salience]] = {
    "snip": lambda salience, weights, seed: salience,
    "gradient": lambda salience, weights, seed: {
        k: s / weights[k].where(weights[k] != 0, 1) for k, s in salience.items()
    },
    "signed salience": lambda salience, weights, seed: _above_zero(salience),
    "magnitude": lambda salience, weights, seed: weights,
    "random": lambda salience, weights, seed: _shuffled(salience, seed),
}


def masks(networks: Ensemble, sparsity: float, *, ranking: str = "snip", ties: str = "remove") -> Mask:
    """What each network of an ensemble keeps: parameter name -> bool [seeds, ...].

    Args:
        networks: From :func:`ensemble`.
        sparsity: Fraction removed.
        ranking: What parameters are ranked by, of :data:`RANKINGS`: SNIP, and controls that cost nothing more: the gradient
            alone, the salience with its sign, the weights' magnitude, a random order.
        ties: See :func:`snipnb.keep_mask`.

    Raises:
        ValueError: If the ranking is unknown.
    """
    if ranking not in RANKINGS:
        raise ValueError(f"there are no rankings {[ranking]}; accepted are {', '.join(RANKINGS)}")
    found = []
    for k, seed in enumerate(networks.seeds):
        salience, weights = ({n: t[k] for n, t in s.items()} for s in (networks.saliences, networks.weights))
        with warnings.catch_warnings():
            if (
                ranking != "snip" or sparsity > 0.98
            ):  # that a control, or an extreme, cuts the network shows in its counts
                warnings.simplefilter("ignore", LayerCollapseWarning)
            found.append(keep_mask(RANKINGS[ranking](salience, weights, seed), sparsity, ties=ties))
    return stacked(found)


def kept_counts(
    networks: Ensemble, *, sparsities: Sequence[float], ties: str = "remove", rankings: Sequence[str] = ("snip",)
) -> pd.DataFrame:
    """How many parameters are kept in each layer, for each initialisation.

    Args:
        networks: From :func:`ensemble`.
        sparsities: Fractions removed.
        ties: See :func:`snipnb.keep_mask`.
        rankings: See :func:`masks`.

    Returns:
        Tidy frame, one row per seed, ranking, sparsity and parameter tensor: ``seed``, ``ranking``, ``sparsity``, ``layer``,
        ``label`` (the write-up's name), ``parameters``, ``kept``, ``removed_percent``.

    Raises:
        ValueError: If a ranking is unknown.
    """
    frames = []
    for ranking, sparsity in track(list(itertools.product(rankings, sparsities)), "masks"):
        for layer, kept in masks(networks, sparsity, ranking=ranking, ties=ties).items():
            size = kept[0].numel()
            frame = pd.DataFrame({"seed": networks.seeds, "kept": kept.flatten(1).sum(1).tolist()})
            facts = {"ranking": ranking, "sparsity": sparsity, "layer": layer, "parameters": size}
            removed = 100 * (size - frame["kept"]) / size
            frames.append(frame.assign(**facts, label=published_label(layer), removed_percent=removed))
    columns = ["seed", "ranking", "sparsity", "layer", "label", "parameters", "kept", "removed_percent"]
    return pd.concat(frames, ignore_index=True)[columns]


def _of_snip(counts: pd.DataFrame) -> pd.DataFrame:
    """The counts of SNIP itself, without the controls."""
    return counts[counts["ranking"] == "snip"]


def _above_zero(salience: Salience) -> Salience:
    """Shifted so that ranking by magnitude is ranking by the signed value."""
    lowest = min(float(s.min()) for s in salience.values())
    return {name: s.double() - lowest for name, s in salience.items()}


def _shuffled(salience: Salience, seed: int) -> Salience:
    """Every order of the parameters equally likely."""
    sizes = [s.numel() for s in salience.values()]
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed)).double() + 1
    return {name: o.view(s.shape) for (name, s), o in zip(salience.items(), order.split(sizes), strict=True)}


def rejected_controls(counts: pd.DataFrame, *, level: float = LEVEL) -> pd.DataFrame:
    """Would the rule for a whole table notice another procedure? Each seed's table by another ranking against SNIP's.

    Args:
        counts: As from :func:`kept_counts`, with the ranking ``snip`` and others.

    Returns:
        One row per ranking: ``ranking``, ``n``, ``rejected`` (tables with p-value at most 1 - ``level``), ``median_p``,
        ``smallest_possible_p``. For ``snip`` itself each seed's table is scored against those of the other seeds.
    """
    tables = {
        name: part.pivot(index="seed", columns=["sparsity", "label"], values="kept")
        for name, part in counts.groupby("ranking")
    }
    own = tables["snip"].to_numpy()
    rows = []
    for name, table in tables.items():
        others = table[tables["snip"].columns].to_numpy()
        references = [np.delete(own, i, axis=0) if name == "snip" else own for i in range(len(others))]
        p = np.array([table_fit(row, reference).p_value for row, reference in zip(others, references, strict=True)])
        smallest = 1 / (1 + len(references[0]))
        rows.append(
            {
                "ranking": name,
                "n": len(p),
                "rejected": int((p <= 1 - level).sum()),
                "median_p": float(np.median(p)),
                "smallest_possible_p": smallest,
            }
        )
    return pd.DataFrame(rows)


def place_reported(counts: pd.DataFrame, reported: pd.DataFrame) -> tuple[pd.DataFrame, TableFit]:
    """Where each published count falls among those of the seeds.

    Args:
        counts: As from :func:`kept_counts`.
        reported: ``layer`` (the write-up's name), ``params``, ``sparsity``, ``kept``.

    Returns:
        One row per published count: ``label``, ``parameters``, ``sparsity``, ``reported``, ``mean``, ``smallest``,
        ``largest``, ``low`` and ``high`` (95 % prediction interval of one more seed), ``mid_p``, ``inside``; and the
        fit of the whole table (:func:`snipnb.publish.stats.table_fit`).

    Raises:
        ValueError: If a published layer or its size is not one of the network's.
    """
    counts = _of_snip(counts)
    wide = counts.pivot(index="seed", columns=["sparsity", "label"], values="kept")
    sizes = counts.drop_duplicates("label").set_index("label")["parameters"]
    cells = list(zip(reported["sparsity"], reported["layer"], strict=True))
    if unknown := [cell for cell in cells if cell not in wide.columns]:
        raise ValueError(
            f"the published table has {unknown[0]}, which was not measured; measured are {list(wide.columns)}"
        )
    for label, size in zip(reported["layer"], reported["params"], strict=True):
        if sizes[label] != size:
            raise ValueError(f"the published table gives {label!r} {size} parameters; the network has {sizes[label]}")
    fit = table_fit(reported["kept"].to_numpy(), wide[cells].to_numpy())
    rows = []
    for (sparsity, label), value, p in zip(cells, reported["kept"], fit.cell_p, strict=True):
        kept = wide[sparsity, label].to_numpy()
        low, high = prediction_interval(kept, int(sizes[label]))
        rows.append(
            {
                "label": label,
                "parameters": int(sizes[label]),
                "sparsity": sparsity,
                "reported": int(value),
                "mean": float(kept.mean()),
                "smallest": int(kept.min()),
                "largest": int(kept.max()),
                "low": low,
                "high": high,
                "mid_p": float(p),
                "inside": bool(low <= value <= high),
            }
        )
    return pd.DataFrame(rows), fit


def beside_reported(counts: pd.DataFrame, reported: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """The write-up's table and that of one seed side by side, one row per layer and a total.

    Returns:
        ``layer``, ``params``, and for each sparsity ``reported <s>`` and ``seed <n> <s>`` as "kept (removed %)".
    """
    measured = _of_snip(counts[counts["seed"] == seed])
    sizes = reported.drop_duplicates("layer").set_index("layer")["params"]
    table = pd.DataFrame({"layer": [*sizes.index, "total"], "params": [*sizes, sizes.sum()]})
    for sparsity in sorted(reported["sparsity"].unique()):
        own = measured[measured["sparsity"] == sparsity].set_index("label")["kept"]
        published = reported[reported["sparsity"] == sparsity].set_index("layer")["kept"]
        for column, kept in ((f"reported, {sparsity:g}", published), (f"seed {seed}, {sparsity:g}", own)):
            numbers = [*kept[sizes.index], kept[sizes.index].sum()]
            table[column] = [_cell(int(n), int(size)) for n, size in zip(numbers, table["params"], strict=True)]
    return table


def _cell(kept: int, size: int) -> str:
    removed = Decimal(100 * (size - kept)) / size  # the write-up rounds halves up
    return f"{kept} ({removed.quantize(Decimal('0.1'), ROUND_HALF_UP)} %)"


def kept_percent(counts: pd.DataFrame, placement: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts as shares of each layer, for plotting: those of the seeds, and the published ones with their intervals.

    Args:
        counts: As from :func:`kept_counts`.
        placement: As from :func:`place_reported`.

    Returns:
        ``seed``, ``sparsity``, ``label``, ``kept_percent``; and ``sparsity``, ``label``, ``kept_percent``,
        ``low_percent``, ``high_percent``, ``inside``.
    """
    counts = _of_snip(counts)
    points = counts[["seed", "sparsity", "label"]].assign(kept_percent=100 * counts["kept"] / counts["parameters"])
    cells = placement[["sparsity", "label", "inside"]].copy()
    for column, source in (("kept_percent", "reported"), ("low_percent", "low"), ("high_percent", "high")):
        cells[column] = 100 * placement[source] / placement["parameters"]
    return points, cells


def totals(counts: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """Parameters kept in the whole network, over seeds, beside the sum of the published counts.

    Returns:
        One row per sparsity: ``sparsity``, ``m`` (parameters), ``rank`` (floor(sparsity m)), ``kept_if_rounded`` (what the
        nearest integer for a rank would leave), ``published``, ``smallest`` and ``largest`` total over seeds,
        ``seeds_with_another_total`` (than the published one).
    """
    own = _of_snip(counts).groupby(["sparsity", "seed"])["kept"].sum()
    rows = []
    for sparsity, cells in reported.groupby("sparsity"):
        count, published = int(cells["params"].sum()), int(cells["kept"].sum())
        rows.append(
            {
                "sparsity": sparsity,
                "m": count,
                "rank": num_removed(count, sparsity),
                "kept_if_rounded": count - round(sparsity * count),
                "published": published,
                "smallest": int(own[sparsity].min()),
                "largest": int(own[sparsity].max()),
                "seeds_with_another_total": int((own[sparsity] != published).sum()),
            }
        )
    return pd.DataFrame(rows)
