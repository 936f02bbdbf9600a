"""The one reading of an ``nn.Sequential``: its layers, what each of them does, and clear errors for what is not covered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._engine.propagation import Flat, Gate, Mean, Mix, Norm, Own, Step, Windows

ACCEPTED = (
    "Conv2d, Linear, ReLU, MaxPool2d, AvgPool2d, Flatten, Dropout, Identity, BatchNorm1d and BatchNorm2d with running "
    "statistics, Sequential, and LogSoftmax as the last layer"
)

WIDEST = 9  # most values in a pooling window that a convolution computes side by side
Pair = tuple[int, int]


@dataclass(frozen=True)
class _Kind:
    """What is known about a class of PyTorch's layers."""

    name: str
    dimensions: int = 0  # of an image at its input; 0: any
    channels: str = ""  # the attribute with the number of channels at its input
    options: Mapping[str, tuple] = field(default_factory=dict)  # option -> accepted values


KINDS: dict[type[nn.Module], _Kind] = {
    nn.Conv2d: _Kind("conv", 3, "in_channels", {"groups": (1,), "padding_mode": ("zeros",)}),
    nn.Linear: _Kind("linear", 1, "in_features"),
    nn.BatchNorm2d: _Kind("norm", 3, "num_features", {"track_running_stats": (True,)}),
    nn.BatchNorm1d: _Kind("norm", 1, "num_features", {"track_running_stats": (True,)}),
    nn.ReLU: _Kind("relu"),
    nn.MaxPool2d: _Kind("max", 3, options={"ceil_mode": (False,), "return_indices": (False,)}),
    nn.AvgPool2d: _Kind("mean", 3, options={"ceil_mode": (False,), "divisor_override": (None,)}),
    nn.Flatten: _Kind("flat", options={"start_dim": (1,), "end_dim": (-1,)}),
    nn.Dropout: _Kind("dropout"),
    nn.Identity: _Kind("identity"),
    nn.LogSoftmax: _Kind("log_softmax", options={"dim": (1, -1)}),
}


@dataclass(frozen=True)
class Layer:
    """A layer as every computation takes it.

    Attributes:
        name: Of the module in the model.
        kind: The name of its kind in :data:`KINDS`.
        module: PyTorch's module.
        kernel: (height, width) of a convolution or pooling.
        stride: Likewise.
        padding: Likewise, on each side.
        dilation: Likewise, of a convolution.
        relu: Whether a max-pooling has a ReLU before or after it, which are the same.
    """

    name: str
    kind: str
    module: Any
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    relu: bool = False

    @classmethod
    def of(cls, name: str, module: Any) -> Layer:
        """Of a module that has been checked."""
        kind = KINDS[type(module)].name
        if kind not in ("conv", "max", "mean"):
            return cls(name, kind, module)
        kernel = pair(module.kernel_size)
        dilation = pair(module.dilation) if kind == "conv" else (1, 1)
        padding = module.padding
        if padding in ("same", "valid"):
            padding = tuple(d * (k - 1) // 2 * (padding == "same") for d, k in zip(dilation, kernel, strict=True))
        return cls(name, kind, module, kernel, pair(module.stride or kernel), pair(padding), dilation)

    @property
    def own_names(self) -> tuple[str, ...]:
        """Names of its own parameters in the model."""
        return tuple(f"{self.name}.{key}" for key, _ in self.module.named_parameters(recurse=False))

    def size_behind(self, size: Sequence[int]) -> Pair:
        """Height and width behind a convolution or pooling."""
        sides = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return height, width

    def shape_behind(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of an image behind it.

        Raises:
            ValueError: If the shape at its input does not fit.
        """
        known, after = KINDS[type(self.module)], shape
        fits = len(shape) == (known.dimensions or len(shape)) > 0
        fits = fits and shape[0] == getattr(self.module, known.channels, shape[0])
        if self.kind == "linear":
            after = (self.module.out_features,)
        elif self.kind == "flat":
            after = (math.prod(shape),)
        elif fits and self.kind in ("conv", "max", "mean"):
            after = (getattr(self.module, "out_channels", shape[0]), *self.size_behind(shape[1:]))
        if not fits or min(after) < 1:
            raise ValueError(f"layer {self.name!r} is {self.module}; it gets {shape} per image, which does not fit")
        return after


def layers_of(model: nn.Module, *, training: bool = False) -> list[Layer]:
    """Layers in order: a ReLU next to a max-pooling is joined with it, and layers without effect are left out.

    Dropout acts only in training. A final LogSoftmax is left out unless ``training``, because it does not change a cross-entropy.

    Raises:
        ValueError: If the model is not an ``nn.Sequential``, has a layer or an option that is not covered, shares parameters, or has none in its layers.
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
    idle = {"identity"} if training else {"identity", "dropout", "log_softmax"}
    seen: dict[int, str] = {}
    layers: list[Layer] = []
    for i, (name, module) in enumerate(leaves):
        _check_layer(name, module, last=i == len(leaves) - 1)
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                raise ValueError(f"parameter {name}.{key} is also {seen[id(parameter)]}; each may be used only once")
            seen[id(parameter)] = f"{name}.{key}"
        layer, before = Layer.of(name, module), layers[-1].kind if layers else ""
        if layer.kind == "relu" and before in ("relu", "max"):
            layers[-1] = replace(layers[-1], relu=before == "max")
        elif layer.kind == "max" and before == "relu":
            layers[-1] = replace(layer, relu=True)
        elif layer.kind not in idle:
            layers.append(layer)
    if not any(layer.own_names for layer in layers):
        raise ValueError(f"no layer of the model has parameters; it must be an nn.Sequential of {ACCEPTED}")
    return layers


def _check_layer(name: str, module: Any, *, last: bool) -> None:
    """Raise ValueError for a layer or an option that is not covered."""
    kind = type(module)
    if kind not in KINDS or (kind is nn.LogSoftmax and not last):
        raise ValueError(f"layer {name!r} is a {kind.__name__}; it must be one of {ACCEPTED}")
    if extra := {key for key, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}:
        raise ValueError(f"layer {name!r} has additional parameters {sorted(extra)}; it may have only weight and bias")
    for option, accepted in KINDS[kind].options.items():
        if (given := getattr(module, option)) not in accepted:
            words = f"has {option}={given!r}; {option} must be {' or '.join(map(repr, accepted))}"
            raise ValueError(f"layer {name!r} ({kind.__name__}) {words}")
    wrong = ""
    match KINDS[kind].name:
        case "norm" if module.running_mean is None or module.running_var is None:
            wrong = "has no running statistics; it must have them"
        case "norm" if (module.weight is None) != (module.bias is None):
            wrong = "has only a weight or only a bias; it must have both or neither"
        case "max" if pair(module.dilation) != (1, 1):
            wrong = f"has dilation={module.dilation!r}; dilation must be 1"
        case "max" if any(2 * p > k for p, k in zip(pair(module.padding), pair(module.kernel_size), strict=True)):
            wrong = f"has padding={module.padding!r}; padding must be at most half the window"
        case "mean" if pair(module.padding) != (0, 0) and not module.count_include_pad:
            wrong = "has padding and count_include_pad=False; count_include_pad must be True"
        case "conv" if module.padding == "same" and any(
            d * (k - 1) % 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)
        ):
            wrong = "pads one side more than the other (padding='same'); the padding of both sides must be equal"
    if wrong:
        raise ValueError(f"layer {name!r} ({kind.__name__}) {wrong}")


def shapes_of(layers: Sequence[Layer], image_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of an image at the input of each layer, and at the output of the last layer.

    Raises:
        ValueError: If a layer does not fit its input.
    """
    shapes = [tuple(image_shape)]
    for layer in layers:
        shapes.append(layer.shape_behind(shapes[-1]))
    return shapes


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
    device = next(model.parameters()).device
    steps: list[Step] = []
    arranged = False  # whether the values of the next pooling's windows already lie side by side
    for i, (layer, shape) in enumerate(zip(layers, shapes, strict=False)):
        match layer.kind:
            case "conv":
                pool = next((after for after in layers[i + 1 :] if after.kind != "norm"), layer)
                arranged = pool.kind in ("max", "mean") and pool.padding == (0, 0) and math.prod(pool.kernel) <= WIDEST
                window = (pool.kernel, pool.stride) if arranged else ((1, 1), (1, 1))
                steps.append(Mix(layer.module, *_geometry(layer, (shape[1], shape[2]), window)))
            case "linear":
                one = torch.zeros(1, 1, dtype=torch.long)  # one position, which sees itself
                steps.append(Mix(layer.module, 1, one, one[None], layer.module.weight.detach()[:, None]))
            case "norm":
                steps.append(Norm(layer.module))
            case "max" | "mean":
                if not arranged:
                    table = _positions((shape[1], shape[2]), layer.kernel, layer.stride, layer.padding).to(device)
                    steps.append(Windows(table, shape[1] * shape[2], -torch.inf if layer.kind == "max" else 0.0))
                steps.append(Gate(layer.relu) if layer.kind == "max" else Mean())
                arranged = False
            case "relu":
                steps.append(Gate(relu=True))
            case "flat" if len(shape) == 3:
                steps.append(Flat(shape[1] * shape[2]))
        if names := layer.own_names:
            parts = [p.detach().reshape(len(p), -1) for p in layer.module.parameters()]
            sizes = tuple(part.shape[1] for part in parts)
            steps[-1].own = Own(names, sizes, torch.cat(parts, 1))
    return steps


def check_finite(logits: Tensor) -> None:
    """Raise ValueError if a logit is infinite or not a number."""
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the logits of some images are not finite; images and parameters must be finite")


# --- which position meets which ---------------------------------------------------------------------------------------


def pair(value: int | tuple[int, ...]) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _positions(size: tuple[int, int], kernel, stride, padding, dilation=(1, 1)) -> Tensor:
    """Input positions of every window [windows, positions in the window]; height * width stands for padding."""
    height, width = size
    index = torch.arange(1, height * width + 1, dtype=torch.float64).view(1, 1, height, width)
    found = F.unfold(index, kernel, dilation, padding, stride)[0].T.long()
    return torch.where(found == 0, height * width, found - 1)


def _geometry(layer: Layer, size: Pair, pool: tuple[Pair, Pair]) -> tuple[int, Tensor, Tensor, Tensor]:
    """Positions and weights of a :class:`Mix` for a convolution whose outputs are wanted in pooling windows of ``pool`` = (kernel, stride)."""
    kernel, stride, dilation, padding = layer.kernel, layer.stride, layer.dilation, layer.padding
    window, step = pool
    single = _positions(size, kernel, stride, padding, dilation)
    outputs = _positions(layer.size_behind(size), window, step, (0, 0))
    reach = tuple((w - 1) * s + d * (k - 1) + 1 for w, s, d, k in zip(window, stride, dilation, kernel, strict=True))
    field = _positions(size, reach, tuple(s * t for s, t in zip(stride, step, strict=True)), padding)
    weight = layer.module.weight.detach()
    spread = weight.new_zeros(window[0] * window[1], *weight.shape[:2], *reach)
    for q, one in enumerate(spread):
        y, x = (q // window[1]) * stride[0], (q % window[1]) * stride[1]
        rows = slice(y, y + dilation[0] * (kernel[0] - 1) + 1, dilation[0])
        one[:, :, rows, x : x + dilation[1] * (kernel[1] - 1) + 1 : dilation[1]] = weight
    spread = spread.flatten(0, 1).flatten(2).transpose(1, 2).contiguous()
    return size[0] * size[1], field, single[outputs], spread


def padded(x: Tensor, layer: Layer, *, images_last: bool = False) -> Tensor:
    """Inputs of a convolution with the zeros around them, in one piece of memory."""
    vertical, horizontal = layer.padding
    if not (vertical or horizontal):
        return x.contiguous()
    return F.pad(x, (*((0, 0) if images_last else ()), horizontal, horizontal, vertical, vertical))
