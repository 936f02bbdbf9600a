"""Many networks of one architecture as one: their parameters are stacked along a first axis and applied together.

**Layout.** Activations are [networks, channels, height, width, images], or [networks, features, images] after a flatten. Images
are innermost and contiguous, so that everything but the linear layers runs along them. On a processor, convolutions of stride
1 are compiled, together with the pooling and ReLU that follow them (``kernels.py``). Any other convolution is PyTorch's own, with the
networks as groups. All networks see the same images, so their first convolutions are computed as one, with the weights of the
networks below each other.

PyTorch computes the gradients, through the functions written here for compiled convolutions and sparse linear layers. If several values
of a pooling window are the largest, the first gets the gradient, as in PyTorch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._engine.compiled import compiled_module, runs_compiled
from snipnb._engine.propagation import Scratch
from snipnb._engine.sequential import Layer, layers_of, padded, shapes_of

# Up to this share of kept weights in a linear layer, going through them one by one is faster than a matrix product.
FEW = 0.12
Stacked = dict[str, Tensor]  # like a model's parameters or buffers, with the networks as the first axis


class Stack:
    """The computation of a sequential network, for any number of networks together.

    Args:
        model: One of the networks, for its layers.

    Raises:
        ValueError: If the model has layers or options that are not covered.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers_of(model, training=True)
        # Whether images of zeros may be added, up to whole registers: unless they would change what becomes of the others.
        self.is_padded = not any(layer.kind in ("norm", "dropout") for layer in self.layers)
        self.scratch = Scratch()
        self.check_fit = cache(partial(shapes_of, self.layers))  # an error if images of a shape do not fit the layers

    @property
    def mixes_images(self) -> bool:
        """Whether training on an image depends on the other images of its batch (batch norm)."""
        return any(layer.kind == "norm" for layer in self.layers)

    def inputs(self, images: Tensor) -> Tensor:
        """Images [n, channels, height, width] or [n, features] as the first layer takes them, the same for all networks.

        Raises:
            ValueError: If a layer does not fit the images.
        """
        self.check_fit(images.shape[1:])  # compiled kernels do not check
        return images.movedim(0, -1).contiguous()[None]

    def logits(
        self,
        inputs: Tensor,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        training: bool = False,
        generator: torch.Generator | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Logits (or log-probabilities, if the network ends in LogSoftmax) [networks, classes, images].

        Args:
            inputs: From :meth:`inputs`.
            parameters: Name -> [networks, ...].
            buffers: Name -> [networks, ...], the running statistics of batch norms; updated in place in training.
            training: Whether dropout acts and batch norm normalises by the statistics of the images themselves.
            generator: Random generator of dropout; all networks drop the same values.
            kept: Which parameters masked networks keep. The others are zero, and their gradients need not be right.
        """
        networks, images = len(next(iter(parameters.values()))), inputs.shape[-1]
        x = _whole(inputs) if self.is_padded and runs_compiled("kernels", inputs) else inputs
        if self.layers[0].kind != "conv":
            x = x.expand(networks, *x.shape[1:])
        layers = iter(enumerate(self.layers))
        for position, layer in layers:
            key, module = f"{layer.name}.weight", layer.module
            weight: Any = parameters.get(key)
            bias = parameters.get(f"{layer.name}.bias")
            match layer.kind:
                case "conv" if layer.stride == (1, 1) and runs_compiled("kernels", x):
                    pool, relu = _joined(next(iter(self.layers[position + 1 :]), layer))
                    if relu or pool != (1, 1):
                        next(layers)  # computed together with this layer
                    wanted = kept.all.get(key) if kept else None
                    options = layer.dilation, pool, relu, self.scratch, position
                    x = _Compiled.apply(padded(x, layer, images_last=True), weight, bias, wanted, options)
                case "conv":
                    x = _convolved(x, layer, weight, bias)
                case "linear" if kept and key in kept.few and runs_compiled("kernels", x):
                    bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
                    x = _FewWeights.apply(x, weight, bias, *kept.few[key])
                case "linear":
                    x = torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, :, None], weight, x)
                case "norm":
                    x = _batch_norm(x, layer, weight, bias, buffers, training)
                case "max" | "mean":
                    x = _pooled(x, layer)
                case "relu":
                    x = x.relu()
                case "dropout" if training and module.p > 0:
                    keep = torch.rand(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype) >= module.p
                    x = x * keep if module.p == 1 else x * (keep.to(x.dtype) / (1 - module.p))
                case "flat":
                    x = x.flatten(1, -2)
                case "log_softmax":
                    x = x.log_softmax(1)
        return x[..., :images]


class Kept:
    """Which parameters of masked networks are kept, in the form that the layers of a :class:`Stack` use.

    Args:
        kept: Name -> bool [networks, ...].

    Attributes:
        all: The given dictionary.
        few: For weights [networks, outputs, inputs] of which some networks keep few: where these weights of each output begin and end,
            the inputs of all of them, one after the other, and stretches of the networks that keep more.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.all = kept
        self.few: dict[str, tuple[Tensor, Tensor, list[slice]]] = {}
        for name, mask in kept.items():
            if mask.dim() == 3 and mask.device.type == "cpu":
                few = mask.sum((1, 2)) <= FEW * mask[0].numel()
                if few.any():
                    listed = mask & few[:, None, None]
                    ends = torch.zeros(mask.shape[0] * mask.shape[1] + 1, dtype=torch.int64)
                    ends[1:] = listed.sum(2).flatten().cumsum(0)
                    more = [some for some in stretches(few.tolist()) if not few[some.start]]
                    self.few[name] = ends, listed.nonzero()[:, 2].contiguous(), more


def stretches(values: Sequence[object]) -> list[slice]:
    """Where equal values stand next to each other, from the first value to the last."""
    starts = [k for k in range(len(values)) if k == 0 or values[k] != values[k - 1]]
    return [slice(*pair) for pair in itertools.pairwise([*starts, len(values)])]


def stacked(tensors: Sequence[Mapping[str, Tensor]]) -> Stacked:
    """Tensors of several models, stacked name by name, with the models as the first axis."""
    return {name: torch.stack([one[name].detach() for one in tensors]) for name in tensors[0]}


def check_alike(model: nn.Module, first: nn.Module) -> None:
    """Raise ValueError if two models differ in anything but the values of parameters and buffers."""
    facts = []
    for one in (model, first):
        tensors = [*one.named_parameters(), *one.named_buffers()]
        facts.append((repr(one), [(n, t.shape, t.dtype, t.device, t.requires_grad) for n, t in tensors]))
    if facts[0] != facts[1]:
        raise ValueError(
            "the models differ in layers, shapes, dtypes, devices or in what is trained; all of these must be equal"
        )


# --- convolution ------------------------------------------------------------------------------------------------------


def _convolved(x: Tensor, layer: Layer, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution by PyTorch, in its layout: networks with the same input share it, others are groups."""
    y = F.conv2d(
        _images_first(x),
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        layer.stride,
        layer.padding,
        layer.dilation,
        groups=len(x),
    )
    return _images_last(y, len(weight))


def _images_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).flatten(1, 2)


def _images_last(x: Tensor, networks: int) -> Tensor:
    return x.unflatten(1, (networks, -1)).movedim(0, -1).contiguous()


def _joined(layer: Layer) -> tuple[tuple[int, int], bool]:
    """The pooling (of windows side by side) and the ReLU that a compiled convolution before this layer includes."""
    # A byte holds the place of the largest value in its window; 255 means that the ReLU cut it off.
    small = math.prod(layer.kernel) <= 255
    if layer.kind == "max" and layer.padding == (0, 0) and layer.kernel == layer.stride and small:
        return layer.kernel, layer.relu
    return (1, 1), layer.kind == "relu"


def _whole(x: Tensor) -> Tensor:
    """``x`` with images of zeros added up to whole registers, in one piece of memory."""
    more = -x.shape[-1] % compiled_module("kernels").LANES
    return F.pad(x, (0, more)) if more else x.contiguous()


class _Compiled(torch.autograd.Function):
    """A convolution of stride 1, with the max-pooling and ReLU that follow it, computed by ``kernels.py``."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, kept: Tensor | None, options: tuple) -> Tensor:
        dilation, pool, relu, scratch, layer = options
        images, kernels = x.shape[-1], compiled_module("kernels")
        x = _whole(x)
        together = weight.shape[:2] if len(x) == len(weight) else (1, weight.shape[0] * weight.shape[1])
        weights = weight.reshape(*together, *weight.shape[2:]).numpy()
        size = [
            (n - d * (k - 1)) // p for n, d, k, p in zip(x.shape[2:4], dilation, weight.shape[3:], pool, strict=True)
        ]
        out = scratch.take(("compiled", layer), (*together, *size, x.shape[-1]), x)
        seen = out.shape if relu or pool != (1, 1) else (0,) * 5
        winner = scratch.take(("winner", layer), seen, x.new_empty(0, dtype=torch.uint8))
        packed = kernels.packed(weights, None if bias is None else bias.reshape(together).numpy())
        kernels.convolve(x.numpy(), *packed, dilation, (0, 0, 0), pool, relu, out.numpy(), winner.numpy())
        ctx.save_for_backward(x, weight)
        ctx.winner, ctx.dilation, ctx.pool, ctx.together = winner, dilation, pool, together
        ctx.has_bias = bias is not None
        ctx.scratch, ctx.layer, ctx.kept = scratch, layer, kept
        return out.view(*weight.shape[:2], *out.shape[2:])[..., :images]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        kernels, images = compiled_module("kernels"), gradient.shape[-1]
        gradient = _whole(gradient)
        weights = weight.reshape(*ctx.together, *weight.shape[2:])
        of_weight, of_bias = torch.empty_like(weights), weights.new_empty(ctx.together)
        of_x = ctx.scratch.take(("of compiled", ctx.layer), x.shape if ctx.needs_input_grad[0] else (0,) * 5, x)
        turned, _ = kernels.packed(weights.transpose(1, 2).flip(3, 4).numpy())
        gradient = gradient.view(*ctx.together, *gradient.shape[2:])
        arrays = x.numpy(), gradient.numpy(), ctx.winner.numpy()
        kept = torch.ones_like(weights, dtype=torch.bool) if ctx.kept is None else ctx.kept.reshape(weights.shape)
        written = of_weight.numpy(), of_bias.numpy(), turned, of_x.numpy()
        kernels.gradients(*arrays, ctx.dilation, ctx.pool, *written, kept.numpy())
        return (
            of_x[..., :images] if ctx.needs_input_grad[0] else None,
            of_weight.view_as(weight),
            of_bias.view(weight.shape[:2]) if ctx.has_bias else None,
            None,
            None,
        )


class _FewWeights(torch.autograd.Function):
    """A linear layer, computed by ``kernels.py`` from the few weights that are kept; for stretches of networks that keep more, by PyTorch."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, inputs: Tensor, more: list[slice]
    ) -> Tensor:
        images, kernels = x.shape[-1], compiled_module("kernels")
        padded = _whole(x)
        out = x.new_empty(*bias.shape, padded.shape[-1])
        kernels.linear(*(t.numpy() for t in (padded, weight, bias, ends, inputs, out)))
        for some in more:
            out[some, :, :images] = torch.baddbmm(bias[some, :, None], weight[some], x[some])
        ctx.save_for_backward(x, padded, weight, ends, inputs)
        ctx.more = more
        return out[..., :images]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, padded, weight, ends, inputs = ctx.saved_tensors
        images = gradient.shape[-1]
        of_x, of_weight = torch.zeros_like(padded), torch.zeros_like(weight)
        of_bias = weight.new_empty(weight.shape[:2])
        given = (padded, weight, _whole(gradient), ends, inputs, of_x, of_weight, of_bias)
        compiled_module("kernels").linear_gradients(*(t.numpy() for t in given))
        for some in ctx.more:
            of_x[some, :, :images] = weight[some].mT @ gradient[some]
            of_weight[some] = gradient[some] @ x[some].mT
            of_bias[some] = gradient[some].sum(2)
        return of_x[..., :images], of_weight, of_bias, None, None, None


# --- pooling, batch norm ----------------------------------------------------------------------------------------------


def _pooled(x: Tensor, layer: Layer) -> Tensor:
    """A pooling by PyTorch, in its layout, and the ReLU that it is joined with."""
    pool = F.max_pool2d if layer.kind == "max" else F.avg_pool2d
    y = _images_last(pool(_images_first(x), layer.kernel, layer.stride, layer.padding), len(x))
    return y.relu() if layer.relu else y


def _batch_norm(
    x: Tensor, layer: Layer, weight: Any, bias: Any, buffers: Mapping[str, Tensor], training: bool
) -> Tensor:
    name, module = layer.name, layer.module
    mean, variance = buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]
    shape = (*mean.shape, *(1,) * (x.dim() - 2))
    if training:
        axes = tuple(range(2, x.dim()))
        count = x.numel() // mean.numel()
        if count == 1:
            raise ValueError(f"layer {name!r} is {module}; to train it, each batch needs more than 1 value per channel")
        now, spread = x.mean(axes), x.var(axes, correction=0)
        with torch.no_grad():
            seen = buffers[f"{name}.num_batches_tracked"]
            seen += 1
            share = 1 / seen[:, None].to(x.dtype) if module.momentum is None else module.momentum
            mean += share * (now - mean)
            variance += share * (spread * (count / (count - 1)) - variance)
        mean, variance = now, spread
    y = (x - mean.view(shape)) * (variance.view(shape) + module.eps).rsqrt()
    if module.affine:
        y = y * weight.view(shape) + bias.view(shape)
    return y
