"""What notebook 02 measures: SNIP against the exact salience, in ranks, sizes and kept sets."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from snipnb._checks import Salience
from snipnb._progress import track
from snipnb.networks import WHOLE
from snipnb.pruning.masks import num_removed
from snipnb.publish.comparisons import spread_of
from snipnb.publish.published import published_label, reported
from snipnb.publish.stats import rank_correlation
from snipnb.saliences import brute_force
from snipnb.saliences.exact import exact_salience
from snipnb.saliences.snip import snip
from snipnb.studies.shared import PER_DECADE, check_same, flat, grid_of, log_bins, overlaps, parts_of, with_chance
from snipnb.studies.shared import compare_networks as compare_networks
from snipnb.training.runs import RunConfig

FIGURE_1 = ("exact", "snip", "random")  # and magnitude, in fewer runs
SHORT = {"split_name": "standard", "epochs": 3, "learning_rate": 0.01, "schedule": "one_cycle"}

SLICES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)  # of the ranking by exact salience, from the bottom


def magnitudes(salience: Salience) -> np.ndarray:
    """All magnitudes as one float64 vector, in the model's order."""
    return flat(salience, salience).abs().numpy()


def against_brute_force(fast: Salience, brute: Salience, chosen: Mapping[str, Tensor]) -> pd.DataFrame:
    """The engine's saliences against brute force on a sample of parameters.

    Args:
        fast: Saliences of all parameters.
        brute: Saliences of the chosen parameters, in the order of their indices.
        chosen: Name -> flat indices.

    Returns:
        One row per tensor and, last, for all: ``layer``, ``parameters``, ``largest_salience`` (by brute force), ``largest_error``
        (relative to the largest salience of all parameters), ``spearman`` (of the magnitudes).
    """
    picked = brute_force.pick(fast, chosen)
    scale = magnitudes(fast).max()
    rows = []
    for label, names in parts_of(chosen, whole_last=True).items():
        one, other = (flat(s, names).numpy() for s in (picked, brute))
        row = {"layer": label, "parameters": len(one), "largest_salience": float(np.abs(other).max())}
        row |= {"largest_error": float(np.abs(one - other).max()) / scale}
        rows.append(row | {"spearman": rank_correlation(np.abs(one), np.abs(other))})
    return pd.DataFrame(rows)


def cost(exact: pd.DataFrame, first_order: pd.DataFrame) -> pd.DataFrame:
    """What ``make bench`` measured, as notebook 02 shows it.

    Args:
        exact: The table ``exact``.
        first_order: The table ``snip``.

    Returns:
        One row per way: ``way``, ``seconds``, ``compared_with``, ``ratio``, ``low95``, ``high95``.
    """
    row, unknown = exact.iloc[0], (np.nan, np.nan)
    naive = f"one pass per parameter ({row['passes']:.0f} measured, the rest extrapolated)"
    loop, count = row["pass_seconds"] * row["parameters"], row["parameters"]
    engine = ("exact_salience, all parameters", row["engine_seconds"])
    slower = (1 / row[f"times_faster{end}"] for end in ("", "_high95", "_low95"))
    rows = [
        (naive, loop, "one forward pass", count, *unknown),
        (*engine, "one forward pass", row["engine_in_passes"], *unknown),
        (*engine, "one pass per parameter", *slower),
    ]
    for _, way in first_order.iterrows():
        rows.append((way["way"], way["seconds"], "one gradient", way["in_gradients"], way["low95"], way["high95"]))
    return pd.DataFrame(rows, columns=["way", "seconds", "compared_with", "ratio", "low95", "high95"])


def over_seeds(frame: pd.DataFrame, columns: Sequence[str], by: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds with its 95 % t interval (from 3 seeds on), smallest and largest, for each of the columns.

    Returns:
        One row per group and column: the columns of ``by``, ``measure``, ``n``, ``mean``, ``low95``, ``high95``, ``smallest``,
        ``largest``.
    """
    rows = []
    for key, group in frame.groupby(list(by), sort=False):
        for column in columns:
            row = dict(zip(by, key, strict=True)) | {"measure": column}
            rows.append(row | spread_of(group[column].to_numpy()))
    return pd.DataFrame(rows)


def density(exact: Salience, first_order: Salience) -> pd.DataFrame:
    """The parameters of each tensor, counted in bins of log axes. Zeros are left out (:func:`snipnb.studies.shared.agreement` counts them).

    Returns:
        One row per tensor and filled bin: ``layer``, ``log10_exact``, ``log10_snip`` (centres of the bin), ``parameters``.
    """
    check_same(exact, first_order)
    frames = []
    for name in exact:
        e, s = (flat(x, [name]).abs().numpy() for x in (exact, first_order))
        both = (e > 0) & (s > 0)
        frames.append(log_bins(exact=e[both], snip=s[both]).assign(layer=published_label(name)))
    return pd.concat(frames, ignore_index=True)[["layer", "log10_exact", "log10_snip", "parameters"]]


def where_they_part(exact: Salience, first_order: Salience) -> pd.DataFrame:
    """How far SNIP is off, by rank of the exact salience.

    **Definition.** The relative difference is abs(exact + SNIP) / abs(exact). It is 0 where the first order is exact.

    Returns:
        One row per slice of the ranking, largest first: ``slice``, ``parameters``, ``median_relative_difference``,
        ``off_by_half_percent`` (share of the slice with a relative difference above 0.5), ``other_sign_percent``.
    """
    check_same(exact, first_order)
    both = pd.DataFrame({"exact": flat(exact, exact).numpy(), "snip": flat(first_order, first_order).numpy()})
    both = both.sort_values("exact", key=np.abs, kind="stable")
    rows = []
    for low, high in itertools.pairwise(SLICES):
        some = both[round(low * len(both)) : round(high * len(both))]
        some = some[some["exact"] != 0]
        relative = (some["exact"] + some["snip"]).abs() / some["exact"].abs()
        start = "top" if high == 1 else f"{100 * (1 - high):.0f} to"
        row = {"slice": f"{start} {100 * (1 - low):.0f} %", "parameters": len(some)}
        row |= {"median_relative_difference": relative.median(), "off_by_half_percent": 100 * (relative > 0.5).mean()}
        rows.append(row | {"other_sign_percent": 100 * (some["exact"] * some["snip"] > 0).mean()})
    return pd.DataFrame(rows[::-1])


def by_batch_size(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    sizes: Sequence[int],
    draws: int,
    sparsity: float,
    whole: tuple[Salience, Salience],
) -> pd.DataFrame:
    """Both saliences on batches of several sizes, against each other and against the exact salience of all images.

    Args:
        sizes: Images per batch. Batches are consecutive and disjoint. Each size gets up to ``draws`` batches, or one batch if it is over 1,000.
        sparsity: Of the kept sets.
        whole: (exact, SNIP) of all images, which are the last size.

    Returns:
        One row per batch and comparison: ``images``, ``draw``, ``comparison``, ``spearman``, ``overlap``.
    """
    rows, count = [], len(images)
    batches = [(n, d) for n in sizes if n < count for d in range(min(draws, count // n) if n <= 1000 else 1)]
    for number, draw in [*track(batches, "batches"), (count, 0)]:
        if number == count:
            exact, linear = whole
        else:
            some = slice(draw * number, (draw + 1) * number)
            exact, linear = exact_salience(model, images[some], labels[some]), snip(model, images[some], labels[some])
        pairs = {
            "SNIP and exact, same batch": (linear, exact),
            "SNIP of a batch and exact of all images": (linear, whole[0]),
            "exact of a batch and exact of all images": (exact, whole[0]),
        }
        for comparison, (one, other) in pairs.items():
            found = {"spearman": rank_correlation(magnitudes(one), magnitudes(other))}
            found["overlap"] = overlaps(one, other, [sparsity])["overlap"].iloc[0]  # of the whole network
            rows.append({"images": number, "draw": draw, "comparison": comparison} | found)
    return pd.DataFrame(rows)


# --- the published way ------------------------------------------------------------------------------------------------


def published_way(
    model: nn.Module, images: Tensor, labels: Tensor, *, per_tensor: int = 0
) -> tuple[dict[str, Salience], float]:
    """Saliences on one mini-batch: differences of two float32 mean losses, as the published code took them, compared with ours.

    Args:
        per_tensor: How many parameters of each tensor; 0 for all.

    Returns:
        ``published`` (differences), ``exact`` (the engine in float64) and ``snip``, each name -> values [parameters]; and the
        distance between neighbouring float32 numbers at the loss.
    """
    most = max(p.numel() for p in model.parameters())
    chosen = brute_force.stratified_sample(model, per_tensor or most)
    double = copy.deepcopy(model).double()
    found = {
        "published": brute_force.float32_differences(model, images, labels, chosen),
        "exact": exact_salience(double, images.double(), labels, parameters=chosen),
        "snip": brute_force.pick(snip(double, images.double(), labels), chosen),
    }
    loss = np.float32(float(brute_force.mean_loss(model, images, labels)))
    return found, float(np.spacing(loss))


def resolution(found: Mapping[str, Salience], step: float) -> pd.DataFrame:
    """What differences of float32 losses can tell apart.

    Returns:
        Two columns, ``quantity`` and ``value``.
    """
    published, exact, linear = (magnitudes(found[key]) for key in ("published", "exact", "snip"))
    facts = {
        "step between float32 numbers at the loss": step,
        "parameters": len(exact),
        "share whose exact salience is below one step": float((exact < step).mean()),
        "share that is zero in the differences": float((published == 0).mean()),
        "share that is zero exactly": float((exact == 0).mean()),
        "distinct magnitudes among the differences": len(np.unique(published)),
        "distinct exact magnitudes": len(np.unique(exact)),
        "rank correlation, differences and exact": rank_correlation(published, exact),
        "rank correlation, SNIP and exact": rank_correlation(linear, exact),
    }
    return pd.DataFrame({"quantity": list(facts), "value": list(facts.values())})


def resolution_density(found: Mapping[str, Salience], step: float) -> pd.DataFrame:
    """Parameters counted by exact salience, where it is not zero, and by difference of float32 losses.

    Returns:
        One row per filled bin: ``log10_exact`` (centre), ``difference`` (in steps, rounded to one digit above 10), ``parameters``.
    """
    published, exact = (magnitudes(found[key]) for key in ("published", "exact"))
    published, exact = published[exact > 0], exact[exact > 0]
    bins = np.floor(np.log10(exact) * PER_DECADE * 2).astype(int)
    steps = np.rint(published / step)
    coarse = 10.0 ** np.floor(np.log10(np.maximum(steps, 1)) - 1).clip(0)
    pairs, counts = np.unique(np.stack([bins, np.rint(steps / coarse) * coarse], 1), axis=0, return_counts=True)
    rows = {"log10_exact": (pairs[:, 0] + 0.5) / PER_DECADE / 2, "difference": pairs[:, 1], "parameters": counts}
    return pd.DataFrame(rows)


def overlap_lines(kept: pd.DataFrame) -> pd.DataFrame:
    """Overlaps as the figure draws them: by initialisation for the whole network, by layer for the first initialisation.

    Returns:
        ``panel``, ``line``, ``sparsity``, ``n``, ``mean``, ``smallest``, ``largest`` (over seeds), ``chance``.
    """
    whole = kept[kept["layer"] == WHOLE].assign(panel="whole network, by initialisation", line=lambda f: f["init"])
    layers = kept[(kept["init"] == kept["init"].iloc[0]) & (kept["layer"] != WHOLE)]
    layers = layers[~layers["layer"].str.startswith("bias")]
    layers = layers.assign(panel=f"weights of each layer, {kept['init'].iloc[0]}", line=lambda f: f["layer"])
    return with_chance(pd.concat([whole, layers]), ["panel", "line", "sparsity"])


def resolution_overlaps(found: Mapping[str, Salience], sparsities: Sequence[float]) -> pd.DataFrame:
    """Kept sets of the differences and of SNIP, each against the exact salience's kept sets, and ties at the threshold.

    Returns:
        One row per sparsity: ``sparsity``, ``published``, ``snip`` (overlaps with exact), ``tied`` (parameters whose difference
        equals the threshold).
    """
    table = pd.DataFrame({"sparsity": list(sparsities)})
    for key in ("published", "snip"):
        table[key] = overlaps(found[key], found["exact"], sparsities).query("layer == @WHOLE")["overlap"].to_numpy()
    values = np.sort(magnitudes(found["published"]))
    thresholds = [values[max(num_removed(len(values), s) - 1, 0)] for s in sparsities]
    return table.assign(tied=[int((values == t).sum()) for t in thresholds])


def grids(parameters: Mapping[str, Any]) -> dict[str, list[RunConfig]]:
    """Training runs of the notebook with these parameters, at Figure 1's twelve sparsities.

    Returns:
        ``figure1``: the three criteria of Figure 1, and weight magnitude for some seeds. ``short``: the same three criteria by the protocol
        of the default profile, as a second row of evidence. ``one_batch``: both saliences as the published code takes them, from one
        mini-batch, the exact salience as a difference of float32 losses; at the five highest sparsities.
    """
    sparsities = sorted(reported("figure1")["sparsity"].unique())
    batch, num_batch = {**parameters, "salience_images": parameters["published_batch"]}, parameters["num_batch_runs"]
    num_magnitude = min(parameters["num_magnitude_runs"], parameters["num_runs"])
    short = {**parameters, **SHORT, "salience_images": 200 if parameters["sample"] else 5000}
    return {
        "figure1": grid_of(parameters, FIGURE_1, sparsities)
        + grid_of(parameters, ["magnitude"], sparsities, num_seeds=num_magnitude),
        "short": grid_of(short, FIGURE_1, sparsities, num_seeds=parameters["num_short_runs"]),
        "one_batch": grid_of(batch, ["exact_float32", "snip"], sparsities[-5:], num_seeds=num_batch),
    }
