"""Error rates of a trained network, of a training history, and of a table of runs."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._checks import check_choice, check_classes, check_examples, in_mode

WAYS = {
    "error_rate": "last epoch",
    "best_error_rate": "best epoch on scored images",
    "selected_error_rate": "epoch selected on validation",
}
SCORING_BATCH = 1000  # images at once
LAST = WAYS["error_rate"]


def error_table(runs: pd.DataFrame, *, way: str | None = None) -> pd.DataFrame:
    """The three error rates of every run.

    Args:
        runs: As from :func:`snipnb.run_grid`.
        way: One of the values of :data:`WAYS`, to get only that way; default all.

    Returns:
        One row per run and way: ``criterion``, ``seed`` (of the initialisation), ``sparsity``, ``way``, ``error_percent``.

    Raises:
        ValueError: If the way is unknown, or runs of one criterion, seed and sparsity differ in anything else.

    Example:
        >>> import snipnb
        >>> recipe = snipnb.Recipe(epochs=1, batch_size=500)
        >>> configs = snipnb.grid(criteria=["random"], sparsities=[0.5], seeds=range(2), sample=True, recipe=recipe)
        >>> snipnb.error_table(snipnb.run_grid(configs, jobs=1), way="last epoch")[["criterion", "seed", "sparsity"]].values.tolist()
        [['random', 0, 0.5], ['random', 1, 0.5]]
    """
    check_choice("way", way, (None, *WAYS.values()))
    rows = []
    for (criterion, seed, sparsity), history in runs.groupby(["criterion", "init_seed", "sparsity"], sort=False):
        run = {"criterion": criterion, "seed": seed, "sparsity": sparsity}
        for name in ("model", "init", "split", "sample"):
            if name in runs and history[name].nunique() > 1:
                found = ", ".join(map(repr, history[name].unique()))
                raise ValueError(f"runs of one table must have one {name}; got {found}; make a table of each")
        if "epoch" in history and history.drop_duplicates()["epoch"].duplicated().any():
            others = "recipe, image order, number of salience images and name"
            raise ValueError(f"runs of one criterion, seed and sparsity must have one {others}; make a table of each")
        for name, value in error_rates(history.reset_index(drop=True)).items():
            # NaN: the published split has no validation images to select on
            if value == value and way in (None, WAYS[name]):
                rows.append(run | {"way": WAYS[name], "error_percent": 100 * value})
    return pd.DataFrame(rows, columns=["criterion", "seed", "sparsity", "way", "error_percent"])


@torch.no_grad()
def error_rate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit is not at their label, in evaluation mode; NaN without images.

    Example:
        >>> import snipnb
        >>> images, labels = snipnb.load_mnist("test", sample=True)
        >>> 0.5 < snipnb.error_rate(snipnb.lenet5(), images, labels) <= 1  # before training
        True
    """
    if len(labels) == 0:
        return float("nan")
    check_examples(images, labels)
    device = next(model.parameters()).device
    with in_mode(model, "eval"):
        logits = torch.cat([model(x.to(device)) for x in images.split(SCORING_BATCH)])
    check_classes(logits, labels)
    return int((logits.argmax(dim=1) != labels.to(device)).sum()) / len(labels)


def error_rates(history: pd.DataFrame) -> dict[str, float]:
    """The three error rates of a run, all on the test images.

    Returns:
        ``error_rate``: at the last epoch. ``best_error_rate``: the smallest over epochs, chosen on the images it is
        scored on (the published, optimistic choice). ``selected_error_rate``: at the epoch with the smallest validation error,
        the earliest of several; NaN without validation images.

    Example:
        >>> import pandas as pd, snipnb
        >>> snipnb.error_rates(pd.DataFrame({"validation_error": [0.03, 0.02, 0.04], "test_error": [0.02, 0.03, 0.04]}))
        {'error_rate': 0.04, 'best_error_rate': 0.02, 'selected_error_rate': 0.03}
    """
    validation, test = history["validation_error"], history["test_error"]
    selected = float("nan") if validation.isna().all() else float(test[validation.idxmin()])
    return {"error_rate": float(test.iloc[-1]), "best_error_rate": float(test.min()), "selected_error_rate": selected}
