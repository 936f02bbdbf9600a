"""How well saliences agree with the exact loss change, estimated from a sample of a network's parameters, because all of them would take too long."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from torch import Tensor, nn

from snipnb._checks import Salience, check_integer, check_tensors, check_type
from snipnb.saliences.brute_force import pick, stratified_sample
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import snip

RESAMPLES = 500
FACTS = ("layer", "index", "weight", "exact")  # columns that are no salience to compare


def sampled_saliences(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    per_tensor: int = 50,
    seed: int = 0,
    others: Mapping[str, Salience] | None = None,
) -> pd.DataFrame:
    """Exact and SNIP saliences of a stratified sample of a network's parameters.

    **Definition.** Up to ``per_tensor`` parameters are drawn from every tensor, and each represents ``weight`` = size / drawn parameters.
    Both saliences are taken in evaluation mode over the same images.

    Args:
        model: Any module that returns logits; unchanged. Give batch norms their statistics before
            (:func:`snipnb.set_running_statistics`).
        images: [n, ...].
        labels: Classes, integers [n].
        per_tensor: Parameters per tensor. The exact salience takes a pass for each of them unless the network is one that
            :func:`snipnb.exact_salience` takes fast.
        seed: Draw of the sample.
        others: Name -> further saliences of the whole network, as loss changes (name -> [shape of the parameter]).

    Returns:
        One row per drawn parameter: ``layer`` (name of its tensor), ``index`` (flat), ``weight``, ``exact``, ``snip`` (the loss change that SNIP
        predicts: its salience with the sign reversed), and a column for each of ``others``.

    Raises:
        ValueError: As from :func:`snipnb.exact_salience`, or if others are not saliences of this model.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> sample = snipnb.sampled_saliences(snipnb.lenet5(), images[:100], labels[:100], per_tensor=6)
        >>> len(sample), round(sample["weight"].sum())
        (60, 61706)
    """
    for name, other in (others or {}).items():
        if name in (*FACTS, "snip"):
            raise ValueError(f"others must not use the names {', '.join((*FACTS, 'snip'))}; got {name!r}")
        check_type(f"salience {name!r}", other, dict)
        check_tensors(f"salience {name!r}", other, model)
    sample = stratified_sample(model, per_tensor, seed=seed)
    exact = exact_salience(model, images, labels, parameters=sample)
    first = pick(snip(model, images, labels, batch_size=min(500, len(images))), sample)
    columns = {"exact": exact, "snip": {name: -s for name, s in first.items()}}
    columns |= {name: pick(other, sample) for name, other in (others or {}).items()}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    frames = []
    for name, index in sample.items():
        values = {column: found[name].double().cpu().numpy() for column, found in columns.items()}
        facts = {"layer": name, "index": index.numpy(), "weight": sizes[name] / len(index)}
        frames.append(pd.DataFrame(facts | values))
    return pd.concat(frames, ignore_index=True)


def agreement(sample: pd.DataFrame, *, resamples: int = RESAMPLES) -> pd.DataFrame:
    """How well saliences agree with the exact one in the whole network, from a sample of :func:`snipnb.sampled_saliences`.

    **Definition.** ``spearman``: rank correlation of the magnitudes, each parameter with its weight. ``median_relative_difference``: weighted median of
    abs(salience - exact) / abs(exact) over parameters whose exact salience is not 0. Intervals: percentiles (95 %) of a bootstrap within tensors; they are a little
    wide where tensors were drawn whole, and NaN where a single parameter stands for a larger tensor, because its spread is then unknown.

    Args:
        sample: ``layer``, ``weight``, ``exact``, and a column per salience.
        resamples: Draws of the bootstrap; 0: no intervals.

    Returns:
        One row per salience: ``salience``, ``spearman``, ``low95``, ``high95``, ``median_relative_difference``, ``drawn``.

    Raises:
        ValueError: If the sample has no such columns, or resamples is not an integer of at least 0.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> sample = snipnb.sampled_saliences(snipnb.lenet5(), images[:100], labels[:100], per_tensor=40)
        >>> bool(snipnb.agreement(sample, resamples=100)["spearman"][0] > 0.9)
        True
    """
    check_integer("resamples", resamples, 0)
    names = [name for name in sample if name not in FACTS]
    if missing := [name for name in ("layer", "weight", "exact") if name not in sample] or ([] if names else ["snip"]):
        raise ValueError(f"the sample has no column {missing[0]!r}; it has {', '.join(map(str, sample))}")
    draw = np.random.default_rng(0)
    groups = list(sample.groupby("layer", sort=False).indices.values())
    if any(len(group) == 1 and sample["weight"].iloc[group[0]] > 1 for group in groups):
        resamples = 0
    rows = []
    for name in names:
        a, e, w = (sample[column].to_numpy() for column in (name, "exact", "weight"))
        again = []
        for _ in range(resamples):
            chosen = np.concatenate([draw.choice(g, len(g)) for g in groups])
            again.append(weighted_spearman(np.abs(a[chosen]), np.abs(e[chosen]), w[chosen]))
        low, high = np.nanpercentile(again, [2.5, 97.5]) if np.isfinite(again).any() else (np.nan, np.nan)
        row = {"salience": name, "spearman": weighted_spearman(np.abs(a), np.abs(e), w), "low95": low, "high95": high}
        middle = _weighted_median(relative_differences(a, e), w[e != 0])
        rows.append(row | {"median_relative_difference": middle, "drawn": len(sample)})
    return pd.DataFrame(rows)


def weighted_spearman(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    """Spearman correlation of a population in which each point represents ``weight`` members. Ties get mean ranks; NaN if a variable is constant."""
    ranks = [_weighted_ranks(np.asarray(x, dtype=float), weight) for x in (a, b)]
    x, y = (r - np.average(r, weights=weight) for r in ranks)
    spread = np.average(x * x, weights=weight) * np.average(y * y, weights=weight)
    return float(np.average(x * y, weights=weight) / spread**0.5) if spread > 0 else float("nan")


def _weighted_ranks(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    found, place = np.unique(values, return_inverse=True)
    mass = np.bincount(place, weights=weight, minlength=len(found))
    return (np.cumsum(mass) - mass / 2)[place]


def relative_differences(salience: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Differences relative to the exact saliences, where the exact saliences are not 0."""
    some = exact != 0
    return np.abs(salience[some] - exact[some]) / np.abs(exact[some])


def _weighted_median(values: np.ndarray, weight: np.ndarray) -> float:
    if len(values) == 0:
        return float("nan")
    order = np.argsort(values, kind="stable")
    half = np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)
    return float(values[order][min(half, len(values) - 1)])
