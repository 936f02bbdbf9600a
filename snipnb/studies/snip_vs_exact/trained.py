"""Do networks trained with these masks differ? Error rates of Figure 1, criterion against criterion, and beside the published curves."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from snipnb.publish.stats import equivalence_test, mean_interval
from snipnb.studies.shared import PUBLISHED_NUM_SCORED, PUBLISHED_RUNS, differences, margin_of
from snipnb.training.scores import LAST, WAYS, error_table


def curves(errors: pd.DataFrame, *, way: str = LAST) -> pd.DataFrame:
    """Mean, smallest and largest error rate of the seeds, per criterion and sparsity.

    Args:
        errors: As from :func:`snipnb.error_table`.
        way: One of the values of ``WAYS``.

    Returns:
        ``criterion``, ``sparsity``, ``n``, ``mean``, ``smallest``, ``largest``; in percent.
    """
    groups = errors[errors["way"] == way].groupby(["criterion", "sparsity"], sort=False)["error_percent"]
    return groups.agg(n="count", mean="mean", smallest="min", largest="max").reset_index()


def equivalence(
    errors: pd.DataFrame,
    *,
    sparsities: Sequence[float],
    smallest_margin: float,
    way: str = LAST,
    reference: str = "exact",
) -> tuple[pd.DataFrame, float]:
    """The test of equivalence of every criterion with the reference.

    **Definition.** Per seed, the mean difference over the sparsities that are judged; two one-sided t tests over seeds; margin the
    larger of the smallest one and a tenth of the reference's mean error rate there.

    Args:
        errors: As from :func:`snipnb.training.scores.error_table`.
        sparsities: Those that are judged.
        smallest_margin: In points.
        way: One of the values of ``WAYS``.
        reference: A criterion.

    Returns:
        One row per criterion: ``criterion``, ``n``, ``mean_difference``, ``low95``, ``high95``, ``equivalence_p``, ``power``; and the
        margin, in points.
    """
    judged = errors[errors["sparsity"].isin(sparsities) & (errors["way"] == way)]
    margin = margin_of(judged, reference=reference, smallest=smallest_margin)
    rows = []
    pairs = differences(judged, way=way, reference=reference)
    for criterion, part in pairs.groupby("criterion", sort=False):
        test = equivalence_test(part.groupby("seed")["difference"].mean().to_numpy(), margin)
        row = {"criterion": criterion, "n": part["seed"].nunique(), "mean_difference": test.mean, "low95": test.low}
        rows.append(row | {"high95": test.high, "equivalence_p": test.p_value, "power": test.power})
    return pd.DataFrame(rows), margin


def short_equivalence(runs: pd.DataFrame, *, sparsities: Sequence[float], smallest_margin: float) -> pd.DataFrame:
    """:func:`equivalence` over runs of a short protocol, at their last epoch: a second row of evidence.

    Args:
        runs: As from :func:`snipnb.run_grid`; may be empty.
        sparsities: Those that are judged.
        smallest_margin: In points.

    Returns:
        As from :func:`equivalence`, with a column ``margin``; without rows if there are no runs.
    """
    if runs.empty:
        columns = ["criterion", "n", "mean_difference", "low95", "high95", "equivalence_p", "power", "margin"]
        return pd.DataFrame(columns=columns)
    tests, margin = equivalence(error_table(runs), sparsities=sparsities, smallest_margin=smallest_margin)
    return tests.assign(margin=margin)


def short_statistics(tests: pd.DataFrame) -> dict[str, float]:
    """The statistics of SNIP that the ledger shows with C25, from :func:`short_equivalence`; empty if fewer than two seeds ran."""
    if len(tests) == 0 or tests["n"].min() < 2:
        return {}
    snip = tests.set_index("criterion").loc["snip"]
    return {
        "short_n": float(snip["n"]),
        "short_mean_difference": float(snip["mean_difference"]),
        "short_equivalence_p": float(snip["equivalence_p"]),
    }


def parting(pairs: pd.DataFrame, margin: float) -> pd.DataFrame:
    """Sparsity by sparsity, where criteria part from the reference; descriptive, no test is corrected for their number.

    Args:
        pairs: As from :func:`differences`.
        margin: In points.

    Returns:
        ``criterion``, ``sparsity``, ``n``, ``mean``, ``low95``, ``high95`` (t interval over seeds), ``apart``: the interval lies beyond the
        margin.
    """
    rows = []
    for (criterion, sparsity), part in pairs.groupby(["criterion", "sparsity"], sort=False):
        mean, low, high = mean_interval(part["difference"].to_numpy())
        row = {"criterion": criterion, "sparsity": sparsity, "n": len(part), "mean": mean, "low95": low, "high95": high}
        rows.append(row | {"apart": bool(low > margin or high < -margin)})
    return pd.DataFrame(rows)


def place_levels(errors: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """Our levels beside the published curves of Figure 1: best epoch against best epoch.

    Returns:
        One row per criterion and sparsity that was published: ``criterion``, ``sparsity``, ``n``, ``mean``, ``reported``, ``difference``, and
        ``expected_difference``: 1.96 standard deviations of the difference between two such means from seeds (as found) and from both sets
        of scored images (binomial); in percent.
    """
    best = errors[errors["way"] == WAYS["best_error_rate"]]
    published = reported.dropna(subset=["error_percent"]).set_index(["criterion", "sparsity"])["error_percent"]
    rows = []
    for (criterion, sparsity), values in best.groupby(["criterion", "sparsity"], sort=False)["error_percent"]:
        if (criterion, sparsity) not in published.index:
            continue
        share = values.mean() / 100
        binomial = 100**2 * share * (1 - share) * (1 / num_scored + 1 / PUBLISHED_NUM_SCORED)
        seeds = values.var(ddof=1) * (1 / len(values) + 1 / PUBLISHED_RUNS) if len(values) > 1 else float("nan")
        there = published[criterion, sparsity]
        row = {"criterion": criterion, "sparsity": sparsity, "n": len(values), "mean": values.mean(), "reported": there}
        row |= {"difference": values.mean() - there, "expected_difference": 1.96 * (binomial + seeds) ** 0.5}
        rows.append(row)
    return pd.DataFrame(rows)
