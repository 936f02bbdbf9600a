"""What the tables of notebook 06 say about its claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from snipnb.publish import comparisons
from snipnb.publish.comparisons import last_rates
from snipnb.publish.evidence.parts import (
    ONE_SIDED,
    START,
    WHOLE,
    Finding,
    epochs_of,
    finding,
    if_seen,
    largest,
    of_seeds,
    one_sided,
    power,
    root_mean_square,
    seeds_of,
    smallest,
)

RULES = {"uniform": "uniform", "erk": "erdos_renyi_kernel"}  # name in statistics -> rule for densities


def c2(histories: pd.DataFrame, *, sparsity: float, half: float, margin: float, fresh_from: int) -> Finding:
    rates = last_rates(histories)
    here = rates[rates["sparsity"] == sparsity]
    found: dict[str, Any] = {
        f"{name}_minus_snip": comparisons.paired(here, f"snip_{name}", "snip") for name in ("inverted", "shuffled")
    }
    wide = rates[rates["criterion"] == "snip"].pivot(index="seed", columns="sparsity", values="error_percent")
    if not {0.0, half} <= set(wide.columns):
        return finding(found, n=len(wide), not_fresh="no dense networks beside those pruned by half")
    each = (wide[half] - wide[0.0]).dropna()
    found |= {"pruned_minus_dense": one_sided(each)} | power(each, margin)
    return of_seeds(found, f"LeNet-5, sparsity {half:g}, {epochs_of(histories)}", each.index, fresh_from)


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


def c13(
    histories: pd.DataFrame, *, sparsities: Sequence[float], allowed: float, least_epochs: int, fresh_from: int
) -> Finding:
    if histories.empty:
        return Finding({}, not_run="no optimisers were trained")
    dense = histories[histories["name"].str.endswith("|dense")]
    old = comparisons.excess(dense, sparsities=sparsities, allowed=allowed)
    last = dense[(dense["epoch"] == dense["epoch"].max()) & dense["sparsity"].isin(sparsities)]
    errors = (100 * last["test_error"]).groupby([last["name"], last["sparsity"]])
    ratios = comparisons.recipe_ratios(histories, level=ONE_SIDED)
    found = {"excess_increase": old, "largest_error": largest(one_sided(own) for _, own in errors)}
    for name, column in (("largest_factor_over_best", "over_best"), ("largest_factor_unadjusted", "unadjusted")):
        found[name] = largest(ratios[[column, f"{column}_low", f"{column}_high"]].itertuples(index=False, name=None))
    why = f"its rule asks for {least_epochs} epochs" if histories["epoch"].max() < least_epochs else ""
    scope = f"LeNet-5, {ratios['name'].nunique()} recipes, {epochs_of(histories)}"
    return of_seeds(found, scope, histories["init_seed"], fresh_from, why=why)


def c29(histories: pd.DataFrame, *, sparsity: float, fresh_from: int) -> Finding:
    rates = comparisons.draws_together(last_rates(histories[histories["sparsity"] == sparsity]))
    found = {f"minus_{name}": comparisons.paired(rates, "snip_densities", rule) for name, rule in RULES.items()}
    why = "" if (rates["criterion"] == "perturbed").any() else "no perturbed densities were trained"
    for name, rule in ({} if why else {**RULES, "perturbed": "perturbed"}).items():
        found[f"{name}_costs"] = comparisons.paired(rates, rule, "snip_densities", level=ONE_SIDED)
    seeds = rates.loc[rates["criterion"] == "uniform", "seed"]
    return of_seeds(found, f"LeNet-5, sparsity {sparsity:g}, {epochs_of(histories)}", seeds, fresh_from, why=why)


def c30(
    removal: pd.DataFrame, by_layer: pd.DataFrame, agreement: pd.DataFrame, *, named_from: float, fresh_from: int
) -> Finding:
    half = removal[(removal["ranking"] == "snip") & (removal["sparsity"] == 0.5)]
    rho, own = agreement[agreement["ranking"] == "snip"], by_layer[by_layer["ranking"] == "snip"]
    share = own.groupby("layer", sort=False)["named_percent"].mean()
    named, others = share[share >= named_from].index, share[share < named_from].index
    costs = {layer: one_sided(increase) for layer, increase in own.groupby("layer", sort=False)["increase"]}
    weights = rho[rho["layer"].isin(share.index)].groupby("layer")["spearman"]
    found = {
        "error_increase": half["increase"].mean(),
        "spearman": rho.loc[rho["layer"] == WHOLE, "spearman"].mean(),
        "largest_cost_of_named": largest(costs[layer] for layer in named) if len(named) else (np.nan,) * 3,
        "smallest_cost_of_others": min((costs[layer][0] for layer in others), default=np.nan),
        "smallest_spearman_by_layer": smallest(one_sided(spearman) for _, spearman in weights),
    }
    names = ", ".join(layer.removesuffix(".weight") for layer in named) or "none"
    scope = f"LeNet-5 after training; layers named: {names}; {seeds_of(half['seed'])}"
    why = if_seen(half["seed"], fresh_from) if len(named) else "SNIP names no layer"
    return finding(found, n=len(half), scope=scope, not_fresh=why)


def c35(histories: pd.DataFrame, *, sparsity: float, also: float, smallest_margin: float, fresh_from: int) -> Finding:
    compared, pairs = comparisons.against_snip(histories, smallest_margin=smallest_margin)
    compared, found = compared.set_index(["sparsity", "criterion"]), {}
    for at, name in ((sparsity, ""), (also, f"_at_{also:g}")):
        here = compared.loc[at].loc[["snip_densities", "closed_form"]]
        for rule, row in here.iterrows():
            found[f"{rule}_minus_snip{name}"] = tuple(row[["mean", "low95", "high95"]])
        p_values, margins = here["non_inferiority_p"], here["margin"]
        found |= {f"margin{name}": margins.iloc[0], f"smallest_p{name}": p_values.min()}
        found[f"all_worse_by{name}"] = (here["low95"] - margins).min()  # one-sided 2.5 %, as two rules are tried
        if not name:
            found |= {"non_inferiority_p": p_values["closed_form"], "snip_densities_p": p_values["snip_densities"]}
    seeds = pairs.loc[pairs["criterion"] == "closed_form", "seed"]
    scope = f"LeNet-5, sparsity {sparsity:g} (and {also:g}), {epochs_of(histories)}"
    return of_seeds(found, scope, seeds, fresh_from)
