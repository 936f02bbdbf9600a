"""Error rates of training runs, as tables: three ways to state them, beside the published ones, criterion against criterion."""

from __future__ import annotations

import pandas as pd

from snipnb.data import Split
from snipnb.publish import ledger
from snipnb.publish.stats import equivalence_test, mean_interval, t_quantile
from snipnb.training.loop import Recipe, error_rates

PUBLISHED_NUM_SCORED = 10_500  # 15 % of MNIST's 70,000 images
PUBLISHED_RUNS = 10  # behind each point of Figure 1
WAYS = {
    "error_rate": "last epoch",
    "best_error_rate": "best epoch on scored images",
    "selected_error_rate": "epoch selected on validation",
}


def error_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The three error rates of every run.

    Args:
        runs: As from :func:`snipnb.run_grid`.

    Returns:
        One row per run and way: ``criterion``, ``seed`` (of the initialisation), ``sparsity``, ``way``, ``error_percent``.
    """
    rows = []
    for (criterion, seed, sparsity), history in runs.groupby(["criterion", "init_seed", "sparsity"], sort=False):
        run = {"criterion": criterion, "seed": seed, "sparsity": sparsity}
        for name, value in error_rates(history.reset_index(drop=True)).items():
            if value == value:  # the published split has no validation images to select on
                rows.append(run | {"way": WAYS[name], "error_percent": 100 * value})
    return pd.DataFrame(rows)


# --- criterion against criterion --------------------------------------------------------------------------------------


def curves(errors: pd.DataFrame, *, way: str) -> pd.DataFrame:
    """Mean, smallest and largest error rate of the seeds, per criterion and sparsity.

    Args:
        errors: As from :func:`error_table`.
        way: One of the values of ``WAYS``.

    Returns:
        ``criterion``, ``sparsity``, ``n``, ``mean``, ``smallest``, ``largest``; in percent.
    """
    groups = errors[errors["way"] == way].groupby(["criterion", "sparsity"], sort=False)["error_percent"]
    return groups.agg(n="count", mean="mean", smallest="min", largest="max").reset_index()


def differences(errors: pd.DataFrame, *, way: str, reference: str = "exact") -> pd.DataFrame:
    """Error rate less that of the reference criterion, pair by pair: same initial weights, same image order.

    Returns:
        ``criterion``, ``sparsity``, ``seed``, ``difference`` in points; one row per pair.

    Raises:
        ValueError: If a run has no partner.
    """
    one = errors[errors["way"] == way]
    with_reference = one[one["criterion"] == reference].set_index(["sparsity", "seed"])["error_percent"]
    other = one[one["criterion"] != reference]
    partner = with_reference.reindex(pd.MultiIndex.from_frame(other[["sparsity", "seed"]]))
    if partner.isna().any():
        raise ValueError(f"some runs have no partner of criterion {reference!r} with the same seed and sparsity")
    found = other.assign(difference=other["error_percent"].to_numpy() - partner.to_numpy())
    return found[["criterion", "sparsity", "seed", "difference"]].reset_index(drop=True)


def equivalence(errors: pd.DataFrame, *, way: str, reference: str = "exact") -> tuple[pd.DataFrame, float]:
    """The test of C25 for every criterion against the reference.

    **Definition.** Per seed, the mean difference over the sparsities that the rule names; two one-sided t tests over seeds; margin the
    larger of the rule's smallest and a tenth of the reference's mean error rate there.

    Returns:
        One row per criterion: ``criterion``, ``n``, ``mean_difference``, ``low95``, ``high95``, ``equivalence_p``, ``power``; and the
        margin, in points.
    """
    judged = errors[errors["sparsity"].isin(ledger.setting("C25", "sparsities")) & (errors["way"] == way)]
    margin = margin_of(judged, reference=reference, smallest=ledger.setting("C25", "smallest_margin"))
    rows = []
    pairs = differences(judged, way=way, reference=reference)
    for criterion, part in pairs.groupby("criterion", sort=False):
        test = equivalence_test(part.groupby("seed")["difference"].mean().to_numpy(), margin)
        row = {"criterion": criterion, "n": part["seed"].nunique(), "mean_difference": test.mean, "low95": test.low}
        rows.append(row | {"high95": test.high, "equivalence_p": test.p_value, "power": test.power})
    return pd.DataFrame(rows), margin


def short_equivalence(runs: pd.DataFrame) -> pd.DataFrame:
    """The test of C25 over runs of a short protocol, at their last epoch: a second row of evidence.

    Args:
        runs: As from :func:`snipnb.run_grid`; may be empty.

    Returns:
        As from :func:`equivalence`, with a column ``margin``; without rows if there are no runs.
    """
    if runs.empty:
        columns = ["criterion", "n", "mean_difference", "low95", "high95", "equivalence_p", "power", "margin"]
        return pd.DataFrame(columns=columns)
    tests, margin = equivalence(error_table(runs), way=WAYS["error_rate"])
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


def margin_of(errors: pd.DataFrame, *, reference: str, smallest: float) -> float:
    """What counts as no difference, in points: a tenth of the reference criterion's mean error rate, at least ``smallest``."""
    return max(smallest, float(errors.loc[errors["criterion"] == reference, "error_percent"].mean()) / 10)


def paired(errors: pd.DataFrame, first: str, second: str, *, way: str) -> tuple[float, float, float]:
    """Mean difference in error rate, first criterion less second, pair by pair, in points, and its 95 % t interval.

    Args:
        errors: As from :func:`error_table`, at one sparsity.
        first: A criterion.
        second: Another.
        way: One of the values of ``WAYS``.
    """
    some = errors[errors["criterion"].isin([first, second])]
    return mean_interval(differences(some, way=way, reference=second)["difference"].to_numpy())


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


# --- beside the published table ---------------------------------------------------------------------------------------


def error_summary(errors: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """Error rates over runs, with 95 % t intervals of the mean over seeds, beside the published ones.

    Args:
        errors: As from :func:`error_table`.
        reported: ``sparsity``, ``error_percent``.

    Returns:
        One row per sparsity and way: ``sparsity``, ``way``, ``n``, ``mean``, ``mean_low95``, ``mean_high95`` (seeds only, same
        images; empty under 3 runs), ``smallest``, ``largest``, ``reported``; errors in percent.
    """
    published = reported.set_index("sparsity")["error_percent"]
    rows = []
    for (sparsity, way), values in errors.groupby(["sparsity", "way"], sort=False)["error_percent"]:
        mean, low, high = mean_interval(values.to_numpy())
        enough = len(values) >= 3
        rows.append(
            {
                "sparsity": sparsity,
                "way": way,
                "n": len(values),
                "mean": mean,
                "mean_low95": low if enough else float("nan"),
                "mean_high95": high if enough else float("nan"),
                "smallest": values.min(),
                "largest": values.max(),
                "reported": published[sparsity],
            }
        )
    return pd.DataFrame(rows)


def place_errors(errors: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """Where each published error rate lies beside the prediction interval of one more run's best epoch.

    **Definition.** Mean of the runs plus or minus the t quantile times the root of s^2 (1 + 1/n) plus the binomial variance
    of both sets of scored images, ours and the published one; degrees of freedom by Welch and Satterthwaite, since the
    binomial part is known; level 1 - 0.05/k for k rates, so that all hold jointly with 95 %. Conservative: s^2 already
    holds part of what the choice of images adds.

    Args:
        errors: As from :func:`error_table`, at least two runs per sparsity.
        reported: ``sparsity``, ``error_percent``.
        num_scored: Images that our runs were scored on.

    Returns:
        One row per sparsity: ``sparsity``, ``n``, ``mean``, ``low``, ``high``, ``reported``, ``inside``; in percent.

    Raises:
        ValueError: If there are fewer than two runs of a sparsity.
    """
    best = errors[errors["way"] == WAYS["best_error_rate"]]
    rows = []
    for sparsity, published in zip(reported["sparsity"], reported["error_percent"], strict=True):
        values = best.loc[best["sparsity"] == sparsity, "error_percent"].to_numpy()
        n = len(values)
        if n < 2:
            raise ValueError(f"{n} runs at sparsity {sparsity:g}; an interval for one more needs at least 2")
        share = values.mean() / 100
        binomial = 100**2 * share * (1 - share) * (1 / num_scored + 1 / PUBLISHED_NUM_SCORED)
        spread = values.var(ddof=1) * (1 + 1 / n)
        degrees = (n - 1) * ((spread + binomial) / spread) ** 2 if spread > 0 else 1e9
        half = t_quantile(degrees, level=1 - 0.05 / len(reported)) * (spread + binomial) ** 0.5
        low, high = values.mean() - half, values.mean() + half
        row = {"sparsity": sparsity, "n": n, "mean": values.mean(), "low": low, "high": high, "reported": published}
        rows.append(row | {"inside": bool(low <= published <= high)})
    return pd.DataFrame(rows)


def recipe_levels(runs: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> pd.DataFrame:
    """Published error rates beside those of networks that were trained by several recipes.

    Args:
        runs: As from :func:`snipnb.run_grid`, with a column ``name``: that of the recipe; at least two runs of a name and sparsity.
        reported: ``sparsity``, ``error_percent``; sparsities without runs are left out.
        num_scored: Images that our runs were scored on.

    Returns:
        One row per recipe and sparsity: ``recipe``, ``sparsity``, ``n``, ``last_epoch`` (mean), and of the best epoch ``best_epoch`` (mean),
        ``smallest``, ``largest``, and from :func:`place_errors` ``low``, ``high``, ``reported``, ``inside``; in percent.
    """
    tables = []
    for name, own in runs.groupby("name", sort=False):
        rates = error_table(own)
        last, best = (
            rates[rates["way"] == WAYS[way]].groupby("sparsity")["error_percent"]
            for way in ("error_rate", "best_error_rate")
        )
        placed = place_errors(rates, reported[reported["sparsity"].isin(own["sparsity"])], num_scored=num_scored)
        placed = placed.rename(columns={"mean": "best_epoch"})
        placed.insert(0, "recipe", name)
        found = {"last_epoch": last.mean(), "smallest": best.min(), "largest": best.max()}
        for place, (column, values) in zip((3, 5, 6), found.items(), strict=True):
            placed.insert(place, column, values.loc[placed["sparsity"]].to_numpy())
        tables.append(placed)
    return pd.concat(tables, ignore_index=True)


def follows_published_protocol(split: Split, recipe: Recipe) -> bool:
    """Whether a run is trained and scored as the published ones were: C33's rule asks for it."""
    published = Recipe(epochs=80, batch_size=128, optimiser="adam", learning_rate=0.0012)
    falls = recipe.schedule in ("step", "exponential", "cosine")
    alike = all(
        getattr(recipe, f) == getattr(published, f) for f in ("epochs", "batch_size", "optimiser", "learning_rate")
    )
    return split.name == "published" and falls and alike and recipe.weight_decay == 0


def same_in_every_way(errors: pd.DataFrame) -> int:
    """In how many runs all ways of stating the error rate give the same number."""
    return int((errors.groupby(["criterion", "seed", "sparsity"])["error_percent"].nunique() == 1).sum())
