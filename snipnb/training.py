"""Training of one masked network: a plain loop in which pruned weights are exactly zero at every step."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from snipnb.data import Split
from snipnb.masks import Mask, check_mask_fits
from snipnb.progress import track
from snipnb.salience import check_examples, in_mode

OPTIMISERS = ("adam", "sgd")
SCHEDULES = ("one_cycle", "constant")
WARM_UP_SHARE = 0.1
MOMENTUM = 0.9
SCORING_BATCH = 1000


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        optimiser: ``"adam"``, or ``"sgd"`` with momentum 0.9.
        learning_rate: Constant rate, or the peak of the one-cycle schedule.
        schedule: ``"one_cycle"`` rises linearly over a tenth of all steps and falls linearly to zero; or ``"constant"``.
        weight_decay: L2 penalty added to the gradient.
    """

    epochs: int = 3
    batch_size: int = 128
    optimiser: str = "adam"
    learning_rate: float = 0.01
    schedule: str = "one_cycle"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} is {value!r}; accepted are integers from 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate!r}; accepted are numbers above 0")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay is {self.weight_decay!r}; accepted are numbers from 0")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser is {self.optimiser!r}; accepted are {', '.join(OPTIMISERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; accepted are {', '.join(SCHEDULES)}")


def train(
    model: nn.Module, split: Split, *, mask: Mask | None = None, recipe: Recipe | None = None, data_seed: int = 0
) -> pd.DataFrame:
    """Train a network in place, its pruned parameters held at exactly zero.

    **Definition.** Pruned parameters start at zero and their gradients are masked before every step, so neither momentum
    nor weight decay can move them. The loss is cross-entropy. Images are shuffled anew each epoch.

    Args:
        model: The network; its parameters are changed, and it is left in evaluation mode.
        split: What to train on and what to score on.
        mask: What to keep; default everything.
        recipe: Default ``Recipe()``.
        data_seed: Draw of the image order. Dropout, if the network has it, draws from the global random state.

    Returns:
        Tidy frame, one row per epoch: ``epoch`` (from 1), ``train_loss`` (mean over the epoch, while training),
        ``validation_error``, ``test_error`` (fractions wrong; NaN where the split has no such images).

    Raises:
        ValueError: If the mask does not fit the model.
    """
    recipe = recipe or Recipe()
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    kept: dict[str, Tensor] = {}
    if mask is not None:
        check_mask_fits(model, mask)
        kept = {name: m.to(device) for name, m in mask.items()}
        with torch.no_grad():
            for name, m in kept.items():
                parameters[name].masked_fill_(~m, 0)
    images, labels = split.train_images.to(device), split.train_labels.to(device)
    steps_per_epoch = -(-len(labels) // recipe.batch_size)
    optimiser, schedule = _optimiser(list(parameters.values()), recipe, steps_per_epoch)
    shuffle = torch.Generator().manual_seed(data_seed)
    rows = []
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(labels), generator=shuffle).to(device)
        batches = order.split(recipe.batch_size)
        loss_sum = torch.zeros((), device=device, dtype=torch.float64)
        with in_mode(model, "train"):
            for batch in track(batches, f"epoch {epoch}/{recipe.epochs}", total=steps_per_epoch):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimiser.zero_grad()
                loss.backward()
                for name, m in kept.items():
                    if parameters[name].grad is not None:  # None: frozen, or not used
                        parameters[name].grad.mul_(m)
                optimiser.step()
                schedule.step()
                loss_sum += loss.detach() * len(batch)
        rows.append(
            {
                "epoch": epoch,
                "train_loss": float(loss_sum) / len(labels),
                "validation_error": error_rate(model, split.validation_images, split.validation_labels),
                "test_error": error_rate(model, split.test_images, split.test_labels),
            }
        )
    model.eval()
    return pd.DataFrame(rows)


@torch.no_grad()
def error_rate(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of images whose largest logit is not at their label, in evaluation mode; NaN for no images."""
    if len(labels) == 0:
        return float("nan")
    check_examples(images, labels, SCORING_BATCH)
    if labels.dim() != 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; accepted are classes [n]")
    device = next(model.parameters()).device
    wrong = 0
    with in_mode(model, "eval"):
        for x, y in zip(images.split(SCORING_BATCH), labels.split(SCORING_BATCH), strict=True):
            wrong += int((model(x.to(device)).argmax(dim=1) != y.to(device)).sum())
    return wrong / len(labels)


def error_rates(history: pd.DataFrame) -> dict[str, float]:
    """The three error rates of a run, all on the test images.

    Returns:
        ``error_rate``: at the last epoch. ``best_error_rate``: the smallest over epochs, which looks at the images it is
        scored on (the published, optimistic choice). ``selected_error_rate``: at the epoch of smallest validation error,
        the earliest if several; NaN without validation images.
    """
    validation, test = history["validation_error"], history["test_error"]
    selected = float("nan") if validation.isna().all() else float(test[validation.idxmin()])
    return {"error_rate": float(test.iloc[-1]), "best_error_rate": float(test.min()), "selected_error_rate": selected}


def _optimiser(
    parameters: list[nn.Parameter], recipe: Recipe, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimiser == "adam":
        optimiser: torch.optim.Optimizer = torch.optim.Adam(parameters, **options)
    else:
        optimiser = torch.optim.SGD(parameters, momentum=MOMENTUM, **options)
    if recipe.schedule == "constant":
        return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=recipe.learning_rate,
        total_steps=recipe.epochs * steps_per_epoch + 1,  # the step after the last is never used
        pct_start=WARM_UP_SHARE,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    return optimiser, schedule
