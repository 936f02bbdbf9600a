"""Training runs as tidy tables: one call, one row per run and epoch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from snipnb.data import Split
from snipnb.masks import keep_mask
from snipnb.models import lenet5
from snipnb.progress import track
from snipnb.salience import snip
from snipnb.stats import mean_interval, t_quantile
from snipnb.training import Recipe, error_rates, train

PUBLISHED_NUM_SCORED = 10_500  # 15 % of MNIST's 70,000 images
WAYS = {
    "error_rate": "last epoch",
    "best_error_rate": "best epoch on scored images",
    "selected_error_rate": "epoch selected on validation",
}


def train_pruned(split: Split, *, seeds: Iterable[int], sparsities: Sequence[float], recipe: Recipe) -> pd.DataFrame:
    """Prune LeNet-5 by SNIP at its start and train it, for each seed and sparsity.

    Saliences come from the split's training images only. Runs of one seed share initial weights and image order.

    Returns:
        Tidy frame, one row per run and epoch: ``seed``, ``sparsity`` and the columns of :func:`snipnb.train`.
    """
    runs = [(seed, sparsity) for seed in seeds for sparsity in sparsities]
    saliences, frames = {}, []
    for seed, sparsity in track(runs, "training, runs"):
        model = lenet5(seed=seed)
        if seed not in saliences:
            saliences = {seed: snip(model, split.train_images, split.train_labels)}
        mask = keep_mask(saliences[seed], sparsity)
        history = train(model, split, mask=mask, recipe=recipe, data_seed=seed)
        frames.append(history.assign(seed=seed, sparsity=sparsity))
    return pd.concat(frames, ignore_index=True)[["seed", "sparsity", *history.columns]]


def error_table(runs: pd.DataFrame) -> pd.DataFrame:
    """The three error rates of every run.

    Args:
        runs: As from :func:`train_pruned`.

    Returns:
        One row per run and way: ``seed``, ``sparsity``, ``way``, ``error_percent``.
    """
    rows = [
        {"seed": seed, "sparsity": sparsity, "way": WAYS[name], "error_percent": 100 * value}
        for (seed, sparsity), history in runs.groupby(["seed", "sparsity"])
        for name, value in error_rates(history.reset_index(drop=True)).items()
        if value == value  # the published split has no validation images to select on
    ]
    return pd.DataFrame(rows)


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


def follows_published_protocol(split: Split, recipe: Recipe) -> bool:
    """Whether a run is trained and scored as the published ones were: C33's rule asks for it."""
    published = Recipe(epochs=80, batch_size=128, optimiser="adam", learning_rate=0.0012, schedule=recipe.schedule)
    return split.name == "published" and recipe.schedule != "one_cycle" and recipe == published


def same_in_every_way(errors: pd.DataFrame) -> int:
    """In how many runs all ways of stating the error rate give the same number."""
    return int((errors.groupby(["seed", "sparsity"])["error_percent"].nunique() == 1).sum())
