"""Do networks trained with these masks differ? Error rates of Figure 1, criterion against criterion, and compared with the published curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from snipnb.publish.comparisons import BEST, EQUIVALENCE, LAST, equivalence, interval_of, summarise
from snipnb.publish.comparisons import differences as differences  # notebooks take them from here
from snipnb.publish.comparisons import place_levels as place_levels
from snipnb.training.scores import error_table

FEWEST = 5  # fewest seeds for an interval that says where curves differ


def curves(errors: pd.DataFrame) -> pd.DataFrame:
    """Mean, smallest and largest error rate of the seeds, per criterion and sparsity, at the best epoch (as published) and at the last.

    Args:
        errors: As from :func:`snipnb.error_table`.

    Returns:
        ``way`` (``BEST``, then ``LAST``), ``criterion``, ``sparsity``, ``n``, ``mean``, ``smallest``, ``largest``; in percent.
    """
    ways = [summarise(errors[errors["way"] == way], ["criterion", "sparsity"], "error_percent") for way in (BEST, LAST)]
    return pd.concat([part.assign(way=way) for part, way in zip(ways, (BEST, LAST), strict=True)], ignore_index=True)


def optimism(errors: pd.DataFrame) -> pd.DataFrame:
    """How much lower the best epoch on the scored images is than the last one: mean over seeds, in percentage points.

    Args:
        errors: As from :func:`snipnb.error_table`.

    Returns:
        One row per sparsity: ``sparsity``, and a column for each criterion.
    """
    means = errors.pivot_table(index=["sparsity", "criterion"], columns="way", values="error_percent", sort=False)
    lower = (means[LAST] - means[BEST]).unstack("criterion").sort_index()
    return lower[list(dict.fromkeys(errors["criterion"]))].reset_index().rename_axis(columns=None)


def levels_of_variant(runs: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """:func:`place_levels` for runs whose exact criterion is :data:`~snipnb.CRITERIA`'s ``exact_float32``; without rows if there are no runs."""
    if runs.empty:
        return pd.DataFrame()
    rates = error_table(runs.replace({"criterion": {"exact_float32": "exact"}}))
    return place_levels(rates, reported, num_scored=num_scored)


def variants(levels: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How many published means each way of training explains, and how far off it is.

    Args:
        levels: Name of a variant -> as from :func:`place_levels`, with criteria as they were published. Variants without rows are left out.

    Returns:
        Rows of the first variant at all its means, then of all variants at the means that they have in common: ``variant``, ``n`` (fewest
        seeds), ``means``, ``inside`` (differ by less than expected), ``off`` (mean of the absolute difference), ``higher`` (mean difference);
        in percentage points.
    """
    found = {name: table.set_index(["criterion", "sparsity"]) for name, table in levels.items() if len(table)}
    first = next(iter(found))
    common = found[first].index
    for table in found.values():
        common = common.intersection(table.index)
    shown = [(first, found[first])]
    if len(found) > 1:
        shown += [(f"{name}, means in common", table.loc[common]) for name, table in found.items()]
    rows = []
    for name, table in shown:
        inside = table["difference"].abs() < table["expected_difference"]
        row = {"variant": name, "n": table["n"].min(), "means": len(table), "inside": int(inside.sum())}
        rows.append(row | {"off": table["difference"].abs().mean(), "higher": table["difference"].mean()})
    return pd.DataFrame(rows)


def short_equivalence(runs: pd.DataFrame, *, sparsities: Sequence[float], smallest_margin: float) -> pd.DataFrame:
    """:func:`equivalence` over runs of a short protocol, at their last epoch: a second row of evidence.

    Args:
        runs: As from :func:`snipnb.run_grid`; may be empty.
        sparsities: Sparsities that are judged.
        smallest_margin: In percentage points.

    Returns:
        As from :func:`equivalence`, with a column ``margin``; without rows if there are no runs.
    """
    if runs.empty:
        return pd.DataFrame(columns=[*EQUIVALENCE, "margin"])
    tests, margin = equivalence(error_table(runs), sparsities=sparsities, smallest_margin=smallest_margin)
    return tests.assign(margin=margin)


def parting(pairs: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Where criteria differ from the reference, sparsity by sparsity. Descriptive: nothing is corrected for the number of intervals.

    Args:
        pairs: As from :func:`differences`.
        margin: In percentage points.

    Returns:
        ``criterion``, ``sparsity``, ``n``, ``mean``, ``low95``, ``high95`` (t interval over seeds), ``apart``: the interval lies beyond the
        margin. With fewer than :data:`FEWEST` seeds there is no interval, and ``apart`` is False.
    """
    rows = []
    for (criterion, sparsity), part in pairs.groupby(["criterion", "sparsity"], sort=False):
        found = interval_of(part["difference"].to_numpy())
        if len(part) < FEWEST:
            found |= {"low95": float("nan"), "high95": float("nan")}
        row = {"criterion": criterion, "sparsity": sparsity, "n": len(part)} | found
        rows.append(row | {"apart": bool(found["low95"] > margin or found["high95"] < -margin)})
    return pd.DataFrame(rows)
