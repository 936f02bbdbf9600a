"""What every function on a network needs: checks of its arguments, calls with other parameters, and a model left as it was found."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from snipnb._progress import track

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
PIXELS = (torch.float32, torch.float64, *INTEGERS)
Salience = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, labels) of a batch -> mean loss, a scalar


# --- single arguments -------------------------------------------------------------------------------------------------


def check_choice(name: str, value: object, accepted: Iterable[object]) -> None:
    """Raise ValueError unless a value is one of the accepted values."""
    accepted = list(accepted)
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}")


def check_type(name: str, value: object, kind: type) -> None:
    """Raise ValueError unless a value is of a type."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be a {kind.__name__}; got {value!r}")


def check_integer(name: str, value: object, least: float = -math.inf, below: float = math.inf) -> None:
    """Raise ValueError unless a value is an integer (not True or False) of at least ``least`` and less than ``below``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < below:
        interval = f" of at least {least}" if below == math.inf else f" from {least} to {below - 1}"
        raise ValueError(f"{name} must be an integer{'' if least == -math.inf else interval}; got {value!r}")


def check_number(name: str, value: Any, interval: str) -> None:
    """Raise ValueError unless a value is a number (not True or False) in an interval, such as ``"[0, 1)"`` or ``"(0, inf)"``."""
    low, high = map(float, interval[1:-1].split(","))
    excluded = {end for end, bracket in ((low, interval[0]), (high, interval[-1])) if bracket in "()"}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value in excluded:
        raise ValueError(f"{name} must be a number in {interval}; got {value!r}")


# --- models and examples ----------------------------------------------------------------------------------------------


def float_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Detached parameters by name; an error if there are none or one is not floating point."""
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ValueError(f"the model ({type(model).__name__}) has no parameters; it needs at least one")
    for name, p in parameters.items():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"parameter {name!r} has no shape yet; run the model once on a batch first")
        if not p.is_floating_point():
            raise ValueError(f"parameter {name!r} must be floating-point; got {p.dtype}")
    return {name: p.detach() for name, p in parameters.items()}


def call_with(model: nn.Module, replaced: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """``model(inputs)`` with some parameters or buffers replaced for this call, also where a tensor is used in several places.

    ``torch.func.functional_call`` finds shared tensors by itself, but then leaves the replacement in a sub-module that is used
    in two places. So every place is named here, each sub-module once.

    Args:
        replaced: Keyed like ``named_parameters()`` and ``named_buffers()``, which name a shared tensor once.
    """
    names = {id(t): name for name, t in itertools.chain(model.named_parameters(), model.named_buffers())}
    places = {}
    for prefix, module in model.named_modules():
        for slot, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None and names[id(tensor)] in replaced:
                places[f"{prefix}.{slot}" if prefix else slot] = replaced[names[id(tensor)]]
    return functional_call(model, places, (inputs,), tie_weights=False)


def check_examples(images: Tensor, labels: Tensor, batch_size: int = 1) -> None:
    """Raise ValueError unless there are as many images as labels, at least one, and the batch size is a positive integer."""
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor) or given.dim() == 0:
            kind = "0-dimensional tensor" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"{name} must be a tensor [n, ...]; got a {kind}")
    if len(images) != len(labels):
        raise ValueError(f"{len(images)} images but {len(labels)} labels; there must be one label per image")
    if len(images) == 0:
        raise ValueError("the data set is empty; it needs at least one image")
    check_integer("batch_size", batch_size, 1)


def check_alike_and_precise(parameters: Mapping[str, Tensor], images: Tensor, *, integers: bool = False) -> Tensor:
    """Raise ValueError unless parameters are all float32 or all float64, on one device, and images have their dtype; gives the first parameter.

    Args:
        parameters: Name -> tensor.
        images: Inputs.
        integers: Whether inputs may be integers, such as the words of a text.
    """
    first = next(iter(parameters.values()))
    for name, p in parameters.items():
        if p.dtype not in (torch.float32, torch.float64) or p.dtype != first.dtype or p.device != first.device:
            given = f"{p.dtype} on {p.device} for {name!r}"
            raise ValueError(f"parameters must be all float32 or all float64, on one device; got {given}")
    if images.dtype != first.dtype and not (integers and images.dtype in INTEGERS):
        raise ValueError(f"images are {images.dtype} and the model's parameters {first.dtype}; convert one of them")
    return first


def check_classes(outputs: Tensor, labels: Tensor) -> None:
    """Raise ValueError unless outputs are logits [n, C] and labels are integers [n] in [0, C)."""
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model's output must be a tensor of logits; got a {type(outputs).__name__}")
    if outputs.dim() != 2:
        raise ValueError(
            f"the model's output has shape {tuple(outputs.shape)}; cross-entropy takes logits [n, classes]"
        )
    if labels.dim() != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers [n]; got {labels.dtype} of shape {tuple(labels.shape)}")
    labels = labels.long()  # not every integer type has a minimum
    lowest, highest, classes = int(labels.min()), int(labels.max()), outputs.shape[1]
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"labels range from {lowest} to {highest}; the model's {classes} outputs accept 0 to {classes - 1}"
        )


def check_names(kind: str, names: Collection[str], model: nn.Module) -> None:
    """Raise ValueError unless the names are exactly the names of the model's parameters; ``kind`` says what they are keys of."""
    parameters = [name for name, _ in model.named_parameters()]
    unknown, missing = [n for n in names if n not in parameters], [n for n in parameters if n not in names]
    if unknown or missing:
        hint = " (the model is pruned already)" if any(n.endswith("_orig") for n in missing) else ""
        raise ValueError(
            f"the names of {kind} and model differ{hint}: {unknown} only in the {kind}, {missing} only in the model; "
            "there must be an entry for every parameter"
        )


def check_tensors(kind: str, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError unless there is a tensor for every parameter of the model, in its shape."""
    check_names(kind, tensors, model)
    for name, p in model.named_parameters():
        if tensors[name].shape != p.shape:
            shapes = f"the parameter's shape {tuple(p.shape)}; got {tuple(tensors[name].shape)}"
            raise ValueError(f"{kind} of {name!r} must have {shapes}")


def flat_indices(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Flat indices to compute, by name: what a caller gave, checked, or all."""
    if parameters is None:
        return {name: torch.arange(p.numel()) for name, p in tensors.items()}
    if not isinstance(parameters, Mapping):
        raise ValueError(f"parameters must be a dictionary name -> flat indices; got a {type(parameters).__name__}")
    wanted = {}
    for name, given in parameters.items():
        if name not in tensors:
            raise ValueError(f"parameters has an unknown name {name!r}; the model has {', '.join(tensors)}")
        try:
            indices = torch.as_tensor(given).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"indices of {name!r} must be integers [n]; got {given!r}") from None
        if indices.dim() != 1 or (indices.dtype not in INTEGERS and indices.numel()):
            kind = f"{indices.dtype} of shape {tuple(indices.shape)}"
            raise ValueError(f"indices of {name!r} must be integers [n]; got {kind}")
        wanted[name] = indices.long()
        low, high = map(int, wanted[name].aminmax()) if indices.numel() else (0, -1)
        count = tensors[name].numel()
        if low < 0 or high >= count:
            raise ValueError(f"indices of {name!r} range from {low} to {high}; they must be from 0 to {count - 1}")
    return wanted


# --- copies, and calls that leave a model as it was ----------------------------------------------------------------------


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model, also where hooks (as of ``torch.nn.utils.prune``) have left a computed tensor, which PyTorch does not copy."""
    computed = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    return copy.deepcopy(model, {id(t): t.detach() for t in computed})


@contextmanager
def in_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """Put a model in ``"eval"`` or ``"train"`` mode, and afterwards put back the mode of every sub-module."""
    check_choice("mode", mode, ("eval", "train"))
    before = [(module, module.training) for module in model.modules()]
    try:
        model.train(mode == "train")
        yield
    finally:
        for module, training in before:
            module.training = training


def batch_starts(number: int, batch_size: int, description: str) -> Iterator[slice]:
    """Slices that cover ``number`` examples, with progress."""
    for start in track(range(0, number, batch_size), description):
        yield slice(start, start + batch_size)


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back afterwards what a forward pass may change in a model: buffers, tensors set by hooks, ``requires_grad``."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    hooked = [(m, {k: v for k, v in m.__dict__.items() if isinstance(v, Tensor)}) for m in model.modules()]
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        for module, tensors in hooked:
            module.__dict__.update(tensors)
        for p, requires_grad in frozen:
            p.requires_grad_(requires_grad)
