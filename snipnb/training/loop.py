"""Training many masked networks at once; pruned weights are exactly zero at every step.

Networks of one architecture that see the same images in the same order are trained together (``_engine/ensembles.py``). They share the
copies that the first convolution needs, and their matrix products are computed as one. Each network computes what it would compute
alone. On a processor, pruned weights take no time if most of a layer is pruned (``kernels.py``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._checks import (
    check_alike_and_precise,
    check_choice,
    check_classes,
    check_examples,
    check_integer,
    check_number,
    check_type,
    float_parameters,
)
from snipnb._engine.ensembles import Kept, Stack, Stacked, check_alike, stacked
from snipnb._engine.sequential import layers_of
from snipnb._progress import track
from snipnb.data import Split
from snipnb.pruning.masks import Mask, check_mask_fits

OPTIMISERS = ("adam", "sgd")
SCHEDULES = ("one_cycle", "constant", "step", "exponential", "cosine")
WARM_UP_SHARE = 0.1
SCORING_BATCH = 1000
# How much is done at once: on a processor as much as its caches hold, on a GPU everything.
NETWORKS = {"cpu": 24, "cuda": 1024}
IMAGES = {"cpu": 64, "cuda": 1024}
SCORED = {"cpu": 48, "cuda": 1000}
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")  # what PyTorch's optimisers keep of a parameter, by its names


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one processor thread, and afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    model: nn.Module, split: Split, *, mask: Mask | None = None, recipe: Recipe | None = None, data_seed: int = 0
) -> pd.DataFrame:
    """Train one network in place, with pruned parameters held at exactly zero: :func:`train_together` for one network.

    Args:
        model: The network; its parameters are changed, and it is left in evaluation mode.
        split: What to train on and what to score on.
        mask: What to keep; default everything.
        recipe: Default ``Recipe()``.
        data_seed: Seed of the image order and of dropout.

    Returns:
        Tidy frame, one row per epoch: ``epoch`` (from 1), ``train_loss`` (mean over the epoch, while training),
        ``validation_error``, ``test_error`` (fractions of wrong images; NaN if the split has no such images).

    Raises:
        ValueError: If the model has layers that are not covered, or the mask does not fit it.

    Example:
        >>> import snipnb
        >>> model, split = snipnb.lenet5(), snipnb.load_split("standard", sample=True)
        >>> mask = snipnb.keep_mask(snipnb.snip(model, split.train_images, split.train_labels), 0.9)
        >>> history = snipnb.train(model, split, mask=mask, recipe=snipnb.Recipe(epochs=2, batch_size=500))
        >>> list(history), len(history), bool((model.full1.weight[~mask["full1.weight"]] == 0).all())
        (['epoch', 'train_loss', 'validation_error', 'test_error'], 2, True)
    """
    return train_together([model], split, masks=[mask], recipe=recipe, data_seed=data_seed)[0]


@one_thread()
def train_together(
    models: Sequence[nn.Module],
    split: Split,
    *,
    masks: Sequence[Mask | None] | None = None,
    recipe: Recipe | Sequence[Recipe] | None = None,
    data_seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> list[pd.DataFrame]:
    """Train several networks of one architecture in place, on the same images in the same order.

    On a processor, training uses one thread: operations are too short to share, and results do not depend on the number of threads.
    :func:`snipnb.run_grid` spreads networks over processors.

    **Definition.** Each network has its own parameters, mask and optimiser state; nothing passes between them. Pruned
    parameters start at zero and their gradients are masked before every step, so neither momentum nor weight decay can move
    them (for another order see ``Recipe.masks_at``). The loss is the mean cross-entropy of a batch. Images are shuffled anew each epoch.

    Args:
        models: Networks (``nn.Sequential`` of the layers that :func:`snipnb.exact_salience` covers) that differ only in their
            values. They are changed, and left in evaluation mode.
        split: What to train on and what to score on.
        masks: What to keep of each network; default everything.
        recipe: One recipe for all networks, or one per network with the same epochs and batch size. Default ``Recipe()``.
        data_seed: Seed of the image order and of dropout.
        checkpoint: Keeps the state after each epoch, and returns the last state to resume from; the result is the same.

    Returns:
        One frame per network, as from :func:`train`.

    Raises:
        ValueError: If models are not covered or not alike, a mask or images do not fit, labels are not classes of the models, or
            recipes differ in epochs or batch size. The models are then unchanged.

    Example:
        >>> import snipnb
        >>> models = [snipnb.lenet5(seed=seed) for seed in range(2)]
        >>> recipes = [snipnb.Recipe(epochs=1, batch_size=500, learning_rate=rate) for rate in (0.003, 0.01)]
        >>> histories = snipnb.train_together(models, snipnb.load_split("standard", sample=True), recipe=recipes)
        >>> [len(history) for history in histories]
        [1, 1]
    """
    recipes = [recipe or Recipe()] * len(models) if recipe is None or isinstance(recipe, Recipe) else list(recipe)
    group = _Group(models, masks, recipes)
    epochs, batch_size = recipes[0].epochs, recipes[0].batch_size
    group.check(split.train_images, split.train_labels)
    scored = [
        (x.to(group.device), y.to(group.device))
        for x, y in ((split.validation_images, split.validation_labels), (split.test_images, split.test_labels))
    ]
    for x, y in scored:
        if len(x) or len(y):
            group.check(x, y)
    images, labels = split.train_images.to(group.device), split.train_labels.to(group.device, torch.int64)
    shuffle = torch.Generator().manual_seed(data_seed)
    steps = -(-len(labels) // batch_size)
    rows: list[dict[str, list[float]]] = []
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        arrays, rows = found[0], list(found[1])
        group.restore(arrays, steps * len(rows))
    for epoch in range(epochs):
        order = torch.randperm(len(labels), generator=shuffle)  # drawn for finished epochs too, as later draws follow
        if epoch < len(rows):
            continue
        losses = torch.zeros(len(models), dtype=torch.float64, device=group.device)
        batches = order.to(group.device).split(batch_size)
        for i, batch in enumerate(track(batches, f"epoch {epoch + 1}/{epochs}", total=steps)):
            step = epoch * steps + i
            group.set_rates(step, steps)
            losses += group.step(images[batch], labels[batch], seed=(data_seed << 32) + step) * len(batch)
        validation, test = (group.error_rates(x, y) for x, y in scored)
        rows.append({"train_loss": (losses / len(labels)).tolist(), "validation_error": validation, "test_error": test})
        if checkpoint is not None:
            checkpoint.save(group.state(), list(rows))
    group.write_back()
    return [
        pd.DataFrame([{"epoch": e} | {key: row[key][k] for key in row} for e, row in enumerate(rows, 1)])
        for k in range(len(models))
    ]


class Checkpoint(Protocol):
    """Where :func:`train_together` keeps its state after each epoch."""

    def load(self) -> tuple[Mapping[str, Tensor], list[dict[str, list[float]]]] | None:
        """The tensors and rows that were last saved, or None."""

    def save(self, tensors: Mapping[str, Tensor], rows: list[dict[str, list[float]]]) -> None:
        """Keep the state after ``len(rows)`` epochs."""


class _Group:
    """Stacked parameters, gradients and optimiser state of networks that are trained together."""

    def __init__(
        self, models: Sequence[nn.Module], masks: Sequence[Mask | None] | None, recipes: Sequence[Recipe]
    ) -> None:
        if not models:
            raise ValueError("no models are given; there must be at least one")
        masks = [None] * len(models) if masks is None else masks
        for model in models:
            float_parameters(model)  # an error if there are none
            layers_of(model)
        places = [t.data_ptr() for m in models for t in (*m.parameters(), *m.buffers()) if t.numel()]
        if len(set(places)) < len(places):
            raise ValueError("two models share a tensor, or a model is given twice; each must have its own tensors")
        for recipe in recipes:
            check_type("every recipe", recipe, Recipe)
        for name, given in (("masks", masks), ("recipes", recipes)):
            if len(given) != len(models):
                raise ValueError(f"there must be as many {name} as models; got {len(given)} for {len(models)}")
        if len(common := {(r.epochs, r.batch_size) for r in recipes}) > 1:
            raise ValueError(f"recipes must have the same epochs and batch_size; got {sorted(common)}")
        self.models, self.stack = models, Stack(models[0])
        first = dict(models[0].named_parameters())
        self.device = next(iter(first.values())).device
        for model in models:
            check_alike(model, models[0])
        for model, mask in zip(models, masks, strict=True):
            if mask is not None:
                check_mask_fits(model, mask)
        self.parameters = stacked([dict(m.named_parameters()) for m in models])
        self.buffers = stacked([dict(m.named_buffers()) for m in models])
        self.masks: Stacked = {}
        late = torch.tensor([recipe.masks_at == "start" for recipe in recipes], device=self.device)
        self.has_late = any(late)
        for name, p in self.parameters.items():
            if any(mask is not None and name in mask for mask in masks):
                everything = torch.ones(p.shape[1:], dtype=torch.bool)
                kept = [everything if mask is None else mask.get(name, everything) for mask in masks]
                self.masks[name] = torch.stack([m.to(self.device) for m in kept])
        self._prune()
        # What takes part in a step, and in scoring: everything where masks act at its start.
        self.kept = {name: m | late.view(-1, *(1,) * (m.dim() - 1)) for name, m in self.masks.items()}
        self.trained = {name: p for name, p in self.parameters.items() if first[name].requires_grad}
        self.gradients = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        self.parts = [_Part(some, recipe, self.trained, self.gradients) for some, recipe in _neighbours(recipes)]
        at_once = NETWORKS[self.device.type]
        self.blocks = [slice(k, k + at_once) for k in range(0, len(models), at_once)]
        self.kept_of = {b.start: Kept({n: kept[b] for n, kept in self.kept.items()}) for b in self.blocks}
        self.images = recipes[0].batch_size if self.stack.mixes_images else IMAGES[self.device.type]

    @torch.no_grad()
    def _prune(self) -> None:
        """Set pruned parameters to zero."""
        for name, m in self.masks.items():
            self.parameters[name].masked_fill_(~m, 0)

    @torch.no_grad()
    def check(self, images: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless images fit the networks, and labels their classes."""
        check_examples(images, labels, 1)
        check_alike_and_precise(dict(self.models[0].named_parameters()), images)
        x = images[:1].to(self.device)
        logits = self.stack.logits(self.stack.inputs(x), *self._tensors_of(slice(1)))
        check_classes(logits[0].T, labels)

    def _tensors_of(self, some: slice) -> tuple[Stacked, Stacked]:
        """Parameters, detached, and buffers of some networks."""
        return {n: p[some].detach() for n, p in self.parameters.items()}, {n: b[some] for n, b in self.buffers.items()}

    def set_rates(self, step: int, steps_per_epoch: int) -> None:
        for part in self.parts:
            part.optimiser.param_groups[0]["lr"] = learning_rate(part.recipe, step, steps_per_epoch)

    @torch.enable_grad()
    def step(self, images: Tensor, labels: Tensor, *, seed: int) -> Tensor:
        """Do one step of every network on one batch; returns the mean losses before the step [networks]."""
        losses = torch.zeros(len(self.models), dtype=torch.float64, device=self.device)
        for gradient in self.gradients.values():
            gradient.zero_()
        if self.has_late:
            self._prune()
        for part, (x, y) in enumerate(zip(images.split(self.images), labels.split(self.images), strict=True)):
            inputs = self.stack.inputs(x)
            for some in self.blocks:
                parameters, buffers = self._tensors_of(some)
                leaves = [parameters[name].requires_grad_() for name in self.trained]
                logits = self.stack.logits(
                    inputs,
                    parameters,
                    buffers,
                    training=True,
                    generator=self._generator(seed, part),
                    kept=self.kept_of[some.start],
                )
                loss = nn.functional.cross_entropy(logits, y.expand(len(logits), -1), reduction="none").sum(1)
                gradients = torch.autograd.grad(loss.sum() / len(labels), leaves)
                for total, gradient in zip(self.gradients.values(), gradients, strict=True):
                    total[some] += gradient
                losses[some] += loss.detach()
        for name, gradient in self.gradients.items():
            if name in self.kept:
                gradient.mul_(self.kept[name])
        for each in self.parts:
            each.optimiser.step()
        return losses / len(labels)

    def _generator(self, seed: int, part: int) -> torch.Generator:
        # Mixed, because PyTorch's generator on a processor takes only the lowest 32 bits of a seed.
        mixed = np.random.SeedSequence((seed % 2**128, part)).generate_state(1)
        return torch.Generator(self.device).manual_seed(int(mixed[0]))

    @torch.no_grad()
    def error_rates(self, images: Tensor, labels: Tensor) -> list[float]:
        """Fraction of images that each network gets wrong; NaN without images."""
        if len(labels) == 0:
            return [float("nan")] * len(self.models)
        wrong = torch.zeros(len(self.models), dtype=torch.int64, device=self.device)
        size = SCORED[self.device.type]
        for x, y in zip(images.split(size), labels.split(size), strict=True):
            inputs = self.stack.inputs(x)
            for some in self.blocks:
                kept = self.kept_of[some.start]
                logits = self.stack.logits(inputs, *self._tensors_of(some), kept=kept)
                wrong[some] += (logits.argmax(1) != y).sum(1)
        return (wrong.double() / len(labels)).tolist()

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on, except the number of epochs."""
        state = self._named()
        for part in self.parts:
            state |= part.state()
        return {key: tensor.detach().to("cpu", copy=True) for key, tensor in state.items()}

    def _named(self) -> dict[str, Tensor]:
        """Parameters and buffers by their names in a state."""
        kinds = {"parameter": self.parameters, "buffer": self.buffers}
        return {f"{kind} {name}": tensor for kind, tensors in kinds.items() for name, tensor in tensors.items()}

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Resume from a state that was saved after ``steps`` steps."""
        for key, tensor in self._named().items():
            tensor.copy_(state[key])
        for part in self.parts:
            part.restore(state, steps)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the values back into every model."""
        values = self.parameters | self.buffers
        for k, model in enumerate(self.models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(values[name][k])
            model.eval()


class _Part:
    """Neighbouring networks of a group that share a recipe, and their optimiser."""

    def __init__(self, some: slice, recipe: Recipe, trained: Stacked, gradients: Stacked) -> None:
        self.recipe, self.first = recipe, some.start
        self.trained = {name: p[some] for name, p in trained.items()}  # views: updates change the group's tensors
        for name, p in self.trained.items():
            p.grad = gradients[name][some]
        self.optimiser = optimiser_of(recipe, self.trained.values(), fused=True)

    def state(self) -> dict[str, Tensor]:
        return {
            f"{kind} {self.first} {name}": tensor
            for name, p in self.trained.items()
            for kind, tensor in self.optimiser.state[p].items()
            if kind in MOMENTS
        }

    def restore(self, state: Mapping[str, Tensor], steps: int) -> None:
        for name, p in self.trained.items():
            kept = {kind: f"{kind} {self.first} {name}" for kind in MOMENTS}
            self.optimiser.state[p] = {kind: state[key].to(p) for kind, key in kept.items() if key in state}
            if self.recipe.optimiser == "adam":
                self.optimiser.state[p]["step"] = torch.tensor(float(steps), device=p.device)


def optimiser_of(recipe: Recipe, tensors: Iterable[Tensor], **options) -> torch.optim.Optimizer:
    """PyTorch's optimiser for a recipe; ``options`` go to it."""
    options |= {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimiser == "adam":
        return torch.optim.Adam(tensors, **options)
    return torch.optim.SGD(tensors, momentum=recipe.momentum, **options)


def _neighbours(recipes: Sequence[Recipe]) -> list[tuple[slice, Recipe]]:
    """Stretches of equal recipes."""
    bounds = [k for k in range(len(recipes)) if k == 0 or recipes[k] != recipes[k - 1]]
    return [(slice(i, j), recipes[i]) for i, j in zip(bounds, [*bounds[1:], len(recipes)], strict=True)]


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
