"""What the tables of notebook 06 say about its claims."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from snipnb.publish import comparisons
from snipnb.publish.evidence.parts import (
    START,
    WHOLE,
    Finding,
    epochs_of,
    last_rates,
    of_pairs,
    paired,
    root_mean_square,
    value_at,
)
from snipnb.publish.stats import mean_interval, non_inferiority_test


def c2(histories: pd.DataFrame, *, sparsity: float) -> Finding:
    pairs = {
        f"{name}_minus_snip": paired(histories, f"snip_{name}", "snip", sparsity=sparsity)
        for name in ("inverted", "shuffled")
    }
    return of_pairs(histories, pairs, sparsity)


def c3(greedy: pd.DataFrame) -> Finding:
    best = greedy[greedy["ranking"] == "exact"].groupby("seed")["is_best"].all()
    return Finding({"seeds_where_greedy_fails": 1 - best.mean()}, n=len(best), scope="toy networks of 16 parameters")


def c4(joint: pd.DataFrame, *, sparsities: Sequence[float]) -> Finding:
    some = joint[(joint["state"] == START) & (joint["criterion"] == "snip") & joint["sparsity"].isin(sparsities)]
    if some["ratio"].isna().any() or set(some["sparsity"]) != set(sparsities):
        raise ValueError(f"ratios are needed at sparsities {list(sparsities)}; some are missing")
    distance = (some["ratio"] - 1).abs().groupby(some["sparsity"]).max()
    found = {"smallest_distance_from_one": distance.min(), "largest_distance_from_one": distance.max()}
    misses = {}
    for sparsity, own in some.groupby("sparsity"):
        miss = own["joint"] - own["sum_of_single"]
        misses[sparsity] = root_mean_square(miss) / root_mean_square(own["joint"])
        found[f"correlation_at_{sparsity:g}"] = own["joint"].corr(own["sum_of_single"])
    found |= {"smallest_relative_miss": min(misses.values()), "largest_relative_miss": max(misses.values())}
    return Finding(found, n=some["seed"].nunique(), scope=f"LeNet-5 at its start, {len(misses)} sparsities")


def c13(increases: pd.DataFrame, histories: pd.DataFrame, *, sparsities: Sequence[float], allowed: float) -> Finding:
    table = comparisons.excess(increases[increases["sparsity"].isin(sparsities)], allowed=allowed)
    scope = f"{increases['name'].nunique()} recipes, {epochs_of(histories)}"
    return Finding({"excess_increase": table["excess"].max()}, n=histories["init_seed"].nunique(), scope=scope)


def c29(histories: pd.DataFrame, *, sparsity: float) -> Finding:
    pairs = {
        f"minus_{name}": paired(histories, "snip_densities", criterion, sparsity=sparsity)
        for name, criterion in (("uniform", "uniform"), ("erk", "erdos_renyi_kernel"))
    }
    return of_pairs(histories, pairs, sparsity)


def c30(removal: pd.DataFrame, agreement: pd.DataFrame) -> Finding:
    half = removal[(removal["ranking"] == "snip") & (removal["sparsity"] == 0.5)]
    rho = value_at(agreement, "spearman", ranking="snip", layer=WHOLE)
    found = {"spearman": rho, "error_increase": half["increase"].mean()}
    return Finding(found, n=len(half), scope="trained LeNet-5, half removed, not retrained")


def c35(histories: pd.DataFrame, *, sparsity: float, smallest_margin: float) -> Finding:
    here = last_rates(histories[histories["sparsity"] == sparsity])
    margin = comparisons.margin_of(here, reference="snip", smallest=smallest_margin)
    pairs = comparisons.differences(here, reference="snip")
    values = pairs.loc[pairs["criterion"] == "closed_form", "difference"].to_numpy()
    mean, low, high = mean_interval(values)
    found = {"non_inferiority_p": non_inferiority_test(values, margin), "closed_form_minus_snip": mean}
    scope = f"LeNet-5, sparsity {sparsity:g}, {epochs_of(histories)}"
    return Finding(found | {"margin": margin}, {"closed_form_minus_snip": (low, high)}, n=len(values), scope=scope)
