"""What the tables of notebook 05 say about its claims."""

from __future__ import annotations

import pandas as pd

from snipnb.publish import comparisons
from snipnb.publish.comparisons import last_rates
from snipnb.publish.evidence.parts import (
    Finding,
    epochs_of,
    finding,
    mean_of,
    of_seeds,
    one_sided,
    power,
    timed,
)
from snipnb.publish.stats import mean_interval

APPROXIMATE = "approximate diagonal"  # of one backward recursion, as the benchmark names it


def c18(curvature: pd.DataFrame) -> Finding:
    rows = curvature.set_index("way")
    ways = {"cost_in_gradients": "diagonal", "approximate_cost_in_gradients": APPROXIMATE}
    columns = ["in_gradients", "in_gradients_low95", "in_gradients_high95"]
    found = {name: tuple(rows.loc[way, columns]) for name, way in ways.items() if way in rows.index}
    why = "" if len(found) == len(ways) else "no approximate diagonal was timed"
    scope = timed(curvature, "this package's exact diagonal and an approximate one")
    return finding(found, scope=scope, not_fresh=why)


def c19(formulas: pd.DataFrame) -> Finding:
    return Finding({"symbolic_differences": int(not formulas["exact"].iloc[1])}, scope="symbols")


def c20(formulas: pd.DataFrame, orders: pd.DataFrame) -> Finding:
    exactly = formulas.set_index(formulas["formula"].str.split(":").str[0])["exact"]
    rho = mean_of(orders, "spearman")
    found = {f"{name}_symbolic_differences": float(not exactly[name]) for name in ("printed", "corrected")}
    found["corrected_minus_printed_spearman"] = rho["second_order"] - rho["printed_second_order"]
    return Finding(found, scope="symbols; LeNet-5 at its start")


def c21(quadratic_errors: pd.DataFrame) -> Finding:
    error = quadratic_errors.set_index("formula")["largest_error"]
    return Finding({f"{name}_error": error[name] for name in ("printed", "corrected")}, scope="a quadratic loss")


def c22(nested: pd.DataFrame) -> Finding:
    higher = nested[nested["order"] > 2]
    scope = f"orders 3 and 4, {nested['network'].nunique()} piecewise-linear networks"
    return Finding({"largest_error": higher["largest_error"].max()}, scope=scope)


def c28(
    orders: pd.DataFrame, histories: pd.DataFrame, *, sparsity: float, largest_gain: float, fresh_from: int
) -> Finding:
    overlap = mean_of(orders, "overlap")
    rates = last_rates(histories[histories["sparsity"] == sparsity])
    pairs = comparisons.differences(rates[rates["criterion"].isin(["snip", "second_order"])], reference="second_order")
    gains = pairs["difference"].to_numpy()
    found = {"overlap_gain": overlap["second_order"] - overlap["snip"], "error_gain_high": mean_interval(gains)[2]}
    judged = {"gain": one_sided(gains)} | power(gains, largest_gain, sides=1)
    scope = f"LeNet-5, sparsity {sparsity:g}, {epochs_of(histories)}"
    return of_seeds(found | judged, scope, pairs["seed"], fresh_from)
