"""How a network is trained: optimiser, learning rates, batches and epochs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from snipnb._checks import check_choice, check_integer, check_number

OPTIMISERS = ("adam", "sgd")
SCHEDULES = ("one_cycle", "constant", "step", "exponential", "cosine")
WARM_UP_SHARE = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images per step.
        optimiser: ``"adam"`` or ``"sgd"``.
        learning_rate: First rate of a schedule, or the peak of the one-cycle schedule.
        schedule: ``"constant"``, ``"step"``, ``"exponential"``, ``"cosine"`` or ``"one_cycle"``: see :func:`learning_rate`.
        weight_decay: L2 penalty added to the gradient.
        momentum: Momentum of SGD, in [0, 1); Adam has its own.
        decay: Factor of the step and exponential schedules.
        decay_every: Epochs between two steps of the step schedule.
        masks_at: ``"end"`` of a step: pruned parameters are zero at every step, and when a network is scored. ``"start"``: they are set to zero
            before every step and take part in it, so that scored networks carry one step of pruned parameters.

    Example:
        >>> import snipnb
        >>> snipnb.Recipe(optimiser="sgd", learning_rate=0.1, schedule="cosine").momentum
        0.9
    """

    epochs: int = 3
    batch_size: int = 128
    optimiser: str = "adam"
    learning_rate: float = 0.01
    schedule: str = "one_cycle"
    weight_decay: float = 0.0
    momentum: float = 0.9
    decay: float = 0.95
    decay_every: int = 15
    masks_at: str = "end"

    def __post_init__(self) -> None:
        for field in ("epochs", "batch_size", "decay_every"):
            check_integer(field, getattr(self, field), 1)
        check_number("learning_rate", self.learning_rate, "(0, inf)")
        check_number("weight_decay", self.weight_decay, "[0, inf)")
        check_number("momentum", self.momentum, "[0, 1)")
        check_number("decay", self.decay, "(0, 1]")
        check_choice("optimiser", self.optimiser, OPTIMISERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("masks_at", self.masks_at, ("end", "start"))


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of a recipe at one step (from 0).

    **Definition.** With r the recipe's rate, t the step, T the number of steps and e the epoch (from 0): ``constant`` r; ``step`` r g^floor(e / k)
    and ``exponential`` r g^e with g the recipe's ``decay`` and k its ``decay_every``; ``cosine`` r (1 + cos(pi t / T)) / 2; ``one_cycle`` linear
    from r / 25 to r over a tenth of the steps, then linear to r / 250,000, as in ``torch.optim.lr_scheduler.OneCycleLR``.
    """
    rate, epoch, total = recipe.learning_rate, step // steps_per_epoch, recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        return rate * recipe.decay ** (epoch // recipe.decay_every)
    if recipe.schedule == "exponential":
        return rate * recipe.decay**epoch
    if recipe.schedule == "cosine":
        return rate * (1 + math.cos(math.pi * step / total)) / 2
    if recipe.schedule == "one_cycle":
        peak = WARM_UP_SHARE * (total + 1) - 1
        if step < peak:
            return rate * (1 / 25 + (1 - 1 / 25) * step / peak)
        lowest = 1 / 25 / 10_000
        return rate * (1 + (lowest - 1) * (step - peak) / (total - peak))
    return rate


def optimiser_of(recipe: Recipe, tensors: Iterable[Tensor], **options) -> torch.optim.Optimizer:
    """PyTorch's optimiser for a recipe; ``options`` go to it."""
    options |= {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimiser == "adam":
        return torch.optim.Adam(tensors, **options)
    return torch.optim.SGD(tensors, momentum=recipe.momentum, **options)
