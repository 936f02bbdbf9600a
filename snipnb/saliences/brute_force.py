"""Slow and obviously correct functions, with which tests and notebooks compare the fast functions.

Every function here does what its definition says, one parameter at a time if necessary. None is meant to be fast.
Losses and saliences are computed on a float64 copy of the model in evaluation mode (:func:`float32_differences` takes float32). :func:`snipnb.training.plain.plain_training`
trains the model itself, as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from snipnb._checks import (
    Loss,
    Salience,
    call_with,
    check_classes,
    check_examples,
    check_integer,
    copied,
    float_parameters,
)
from snipnb._progress import track

CHUNK = 100  # images at once: a chunk that fits the processor's cache is several times faster than all images


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """L(w): the mean loss over the images, a float64 scalar."""
    return _Examples(model, images, labels).value({})


def indicator_salience(model: nn.Module, images: Tensor, labels: Tensor, *, at: float = 1.0) -> Salience:
    """dL(c * w)/dc by automatic differentiation with respect to explicit indicators c, all equal to ``at``.

    **Definition.** Every parameter tensor w is replaced by c * w, with c a tensor of its shape. Autograd differentiates
    with respect to c. **Source.** Write-up, section 1, which says "an indicator variable equal to 1".

    Returns:
        Dictionary name -> dL/dc, float64.
    """
    examples = _Examples(model, images, labels)
    indicators = {name: torch.full_like(w, at, requires_grad=True) for name, w in examples.parameters.items()}
    value = examples.value({name: c * examples.parameters[name] for name, c in indicators.items()})
    gradients = torch.autograd.grad(value, list(indicators.values()))
    return dict(zip(indicators, gradients, strict=True))


def indicator_loss(model: nn.Module, images: Tensor, labels: Tensor, *, at: float = 1.0) -> Tensor:
    """L with every parameter multiplied by an explicit indicator of value ``at``; a float64 scalar."""
    examples = _Examples(model, images, labels)
    return examples.value({name: torch.full_like(w, at) * w for name, w in examples.parameters.items()})


def finite_difference_salience(
    model: nn.Module, images: Tensor, labels: Tensor, parameters: Mapping[str, Tensor], *, step: float = 1e-5
) -> Salience:
    """dL/dc_j at c = 1 as (L(c_j = 1 + step) - L(c_j = 1 - step)) / (2 step), for chosen parameters.

    Args:
        parameters: Name -> flat indices, as from :func:`stratified_sample`.

    Returns:
        Dictionary name -> float64 values, in the order of the indices.
    """
    examples = _Examples(model, images, labels)
    return {
        name: (examples.scaled(name, index, 1 + step) - examples.scaled(name, index, 1 - step)) / (2 * step)
        for name, index in track(parameters.items(), "finite differences")
    }


def ablation_salience(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    loss: Loss | None = None,
) -> Salience:
    """Exact salience by brute force: L(w with w_j = 0) - L(w), one forward pass per parameter.

    **Definition.** The signed loss change when one parameter is set to zero and all others stay. **Source.** Write-up,
    section 1, where L(0) means that w_j alone is zero.

    Args:
        parameters: Name -> flat indices to compute; default all parameters, in their shapes.

    Returns:
        Dictionary name -> float64 values, in the order of the indices, or in the parameter's shape.
    """
    return _Examples(model, images, labels, loss).ablated(parameters, "ablation")


def float32_differences(
    model: nn.Module, images: Tensor, labels: Tensor, parameters: Mapping[str, Tensor] | None = None
) -> Salience:
    """Exact salience the published way: the difference of two float32 mean losses on one batch, one pass per parameter.

    **Source.** The write-up's code (its brute-force salience on one mini-batch). Neighbouring float32 numbers near a loss of
    2.3 are 2.4e-7 apart, so no smaller salience except zero can result. Rounding in the passes adds to this error.

    Args:
        parameters: Name -> flat indices to compute; default all parameters, in their shapes.

    Returns:
        Dictionary name -> float32 values, in the order of the indices, or in the parameter's shape.
    """
    examples = _Examples(model, images, labels, dtype=torch.float32, chunk=len(images))
    return examples.ablated(parameters, "one pass per parameter")


def loss_along_weight(
    model: nn.Module, images: Tensor, labels: Tensor, name: str, index: int, factors: Sequence[float]
) -> Tensor:
    """L with one parameter w_j replaced by c * w_j, for each c of ``factors``; float64 [len(factors)]."""
    examples = _Examples(model, images, labels)
    return torch.cat([examples.scaled(name, torch.tensor([index]), c) for c in factors])


def stratified_sample(model: nn.Module, per_tensor: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Up to ``per_tensor`` flat indices of every parameter tensor, ascending, drawn without replacement.

    Args:
        model: Any module.
        per_tensor: How many, at most; at least 1.
        seed: Of the draw.

    Example:
        >>> import snipnb
        >>> {name: len(index) for name, index in snipnb.stratified_sample(snipnb.lenet5(), 8).items()}["conv1.bias"]
        6
    """
    check_integer("per_tensor", per_tensor, 1)
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randperm(p.numel(), generator=draw)[:per_tensor].sort().values
        for name, p in float_parameters(model).items()
    }


def pick(salience: Salience, parameters: Mapping[str, Tensor]) -> Salience:
    """The entries of a salience at the given flat indices."""
    return {name: salience[name].flatten()[index.to(salience[name].device)] for name, index in parameters.items()}


class _Examples:
    """A copy of a model, in float64 by default, with its images: gives the loss at changed parameters."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: Loss | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        chunk: int = CHUNK,
    ) -> None:
        check_examples(images, labels)
        float_parameters(model)
        self.model: Any = copied(model).to(dtype).eval().requires_grad_(False)
        self.parameters = float_parameters(self.model)
        device = next(iter(self.parameters.values())).device
        kind = dtype if images.is_floating_point() else images.dtype
        images, self.labels = images.to(device, kind, copy=True), labels.to(device).split(chunk)
        self.inputs = {0: images.split(chunk)}  # position of a layer -> its input
        self.loss = nn.functional.cross_entropy if loss is None else loss
        if loss is None:
            check_classes(self.model(images[:1]), labels)

    def value(self, changed: Mapping[str, Tensor], start: int = 0) -> Tensor:
        """The mean loss with some parameters replaced, all of them in layers from ``start`` on."""
        network = self.model[start:] if start else self.model
        losses = [
            self.loss(call_with(network, changed, x), y) * (len(y) if len(self.labels) > 1 else 1)
            for x, y in zip(self.inputs[start], self.labels, strict=True)
        ]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum() / sum(len(y) for y in self.labels)

    @torch.no_grad()
    def scaled(self, name: str, indices: Tensor, factor: float) -> Tensor:
        """The loss with one entry multiplied by ``factor``, for each index in turn."""
        start = self._layer_of(name)
        if start not in self.inputs:  # the layers before a changed layer do not change: they run once
            self.inputs[start] = tuple(self.model[:start](x) for x in self.inputs[0])
        values = []
        for index in indices.tolist():
            changed = self.parameters[name].clone()
            changed.view(-1)[index] *= factor
            values.append(self.value({name: changed}, start))
        return torch.stack(values)

    def ablated(self, parameters: Mapping[str, Tensor] | None, description: str) -> Salience:
        """How the loss changes when one entry is zero, for each index in turn, in the shape of the indices; default all."""
        before = self.value({})
        if parameters is None:
            parameters = {name: torch.arange(w.numel()).view_as(w) for name, w in self.parameters.items()}
        return {
            name: (self.scaled(name, indices.flatten(), 0.0) - before).view(indices.shape)
            for name, indices in track(parameters.items(), description)
        }

    def _layer_of(self, name: str) -> int:
        """Position of the layer that a parameter belongs to; 0 for networks that are not sequential."""
        if type(self.model) is not nn.Sequential:
            return 0
        return list(self.model._modules).index(name.split(".")[0])  # named_children() skips repeated layers
