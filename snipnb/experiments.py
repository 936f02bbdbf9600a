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
    ]
    return pd.DataFrame(rows)


def error_summary(errors: pd.DataFrame, reported: pd.DataFrame) -> pd.DataFrame:
    """Error rates over runs, with 95 % t intervals of the mean, beside the published ones.

    Args:
        errors: As from :func:`error_table`.
        reported: ``sparsity``, ``error_percent``.

    Returns:
        One row per sparsity and way: ``sparsity``, ``way``, ``n``, ``mean``, ``low``, ``high``, ``smallest``, ``largest``,
        ``reported``; errors in percent.
    """
    published = reported.set_index("sparsity")["error_percent"]
    rows = []
    for (sparsity, way), values in errors.groupby(["sparsity", "way"], sort=False)["error_percent"]:
        mean, low, high = mean_interval(values.to_numpy())
        rows.append(
            {
                "sparsity": sparsity,
                "way": way,
                "n": len(values),
                "mean": mean,
                "low": low,
                "high": high,
                "smallest": values.min(),
                "largest": values.max(),
                "reported": published[sparsity],
            }
        )
    return pd.DataFrame(rows)


def outside_prediction(errors: pd.DataFrame, reported: pd.DataFrame, *, num_scored: int) -> int:
    """How many published error rates lie outside the 95 % prediction interval of one more run's best epoch.

    **Definition.** Mean of the runs plus or minus the t quantile times the root of s^2 (1 + 1/n) plus the binomial variance
    of both sets of scored images, ours and the published one.

    Args:
        errors: As from :func:`error_table`.
        reported: ``sparsity``, ``error_percent``.
        num_scored: Images that our runs were scored on.
    """
    outside = 0
    best = errors[errors["way"] == WAYS["best_error_rate"]]
    for sparsity, published in zip(reported["sparsity"], reported["error_percent"], strict=True):
        values = best.loc[best["sparsity"] == sparsity, "error_percent"].to_numpy()
        share = values.mean() / 100
        binomial = 100**2 * share * (1 - share) * (1 / num_scored + 1 / PUBLISHED_NUM_SCORED)
        spread = values.var(ddof=1) * (1 + 1 / len(values))
        outside += abs(published - values.mean()) > t_quantile(len(values) - 1) * (spread + binomial) ** 0.5
    return int(outside)
