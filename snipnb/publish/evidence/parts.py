"""What evidence functions return, and helpers that several of them use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from snipnb.publish import comparisons
from snipnb.publish.stats import mean_interval, power_of

ONE_SIDED = 0.90  # level of intervals whose ends are one-sided tests at 5 %
WHOLE = "whole network"
START = "at initialisation"


@dataclass(frozen=True)
class Finding:
    """What rows say about a claim.

    Attributes:
        statistics: Name -> value; they must include every statistic that a rule compares.
        intervals: Name of a statistic -> (low, high), if it has an interval. A rule may name the ends ``<name>_low`` and ``<name>_high``.
        n: Seeds, runs or rounds behind the numbers; None where there is nothing to count.
        scope: What the numbers are about, such as ``"sparsity 0.95, 3 epochs"``.
        not_run: Why no rule can be applied to these rows; empty if one can.
        not_fresh: Why a rule for seeds that nobody had looked at cannot be applied; empty if it can. The rule as registered still can.
    """

    statistics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    n: int | None = None
    scope: str = ""
    not_run: str = ""
    not_fresh: str = ""


Triple = tuple[float, float, float]  # a number and the ends of its interval


def finding(values: Mapping[str, Any], **facts: Any) -> Finding:
    """A finding from numbers, some of them with the ends of their intervals; ``facts`` are other fields of :class:`Finding`."""
    numbers = {name: value[0] if isinstance(value, tuple) else value for name, value in values.items()}
    ends = {name: value[1:] for name, value in values.items() if isinstance(value, tuple)}
    return Finding(numbers, ends, **facts)


def of_seeds(values: Mapping[str, Any], scope: str, seeds: pd.Series, fresh_from: int, *, why: str = "") -> Finding:
    """A finding from networks of some seeds, for a rule that asks for fresh ones; ``why`` is another reason not to apply it."""
    why = why or if_seen(seeds, fresh_from)
    return finding(values, n=seeds.nunique(), scope=f"{scope}, {seeds_of(seeds)}", not_fresh=why)


def one_sided(values: np.ndarray) -> Triple:
    """Mean, and its interval at the level :data:`ONE_SIDED`."""
    return mean_interval(values, level=ONE_SIDED)


def largest(triples: Iterable[Triple]) -> tuple[float, ...]:
    """The largest number, with the largest lower and the largest upper end: an interval for the largest one."""
    return tuple(map(max, zip(*triples, strict=True)))


def smallest(triples: Iterable[Triple]) -> tuple[float, ...]:
    """The smallest number, with the smallest ends."""
    return tuple(map(min, zip(*triples, strict=True)))


def value_at(frame: pd.DataFrame, column: str, **where: object) -> float:
    """The value in the one row of a table where columns have these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    return float(frame[column].item())


def differing(symbolic: pd.DataFrame) -> int:
    """How many identities leave a difference."""
    return int((symbolic["difference"].astype(str) != "0").sum())


def mean_of(orders: pd.DataFrame, measure: str) -> dict[str, float]:
    """Approximation -> its mean agreement with the exact salience, whole network at the start."""
    some = orders[(orders["state"] == START) & (orders["layer"] == WHOLE) & (orders["measure"] == measure)]
    return dict(zip(some["approximation"], some["mean"], strict=True))


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values corrected for their number by Holm's step-down method."""
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(steps, 1)[np.argsort(order)]


def best_rows(errors: pd.DataFrame) -> pd.DataFrame:
    """The rates of the best epoch on the scored images."""
    return errors[errors["way"] == comparisons.BEST]


def best_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Error rates at the best epoch on the scored images, as :func:`snipnb.error_table` has them."""
    best = 100 * runs.groupby(["criterion", "sparsity", "init_seed"], sort=False)["test_error"].min()
    return best.rename("error_percent").reset_index().assign(way=comparisons.BEST)


def power(values: np.ndarray, margin: float, *, sides: int = 2, wanted: float = 0.8) -> dict[str, float]:
    """The power of a test on these differences if the true difference is 0, and the n for which it would be ``wanted``; empty without a spread."""
    if len(values) < 2 or not (spread := values.std(ddof=1)) > 0:
        return {}

    def of(n: int) -> float:
        return power_of(spread / n**0.5, n, margin, sides=sides)

    enough = next((n for n in range(2, 1000) if of(n) >= wanted), np.inf)
    return {"power": of(len(values)), "n_to_decide": enough}


def root_mean_square(values: pd.Series) -> float:
    return float((values**2).mean() ** 0.5)


def epochs_of(runs: pd.DataFrame) -> str:
    return f"{runs['epoch'].max()} epochs"


def seeds_of(seeds: pd.Series) -> str:
    return f"seeds {seeds.min()} to {seeds.max()}"


def if_seen(seeds: pd.Series, fresh_from: int) -> str:
    """Why a rule for seeds that nobody had looked at, from ``fresh_from`` on, cannot be applied; empty if it can."""
    return "" if seeds.min() >= fresh_from else f"its rule asks for seeds from {fresh_from} on"


def timed(benchmark: pd.DataFrame, what: str) -> str:
    """What was timed, over how many images (more than one number, if its ways took different numbers)."""
    return f"{what}, {' and '.join(f'{n:,}' for n in benchmark['images'].unique())} images"
