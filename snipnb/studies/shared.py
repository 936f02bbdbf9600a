"""What several studies use: training runs of a notebook, ensembles of networks, kept counts, overlaps."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._checks import Salience, check_choice
from snipnb._engine.ensembles import stacked
from snipnb._progress import track
from snipnb.networks import WHOLE, lenet5
from snipnb.pruning.masks import LayerCollapseWarning, Mask, keep_mask
from snipnb.publish.comparisons import summarise
from snipnb.publish.published import published_label
from snipnb.publish.stats import TableFit, prediction_interval, rank_correlation, table_fit
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import magnitude_salience, snip, snip_together
from snipnb.training.recipe import Recipe
from snipnb.training.runs import RunConfig, grid

AT_ONCE = 64  # networks that are built and measured together
PER_DECADE = 4  # bins of the density


def grid_of(
    parameters: Mapping[str, Any],
    criteria: Sequence[str],
    sparsities: Sequence[float],
    *,
    num_seeds: int | None = None,
    recipe: Recipe | None = None,
    model: str = "lenet5",
) -> list[RunConfig]:
    """Training runs that a notebook's parameters describe.

    Args:
        parameters: Parameters of the notebook: ``num_runs``, ``split_name``, ``sample``, ``epochs``, ``learning_rate`` and ``schedule``. Optional are ``first_seed``
            (default 0) and ``salience_images`` (default: all images to train on).
        criteria: Names in :data:`snipnb.CRITERIA`.
        sparsities: Fractions removed.
        num_seeds: Instead of ``num_runs``.
        recipe: Instead of the recipe in the parameters.
        model: Name in ``networks.MODELS``.
    """
    first = parameters.get("first_seed", 0)
    return grid(
        criteria=criteria,
        sparsities=sparsities,
        seeds=range(first, first + (parameters["num_runs"] if num_seeds is None else num_seeds)),
        split=parameters["split_name"],
        sample=parameters["sample"],
        salience_images=parameters.get("salience_images") or None,
        model=model,
        recipe=recipe or Recipe(**{name: parameters[name] for name in ("epochs", "learning_rate", "schedule")}),
    )


@dataclass(frozen=True)
class Ensemble:
    """Initial weights and SNIP saliences of networks that differ only in their seed.

    Attributes:
        seeds: Seeds of the initialisations.
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
    "signed salience": lambda salience, weights, seed: above_zero(salience),
    "magnitude": lambda salience, weights, seed: weights,
    "random": lambda salience, weights, seed: _shuffled(salience, seed),
}


def masks(networks: Ensemble, sparsity: float, *, ranking: str = "snip", ties: str = "remove") -> Mask:
    """What each network of an ensemble keeps: parameter name -> bool [seeds, ...].

    Args:
        networks: From :func:`ensemble`.
        sparsity: Fraction removed.
        ranking: What parameters are ranked by, a name in :data:`RANKINGS`: SNIP or a control that costs nothing more. The
            controls are the gradient alone, the signed salience, the weights' magnitude and a random order.
        ties: See :func:`snipnb.keep_mask`.

    Raises:
        ValueError: If the ranking is unknown.
    """
    check_choice("ranking", ranking, RANKINGS)
    found = []
    for k, seed in enumerate(networks.seeds):
        salience, weights = ({n: t[k] for n, t in s.items()} for s in (networks.saliences, networks.weights))
        found.append(quiet_mask(RANKINGS[ranking](salience, weights, seed), sparsity, ties=ties))
    return stacked(found)


def quiet_mask(salience: Salience, sparsity: float, *, ties: str = "stable") -> Mask:
    """:func:`snipnb.keep_mask` without the warning of layer collapse, for results that show a collapse themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerCollapseWarning)
        return keep_mask(salience, sparsity, ties=ties)


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
            facts = {"seed": networks.seeds, "ranking": ranking, "sparsity": sparsity, "layer": layer}
            facts |= {"label": published_label(layer), "parameters": kept[0].numel()}
            frames.append(pd.DataFrame({**facts, "kept": kept.flatten(1).sum(1).tolist()}))
    counts = pd.concat(frames, ignore_index=True)
    return counts.assign(removed_percent=100 * (counts["parameters"] - counts["kept"]) / counts["parameters"])


def of_snip(counts: pd.DataFrame) -> pd.DataFrame:
    """The counts of SNIP itself, without the controls."""
    return counts[counts["ranking"] == "snip"]


def above_zero(salience: Salience) -> Salience:
    """The salience shifted to 0 and above, so that a ranking by magnitude is a ranking by signed value."""
    lowest = min(float(s.min()) for s in salience.values())
    return {name: s.double() - lowest for name, s in salience.items()}


def _shuffled(salience: Salience, seed: int) -> Salience:
    """A random ranking: every order of the parameters is equally likely."""
    sizes = [s.numel() for s in salience.values()]
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(seed)).double() + 1
    return {name: o.view(s.shape) for (name, s), o in zip(salience.items(), order.split(sizes), strict=True)}


def place_reported(counts: pd.DataFrame, reported: pd.DataFrame) -> tuple[pd.DataFrame, TableFit]:
    """Where each published count falls among the counts of the seeds.

    Args:
        counts: As from :func:`kept_counts`.
        reported: ``layer`` (the write-up's name), ``params``, ``sparsity``, ``kept``.

    Returns:
        One row per published count: ``label``, ``parameters``, ``sparsity``, ``reported``, ``mean``, ``smallest``,
        ``largest``, ``low`` and ``high`` (95 % prediction interval of one more seed), ``mid_p``, ``inside``; and the
        fit of the whole table (:func:`snipnb.publish.stats.table_fit`).

    Raises:
        ValueError: If a published count was not measured, or its layer has another size in the network.
    """
    counts = of_snip(counts)
    wide = counts.pivot(index="seed", columns=["sparsity", "label"], values="kept")
    sizes = counts.drop_duplicates("label").set_index("label")["parameters"]
    cells = list(zip(reported["sparsity"], reported["layer"], strict=True))
    if unknown := [cell for cell in cells if cell not in wide.columns]:
        raise ValueError(f"published counts must be among those measured, {list(wide.columns)}; got {unknown[0]}")
    for label, size in zip(reported["layer"], reported["params"], strict=True):
        if (own := sizes[label]) != size:
            raise ValueError(f"the published table lists {size} parameters for {label!r}; the network has {own}")
    fit = table_fit(reported["kept"].to_numpy(), wide[cells].to_numpy())
    rows = []
    for (sparsity, label), value, p in zip(cells, reported["kept"], fit.cell_p, strict=True):
        kept, size = wide[sparsity, label].to_numpy(), int(sizes[label])
        low, high = prediction_interval(kept, size)
        row = {"label": label, "parameters": size, "sparsity": sparsity, "reported": int(value)}
        row |= {"mean": float(kept.mean()), "smallest": int(kept.min()), "largest": int(kept.max())}
        rows.append(row | {"low": low, "high": high, "mid_p": float(p), "inside": bool(low <= value <= high)})
    return pd.DataFrame(rows), fit


def agreement(exact: Salience, first_order: Salience) -> pd.DataFrame:
    """How SNIP compares with the exact salience, for the whole network and each tensor.

    **Definition.** ``spearman``: rank correlation of the magnitudes. ``pearson``: correlation of the signed values, with SNIP's
    sign reversed. To first order, the loss change when a weight vanishes is minus slope times weight.
    ``typical_factor``: exp of the median abs(log(exact / SNIP)) of the magnitudes, over parameters where neither is zero.

    Args:
        exact: From :func:`snipnb.exact_salience`.
        first_order: From :func:`snipnb.snip`, on the same images.

    Returns:
        One row per part: ``layer``, ``parameters``, ``spearman``, ``pearson``, ``typical_factor``, ``zero_in_both``,
        ``zero_in_snip_only``, ``zero_in_exact_only``.
    """
    check_same(exact, first_order)
    rows = []
    for label, names in parts_of(exact).items():
        e, s = flat(exact, names).numpy(), -flat(first_order, names).numpy()
        both = (e != 0) & (s != 0)
        factors = np.abs(np.log(np.abs(e[both]) / np.abs(s[both])))
        rows.append(
            {
                "layer": label,
                "parameters": len(e),
                "spearman": rank_correlation(np.abs(e), np.abs(s)),
                "pearson": float(np.corrcoef(e, s)[0, 1]) if np.ptp(e) and np.ptp(s) else float("nan"),
                "typical_factor": float(np.exp(np.median(factors))) if both.any() else float("nan"),
                "zero_in_both": int(((e == 0) & (s == 0)).sum()),
                "zero_in_snip_only": int(((e != 0) & (s == 0)).sum()),
                "zero_in_exact_only": int(((e == 0) & (s != 0)).sum()),
            }
        )
    return pd.DataFrame(rows)


def overlaps(first: Salience, second: Salience, sparsities: Sequence[float]) -> pd.DataFrame:
    """Overlap of the sets that two saliences keep, at exact counts, for the whole network and each tensor.

    **Definition.** Intersection over union. ``chance``: approximate overlap of two random sets of these sizes, as expected
    intersection over expected union.

    Returns:
        One row per sparsity and part: ``sparsity``, ``layer``, ``overlap``, ``chance``.
    """
    check_same(first, second)
    rows = []
    for sparsity in sparsities:
        one, other = (quiet_mask(s, sparsity) for s in (first, second))
        sizes = {n: [a.numel(), *(int(m.sum()) for m in (a, other[n], a & other[n]))] for n, a in one.items()}
        for label, names in parts_of(one).items():
            count, a, b, both = map(sum, zip(*(sizes[name] for name in names), strict=True))
            expected = a * b / count
            found = [common / (a + b - common) if a + b else 1.0 for common in (both, expected)]
            rows.append({"sparsity": sparsity, "layer": label, "overlap": found[0], "chance": found[1]})
    return pd.DataFrame(rows)


def with_chance(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Overlaps summarised: ``by``, ``n``, ``mean``, ``smallest``, ``largest``, and the mean of ``chance``."""
    chance = frame.groupby(list(by), sort=False)["chance"].mean()
    return summarise(frame, by, "overlap").assign(chance=chance.to_numpy())


def log_bins(**values: np.ndarray) -> pd.DataFrame:
    """Parameters counted in bins of log10 along all axes: a row per filled bin, ``log10_<axis>`` (centres) and ``parameters``."""
    bins = [np.floor(np.log10(x) * PER_DECADE).astype(int) for x in values.values()]
    found, counts = np.unique(np.stack(bins, 1), axis=0, return_counts=True)
    centres = pd.DataFrame((found + 0.5) / PER_DECADE, columns=[f"log10_{axis}" for axis in values])
    return centres.assign(parameters=counts)


def check_same(first: Salience, second: Salience) -> None:
    if differing := first.keys() ^ second.keys():
        raise ValueError(f"saliences must cover the same parameters; they differ in {sorted(differing)}")


def parts_of(
    names: Iterable[str], *, whole_last: bool = False, label: Callable[[str], str] = published_label
) -> dict[str, list[str]]:
    """The rows of a table: label -> parameter names, for the whole network and each tensor."""
    tensors, whole = {label(name): [name] for name in names}, {WHOLE: list(names)}
    return tensors | whole if whole_last else whole | tensors


def flat(salience: Salience, names: Iterable[str]) -> Tensor:
    """The signed values of some tensors as one float64 vector."""
    return torch.cat([salience[name].flatten() for name in names]).double().cpu()


def compare_networks(
    images: Tensor,
    labels: Tensor,
    *,
    seeds: Sequence[int],
    inits: Sequence[str],
    num_images: int,
    sparsities: Sequence[float],
    network: Callable[..., nn.Module] = lenet5,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[Salience, Salience]]:
    """SNIP against the exact salience under several seeds and initialisations, both on the same images.

    The first network of the first initialisation gets all images. All other networks get the first ``num_images``.

    Returns:
        The rows of :func:`agreement` and of :func:`overlaps`, each with ``init``, ``seed``, ``images``; and the two saliences
        (exact, SNIP) of the first network.
    """
    networks = [(init, seed) for init in inits for seed in seeds]
    alike, kept, found = [], [], []
    for place, (init, seed) in enumerate(track(networks, "networks")):
        number = min(num_images, len(images)) if place else len(images)
        model = network(init=init, seed=seed)
        exact = exact_salience(model, images[:number], labels[:number])
        linear = snip(model, images[:number], labels[:number])
        found.append((exact, linear))
        facts = {"init": init, "seed": seed, "images": number}
        alike.append(agreement(exact, linear).assign(**facts))
        kept.append(overlaps(exact, linear, sparsities).assign(**facts))
    if not found:
        raise ValueError(f"at least one seed and one initialisation are needed; got {list(seeds)} and {list(inits)}")
    return pd.concat(alike, ignore_index=True), pd.concat(kept, ignore_index=True), found[0]


def under_conditions(networks: Mapping[str, tuple[Ensemble, str]], *, sparsity: float) -> pd.DataFrame:
    """Counts under several conditions (condition -> (ensemble, ranking)), as from ``kept_counts``, with ``condition`` and ``kept_percent``."""
    frames = []
    for condition, (one, ranking) in networks.items():
        counts = kept_counts(one, sparsities=[sparsity], rankings=[ranking])
        percent = 100 * counts["kept"] / counts["parameters"]
        frames.append(counts.assign(condition=condition, kept_percent=percent))
    return pd.concat(frames, ignore_index=True)
