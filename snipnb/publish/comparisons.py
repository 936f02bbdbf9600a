"""Comparisons of error rates and counts, from tables alone, which measurements, drawings and verdicts share. No network, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from snipnb.publish.stats import LEVEL, equivalence_test, mean_interval, non_inferiority_test, t_quantile

LAST, BEST = "last epoch", "best epoch on scored images"  # ways of stating an error rate, as training.scores names them
PUBLISHED_NUM_SCORED = 10_500  # 15 % of MNIST's 70,000 images
PUBLISHED_RUNS = 10  # behind each point of Figure 1
RESAMPLES = 2000
# Columns of :func:`equivalence`.
EQUIVALENCE = ["criterion", "n", "mean_difference", "low95", "high95", "equivalence_p", "power"]


def interval_of(values: np.ndarray, *names: str) -> dict[str, float]:
    """The mean and its 95 % t interval, under three names; default ``mean``, ``low95``, ``high95``."""
    return dict(zip(names or ("mean", "low95", "high95"), mean_interval(values), strict=True))


def spread_of(values: np.ndarray) -> dict[str, float]:
    """For values, one per seed: ``n``, the mean with its 95 % t interval (from 3 seeds on), ``smallest``, ``largest``."""
    found = interval_of(values) if len(values) >= 3 else {"mean": values.mean(), "low95": np.nan, "high95": np.nan}
    return {"n": len(values), **found, "smallest": values.min(), "largest": values.max()}


def summarise(frame: pd.DataFrame, by: Sequence[str], value: str = "increase") -> pd.DataFrame:
    """Over networks: ``by``, ``n``, ``mean``, ``smallest``, ``largest`` of a column."""
    groups = frame.groupby(list(by), sort=False)[value]
    return groups.agg(n="size", mean="mean", smallest="min", largest="max").reset_index()


def last_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Error rates at the last epoch, as :func:`snipnb.error_table` has them; all runs must have the same number of epochs."""
    last = runs[runs["epoch"] == runs["epoch"].max()]
    rates = {"seed": last["init_seed"], "way": LAST, "error_percent": 100 * last["test_error"]}
    return last[["criterion", "sparsity"]].assign(**rates)


def differences(errors: pd.DataFrame, *, way: str = LAST, reference: str = "exact") -> pd.DataFrame:
    """Error rate minus the error rate of the reference criterion, pair by pair: same initial weights, same image order.

    Returns:
        ``criterion``, ``sparsity``, ``seed``, ``difference`` in percentage points; one row per pair.

    Raises:
        ValueError: If a run has no partner.
    """
    one, pair = errors[errors["way"] == way], ["sparsity", "seed"]
    partners = one[one["criterion"] == reference].set_index(pair)["error_percent"].rename("of_partner")
    found = one[one["criterion"] != reference].join(partners, on=pair, validate="m:1")
    if found["of_partner"].isna().any():
        raise ValueError(
            f"every run needs a run of criterion {reference!r} with the same seed and sparsity; some have none"
        )
    found["difference"] = found["error_percent"] - found["of_partner"]
    return found[["criterion", *pair, "difference"]].reset_index(drop=True)


def paired(
    errors: pd.DataFrame, first: str, second: str, *, way: str = LAST, level: float = LEVEL
) -> tuple[float, float, float]:
    """Mean difference in error rate, first criterion minus second, over the seeds that both have, and its t interval, in percentage points.

    Args:
        errors: As from :func:`snipnb.error_table`, at one sparsity.
        first: A criterion.
        second: Another criterion.
        way: ``LAST`` or ``BEST``.
        level: Level of the interval.
    """
    wide = errors[errors["way"] == way].pivot(index="seed", columns="criterion", values="error_percent")
    return mean_interval((wide[first] - wide[second]).dropna().to_numpy(), level=level)


def margin_of(errors: pd.DataFrame, *, reference: str, smallest: float) -> float:
    """The margin, in percentage points: a tenth of the reference criterion's mean error rate, at least ``smallest``."""
    return max(smallest, float(errors.loc[errors["criterion"] == reference, "error_percent"].mean()) / 10)


def against_snip(runs: pd.DataFrame, *, smallest_margin: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every criterion against SNIP, pair by pair: same initial weights, same image order.

    **Definition.** ``difference``: error rate at the last epoch minus SNIP's, in percentage points. ``outcome``, from 95 % t intervals and one-sided tests
    at 5 %: *as good* if equivalent within the margin, *better* or *worse* if the interval lies beyond 0 and it is not
    equivalent, *no worse* if only the non-inferiority test holds, else *undecided*.

    Args:
        runs: As from :func:`snipnb.run_grid`, with the criterion ``snip``. The criteria ``perturbed_1``, ``perturbed_2`` and so on of a seed
            count as one criterion, ``perturbed``, with their mean error rate.
        smallest_margin: In percentage points. The margin is a tenth of SNIP's mean error rate, and at least this.

    Returns:
        One row per criterion and sparsity: ``criterion``, ``sparsity``, ``n``, ``error_percent``, ``mean``, ``low95``, ``high95`` (of the
        difference), ``margin``, ``equivalence_p``, ``non_inferiority_p``, ``outcome``, ``collapsed`` (runs with a layer of which nothing is
        kept); and one row per pair: ``criterion``, ``sparsity``, ``seed``, ``difference``.
    """
    rates = draws_together(last_rates(runs))
    pairs = differences(rates, reference="snip")
    cut = _draws_named(runs[runs["collapsed"] > 0]).groupby(["criterion", "sparsity"])["init_seed"].nunique()
    rows = []
    for (criterion, sparsity), part in pairs.groupby(["criterion", "sparsity"], sort=False):
        values, here = part["difference"].to_numpy(), rates[rates["sparsity"] == sparsity]
        margin = margin_of(here, reference="snip", smallest=smallest_margin)
        test, below = equivalence_test(values, margin), non_inferiority_test(values, margin)
        error = float(here.loc[here["criterion"] == criterion, "error_percent"].mean())
        row = {"criterion": criterion, "sparsity": sparsity, "n": len(values), "error_percent": error}
        row |= interval_of(values) | {"margin": margin}
        row |= {"equivalence_p": test.p_value, "non_inferiority_p": below}
        row["outcome"] = _outcome(test.low, test.high, test.p_value, below)
        rows.append(row | {"collapsed": int(cut.get((criterion, sparsity), 0))})
    return pd.DataFrame(rows), pairs


def _outcome(low: float, high: float, equivalence_p: float, non_inferiority_p: float) -> str:
    if equivalence_p <= 0.05:
        return "as good"
    if high < 0:
        return "better"
    if low > 0:
        return "worse"
    return "no worse" if non_inferiority_p <= 0.05 else "undecided"


def equivalence(
    errors: pd.DataFrame, *, sparsities: Sequence[float], smallest_margin: float
) -> tuple[pd.DataFrame, float]:
    """Test whether each criterion is equivalent to exact salience, at the last epoch.

    **Definition.** For each seed, the mean difference over the judged sparsities; over seeds, two one-sided t tests. The margin is the
    larger of ``smallest_margin`` and a tenth of exact salience's mean error rate at these sparsities.

    Args:
        errors: As from :func:`snipnb.error_table`.
        sparsities: The judged sparsities.
        smallest_margin: In percentage points.

    Returns:
        One row per criterion: ``criterion``, ``n``, ``mean_difference``, ``low95``, ``high95``, ``equivalence_p``, ``power``; and the
        margin, in percentage points.
    """
    judged = errors[errors["sparsity"].isin(sparsities) & (errors["way"] == LAST)]
    margin = margin_of(judged, reference="exact", smallest=smallest_margin)
    rows = []
    for criterion, part in differences(judged).groupby("criterion", sort=False):
        test = equivalence_test(part.groupby("seed")["difference"].mean().to_numpy(), margin)
        rows.append((criterion, part["seed"].nunique(), *test))
    return pd.DataFrame(rows, columns=EQUIVALENCE), margin


def excess(runs: pd.DataFrame, *, sparsities: Sequence[float], allowed: float) -> float:
    """The largest increase of the error rate by pruning, minus twice the increase under the best optimiser and minus ``allowed``.

    **Definition.** Increases are means over seeds, last epoch, compared with an optimiser's own dense networks. The best optimiser has the
    smallest mean error rate at the sparsity. Of the differences at all sparsities, the largest.

    Args:
        runs: As from :func:`snipnb.run_grid`, named by optimisers, including sparsity 0.
        sparsities: Where to compare.
        allowed: In percentage points.
    """
    wide = _last_percent(runs)
    increase = wide.sub(wide[0.0], axis=0).groupby("name").mean()
    best = wide.groupby("name").mean().idxmin()
    return max(float(increase[s].max() - 2 * increase.at[best[s], s]) - allowed for s in sparsities)


def draws_together(errors: pd.DataFrame) -> pd.DataFrame:
    """Error rates with the criteria ``perturbed_1``, ``perturbed_2`` and so on of a seed replaced by their mean, ``perturbed``."""
    keys = ["criterion", "sparsity", "seed", "way"]
    return _draws_named(errors).groupby(keys, sort=False)["error_percent"].mean().reset_index()


def _draws_named(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(criterion=rows["criterion"].str.replace(r"^perturbed_\d+$", "perturbed", regex=True))


def recipe_ratios(runs: pd.DataFrame, *, level: float = LEVEL) -> pd.DataFrame:
    """The factor by which pruning changes the error rate under each optimiser, also compared with the best optimiser's factor.

    **Definition.** Factors are geometric means over seeds, with the intervals of mean logarithms. ``factor``: error rate of pruned networks over
    error rate of dense networks, each with the learning rate chosen for its own kind. ``over_best``: the factor over the factor of the optimiser
    with the smallest error rate of pruned networks at that sparsity. ``unadjusted``: error rate of pruned networks with the learning rate chosen
    for dense networks, over their error rate with their own learning rate.

    Args:
        runs: As from :func:`snipnb.run_grid`, named ``"<optimiser>|dense"`` (including sparsity 0) and ``"<optimiser>|pruned"``.
        level: Level of the intervals.

    Returns:
        One row per optimiser and sparsity: ``name``, ``sparsity``, ``n``, ``dense_percent``, ``unadjusted_percent``, ``adjusted_percent`` (means,
        last epoch), and ``factor``, ``over_best``, ``unadjusted``, each with ``_low`` and ``_high``. Empty if there are no runs.
    """
    columns = ["name", "sparsity", "n", "dense_percent", "unadjusted_percent", "adjusted_percent"]
    columns += [f"{what}{end}" for what in ("factor", "over_best", "unadjusted") for end in ("", "_low", "_high")]
    if runs.empty:
        return pd.DataFrame(columns=columns)
    wide, rows = _last_percent(runs), []
    names = list(dict.fromkeys(runs["name"].str.split("|").str[0]))
    for sparsity in [s for s in wide.columns if s > 0]:
        means = {name: wide.loc[f"{name}|pruned"][sparsity].mean() for name in names}
        best = _log_factors(wide, min(means, key=means.__getitem__), sparsity)
        for name in names:
            dense, own = wide.loc[f"{name}|dense"], wide.loc[f"{name}|pruned"][sparsity]
            logs = _log_factors(wide, name, sparsity)
            unadjusted = np.log((dense[sparsity] / own).to_numpy(float))
            row = {"name": name, "sparsity": sparsity, "n": len(own), "dense_percent": dense[0.0].mean()}
            row |= {"unadjusted_percent": dense[sparsity].mean(), "adjusted_percent": own.mean()}
            for column, values in (("factor", logs), ("over_best", logs - best), ("unadjusted", unadjusted)):
                found = np.exp(mean_interval(values, level=level))
                row |= dict(zip((column, f"{column}_low", f"{column}_high"), found, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)[columns]


def _log_factors(wide: pd.DataFrame, name: str, sparsity: float) -> np.ndarray:
    """Logarithm of pruned over dense error rate, seed by seed."""
    return np.log((wide.loc[f"{name}|pruned"][sparsity] / wide.loc[f"{name}|dense"][0.0]).to_numpy(float))


def _last_percent(runs: pd.DataFrame) -> pd.DataFrame:
    """Error rates of named runs at the last epoch, in percent: a row per name and seed, a column per sparsity."""
    last = runs[runs["epoch"] == runs["epoch"].max()]
    return 100 * last.pivot(index=["name", "init_seed"], columns="sparsity", values="test_error")


def slopes_by_seed(swept: pd.DataFrame) -> pd.DataFrame:
    """Slope of the Spearman correlation on the number of layers, or on doublings of the width if all networks have the same number of layers.

    Args:
        swept: ``family``, ``value``, ``layers``, ``seed``, ``spearman``.

    Returns:
        One row per family and seed: ``family``, ``per`` (layer, doubling of width), ``seed``, ``slope`` of the least-squares line (NaN for a single value).
    """
    rows = []
    for family, part in swept.groupby("family", sort=False):
        wide = part["layers"].nunique() == 1 < part["value"].nunique()
        x = np.log2(part["value"].astype(float)) if wide else part["layers"].astype(float)
        for seed, own in part.groupby("seed"):
            slope = stats.linregress(x[own.index], own["spearman"]).slope if x.nunique() > 1 else np.nan
            per = "doubling of width" if wide else "layer"
            rows.append({"family": family, "per": per, "seed": seed, "slope": float(slope)})
    return pd.DataFrame(rows)


def binomial_variance(percent: float, num_scored: int) -> float:
    """Variance of the difference of two error rates, one on ``num_scored`` images, one on the published number, in points squared."""
    share = percent / 100
    return 100**2 * share * (1 - share) * (1 / num_scored + 1 / PUBLISHED_NUM_SCORED)


def place_errors(errors: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """Compare each published error rate with the prediction interval of one more run's best epoch.

    **Definition.** Mean of the runs plus or minus the t quantile times the root of s^2 (1 + 1/n) plus the binomial variance
    of both sets of scored images, ours and the published set; degrees of freedom by Welch and Satterthwaite, since the
    binomial part is known; level 1 - 0.05/k for k rates, so that all hold jointly with 95 %. Conservative: s^2 already
    contains part of the variance from the choice of images.

    Args:
        errors: As from :func:`snipnb.error_table`, at least two runs per sparsity.
        reported: ``sparsity``, ``error_percent``.
        num_scored: Images that our runs were scored on.

    Returns:
        One row per sparsity: ``sparsity``, ``n``, ``mean``, ``low``, ``high``, ``reported``, ``inside``; in percent.

    Raises:
        ValueError: If there are fewer than two runs of a sparsity.
    """
    best = errors[errors["way"] == BEST]
    rows = []
    for sparsity, published in zip(reported["sparsity"], reported["error_percent"], strict=True):
        values = best.loc[best["sparsity"] == sparsity, "error_percent"].to_numpy()
        n = len(values)
        if n < 2:
            raise ValueError(f"an interval for one more run needs at least 2 runs; got {n} at sparsity {sparsity:g}")
        binomial = binomial_variance(values.mean(), num_scored)
        spread = values.var(ddof=1) * (1 + 1 / n)
        degrees = (n - 1) * ((spread + binomial) / spread) ** 2 if spread > 0 else 1e9
        half = t_quantile(degrees, level=1 - 0.05 / len(reported)) * (spread + binomial) ** 0.5
        low, high = values.mean() - half, values.mean() + half
        row = {"sparsity": sparsity, "n": n, "mean": values.mean(), "low": low, "high": high, "reported": published}
        rows.append(row | {"inside": bool(low <= published <= high)})
    return pd.DataFrame(rows)


def variance_split(counts: pd.DataFrame, *, by: Sequence[str], level: float = LEVEL) -> pd.DataFrame:
    """How much of the variance of kept fractions lies between parameter tensors, and how much between seeds.

    **Definition.** With f[s, l] the kept fraction of tensor l under seed s: the sum of squares of the tensors' means about the
    grand mean, over the sum of squares of all f about the grand mean. Tensors count equally, whatever their size. The interval
    is a bootstrap over seeds (percentiles of 2,000 resamples, seed 0).

    Args:
        counts: As from :func:`snipnb.studies.shared.kept_counts`, with the columns ``by``.
        by: Columns that tell the conditions apart.
        level: Level of the interval.

    Returns:
        One row per condition: ``by``, ``n`` (seeds), ``share``, ``low``, ``high``.
    """
    rows = []
    for condition, part in counts.groupby(list(by), sort=False):
        fractions = part.assign(fraction=part["kept"] / part["parameters"])
        values = fractions.pivot(index="seed", columns="layer", values="fraction").to_numpy()
        draw = np.random.RandomState(0).randint(len(values), size=(RESAMPLES, len(values)))
        low, high = np.quantile(_share(values[draw]), [(1 - level) / 2, (1 + level) / 2])
        row = {"n": len(values), "share": float(_share(values)), "low": low, "high": high}
        rows.append(dict(zip(by, condition, strict=True)) | row)
    return pd.DataFrame(rows)


def _share(values: np.ndarray) -> np.ndarray:
    """[..., seeds, tensors] -> share of the variance between tensors."""
    grand = values.mean((-2, -1), keepdims=True)
    total = ((values - grand) ** 2).sum((-2, -1))
    between = values.shape[-2] * ((values.mean(-2, keepdims=True) - grand) ** 2).sum((-2, -1))
    return between / np.where(total > 0, total, 1)


def share_by_chance(counts: pd.DataFrame) -> float:
    """The most that :func:`variance_split` could find: the share between layers if each had one keep rate with only binomial noise.

    Args:
        counts: Counts of one condition.
    """
    layers = counts.groupby("layer")[["kept", "parameters"]].sum()
    rate, size = layers["kept"] / layers["parameters"], counts.groupby("layer")["parameters"].first()
    between = float(rate.var(ddof=0))
    return between / (between + float((rate * (1 - rate) / size).mean()))


def place_levels(errors: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """Compare our levels with the published curves of Figure 1, both at the best epoch.

    Returns:
        One row per criterion and sparsity that was published: ``criterion``, ``sparsity``, ``n``, ``mean``, ``reported``, ``difference``, and
        ``expected_difference``: 1.96 standard deviations of the difference between two such means, due to seeds (as found) and to both sets
        of scored images (binomial); in percent.
    """
    best = errors[errors["way"] == BEST]
    published = reported.dropna(subset=["error_percent"]).set_index(["criterion", "sparsity"])["error_percent"]
    rows = []
    for (criterion, sparsity), values in best.groupby(["criterion", "sparsity"], sort=False)["error_percent"]:
        if (criterion, sparsity) not in published.index:
            continue
        binomial = binomial_variance(values.mean(), num_scored)
        seeds = values.var(ddof=1) * (1 / len(values) + 1 / PUBLISHED_RUNS) if len(values) > 1 else float("nan")
        there = published[criterion, sparsity]
        row = {"criterion": criterion, "sparsity": sparsity, "n": len(values), "mean": values.mean(), "reported": there}
        row |= {"difference": values.mean() - there, "expected_difference": 1.96 * (binomial + seeds) ** 0.5}
        rows.append(row)
    return pd.DataFrame(rows)


def right_side(attributed: pd.DataFrame) -> float:
    """Share of seeds attributed to an initialisation of the right side: Xavier, or any other."""
    counts = attributed.melt("init", var_name="given_to", value_name="seeds")
    right = counts["init"].str.startswith("xavier") == counts["given_to"].str.startswith("xavier")
    return float(counts["seeds"][right].sum() / counts["seeds"].sum())
