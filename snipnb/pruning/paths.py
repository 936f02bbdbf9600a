"""Which kept parameters matter at all: those on a path from the input to an output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snipnb._checks import call_with
from snipnb._engine.sequential import layers_of
from snipnb.pruning.masks import Mask, check_mask_fits


def on_paths(model: nn.Module, mask: Mask, images: Tensor) -> Mask:
    """The kept parameters that lie on a path of kept weights.

    **Definition.** A kept weight counts if some chain of kept weights, from unit to unit or channel to channel, leads from an input through it to
    an output. A kept bias counts if such a chain leads from its unit to an output. All other kept parameters change no output for any image, or
    only add a constant. The share of parameters that do not count is the *effective sparsity*.

    Args:
        model: A ReLU network of the layers that :func:`snipnb.exact_salience` accepts; unchanged.
        mask: Name -> boolean tensor for every parameter; True keeps.
        images: [n, ...]; only the shape of an image is used.

    Returns:
        Name -> boolean tensor; True where a parameter counts.

    Raises:
        ValueError: If the mask does not fit the model, or the model has other layers.

    Source: Vysogorets and Kempe (2021), Connectivity matters: neural network pruning through the lens of effective sparsity. Departs from it: biases
    count as parameters.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from snipnb.pruning.paths import on_paths
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
        >>> mask = {"0.weight": torch.tensor([[True, False], [True, True]]), "2.weight": torch.tensor([[True, False]])}
        >>> on_paths(model, mask, torch.zeros(1, 2))["0.weight"].tolist()  # the second unit leads nowhere
        [[True, False], [False, False]]
    """
    layers_of(model)
    check_mask_fits(model, mask)
    # Nothing is negative here, and each output counts by itself.
    others: dict[Any, Callable[[Any], nn.Module]] = {
        nn.ReLU: nn.Identity,
        nn.LogSoftmax: nn.Identity,
        nn.MaxPool2d: lambda pool: nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding),
    }
    counting = replaced(copy.deepcopy(model).double().eval(), others)
    for module in counting.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.reset_running_stats()
    # The network of ones and zeros counts paths. Biases of zero keep paths apart that begin at a bias; they have derivatives all the same.
    ones = {name: m.double() for name, m in mask.items()}
    values = {n: (o if o.dim() > 1 or n.endswith("weight") else o * 0).requires_grad_() for n, o in ones.items()}
    with torch.enable_grad():
        paths = call_with(counting, values, torch.ones_like(images[:1], dtype=torch.float64)).sum()
        found = torch.autograd.grad(paths, [*values.values()], materialize_grads=True)
    return {name: (g > 0) & mask[name] for name, g in zip(values, found, strict=True)}


def replaced(model: nn.Module, others: Mapping[Any, Callable[[Any], nn.Module]]) -> nn.Module:
    """The same model, with modules of some kinds replaced by what a function makes of each, wherever they stand."""
    for parent in list(model.modules()):
        for name, module in list(parent._modules.items()):  # a shared module stands in several places
            for kind, other in others.items():
                if isinstance(module, kind):
                    setattr(parent, name, other(module))
    return model
