"""Derivatives of the loss along single parameters, for networks whose logits are piecewise linear in each parameter.

One backward pass gives the derivatives along all parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from snipnb._checks import Salience, check_classes, float_parameters
from snipnb._engine.compiled import compiled_module, runs_compiled
from snipnb._engine.cumulants import derivatives_of, loss_changes, terms_for
from snipnb._engine.propagation import Scratch, running_statistics
from snipnb._engine.sequential import Layer, check_finite, layers_of, padded
from snipnb._engine.workers import Crew
from snipnb._progress import track

TEMPORARY = {"cpu": 2**22, "cuda": 2**26}  # numbers that one temporary holds
LONGEST = 1.0  # largest abs(w x) (max J - min J) for which the series is used; it converges below pi
IMAGES = 1000  # images per batch, at most


@torch.no_grad()
def mean_over_images(model: nn.Module, images: Tensor, labels: Tensor, rule: Rule, batch_size: int) -> list[Salience]:
    """Means over the images of what a rule computes from the slopes: one dictionary for each of its orders."""
    tensors = float_parameters(model)
    first = next(iter(tensors.values()))
    network = _Network(model)
    logits, sizes = network.forward(images[:1].to(first.device))
    check_classes(logits, labels)
    limit = TEMPORARY["cuda" if first.is_cuda else "cpu"]
    columns = rule.start(logits, labels[:1].to(first.device).long())[1].shape[1]
    size = max(1, min(batch_size, IMAGES, limit // max(columns * kept.input.numel() for kept in sizes)))
    starts = range(0, len(images), size)
    totals = {
        name: torch.zeros(rule.orders, *p.shape, dtype=torch.float64, device=p.device) for name, p in tensors.items()
    }

    def work(start: int, scratch: Scratch) -> dict[str, Tensor]:
        some = slice(start, start + size)
        x, y = images[some].to(first.device), labels[some].to(first.device).long()
        return network.sums(x, y, rule, limit, scratch)

    with Crew(1 if first.is_cuda else torch.get_num_threads()) as crew:
        for sums in track(crew.map(work, starts), "slopes of the logits", total=len(starts)):
            for name, s in sums.items():
                totals[name] += s.view(totals[name].shape)
    return [
        {name: (total[i] / len(images)).to(first.dtype) for name, total in totals.items()} for i in range(rule.orders)
    ]


@dataclass
class _Kept:
    """What a layer keeps from a batch for the backward pass."""

    input: Tensor
    switches: Tensor | None = None  # where a ReLU is on
    places: Any = None  # which value of each window of a max-pooling is the largest


class _Network:
    """A sequential network, and what reaches each of its layers when columns of the logits are propagated back.

    Activations have PyTorch's layout: [images, channels, height, width] or [images, features]. In what is propagated back,
    the columns are the second axis.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = layers_of(model)
        # the layers before the first one with parameters need nothing
        self.first = next(i for i, layer in enumerate(self.layers) if layer.own_names)

    def forward(self, x: Tensor) -> tuple[Tensor, list[_Kept]]:
        """Logits [images, classes] and what each layer keeps."""
        everything = []
        for layer in self.layers:
            kept, module = _Kept(x), layer.module
            match layer.kind:
                case "conv" | "linear" | "mean" | "flat":
                    x = module(x)
                case "norm":
                    mean, deviation = running_statistics(module)
                    x = kept.input = (x - _wide(mean, x)) / _wide(deviation, x)
                    if module.affine:
                        x = x * _wide(module.weight, x) + _wide(module.bias, x)
                case "max":
                    x, kept.places = F.max_pool2d(x, layer.kernel, layer.stride, layer.padding, return_indices=True)
            if layer.kind == "relu" or layer.relu:
                x = x.relu()
                kept.switches = x > 0
            everything.append(kept)
        check_finite(x)
        return x, everything

    def sums(self, x: Tensor, labels: Tensor, rule: Rule, limit: int, scratch: Scratch) -> dict[str, Tensor]:
        """Sums over a batch of images for every parameter, [orders, ...]."""
        logits, everything = self.forward(x)
        state, b = rule.start(logits, labels)  # [images, columns, classes]
        found: dict[str, Tensor] = {}
        for i in range(len(self.layers) - 1, self.first - 1, -1):
            layer, kept = self.layers[i], everything[i]
            key, is_biased = f"{layer.name}.weight", f"{layer.name}.bias" in layer.own_names
            match layer.kind:
                case "linear":
                    found[key] = rule.of_product(state, b, kept.input, key)
                case "conv" if isinstance(rule, Variance) and layer.stride == (1, 1) and runs_compiled("slopes", b):
                    parts, b = _compiled_slopes(layer, b, kept.input, rule, i > self.first, scratch, i)
                    found |= zip(layer.own_names, parts, strict=False)
                    continue
                case "conv":
                    found[key] = _of_patches(layer, state, b, kept.input, rule, key, limit, scratch)
                case "norm" if is_biased:
                    found[key] = rule.of_slopes(state, _over_positions(b * kept.input[:, None]), key)
            if is_biased:
                key = f"{layer.name}.bias"
                found[key] = rule.of_slopes(state, _over_positions(b), key)
            if i > self.first:
                b = _back(layer, b, kept, scratch, i)
        return found


def _over_positions(slopes: Tensor) -> Tensor:
    """[images, columns, channels, ...] -> [images, columns, channels]."""
    return slopes.flatten(3).sum(3) if slopes.dim() > 3 else slopes


def _compiled_slopes(
    layer: Layer, b: Tensor, x: Tensor, rule: Variance, back: bool, scratch: Scratch, place: int
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Sums for the weights and biases of a convolution, and the columns that reach its input, by ``slopes.py``."""
    slopes, size = compiled_module("slopes"), x.shape[2:]
    x, weight, columns = padded(x, layer), layer.module.weight.detach().contiguous(), b.shape[1]
    reached = scratch.take(("reached", place), (*b.shape[:2], *x.shape[1:]) if back else (0,) * 5, x)
    found = x.new_zeros(2, len(weight), weight[0].numel() + 1, -(-columns // slopes.LANES) * slopes.LANES)
    given, written = (t.numpy() for t in (x, b.contiguous(), weight)), (found.numpy(), reached.numpy())
    slopes.of_convolution(*given, layer.dilation, *written)
    total = rule.of_sums(found[0, ..., :columns], found[1, ..., :columns])
    if back:
        reached = reached.narrow(3, layer.padding[0], size[0]).narrow(4, layer.padding[1], size[1])
    return (total[..., :-1].flatten(1), total[..., -1]), reached


def _wide(t: Tensor, like: Tensor) -> Tensor:
    """Values of channels [C], reshaped so that they broadcast with [images, C, ...]."""
    return t.view(-1, *(1,) * (like.dim() - 2))


def _back(layer: Layer, b: Tensor, kept: _Kept, scratch: Scratch, place: int) -> Tensor:
    """Propagate columns [images, columns, ...] from a layer's output back to its input."""
    images, columns = b.shape[:2]
    shape, module = kept.input.shape[1:], layer.module
    if kept.switches is not None:
        b = b * kept.switches[:, None]
    match layer.kind:
        case "linear":
            b = b.flatten(0, 1) @ module.weight
        case "conv":
            options = (layer.stride, layer.padding, layer.dilation)
            b = conv2d_input((images * columns, *shape), module.weight, b.flatten(0, 1), *options)
        case "norm":
            _, deviation = running_statistics(module)
            b = b * _wide(1 / deviation if module.weight is None else module.weight / deviation, kept.input)
        case "max":
            out = scratch.take(("pool", place), (images, columns, shape[0], shape[1] * shape[2]), b).zero_()
            places = kept.places.flatten(2)[:, None].expand(-1, columns, -1, -1)
            apart = all(s >= k for s, k in zip(layer.stride, layer.kernel, strict=True))
            b = (out.scatter_ if apart else out.scatter_add_)(3, places, b.flatten(3))
        case "mean":
            like = kept.input[:1].expand(images * columns, *shape)
            window = (layer.kernel, layer.stride, layer.padding, False, True, None)
            b = torch.ops.aten.avg_pool2d_backward(b.flatten(0, 1), like, *window)
    return b.view(images, columns, *shape)


def _of_patches(
    layer: Layer, state: _State, b: Tensor, x: Tensor, rule: Rule, name: str, limit: int, scratch: Scratch
) -> Tensor:
    """Sums for a convolution's weights: the slopes are patches of the input times what is propagated back."""
    x = padded(x, layer)
    images, inputs = x.shape[:2]
    columns, outputs, *size = b.shape[1:]
    s = x.stride()
    along = (a * t for steps in (layer.dilation, layer.stride) for a, t in zip(s[2:], steps, strict=True))
    seen = x.as_strided((images, inputs, *layer.kernel, *size), (*s[:2], *along))  # what each output sees of the input
    taps, positions = inputs * math.prod(layer.kernel), math.prod(size)
    b = b.flatten(3)  # [images, columns, outputs, positions]
    several = max(1, limit // (columns * taps))  # outputs
    parts = []
    for first in range(0, outputs, several):
        few = b[:, :, first : first + several]
        total: list[Tensor] = []
        step = max(1, limit // max(taps * positions, columns * few.shape[2] * taps))
        for start in range(0, images, step):
            some = slice(start, start + step)
            copied = scratch.take(("patches",), seen[some].shape, x).copy_(seen[some]).view(-1, taps, positions)
            rows = few[some].flatten(1, 2)
            room = scratch.take(("slopes",), (*rows.shape[:2], taps), x)
            slopes = torch.bmm(rows, copied.transpose(1, 2), out=room).view(-1, columns, few.shape[2] * taps)
            total.append(rule.of_slopes(state.part(some), slopes, name, first * taps, spare=True))
        parts.append(reduce(torch.add, total))
    return torch.cat(parts, 1)


@dataclass
class _State:
    """What a rule knows about a batch of images."""

    p: Tensor  # [images, classes]
    log_p: Tensor
    labels: Tensor  # [images]

    def part(self, images: slice | Tensor) -> _State:
        return _State(self.p[images], self.log_p[images], self.labels[images])


class Rule:
    """Turns slopes of the logits along parameters into sums over images.

    Slopes are [images, columns, parameters], with the columns that ``start`` gives.
    """

    orders = 1

    def start(self, logits: Tensor, labels: Tensor) -> tuple[_State, Tensor]:
        """The state of the images, and the columns at the logits [images, columns, classes]; slopes are relative to the top class."""
        log_p = logits.log_softmax(1)
        identity = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return _State(log_p.exp(), log_p, labels), identity - identity[logits.argmax(1)][:, None]

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        """Sums over images [orders, parameters] for the parameters of ``name`` from ``first`` on.

        With ``spare``, the slopes may be overwritten.
        """
        raise NotImplementedError

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        """Sums [orders, outputs, inputs] where the slopes are b [images, columns, outputs] times x [images, inputs]."""
        raise NotImplementedError


class Variance(Rule):
    """The second derivative, preceded by the first derivative if ``gradient`` is true.

    The covariance diag(p) - p p^T is S S^T, and S has C - 1 columns. With q_j = sum_{c > j} p_c, column j holds
    sqrt(p_j q_j / (p_j + q_j)) at j, and -p_c / q_j times this value at every c > j (Tanabe and Sagae 1992). No digits cancel.
    """

    def __init__(self, *, gradient: bool) -> None:
        self.gradient, self.orders = gradient, 2 if gradient else 1

    def start(self, logits: Tensor, labels: Tensor) -> tuple[_State, Tensor]:
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        rest = p.flip(1).cumsum(1).flip(1)  # p_j + q_j
        q, head = rest[:, 1:], p[:, :-1]
        tiny = torch.finfo(p.dtype).tiny
        scale = (head * (q / rest[:, :-1].clamp_min(tiny))).sqrt()
        below = torch.tril(torch.ones(p.shape[1], p.shape[1] - 1, dtype=p.dtype, device=p.device), -1).T
        b = torch.diag_embed(scale, dim1=1, dim2=2)
        b = F.pad(b, (0, 1)) - below * p[:, None] * (scale / q.clamp_min(tiny))[:, :, None]
        if self.gradient:
            b = torch.cat([b, (p - F.one_hot(labels, p.shape[1]))[:, None]], 1)
        return _State(p, log_p, labels), b

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        last = [slopes[:, -1].sum(0)] if self.gradient else []
        squares = slopes[:, : slopes.shape[1] - self.gradient]
        squares = squares.square_() if spare else squares.square()
        return torch.stack([*last, squares.sum((0, 1))])

    def of_sums(self, slopes: Tensor, squares: Tensor) -> Tensor:
        """Sums over images [orders, ...] from the sums of the slopes [..., columns] and of their squares, which compiled code computes."""
        second = squares[..., : squares.shape[-1] - self.gradient].sum(-1)
        return torch.stack([slopes[..., -1], second]) if self.gradient else second[None]

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        squares = b[:, : b.shape[1] - self.gradient]
        second = squares.square().sum(1).T @ x.square()
        return torch.stack([b[:, -1].T @ x, second]) if self.gradient else second[None]


class Cumulants(Rule):
    """The derivatives from order 1 to ``orders``."""

    def __init__(self, orders: int) -> None:
        self.orders = orders

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        return torch.stack([kappa.sum(0) for kappa in derivatives_of(state.p, state.labels, slopes, self.orders)])

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        found, power = [], None
        for kappa in derivatives_of(state.p, state.labels, b, self.orders):
            power = x if power is None else power * x
            found.append(kappa.T @ power)
        return torch.stack(found)


class LinearRegion(Rule):
    """The loss change when a parameter is set to zero, as if no ReLU and no max-pooling switched."""

    def __init__(self, parameters: Salience) -> None:
        self.values = {name: p.flatten() for name, p in parameters.items()}

    def of_slopes(self, state: _State, slopes: Tensor, name: str, first: int = 0, *, spare: bool = False) -> Tensor:
        values = self.values[name][first : first + slopes.shape[2]]
        dz = slopes.mul_(-values) if spare else slopes * -values
        return self._changes(state, dz).sum(0)[None]

    def _changes(self, state: _State, dz: Tensor) -> Tensor:
        """Loss changes [images, parameters] for changes of the logits [images, classes, parameters], which are overwritten."""
        return loss_changes(dz.permute(1, 2, 0), state.log_p.T, state.labels).T

    def of_product(self, state: _State, b: Tensor, x: Tensor, name: str) -> Tensor:
        """The series of cumulants where it converges quickly for all inputs of an output, else the loss change of each input."""
        w = self.values[name].view(b.shape[2], -1)
        spread = b.amax(1) - b.amin(1)  # [images, outputs]
        length = spread * w.abs().amax(1) * x.abs().amax(1, keepdim=True)
        short = length <= LONGEST
        total = torch.zeros_like(w, dtype=torch.float64)
        longest = float(torch.where(short, length, 0).max())
        if longest > 0:
            power, factor = x, -w
            within = b * short[:, None]
            for i, kappa in enumerate(derivatives_of(state.p, state.labels, within, terms_for(longest, b.dtype)), 1):
                if i > 1:
                    power, factor = power * x, factor * (-w / i)
                total += (kappa.T @ power) * factor
        rows, units = (~short).nonzero(as_tuple=True)
        together = max(1, TEMPORARY["cuda" if x.is_cuda else "cpu"] // (b.shape[1] * x.shape[1]))
        for start in range(0, len(rows), together):
            n, u = (t[start : start + together] for t in (rows, units))
            dz = b[n, :, u][:, :, None] * (x[n] * -w[u])[:, None]  # [rows, classes, inputs]
            total.index_add_(0, u, self._changes(state.part(n), dz).double())
        return total[None]
