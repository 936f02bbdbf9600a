"""What the tables of notebook 02 say about its claims."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from scipy import stats

from snipnb.publish import comparisons
from snipnb.publish.comparisons import last_rates
from snipnb.publish.evidence.parts import (
    WHOLE,
    Finding,
    best_rates,
    epochs_of,
    finding,
    one_sided,
    power,
    timed,
    value_at,
)


def c1(brute_force: pd.DataFrame) -> Finding:
    total = brute_force.iloc[-1]
    found = {name: float(total[name]) for name in ("largest_error", "spearman")}
    return Finding(found, n=int(total["parameters"]), scope="parameters of LeNet-5")


def c5(exact: pd.DataFrame) -> Finding:
    found = {"cost_in_forward_passes_over_m": exact["engine_in_passes_over_parameters"].iloc[0]}
    return Finding(found, scope=timed(exact.head(1), "this package's engine"))


def c9(snip: pd.DataFrame) -> Finding:
    row = snip.set_index("way").loc["SNIP of every parameter"]
    found = {"cost_in_gradients": tuple(row[["in_gradients", "low95", "high95"]])}
    return finding(found, n=int(row["rounds"]), scope=timed(snip, "this package"))


def c24(agreement: pd.DataFrame, overlaps: pd.DataFrame, *, init: str, least_overlap: float) -> Finding:
    rho = agreement[(agreement["init"] == init) & (agreement["layer"] == WHOLE)]
    kept = overlaps[(overlaps["init"] == init) & (overlaps["layer"] == WHOLE)]
    found = {"smallest_spearman": rho["spearman"].min(), "smallest_overlap": kept["overlap"].min()}
    means = {sparsity: one_sided(own) for sparsity, own in kept.groupby("sparsity")["overlap"]}
    worst = min(means, key=means.__getitem__)
    found |= {"spearman": one_sided(rho["spearman"]), "overlap_at_the_worst": means[worst], "worst_sparsity": worst}
    found["sparsities_inside"] = sum(low >= least_overlap for _, low, _ in means.values())
    found["sparsities_outside"] = sum(high <= least_overlap for _, _, high in means.values())
    return finding(found, n=rho["seed"].nunique(), scope=f"LeNet-5 at its start, {len(means)} sparsities")


def c36(exact: pd.DataFrame, snip: pd.DataFrame) -> Finding:
    seconds, row = value_at(snip, "seconds", way="SNIP of every parameter"), exact.iloc[0]
    directly = tuple(row["parameters"] * row[["pass_seconds", "pass_low95", "pass_high95"]] / seconds)
    found = {"times_snip_directly": directly, "times_snip_by_the_engine": row["engine_seconds"] / seconds}
    return finding(found, scope=timed(exact.head(1), "LeNet-5"))


def c25a(runs: pd.DataFrame, short: pd.DataFrame, *, sparsities: Sequence[float], smallest_margin: float) -> Finding:
    rates = last_rates(runs)
    tests, margin = comparisons.equivalence(rates, sparsities=sparsities, smallest_margin=smallest_margin)
    tests = tests.set_index("criterion")
    snip, random = tests.loc["snip"], tests.loc["random"]
    found = {"equivalence_p": snip["equivalence_p"], "random_equivalence_p": random["equivalence_p"]}
    found |= {"random_excess_low": random["low95"] - margin, "margin": margin}
    pairs = comparisons.differences(rates[rates["sparsity"].isin(sparsities)], reference="exact")
    each = pairs[pairs["criterion"] == "snip"].groupby("seed")["difference"].mean().to_numpy()
    mean, low, high = one_sided(each)
    found |= {"mean_difference": (mean, low, high), "beyond_margin": max(low, -high) - margin} | power(each, margin)
    if len(short) and short["n"].min() > 1:  # few epochs, once there is more than one seed of them
        row = short.set_index("criterion").loc["snip"]
        found |= {f"short_{name}": row[name] for name in ("n", "mean_difference", "equivalence_p")}
    return finding(found, n=int(snip["n"]), scope=f"LeNet-5, {len(sparsities)} sparsities, {epochs_of(runs)}")


def c25b(
    runs: pd.DataFrame, short_runs: pd.DataFrame, published: pd.DataFrame, *, num_scored: int, assay_scored: int
) -> Finding:
    means, outside = published.dropna(subset=["error_percent"]), []
    for own, scored in ((runs, num_scored), (short_runs, assay_scored)):
        own = own[own["criterion"].isin(means["criterion"])]
        placed = comparisons.place_levels(best_rates(own), published, num_scored=scored)
        t = placed["difference"].abs() / (placed["expected_difference"] / 1.96)
        outside.append((2 * stats.t.sf(t, placed["n"] - 1) * len(placed) <= 0.05).sum())  # jointly: Bonferroni
    found = {"means_outside": outside[0], "assay_outside": outside[1], "means": len(means)}
    tried = runs[runs["criterion"].isin(means["criterion"])]
    n = tried.groupby(["criterion", "sparsity"])["init_seed"].nunique().min()
    return Finding(found, n=int(n), scope=f"LeNet-5, {epochs_of(runs)}, best one on the scored images")
