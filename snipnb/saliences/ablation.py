"""The exact salience of any module: one parameter after another is set to zero, many side by side.

What is changed is one tensor. PyTorch maps the network over many versions of it (``torch.func.vmap``). So everything before the changed
tensor is computed once, and the rest runs as ordinary layers on a larger batch. Where a network cannot be mapped, each version is a pass.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from snipnb._checks import Salience, call_with, check_classes, copied, float_parameters
from snipnb._engine.cumulants import loss_changes
from snipnb._engine.sequential import check_finite
from snipnb._progress import note, track

T = TypeVar("T")
TEMPORARY = 2**24  # numbers that one layer may give for all versions and images at once
VERSIONS = 64  # of a tensor, at once
IMAGES = 100  # at once, at most
MOST = 2**22  # (parameter, image) pairs that are computed without having been asked for by name
CANNOT_MAP = (RuntimeError, NotImplementedError, ValueError, TypeError)  # what PyTorch raises where vmap does not work


@torch.no_grad()
def ablated(
    model: nn.Module, images: Tensor, labels: Tensor, wanted: Mapping[str, Tensor], *, everything: bool, why: str
) -> Salience:
    """Loss changes when single parameters are set to zero, in evaluation mode.

    **Definition.** As :func:`snipnb.exact_salience`. Computed in float64 where the model can be; the loss change of each image comes from the
    change of its logits, and the unchanged network is one of the versions, so that what has no effect gives exactly zero.

    Args:
        model: Any module that returns logits [n, classes]; unchanged.
        images: [n, ...].
        labels: [n].
        wanted: Name -> flat indices.
        everything: Whether the caller named no parameters, so that all are wanted.
        why: Why the fast way does not cover the model; begins or ends the error messages.

    Returns:
        Name -> loss changes in the order of the indices, in float64; computed in the model's dtype if it does not run in float64.

    Raises:
        ValueError: If ``everything`` is true and there are more than :data:`MOST` (parameter, image) pairs; the message estimates the time. Or if the
            model does not fit the images.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers; the caller sees them when running the model
        network, x = _precise(model, images)
    values, device = float_parameters(network), next(network.parameters()).device
    x, y = x.to(device), labels.to(device).long()
    number = sum(len(index) for index in wanted.values())
    with ordinary_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # vmap, where a function of PyTorch has no rule of its own
        try:
            logits, again = network(x[:1]), network(x[:1])
        except (RuntimeError, TypeError, IndexError) as error:
            name = type(model).__name__
            raise ValueError(
                f"the {name} cannot be run on images of shape {tuple(images.shape)}: {error} ({why})"
            ) from error
        check_classes(logits, labels)
        check_finite(logits)
        if not torch.equal(logits, again):
            raise ValueError(
                f"the {type(model).__name__} gives other logits at a second call; in evaluation mode it must not draw"
            )
        size = _largest_output(network, x[:1])
        start = time.perf_counter()
        network(x[:IMAGES])
        seconds = (time.perf_counter() - start) * number * max(1, len(x) / IMAGES)
        if everything and number * len(x) > MOST:
            raise ValueError(
                f"{why}. Without that, each of {number:,} parameters takes a pass over {len(x):,} images, up to {_duration(seconds)} in all here; give "
                "parameters=snipnb.stratified_sample(model, 50), or fewer images"
            )
        note(f"exact salience: {number:,} parameters, each a pass over {len(x):,} images, at most {_duration(seconds)}")
        jobs = list(_jobs(values, wanted, len(x), size))
        found = {name: torch.zeros(len(index), dtype=torch.float64, device=device) for name, index in wanted.items()}
        mapped = dict.fromkeys(wanted, True)
        for name, some, batch in track(jobs, "exact salience, parameter by parameter"):
            w = values[name]
            versions = w.detach().contiguous().expand(1 + some.stop - some.start, *w.shape).clone()
            rows = torch.arange(1, len(versions))
            versions.view(len(versions), -1)[rows, wanted[name][some].to(device)] = 0

            def logits(version: Tensor, some_images: Tensor, name: str = name) -> Tensor:
                return call_with(network, {name: version}, some_images.clone())

            z, mapped[name] = _logits(logits, versions, x[batch], mapped[name])
            check_finite(z[0])
            changes = loss_changes((z[1:] - z[:1]).permute(2, 0, 1), z[0].T.log_softmax(0), y[batch])
            found[name][some] += changes.sum(1, dtype=torch.float64)
    return {name: total / len(x) for name, total in found.items()}


def _logits(
    logits: Callable[[Tensor, Tensor], Tensor], versions: Tensor, x: Tensor, mapped: bool
) -> tuple[Tensor, bool]:
    """Logits of all versions [versions, images, classes], and whether they could be mapped."""
    if mapped:
        try:
            return over_versions(logits, versions, x), True
        except CANNOT_MAP:
            pass  # a real error comes again
    return torch.stack([logits(version, x) for version in versions]), False


def over_versions(f: Callable[[Tensor, Tensor], T], versions: Tensor, x: Tensor) -> T:
    """``f(version, x)`` for all versions at once. A network that adds in place cannot share ``x``; then every version has its own."""
    try:
        return torch.func.vmap(f, (0, None))(versions, x)
    except CANNOT_MAP:
        return torch.func.vmap(f, (0, 0))(versions, x.expand(len(versions), *x.shape))


def _precise(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor]:
    """A copy in evaluation mode and the images, in float64 if the model runs in it."""
    network = copied(model).eval().requires_grad_(False)
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"layer {name!r} has no running statistics, so that the salience would depend on the batches; it must have them"
            )
    try:
        precise, x = copied(network).double(), images.double() if images.is_floating_point() else images
        precise(x[:1].to(next(precise.parameters()).device))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError):
        return network, images  # layers with tensors of their own, devices without float64
    return precise, x


def _largest_output(network: nn.Module, one: Tensor) -> int:
    """The most numbers that a layer gives for one image."""
    sizes = [1]

    def see(module: nn.Module, inputs: object, output: object) -> None:
        sizes.append(output.numel() if isinstance(output, Tensor) else 1)

    hooks = [module.register_forward_hook(see) for module in network.modules()]
    network(one)
    for hook in hooks:
        hook.remove()
    return max(sizes)


def _jobs(
    values: Mapping[str, Tensor], wanted: Mapping[str, Tensor], number: int, size: int
) -> Iterator[tuple[str, slice, slice]]:
    """Name, which of its indices, and which images are computed at once."""
    images = max(1, min(IMAGES, number, TEMPORARY // (2 * size)))
    for name, index in wanted.items():
        together = max(1, min(VERSIONS, TEMPORARY // (size * images), TEMPORARY // values[name].numel()))
        for first in range(0, len(index), together):
            some = slice(first, min(first + together, len(index)))
            for start in range(0, number, images):
                yield name, some, slice(start, start + images)


def _duration(seconds: float) -> str:
    """A time to one or two digits, in the unit that suits it."""
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{math.ceil(seconds)} seconds"


@contextmanager
def ordinary_attention() -> Iterator[None]:
    """Compute attention by products that PyTorch can map and differentiate, not by its fused kernels."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
