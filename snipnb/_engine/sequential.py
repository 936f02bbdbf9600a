"""A sequential network as steps that propagate changes, and clear errors for what the steps do not cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._engine.propagation import Flat, Gate, Geometry, Mean, Mix, Norm, Step, Windows

Norms = (nn.BatchNorm1d, nn.BatchNorm2d)

ACCEPTED = (
    "Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, Flatten, Dropout, Identity, BatchNorm1d and BatchNorm2d with running "
    "statistics, Sequential, and LogSoftmax as the last layer"
)

WIDEST = 9  # most values in a pooling window that a convolution computes side by side
OPTIONS: dict[type[nn.Module], dict[str, tuple]] = {  # option -> accepted values
    nn.Conv2d: {"groups": (1,), "padding_mode": ("zeros",)},
    nn.MaxPool2d: {"ceil_mode": (False,), "return_indices": (False,)},
    nn.AvgPool2d: {"ceil_mode": (False,), "divisor_override": (None,)},
    nn.BatchNorm1d: {"track_running_stats": (True,)},
    nn.BatchNorm2d: {"track_running_stats": (True,)},
    nn.Flatten: {"start_dim": (1,), "end_dim": (-1,)},
    nn.LogSoftmax: {"dim": (1, -1)},
}
LAYERS = (*OPTIONS, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity)
# Layers that do not take every shape: the number of an image's dimensions, and the attribute with the number of channels.
TAKEN: dict[type[nn.Module], tuple[int, str]] = {
    nn.Conv2d: (3, "in_channels"),
    nn.Linear: (1, "in_features"),
    nn.BatchNorm2d: (3, "num_features"),
    nn.BatchNorm1d: (1, "num_features"),
    nn.MaxPool2d: (3, ""),
    nn.AvgPool2d: (3, ""),
}


def steps_of(model: nn.Module, image_shape: Sequence[int]) -> list[Step]:
    """The steps of a sequential network for images of one shape ([channels, height, width] or [features]).

    Raises:
        ValueError: If the network has a layer or an option that these steps do not cover, or shares parameters.
    """
    layers = layers_of(model)
    if len(image_shape) not in (1, 3):
        raise ValueError(
            f"each image must have shape [channels, height, width] or [features]; got {tuple(image_shape)}"
        )
    shapes = shapes_of(layers, image_shape)
    if len(shapes[-1]) != 1:
        raise ValueError(f"the model must return logits [classes] for each image; got shape {shapes[-1]}")
    steps: list[Step] = []
    arranged = False  # whether the values of the next pooling's windows already lie side by side
    for i, ((name, layer), shape) in enumerate(zip(layers, shapes, strict=False)):
        if isinstance(layer, nn.Conv2d):
            pool = next((p for _, p in layers[i + 1 :] if not isinstance(p, Norms)), None)
            window = ((1, 1), (1, 1))
            if arranged := isinstance(pool, Pool) and pool.padding == (0, 0) and math.prod(pool.kernel) <= WIDEST:
                window = (pool.kernel, pool.stride)
            steps.append(Mix(layer, _own_names(name, layer), _geometry(layer, (shape[1], shape[2]), window)))
        elif isinstance(layer, nn.Linear):
            steps.append(Mix(layer, _own_names(name, layer), None))
        elif isinstance(layer, Norms):
            steps.append(Norm(layer, _own_names(name, layer)))
        elif isinstance(layer, Pool):
            table = _positions((shape[1], shape[2]), layer.kernel, layer.stride, layer.padding)
            windows = None if arranged else Windows(table, shape[1] * shape[2])
            steps.append(Gate(layer.relu, windows) if layer.kind == "max" else Mean(windows))
            arranged = False
        elif isinstance(layer, nn.ReLU):
            steps.append(Gate(True, None))
        elif len(shape) == 3:  # Flatten
            steps.append(Flat(shape[1] * shape[2]))
    device = next(model.parameters()).device
    for step in steps:
        for key, value in vars(step).items():
            if isinstance(value, Tensor):
                setattr(step, key, value.to(device))
            elif isinstance(value, Windows):
                value.table = value.table.to(device)
    return steps


@dataclass
class Pool:
    """A pooling layer, with the ReLU before or after it, if there is one."""

    module: nn.Module
    kind: str  # max, mean
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    relu: bool


def layers_of(model: nn.Module, *, training: bool = False) -> list[tuple[str, nn.Module | Pool]]:
    """Named layers in order: a ReLU next to a max-pooling is joined with it, and layers without effect are left out.

    Dropout acts only in training. A final LogSoftmax is left out unless ``training``, because it does not change a cross-entropy.

    Raises:
        ValueError: If the model is not an ``nn.Sequential``, has a layer or an option that is not covered, or shares parameters.
    """
    if type(model) is not nn.Sequential:
        raise ValueError(f"the model is a {type(model).__name__}; it must be an nn.Sequential of {ACCEPTED}")
    for name, module in model.named_modules():
        if module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module):
            raise ValueError(
                f"{f'layer {name!r}' if name else 'the model'} has hooks or a forward of its own, which would be ignored; "
                "make masks permanent first, with torch.nn.utils.prune.remove"
            )
    leaves = [(name, m) for name, m in model.named_modules(remove_duplicate=False) if type(m) is not nn.Sequential]
    seen: dict[int, str] = {}
    layers: list[tuple[str, nn.Module | Pool]] = []
    for i, (name, module) in enumerate(leaves):
        _check_layer(name, module, last=i == len(leaves) - 1)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                raise ValueError(f"parameter {name}.{key} is also {seen[id(parameter)]}; each may be used only once")
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
    kind = type(module)
    if kind not in LAYERS or (kind is nn.LogSoftmax and not last):
        raise ValueError(f"layer {name!r} is a {kind.__name__}; it must be one of {ACCEPTED}")
    if extra := {key for key, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}:
        raise ValueError(f"layer {name!r} has additional parameters {sorted(extra)}; it may have only weight and bias")
    for option, accepted in OPTIONS.get(kind, {}).items():
        if (given := getattr(module, option)) not in accepted:
            words = f"has {option}={given!r}; {option} must be {' or '.join(map(repr, accepted))}"
            raise ValueError(f"layer {name!r} ({kind.__name__}) {words}")
    wrong = ""
    if isinstance(module, Norms):
        if module.running_mean is None or module.running_var is None:
            wrong = "has no running statistics; it must have them"
        elif (module.weight is None) != (module.bias is None):
            wrong = "has only a weight or only a bias; it must have both or neither"
    elif isinstance(module, nn.MaxPool2d):
        if pair(module.dilation) != (1, 1):
            wrong = f"has dilation={module.dilation!r}; dilation must be 1"
        elif any(2 * p > k for p, k in zip(pair(module.padding), pair(module.kernel_size), strict=True)):
            wrong = f"has padding={module.padding!r}; padding must be at most half the window"
    elif isinstance(module, nn.AvgPool2d):
        if pair(module.padding) != (0, 0) and not module.count_include_pad:
            wrong = "has padding and count_include_pad=False; count_include_pad must be True"
    elif isinstance(module, nn.Conv2d):
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if module.padding == "same" and any(n % 2 for n in total):
            wrong = "pads one side more than the other (padding='same'); the padding of both sides must be equal"
    if wrong:
        raise ValueError(f"layer {name!r} ({kind.__name__}) {wrong}")


def shapes_of(layers: Sequence[tuple[str, nn.Module | Pool]], image_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of an image at the input of each layer, and at the output of the last layer.

    Raises:
        ValueError: If a layer does not fit its input.
    """
    shapes = [tuple(image_shape)]
    for name, layer in layers:
        shape = after = shapes[-1]
        module = layer.module if isinstance(layer, Pool) else layer
        dimensions, channels = TAKEN.get(type(module), (len(shape), ""))
        fits = len(shape) == dimensions > 0 and shape[0] == getattr(module, channels, shape[0])
        if isinstance(layer, nn.Linear):
            after = (layer.out_features,)
        elif isinstance(layer, nn.Flatten):
            after = (math.prod(shape),)
        elif fits and isinstance(layer, nn.Conv2d):
            after = (layer.out_channels, *size_behind(layer, shape[1:]))
        elif fits and isinstance(layer, Pool):
            after = (shape[0], *_size(shape[1:], layer.kernel, layer.stride, layer.padding))
        if not fits or min(after) < 1:
            raise ValueError(f"layer {name!r} is {module}; it gets {shape} per image, which does not fit")
        shapes.append(after)
    return shapes


def check_finite(logits: Tensor) -> None:
    """Raise ValueError if a logit is infinite or not a number."""
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the logits of some images are not finite; images and parameters must be finite")


def _own_names(name: str, layer: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}.{key}" for key, _ in layer.named_parameters(recurse=False))


# --- which position meets which ---------------------------------------------------------------------------------------


def pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _positions(size: tuple[int, int], kernel, stride, padding, dilation=(1, 1)) -> Tensor:
    """Input positions of every window [windows, positions in the window]; height * width stands for padding."""
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
    kernel, stride, dilation, padding = module.kernel_size, module.stride, module.dilation, padding_of(module)
    window, step = pool
    single = _positions(size, kernel, stride, padding, dilation)
    outputs = _positions(size_behind(module, size), window, step, (0, 0))
    reach = tuple((w - 1) * s + d * (k - 1) + 1 for w, s, d, k in zip(window, stride, dilation, kernel, strict=True))
    field = _positions(size, reach, tuple(s * t for s, t in zip(stride, step, strict=True)), padding)
    weight = module.weight.detach()
    spread = weight.new_zeros(window[0] * window[1], *weight.shape[:2], *reach)
    for q, one in enumerate(spread):
        y, x = (q // window[1]) * stride[0], (q % window[1]) * stride[1]
        rows = slice(y, y + dilation[0] * (kernel[0] - 1) + 1, dilation[0])
        one[:, :, rows, x : x + dilation[1] * (kernel[1] - 1) + 1 : dilation[1]] = weight
    spread = spread.flatten(0, 1).flatten(2).transpose(1, 2).contiguous()
    return Geometry(field, single[outputs], size[0] * size[1], spread)


def size_behind(layer: nn.Conv2d, size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    return _size(size, layer.kernel_size, layer.stride, padding_of(layer), layer.dilation)


def patches(x: Tensor, layer: nn.Conv2d, size: Sequence[int]) -> Tensor:
    """What each output of a convolution sees of padded inputs [., ., height, width, ...]: a view [., ., *kernel, *size, ...]."""
    s = x.stride()
    down = (a * d for a, d in zip(s[2:4], layer.dilation, strict=True))
    along = (a * t for a, t in zip(s[2:4], layer.stride, strict=True))
    return x.as_strided((*x.shape[:2], *layer.kernel_size, *size, *x.shape[4:]), (*s[:2], *down, *along, *s[4:]))


def padding_of(module: nn.Conv2d) -> tuple[int, int]:
    if module.padding == "valid":
        return (0, 0)
    if isinstance(module.padding, str):  # same
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return (total[0] // 2, total[1] // 2)
    return pair(module.padding)
