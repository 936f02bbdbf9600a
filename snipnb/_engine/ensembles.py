"""Many networks of one architecture as one: their parameters are stacked along a first axis and applied together.

**Layout.** Activations are [networks, channels, height, width, images], or [networks, features, images] after a flatten. Images
are innermost and contiguous, so that everything but the linear layers runs along them. On a processor, convolutions of stride
1 are compiled, together with the pooling and ReLU that follow them (``kernels.py``). Any other convolution gathers what each of
its outputs sees into the columns of a matrix, with a row of ones for the bias, and is a matrix product. On a processor, the
columns hold as many networks as fit its caches. On a GPU, they hold all networks. All networks see the same images, so
their first convolutions are computed as one, with the weights of the networks below each other.

PyTorch computes the gradients, through the functions written here for convolution (compiled; shared first; others), sparse linear layers and pooling.
If several values of a pooling window are the largest, the first gets the gradient, as in PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snipnb._engine.compiled import compiled, is_covered
from snipnb._engine.propagation import Scratch
from snipnb._engine.sequential import Norms, Pool, layers_of, padding_of, patches, shapes_of, size_behind

COLUMNS = 2**20  # numbers that a processor gathers at once in the columns of a convolution
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
        self.scratch = Scratch()
        self.fitting: set[torch.Size] = set()  # shapes of images that fit the layers

    @property
    def mixes_images(self) -> bool:
        """Whether training on an image depends on the other images of its batch (batch norm)."""
        return any(isinstance(layer, Norms) for _, layer in self.layers)

    def inputs(self, images: Tensor) -> Tensor:
        """Images [n, channels, height, width] or [n, features] as the first layer takes them, the same for all networks.

        Raises:
            ValueError: If a layer does not fit the images.
        """
        if images.shape[1:] not in self.fitting:
            shapes_of(self.layers, images.shape[1:])  # an error if they do not fit, as compiled kernels do not check
            self.fitting.add(images.shape[1:])
        x = images.movedim(0, -1).contiguous()[None]
        first = self.layers[0][1]
        if isinstance(first, nn.Conv2d) and not _is_compiled(first, x):
            return _columns(_padded(x, first), _Taps.of(first, x.shape[2:4]))[0]
        return x

    def logits(
        self,
        inputs: Tensor,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        image_shape: Sequence[int],
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
            image_shape: Shape of one image.
            training: Whether dropout acts and batch norm normalises by the statistics of the images themselves.
            generator: Random generator of dropout; all networks drop the same values.
            kept: Which parameters masked networks keep. The others are zero, and their gradients need not be right.
        """
        networks = len(next(iter(parameters.values())))
        x = inputs
        if not isinstance(self.layers[0][1], nn.Conv2d):
            x = x.expand(networks, *x.shape[1:])
        layers = iter(enumerate(self.layers))
        for position, (name, layer) in layers:
            key, bias = f"{name}.weight", parameters.get(f"{name}.bias")
            if isinstance(layer, nn.Conv2d) and _is_compiled(layer, x):
                after = self.layers[position + 1][1] if position + 1 < len(self.layers) else None
                pool, relu = _what_follows(after)
                if relu or pool != (1, 1):
                    next(layers)  # computed together with this layer
                wanted = kept.all.get(key) if kept else None
                options = layer.dilation, pool, relu, self.scratch, position
                x = _Compiled.apply(_padded(x, layer), parameters[key], bias, wanted, *options)
            elif isinstance(layer, nn.Conv2d):
                matrix = parameters[key].flatten(2)
                matrix = matrix if bias is None else torch.cat([matrix, bias[:, :, None]], 2)
                taps = _Taps.of(layer, image_shape[1:] if position == 0 else x.shape[2:4])
                if position == 0:
                    x = _SharedConvolution.apply(x, matrix, self.scratch)
                else:
                    x = _Convolution.apply(_padded(x, layer), matrix, taps, self.scratch, position)
                x = x.view(networks, layer.out_channels, taps.height, taps.width, -1)
            elif isinstance(layer, nn.Linear) and kept and key in kept.few and _runs_compiled(x):
                weight = parameters[key]
                bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
                x = _FewWeights.apply(x, weight, bias, *kept.few[key])
            elif isinstance(layer, nn.Linear):
                weight = parameters[key]
                x = torch.bmm(weight, x) if bias is None else torch.baddbmm(bias[:, :, None], weight, x)
            elif isinstance(layer, Norms):
                x = _batch_norm(x, name, layer, parameters, buffers, training)
            elif isinstance(layer, Pool):
                x = _pooled(x, layer, self.scratch, position)
            elif isinstance(layer, nn.ReLU):
                x = x.relu()
            elif isinstance(layer, nn.Dropout):
                if training and layer.p > 0:
                    keep = torch.rand(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype) >= layer.p
                    x = x * keep if layer.p == 1 else x * (keep.to(x.dtype) / (1 - layer.p))
            elif isinstance(layer, nn.Flatten):
                x = x.flatten(1, -2)
            elif isinstance(layer, nn.LogSoftmax):
                x = x.log_softmax(1)
        return x


class Kept:
    """Which parameters of masked networks are kept, in the form that the layers of a :class:`Stack` use.

    Args:
        kept: Name -> bool [networks, ...].

    Attributes:
        all: The given dictionary.
        few: For weights [networks, outputs, inputs] of which every network keeps few: where the kept weights of each output begin and
            end, and the inputs of all kept weights, one after the other.
    """

    def __init__(self, kept: Mapping[str, Tensor]) -> None:
        self.all = kept
        self.few: dict[str, tuple[Tensor, Tensor]] = {}
        for name, mask in kept.items():
            if mask.dim() == 3 and mask.device.type == "cpu" and mask.sum((1, 2)).max() <= FEW * mask[0].numel():
                ends = torch.zeros(mask.shape[0] * mask.shape[1] + 1, dtype=torch.int64)
                ends[1:] = mask.sum(2).flatten().cumsum(0)
                self.few[name] = ends, mask.nonzero()[:, 2].contiguous()


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


@dataclass(frozen=True)
class _Taps:
    """Which inputs the outputs of a convolution see."""

    layer: nn.Conv2d
    height: int  # of the output
    width: int

    @classmethod
    def of(cls, layer: nn.Conv2d, size: Sequence[int]) -> _Taps:
        """For inputs of this height and width, before padding."""
        return cls(layer, *size_behind(layer, size))

    @property
    def rows(self) -> int:
        """The number of rows of the columns, without the row of ones."""
        return self.layer.weight[0].numel()

    def slices(self, axis: int, tap: int) -> slice:
        """Where along an axis of the input a tap meets the outputs."""
        start, outputs = tap * self.layer.dilation[axis], (self.height, self.width)[axis]
        return slice(start, start + self.layer.stride[axis] * (outputs - 1) + 1, self.layer.stride[axis])


def _padded(x: Tensor, layer: nn.Conv2d) -> Tensor:
    vertical, horizontal = padding_of(layer)
    return F.pad(x, (0, 0, horizontal, horizontal, vertical, vertical)) if vertical or horizontal else x.contiguous()


def _columns(x: Tensor, taps: _Taps, out: Tensor | None = None) -> Tensor:
    """Padded inputs [networks, channels, height, width, images] -> [networks, rows, height out * width out * images]."""
    biased = taps.layer.bias is not None
    if out is None:
        out = x.new_empty(len(x), taps.rows + biased, taps.height * taps.width * x.shape[4])
    if biased:
        out[:, taps.rows] = 1
    seen = patches(x, taps.layer, (taps.height, taps.width))
    out[:, : taps.rows].view(seen.shape).copy_(seen)
    return out


def _add_columns(columns: Tensor, taps: _Taps, x: Tensor, partial: Tensor) -> None:
    """The transpose of :func:`_columns`, added to ``x``: first along the width into ``partial``, then along the height."""
    (networks, channels, _, width, images), kernel = x.shape, taps.layer.kernel_size
    columns = columns.view(networks, channels, *kernel, taps.height, taps.width, images)
    partial = partial.view(networks, channels, kernel[0], taps.height, width, images).zero_()
    for tap in range(kernel[1]):
        partial[..., taps.slices(1, tap), :].add_(columns[:, :, :, tap])
    for tap in range(kernel[0]):
        x[:, :, taps.slices(0, tap)].add_(partial[:, :, tap])


def _kernels() -> Any:
    return compiled("kernels")


def _runs_compiled(x: Tensor) -> bool:
    return is_covered(x) and _kernels() is not None


def _is_compiled(layer: nn.Conv2d, x: Tensor) -> bool:
    return layer.stride == (1, 1) and _runs_compiled(x)


def _what_follows(layer: nn.Module | Pool | None) -> tuple[tuple[int, int], bool]:
    """The pooling and the ReLU that a compiled convolution includes."""
    if isinstance(layer, nn.ReLU):
        return (1, 1), True
    if isinstance(layer, Pool) and layer.kind == "max" and _is_side_by_side(layer):
        return layer.kernel, layer.relu
    return (1, 1), False


def _with_images(x: Tensor, more: int) -> Tensor:
    """``x`` with ``more`` images of zeros added, in one piece of memory."""
    return F.pad(x, (0, more)) if more else x.contiguous()


class _Compiled(torch.autograd.Function):
    """A convolution of stride 1, with the max-pooling and ReLU that follow it, computed by ``kernels.py``."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kept: Tensor | None,
        dilation: tuple[int, int],
        pool: tuple[int, int],
        relu: bool,
        scratch: Scratch,
        layer: int,
    ) -> Tensor:
        images, kernels = x.shape[-1], _kernels()
        x = _with_images(x, -images % kernels.LANES)
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
        kernels, images = _kernels(), gradient.shape[-1]
        gradient = _with_images(gradient, x.shape[-1] - images)
        weights = weight.reshape(*ctx.together, *weight.shape[2:])
        of_weight, of_bias = torch.empty_like(weights), weights.new_empty(ctx.together)
        of_x = ctx.scratch.take(("of compiled", ctx.layer), x.shape if ctx.needs_input_grad[0] else (0,) * 5, x)
        turned, _ = kernels.packed(weights.transpose(1, 2).flip(3, 4).numpy())
        gradient = gradient.view(*ctx.together, *gradient.shape[2:])
        arrays = x.numpy(), gradient.numpy(), ctx.winner.numpy()
        kept = weights.new_empty((0,) * 5, dtype=torch.bool) if ctx.kept is None else ctx.kept.reshape(weights.shape)
        written = of_weight.numpy(), of_bias.numpy(), turned, of_x.numpy()
        kernels.gradients(*arrays, ctx.dilation, ctx.pool, *written, kept.numpy())
        return (
            of_x[..., :images] if ctx.needs_input_grad[0] else None,
            of_weight.view_as(weight),
            of_bias.view(weight.shape[:2]) if ctx.has_bias else None,
            *(None,) * 6,
        )


class _FewWeights(torch.autograd.Function):
    """A linear layer, computed by ``kernels.py`` from the few weights that are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor, inputs: Tensor) -> Tensor:
        images, kernels = x.shape[-1], _kernels()
        x = _with_images(x, -images % kernels.LANES)
        out = x.new_empty(*bias.shape, x.shape[-1])
        kernels.linear(*(t.numpy() for t in (x, weight, bias, ends, inputs, out)))
        ctx.save_for_backward(x, weight, ends, inputs)
        return out[..., :images]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ends, inputs = ctx.saved_tensors
        images = gradient.shape[-1]
        gradient = _with_images(gradient, x.shape[-1] - images)
        of_x, of_weight, of_bias = torch.zeros_like(x), torch.zeros_like(weight), weight.new_empty(weight.shape[:2])
        given = (x, weight, gradient, ends, inputs, of_x, of_weight, of_bias)
        _kernels().linear_gradients(*(t.numpy() for t in given))
        return of_x[..., :images], of_weight, of_bias, None, None


class _SharedConvolution(torch.autograd.Function):
    """The first convolution: all networks see the same columns."""

    @staticmethod
    def forward(ctx, columns: Tensor, matrix: Tensor, scratch: Scratch) -> Tensor:
        ctx.save_for_backward(columns)
        ctx.shape = matrix.shape
        flat = matrix.flatten(0, 1)
        out = torch.mm(flat, columns, out=scratch.take(("first",), (len(flat), columns.shape[1]), columns))
        return out.view(*matrix.shape[:2], -1)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, None]:
        (columns,) = ctx.saved_tensors
        return None, torch.mm(gradient.reshape(-1, columns.shape[1]), columns.T).view(ctx.shape), None


class _Convolution(torch.autograd.Function):
    """A convolution in which each network has its own inputs and weights [networks, outputs, rows]."""

    @staticmethod
    def forward(ctx, x: Tensor, matrix: Tensor, taps: _Taps, scratch: Scratch, layer: int) -> Tensor:
        ctx.save_for_backward(x, matrix)
        ctx.taps, ctx.scratch, ctx.layer = taps, scratch, layer
        shape = (*matrix.shape[:2], taps.height * taps.width * x.shape[-1])
        out = scratch.take(("convolution", layer), shape, x)
        for some in _blocks(x, taps):
            columns = _columns(x[some], taps, _room(scratch, "columns", some, matrix.shape[2], out))
            torch.bmm(matrix[some], columns, out=out[some])
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
        x, matrix = ctx.saved_tensors
        taps, gradient = ctx.taps, gradient.reshape(*matrix.shape[:2], -1)
        of_matrix = torch.empty_like(matrix)
        of_x = ctx.scratch.take(("of convolution", ctx.layer), x.shape, x).zero_() if ctx.needs_input_grad[0] else None
        for some in _blocks(x, taps):
            columns = _columns(x[some], taps, _room(ctx.scratch, "columns", some, matrix.shape[2], gradient))
            torch.bmm(gradient[some], columns.transpose(1, 2), out=of_matrix[some])
            if of_x is not None:
                back = _room(ctx.scratch, "back", some, taps.rows, gradient)
                torch.bmm(matrix[some, :, : taps.rows].transpose(1, 2), gradient[some], out=back)
                shape = (len(back), x.shape[1] * taps.layer.kernel_size[0] * taps.height * x.shape[3] * x.shape[4])
                _add_columns(back, taps, of_x[some], ctx.scratch.take(("partial",), shape, back))
        return of_x, of_matrix, None, None, None


def _blocks(x: Tensor, taps: _Taps) -> list[slice]:
    """Networks whose columns are made at once: all on a GPU, else as many as fit the caches."""
    columns = taps.rows * taps.height * taps.width * x.shape[4]  # of one network
    several = len(x) if x.is_cuda else max(1, COLUMNS // columns)
    return [slice(k, k + several) for k in range(0, len(x), several)]


def _room(scratch: Scratch, name: str, networks: slice, rows: int, like: Tensor) -> Tensor:
    """Memory for the columns of some networks."""
    return scratch.take((name,), (len(like[networks]), rows, like.shape[2]), like)


# --- pooling, batch norm ----------------------------------------------------------------------------------------------


class _Maximum(torch.autograd.Function):
    """Max-pooling over windows that lie side by side, and a ReLU if there is one (before or after the pooling gives the same)."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: tuple[int, int], relu: bool, scratch: Scratch, layer: int) -> Tensor:
        windows = _side_by_side(x, kernel)
        values = [windows[:, :, :, i, :, j] for i in range(kernel[0]) for j in range(kernel[1])]
        top = scratch.take(("maximum", layer), values[0].shape, x)
        if len(values) == 1:
            top.copy_(values[0])
        reduce(lambda a, b: torch.maximum(a, b, out=top), values)
        if relu:
            top.clamp_(min=0)
        ctx.save_for_backward(x, top)
        ctx.kernel, ctx.relu, ctx.scratch, ctx.layer = kernel, relu, scratch, layer
        return top

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        x, top = ctx.saved_tensors
        kernel = ctx.kernel
        of_x = ctx.scratch.take(("of maximum", ctx.layer), x.shape, x)
        windows, place = _side_by_side(x, kernel), _side_by_side(of_x, kernel)
        if windows.numel() < x.numel():
            of_x.zero_()  # rows or columns that lie in no window
        if ctx.relu:
            gradient = gradient * (top > 0)
        taken = torch.zeros_like(top, dtype=torch.bool)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                largest = (windows[:, :, :, i, :, j] == top) & ~taken
                torch.mul(gradient, largest, out=place[:, :, :, i, :, j])
                taken |= largest
        return of_x, None, None, None, None


def _side_by_side(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """[networks, channels, height, width, images] -> [networks, channels, rows, kernel, columns, kernel, images], a view."""
    rows, columns = (size // k for size, k in zip(x.shape[2:4], kernel, strict=True))
    return x[:, :, : rows * kernel[0], : columns * kernel[1]].unflatten(3, (columns, -1)).unflatten(2, (rows, -1))


def _is_side_by_side(layer: Pool) -> bool:
    return layer.padding == (0, 0) and layer.kernel == layer.stride


def _pooled(x: Tensor, layer: Pool, scratch: Scratch, position: int) -> Tensor:
    if _is_side_by_side(layer):
        if layer.kind == "max":
            return _Maximum.apply(x, layer.kernel, layer.relu, scratch, position)
        return _side_by_side(x, layer.kernel).mean((3, 5))
    images_first = x.movedim(-1, 0).flatten(1, 2)  # other windows: PyTorch's own pooling, in its layout
    pool = F.max_pool2d if layer.kind == "max" else F.avg_pool2d
    y = pool(images_first, layer.kernel, layer.stride, layer.padding).unflatten(1, x.shape[:2]).movedim(0, -1)
    return (y.relu() if layer.relu else y).contiguous()


def _batch_norm(
    x: Tensor,
    name: str,
    layer: nn.BatchNorm1d | nn.BatchNorm2d,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    training: bool,
) -> Tensor:
    mean, variance = buffers[f"{name}.running_mean"], buffers[f"{name}.running_var"]
    shape = (*mean.shape, *(1,) * (x.dim() - 2))
    if training:
        axes = tuple(range(2, x.dim()))
        count = x.numel() // mean.numel()
        if count == 1:
            raise ValueError(f"layer {name!r} is {layer}; to train it, each batch needs more than 1 value per channel")
        now, spread = x.mean(axes), x.var(axes, correction=0)
        with torch.no_grad():
            seen = buffers[f"{name}.num_batches_tracked"]
            seen += 1
            share = 1 / seen[:, None].to(x.dtype) if layer.momentum is None else layer.momentum
            mean += share * (now - mean)
            variance += share * (spread * (count / max(1, count - 1)) - variance)
        mean, variance = now, spread
    y = (x - mean.view(shape)) * (variance.view(shape) + layer.eps).rsqrt()
    if layer.affine:
        y = y * parameters[f"{name}.weight"].view(shape) + parameters[f"{name}.bias"].view(shape)
    return y
