"""Intervals and tests, as thin named wrappers over SciPy and NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


def mean_interval(values: np.ndarray, *, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean and its t interval, ``(mean, low, high)``; with fewer than two values the ends are NaN."""
    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = t_quantile(len(values) - 1, level=level) * stats.sem(values)
    return mean, float(mean - half), float(mean + half)


class Equivalence(NamedTuple):
    """Result of a paired equivalence test.

    Attributes:
        mean: Mean difference.
        low: Lower end of its 95 % t interval.
        high: Upper end.
        p_value: The larger p-value of two one-sided t tests; NaN for fewer than two differences.
        power: Chance that the test says equivalent if the true difference is 0 and the spread is as found (approximate: the
            shift takes the spread as known, the quantile is from the t distribution).
    """

    mean: float
    low: float
    high: float
    p_value: float
    power: float


def equivalence_test(differences: np.ndarray, margin: float) -> Equivalence:
    """Whether paired differences are within a margin of 0: two one-sided t tests at 5 % (TOST).

    Args:
        differences: One per pair, [n].
        margin: What counts as no difference, above 0.

    Raises:
        ValueError: If the margin is not above 0.
    """
    differences, error = _paired(differences, margin)
    p_value = max(non_inferiority_test(sign * differences, margin) for sign in (1, -1))
    power = power_of(error, len(differences), margin) if error > 0 else 1 - p_value
    return Equivalence(*mean_interval(differences), p_value, power)


def power_of(error: float, n: int, margin: float, *, sides: int = 2) -> float:
    """Chance that a true difference of 0 is found to be within a margin, by one-sided t tests at 5 % on one or both sides (approximate).

    Args:
        error: Standard error of the mean of n differences, above 0.
        n: Their number, at least 2.
        margin: What counts as no difference.
        sides: 2 for equivalence, 1 for non-inferiority.
    """
    inside = stats.t.cdf(margin / error - stats.t.ppf(0.95, n - 1), n - 1)
    return max(0.0, float(sides * inside - (sides - 1)))


def non_inferiority_test(differences: np.ndarray, margin: float) -> float:
    """P-value of one one-sided t test that the mean of paired differences is below a margin; NaN for fewer than two.

    Args:
        differences: One per pair, [n]; larger is worse.
        margin: How much worse still counts as equally good, above 0.

    Raises:
        ValueError: If the margin is not above 0.
    """
    differences, error = _paired(differences, margin)
    if error == 0:
        return float(differences[0] >= margin)
    return float(stats.t.sf((margin - differences.mean()) / error, len(differences) - 1))


def _paired(differences: np.ndarray, margin: float) -> tuple[np.ndarray, float]:
    """Paired differences as floats, and the standard error of their mean, NaN for fewer than two; the margin is checked."""
    if not margin > 0:
        raise ValueError(f"margin must be above 0; got {margin!r}")
    differences = np.asarray(differences, dtype=float)
    return differences, stats.sem(differences) if len(differences) > 1 else float("nan")


def t_quantile(degrees: float, *, level: float = LEVEL) -> float:
    """Two-sided quantile of Student's t."""
    return float(stats.t.ppf((1 + level) / 2, degrees))


def predictive_mid_p(value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Two-sided mid-p of one more count, given the counts of n seeds: how unusual would ``value`` be as the next one?

    **Definition.** Approximate. Where the standard deviation is at least 1, the t predictive distribution of the next count (mean,
    sd * sqrt(1 + 1/n), n - 1 degrees of freedom), rounded to integers. Otherwise the empirical distribution of the n
    counts and ``value`` together, whose smallest p-value is 1/(n + 1): with fewer than 19 seeds nothing is unusual there. The p-value is twice the
    smaller tail, including half of the probability of equality.

    Args:
        value: The count to place, or several [any shape].
        reference: Counts of the seeds, integers [n], n at least 2.

    Returns:
        Probabilities in (0, 1] in the shape of ``value``; small is unusual.
    """
    value, reference = np.asarray(value), np.asarray(reference, dtype=np.int64)
    below, equal = (compare(reference, value[..., None]).sum(-1) for compare in (np.less, np.equal))
    return _mid_p(value, len(reference), reference.sum(), (reference**2).sum(), below, equal + 1)  # equal to itself


def _mid_p(value, n, total, squares, below, equal):
    """Mid-p of counts, given number, sum and sum of squares of the others, and how many are smaller or equal."""
    variance = (n * squares - total**2) / (n * (n - 1))  # in whole numbers until here, so exact
    scale = np.sqrt(np.maximum(variance, 1) * (1 + 1 / n))
    by_t = sum(stats.t.cdf((value + shift - total / n) / scale, n - 1) for shift in (-0.5, 0.5)) / 2
    lower = np.where(variance >= 1, by_t, (below + 0.5 * equal) / (n + 1))
    return 2 * np.minimum(lower, 1 - lower)


def prediction_interval(reference: np.ndarray, highest: int) -> tuple[int, int]:
    """Smallest and largest count from 0 to ``highest`` that would not be unusual as the next seed's.

    Not unusual: :func:`predictive_mid_p` above 1 - :data:`LEVEL`.
    """
    usual = np.flatnonzero(predictive_mid_p(np.arange(highest + 1), reference) > 1 - LEVEL)
    return int(usual[0]), int(usual[-1])


@dataclass(frozen=True)
class TableFit:
    """How a published table of counts compares with the tables of n seeds; see :func:`table_fit`."""

    cell_p: np.ndarray  # [cells], predictive mid-p of each published count
    outside: int  # published cells outside their 95 % prediction interval
    smallest_p: float
    p_value: float  # share of all n + 1 tables that are at least as extreme as the published one
    seeds_outside: np.ndarray  # [n], the same count for each seed against all other tables


def table_fit(published: np.ndarray, seeds: np.ndarray) -> TableFit:
    """Is a published table of counts one that another seed could have given?

    **Definition.** Each of the n + 1 tables is scored against the n others: the number of cells with predictive mid-p at
    most 1 - :data:`LEVEL`, and the smallest mid-p. Each table's rank among all, in whichever of the two it is more extreme,
    is its extremeness; the p-value is the share of tables at least as extreme as the published one. Under the hypothesis
    that the published table is one more seed, all tables are exchangeable, so the p-value is valid (ties make it conservative).
    A large p-value says that the table cannot be told apart from one more seed's table, not that it is one.

    Args:
        published: Counts [cells].
        seeds: Counts [n, cells], n at least 3.
    """
    tables = np.vstack([np.asarray(published), np.asarray(seeds)]).astype(np.int64)
    total, squares = (values.sum(axis=0) - values for values in (tables, tables**2))  # of all others
    below, equal = (sum(compare(other, tables).astype(int) for other in tables) for compare in (np.less, np.equal))
    cell_p = _mid_p(tables, len(tables) - 1, total, squares, below, equal)
    outside, smallest = (cell_p <= 1 - LEVEL).sum(axis=1), cell_p.min(axis=1)
    by_count = (outside[None, :] >= outside[:, None]).mean(axis=1)
    by_cell = (smallest[None, :] <= smallest[:, None]).mean(axis=1)
    extremeness = np.minimum(by_count, by_cell)
    p_value = float((extremeness <= extremeness[0]).mean())
    return TableFit(cell_p[0], int(outside[0]), float(smallest[0]), p_value, outside[1:])


def overlap(first: dict, second: dict) -> float:
    """Intersection over union of two masks' kept sets; 1 if both keep nothing.

    Raises:
        ValueError: If the masks have different parameters.
    """
    if first.keys() != second.keys():
        raise ValueError(f"the masks have different parameters: {sorted(first.keys() ^ second.keys())}")
    both = sum(int((first[name] & second[name]).sum()) for name in first)
    either = sum(int((first[name] | second[name]).sum()) for name in first)
    return both / either if either else 1.0


def largest_relative_difference(first: np.ndarray, second: np.ndarray) -> float:
    """Largest abs(a - b) / max(abs(a), abs(b)) over all entries; 0 where both are zero."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    size = np.maximum(np.abs(first), np.abs(second))
    return float(np.max(np.abs(first - second) / np.where(size > 0, size, 1)))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; ties get their mean rank. NaN if one of the arrays does not vary."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)
