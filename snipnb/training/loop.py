"""Training many masked networks; pruned weights are exactly zero at every step.

Networks of one architecture that see the same images in the same order are trained together (``_engine/ensembles.py``). They share the
copies that the first convolution needs, and their matrix products are computed as one. On a processor with Numba, each network
computes what it would compute alone, to the last bit, and pruned weights take no time if most of a layer is pruned (``kernels.py``).
Other networks take each step one after another, through their own layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import pandas as pd
import torch
from torch import Tensor, nn

from snipnb._checks import check_type, copied
from snipnb._progress import track
from snipnb.data import Split
from snipnb.networks import seeded
from snipnb.pruning.masks import Mask
from snipnb.training.groups import Apart, Together, group_of
from snipnb.training.recipe import Recipe


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
        ValueError: If the mask or the images do not fit the model, labels are not its classes, or the last batch is one image and the
            model has batch norms that cannot train on it.

    Example:
        >>> import snipnb
        >>> model, split = snipnb.lenet5(), snipnb.load_split("standard", sample=True)
        >>> mask = snipnb.keep_mask(snipnb.snip(model, split.train_images, split.train_labels), 0.9)
        >>> history = snipnb.train(model, split, mask=mask, recipe=snipnb.Recipe(epochs=2, batch_size=500))
        >>> list(history), len(history), bool((model.full1.weight[~mask["full1.weight"]] == 0).all())
        (['epoch', 'train_loss', 'validation_error', 'test_error'], 2, True)
    """
    return train_together([model], split, masks=[mask], recipe=recipe, data_seed=data_seed)[0]


def train_together(
    models: Sequence[nn.Module],
    split: Split,
    *,
    masks: Sequence[Mask | None] | None = None,
    recipe: Recipe | Sequence[Recipe] | None = None,
    data_seed: int = 0,
    checkpoint: Checkpoint | None = None,
) -> list[pd.DataFrame]:
    """Train several networks in place, on the same images in the same order.

    Networks of one architecture, an ``nn.Sequential`` of the layers that :func:`snipnb.exact_salience` takes fast, are stacked. On a
    processor their training uses one thread: operations are too short to share, and results do not depend on the number of threads.
    Any other module is trained as it is. :func:`snipnb.run_grid` spreads networks over processors.

    **Definition.** Each network has its own parameters, mask and optimiser state; nothing passes between them. Pruned
    parameters start at zero and their gradients are masked before every step, so neither momentum nor weight decay can move
    them (for another order see ``Recipe.masks_at``). The loss is the mean cross-entropy of a batch. Images are shuffled anew each epoch.

    Args:
        models: Modules that return logits [n, classes]; stacked networks must differ only in their values. They are changed, and
            left in evaluation mode.
        split: What to train on and what to score on.
        masks: What to keep of each network; default everything.
        recipe: One recipe for all networks, or one per network with the same epochs and batch size. Default ``Recipe()``.
        data_seed: Seed of the image order and of dropout.
        checkpoint: Keeps the state after each epoch, and returns the last state to resume from; the result is the same.

    Returns:
        One frame per network, as from :func:`train`.

    Raises:
        ValueError: If stacked models are not alike, a mask or images do not fit, labels are not classes of the models, or
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
    for one in recipes:
        check_type("every recipe", one, Recipe)
    group = group_of(models, [None] * len(models) if masks is None else masks, recipes)
    with one_thread() if group.is_stacked else nullcontext():
        rows = _train(group, split, recipes[0], data_seed, checkpoint)
    return [
        pd.DataFrame([{"epoch": e} | {key: row[key][k] for key in row} for e, row in enumerate(rows, 1)])
        for k in range(len(models))
    ]


def _train(
    group: Together | Apart, split: Split, recipe: Recipe, data_seed: int, checkpoint: Checkpoint | None
) -> list[dict[str, list[float]]]:
    """Train a group; returns a row per epoch, with a value per network in every column."""
    epochs, batch_size = recipe.epochs, recipe.batch_size
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
    if (len(labels) - 1) % batch_size == 0:
        different = group.models[:1] if group.is_stacked else group.models
        _check_trains_on_one(different, images[:1], f"{len(labels)} images, batch_size {batch_size}")
    rows: list[dict[str, list[float]]] = []
    if checkpoint is not None and (found := checkpoint.load()) is not None:
        arrays, rows = found[0], list(found[1])
        group.restore(arrays, steps * len(rows))
    for epoch in range(epochs):
        # Drawn for finished epochs too, so that a resumed run sees the same orders.
        order = torch.randperm(len(labels), generator=shuffle)
        if epoch < len(rows):
            continue
        losses = torch.zeros(len(group.models), dtype=torch.float64, device=group.device)
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
    return rows


@torch.no_grad()
def _check_trains_on_one(models: Sequence[nn.Module], image: Tensor, batches: str) -> None:
    """Raise ValueError if a model cannot train on a batch of one image, as batch norm after linear layers cannot."""
    for model in models:
        try:
            with seeded(0, image.device):
                copied(model).train()(image)
        except ValueError as error:
            kind = type(model).__name__
            raise ValueError(
                f"the last batch of each epoch would be one image ({batches}), on which the model ({kind}) cannot train: {error}; "
                "choose another batch_size"
            ) from error


class Checkpoint(Protocol):
    """Where :func:`train_together` keeps its state after each epoch."""

    def load(self) -> tuple[Mapping[str, Tensor], list[dict[str, list[float]]]] | None:
        """The tensors and rows that were last saved, or None."""

    def save(self, tensors: Mapping[str, Tensor], rows: list[dict[str, list[float]]]) -> None:
        """Keep the state after ``len(rows)`` epochs."""
