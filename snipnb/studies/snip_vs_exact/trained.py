"""Do networks trained with these masks differ? Error rates of Figure 1, criterion against criterion, and compared with the published curves."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from snipnb.publish.comparisons import (
    EQUIVALENCE,
    LAST,
    equivalence,
    interval_of,
    summarise,
)
from snipnb.publish.comparisons import differences as differences  # notebooks take them from here
from snipnb.publish.comparisons import place_levels as place_levels
from snipnb.training.scores import error_table

FEWEST = 5  # fewest seeds for an interval that says where curves differ


def curves(errors: pd.DataFrame, *, way: str = LAST) -> pd.DataFrame:
    """Mean, smallest and largest error rate of the seeds, per criterion and sparsity.

    Args:
        errors: As from :func:`snipnb.error_table`.
        way: ``LAST`` or ``BEST``.

    Returns:
        ``criterion``, ``sparsity``, ``n``, ``mean``, ``smallest``, ``largest``; in percent.
    """
    return summarise(errors[errors["way"] == way], ["criterion", "sparsity"], "error_percent")


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
