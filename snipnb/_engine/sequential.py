"""A sequential network as the steps through which changes are carried; a clear error for what they do not cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._engine.propagation import Flat, Gate, Geometry, Mean, Mix, Norm, Step, Windows

ACCEPTED = (
    "Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, Flatten, Dropout, Identity, BatchNorm1d and BatchNorm2d with running "
    "statistics, Sequential, and LogSoftmax as the last layer"
)

WIDEST = 9  # values in a pooling window that a convolution computes side by side


def steps_of(model: nn.Module, image_shape: Sequence[int]) -> list[Step]:
    """The steps of a sequential network for images of one shape ([channels, height, width] or [features]).

    Raises:
        ValueError: If the network holds a layer, an option or a sharing of parameters that these steps do not cover.
    """
    layers = layers_of(model)
    if len(image_shape) not in (1, 3):
        raise ValueError(
            f"images have shape {tuple(image_shape)}; accepted are [channels, height, width] and [features]"
        )
    steps: list[Step] = []
    shape: tuple[int, ...] = tuple(image_shape)
    arranged = False  # whether the values of the coming pooling windows already lie side by side
    for i, (name, layer) in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            _need(len(shape) == 3 and shape[0] == layer.in_channels, name, layer, shape)
            pool = next((p for _, p in layers[i + 1 :] if not isinstance(p, _Norms)), None)
            window = ((1, 1), (1, 1))
            if arranged := isinstance(pool, Pool) and pool.padding == (0, 0) and math.prod(pool.kernel) <= WIDEST:
                window = (pool.kernel, pool.stride)
            size = _size(shape[1:], layer.kernel_size, layer.stride, padding_of(layer), layer.dilation)
            _need(min(size) > 0 and (not arranged or min(_size(size, *window, (0, 0))) > 0), name, layer, shape)
            geometry = _geometry(layer, (shape[1], shape[2]), window)
            steps.append(_mix(name, layer, geometry))
            shape = (layer.out_channels, *size)
        elif isinstance(layer, nn.Linear):
            _need(len(shape) == 1 and shape[0] == layer.in_features, name, layer, shape)
            steps.append(_mix(name, layer, None))
            shape = (layer.out_features,)
        elif isinstance(layer, _Norms):
            _need(len(shape) == (3 if isinstance(layer, nn.BatchNorm2d) else 1), name, layer, shape)
            _need(shape[0] == layer.num_features, name, layer, shape)
            steps.append(Norm(layer, _own_names(name, layer)))
        elif isinstance(layer, Pool):
            _need(len(shape) == 3, name, layer.module, shape)
            size = _size(shape[1:], layer.kernel, layer.stride, layer.padding)
            _need(min(size) > 0, name, layer.module, shape)
            table = _positions((shape[1], shape[2]), layer.kernel, layer.stride, layer.padding)
            windows = None if arranged else Windows(table, shape[1] * shape[2])
            steps.append(Gate(layer.relu, windows) if layer.kind == "max" else Mean(windows))
            shape, arranged = (shape[0], *size), False
        elif isinstance(layer, nn.ReLU):
            steps.append(Gate(True, None))
        else:  # Flatten
            if len(shape) == 3:
                steps.append(Flat(shape[1] * shape[2]))
            shape = (torch.Size(shape).numel(),)
    if len(shape) != 1:
        raise ValueError(f"the model's output has shape {shape} per image; logits [classes] are needed")
    device = next(model.parameters()).device
    for step in steps:
        for key, value in vars(step).items():
            if isinstance(value, Tensor):
                setattr(step, key, value.to(device))
            elif isinstance(value, Windows):
                value.table = value.table.to(device)
    return steps


_Norms = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass
class Pool:
    """A pooling layer, with the ReLU that stands before or after it."""

    module: nn.Module
    kind: str  # max, mean
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool


def layers_of(model: nn.Module, *, training: bool = False) -> list[tuple[str, nn.Module | Pool]]:
    """Named layers in order: a ReLU beside a max-pooling is joined with it; what does nothing is left out.

    Dropout acts in training only; a final LogSoftmax is left out unless ``training``, as a cross-entropy does not change by it.

    Raises:
        ValueError: If the model is no ``nn.Sequential``, or holds a layer, an option or a sharing that is not covered.
    """
    if type(model) is not nn.Sequential:
        raise ValueError(f"the model is a {type(model).__name__}; accepted is nn.Sequential of {ACCEPTED}")
    for name, module in model.named_modules():
        if module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module):
            raise ValueError(
                f"{f'layer {name!r}' if name else 'the model'} has hooks or a forward of its own, which would be left out; "
                "for masks, make them permanent first (torch.nn.utils.prune.remove)"
            )
    leaves = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if type(m) is not nn.Sequential]
    seen: dict[int, str] = {}
    layers: list[tuple[str, nn.Module | Pool]] = []
    for i, (name, module) in enumerate(leaves):
        _check_layer(name, module, last=i == len(leaves) - 1)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                raise ValueError(f"parameter {name}.{key} is also {seen[id(parameter)]}; each may be used once only")
            seen[id(parameter)] = f"{name}.{key}"
        before = layers[-1][1] if layers else None
        if isinstance(module, nn.ReLU):
            if isinstance(before, Pool) and before.kind == "max":
                before.relu = True
            elif not isinstance(before, nn.ReLU):
                layers.append((name, module))
        elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
            kernel = pair(module.kernel_size)
            stride, padding = pair(module.stride or kernel), pair(module.padding)
            kind = "max" if isinstance(module, nn.MaxPool2d) else "mean"
            joined = kind == "max" and isinstance(before, nn.ReLU)
            if joined:
                layers.pop()
            layers.append((name, Pool(module, kind, kernel, stride, padding, relu=joined)))
        elif not isinstance(module, nn.Identity) and (training or not isinstance(module, (nn.Dropout, nn.LogSoftmax))):
            layers.append((name, module))
    return layers


def _check_layer(name: str, module: nn.Module, *, last: bool) -> None:
    """Raise ValueError for a layer or an option that is not covered."""
    kinds = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, nn.Dropout, nn.Identity, *_Norms)
    if type(module) not in (*kinds, nn.LogSoftmax) or (type(module) is nn.LogSoftmax and not last):
        raise ValueError(f"layer {name!r} is a {type(module).__name__}; accepted are {ACCEPTED}")
    if extra := {key for key, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}:
        raise ValueError(f"layer {name!r} has parameters of its own, {sorted(extra)}; accepted are weight and bias")
    if isinstance(module, _Norms):
        if module.track_running_stats and (module.running_mean is None or module.running_var is None):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has no running statistics; accepted is with them"
            )
        if (module.weight is None) != (module.bias is None):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has a weight or a bias alone; accepted are both or none"
            )
    if type(module) is nn.MaxPool2d and any(
        2 * p > k for p, k in zip(pair(module.padding), pair(module.kernel_size), strict=True)
    ):
        raise ValueError(f"layer {name!r} is {module}; accepted is padding of at most half the window")
    options: dict[type[nn.Module], dict[str, Any]] = {
        nn.Conv2d: {"groups": 1, "padding_mode": "zeros"},
        nn.MaxPool2d: {"ceil_mode": False, "dilation": 1, "return_indices": False},
        nn.AvgPool2d: {"ceil_mode": False, "divisor_override": None},
        nn.BatchNorm1d: {"track_running_stats": True},
        nn.BatchNorm2d: {"track_running_stats": True},
        nn.Flatten: {"start_dim": 1, "end_dim": -1},
        nn.LogSoftmax: {"dim": (1, -1)},
    }
    for option, accepted in options.get(type(module), {}).items():
        given = getattr(module, option)
        if (
            given != accepted
            and not (option == "dilation" and pair(given) == (1, 1))
            and not (option == "dim" and given in accepted)
        ):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) has {option}={given!r}; accepted is {accepted!r}"
            )
    if type(module) is nn.AvgPool2d and pair(module.padding) != (0, 0) and not module.count_include_pad:
        raise ValueError(f"layer {name!r} (AvgPool2d) has padding without count_include_pad; accepted is with")
    if (
        type(module) is nn.Conv2d
        and module.padding == "same"
        and any(d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    ):
        raise ValueError(f"layer {name!r} (Conv2d) pads one side more (padding='same'); accepted is equal padding")


def _need(condition: bool, name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    if not condition:
        raise ValueError(f"layer {name!r} is {layer}; it gets {tuple(shape)} per image, which does not fit")


def _own_names(name: str, layer: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.{key}" for key, _ in layer.named_parameters(recurse=False))


def _mix(name: str, layer: nn.Conv2d | nn.Linear, geometry: Geometry | None) -> Mix:
    bias = None if layer.bias is None else layer.bias.detach()
    return Mix(layer.weight.detach(), bias, _own_names(name, layer), geometry)


# --- which position meets which ---------------------------------------------------------------------------------------


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _positions(size: tuple[int, int], kernel, stride, padding, dilation=(1, 1)) -> Tensor:
    """Input positions of every window, [windows, positions in it]; height * width stands for padding."""
    height, width = size
    index = torch.arange(1, height * width + 1, dtype=torch.float64).view(1, 1, height, width)
    found = F.unfold(index, kernel, dilation, padding, stride)[0].T.long()
    return torch.where(found == 0, height * width, found - 1)


def _size(size, kernel, stride, padding, dilation=(1, 1)) -> tuple[int, int]:
    return tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    )


def _geometry(module: nn.Conv2d, size: tuple[int, int], pool: tuple[tuple[int, int], tuple[int, int]]) -> Geometry:
    """Tables of a convolution whose outputs are wanted in pooling windows of ``pool`` = (kernel, stride)."""
    kernel, stride, dilation = pair(module.kernel_size), pair(module.stride), pair(module.dilation)
    padding = padding_of(module)
    window, step = pool
    single = _positions(size, kernel, stride, padding, dilation)
    outputs = _positions(_size(size, kernel, stride, padding, dilation), window, step, (0, 0))
    reach = tuple((w - 1) * s + d * (k - 1) + 1 for w, s, d, k in zip(window, stride, dilation, kernel, strict=True))
    field = _positions(size, reach, tuple(s * t for s, t in zip(stride, step, strict=True)), padding)

    def place(weight: Tensor) -> Tensor:
        spread = weight.new_zeros(window[0] * window[1], weight.shape[0], weight.shape[1], *reach)
        for q, one in enumerate(spread):
            y, x = (q // window[1]) * stride[0], (q % window[1]) * stride[1]
            rows = slice(y, y + dilation[0] * (kernel[0] - 1) + 1, dilation[0])
            one[:, :, rows, x : x + dilation[1] * (kernel[1] - 1) + 1 : dilation[1]] = weight
        return spread

    return Geometry(field, single[outputs], size[0] * size[1], place)


def padding_of(module: nn.Conv2d) -> tuple[int, int]:
    if module.padding == "valid":
        return (0, 0)
    if isinstance(module.padding, str):  # same
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (total[0] // 2, total[1] // 2)
    return pair(module.padding)
