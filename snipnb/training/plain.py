"""Training of one masked network by the obvious loop: slow and short, the reference that every faster way is tested against."""

from __future__ import annotations

import pandas as pd
import torch
from torch import nn

from snipnb._checks import check_examples
from snipnb._progress import track
from snipnb.data import Split
from snipnb.pruning.masks import Mask, check_mask_fits
from snipnb.training.groups import set_to_zero
from snipnb.training.recipe import Recipe, learning_rate, optimiser_of
from snipnb.training.scores import error_rate


def plain_training(
    model: nn.Module, split: Split, *, mask: Mask | None = None, recipe: Recipe | None = None, data_seed: int = 0
) -> pd.DataFrame:
    """Train one network in place by the obvious loop, with PyTorch's own gradients and optimisers.

    **Definition.** As :func:`snipnb.training.loop.train_together`, for a single network: pruned parameters start at zero and
    their gradients are masked before every step (``masks_at="end"``); mean cross-entropy of a batch; the same images in the same order. Dropout
    draws from the global random state, so the results for networks with dropout differ.

    Args:
        model: Any module that takes images [n, ...] and returns logits [n, classes]; its parameters are changed, and it is
            left in evaluation mode.
        split: What to train on and what to score on.
        mask: What to keep; default everything.
        recipe: Default ``Recipe()``.
        data_seed: Seed of the image order.

    Returns:
        Tidy frame, one row per epoch: ``epoch`` (from 1), ``train_loss`` (mean over the epoch, while training),
        ``validation_error``, ``test_error`` (fractions of wrong images; NaN if the split has no such images).

    Raises:
        ValueError: If there are no training images, or the mask does not fit the model. The model is then unchanged.
    """
    recipe = recipe or Recipe()
    parameters = dict(model.named_parameters())
    device = next(iter(parameters.values())).device
    check_examples(split.train_images, split.train_labels, recipe.batch_size)
    if mask is not None:
        check_mask_fits(model, mask)
    kept = {name: m.to(device) for name, m in (mask or {}).items()}
    set_to_zero(parameters, kept)
    images, labels = split.train_images.to(device), split.train_labels.to(device)
    steps = -(-len(labels) // recipe.batch_size)
    optimiser = optimiser_of(recipe, parameters.values())
    shuffle = torch.Generator().manual_seed(data_seed)
    rows = []
    for epoch in range(recipe.epochs):
        model.train()
        total = torch.zeros((), dtype=torch.float64, device=device)
        order = torch.randperm(len(labels), generator=shuffle).to(device)
        batches = track(order.split(recipe.batch_size), f"epoch {epoch + 1}/{recipe.epochs}", total=steps)
        for step, batch in enumerate(batches, epoch * steps):
            optimiser.param_groups[0]["lr"] = learning_rate(recipe, step, steps)
            if recipe.masks_at == "start":
                set_to_zero(parameters, kept)
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            for name, m in kept.items():
                gradient = parameters[name].grad
                if gradient is not None and recipe.masks_at == "end":  # None: frozen, or not used
                    gradient.mul_(m)
            optimiser.step()
            total += loss.detach() * len(batch)
        model.eval()
        validation = error_rate(model, split.validation_images, split.validation_labels)
        test = error_rate(model, split.test_images, split.test_labels)
        rows.append((epoch + 1, float(total) / len(labels), validation, test))
    return pd.DataFrame(rows, columns=["epoch", "train_loss", "validation_error", "test_error"])
