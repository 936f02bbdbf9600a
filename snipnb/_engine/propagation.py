"""How a change of activations passes through each kind of layer, in a form without cancellation.

Every step computes two things. ``forward`` gives its output for a batch, and saves what ``change`` needs. ``change`` gives
the exact change of its output for a given change of its input. Convolutions and linear layers are linear, so they apply
their weights to the change. ReLU and max-pooling share one rule. With a the values in a window, and M their maximum
(at least 0 if there is a ReLU),

    change = max(max_q(r_q + d_q), -M)    where r = a - M.

An unchanged window gives exactly 0 and a small change keeps all its digits, because M is never added and subtracted
again. Without a ReLU, minus infinity takes the place of -M. A ReLU alone has windows of one value.

**Layout.** Activations are [positions, window, channels, images] and changes [positions, window, channels, parameters,
images]. Features come first, so every layer is ``weight @ change`` with parameters and images as columns. The window axis
is longer than 1 only before a pooling: the convolution that feeds it computes the values of each pooling window side by
side, or they are gathered. A change of one channel keeps a channel axis of 1 until a layer mixes channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

TILE = 2**20  # numbers that a convolution computes on a processor before the next gate takes them
# A linear layer with this many outputs or more has them innermost in memory, for a faster matrix product.
MANY_OUTPUTS = 16
Channels = slice
ALL = slice(None)
Saved = tuple[Tensor, ...]  # what a step's ``change`` needs of a batch, images last
Changed = tuple[Tensor, Channels]  # a change of activations, and which channels it is of


class Scratch:
    """Memory that is used again: otherwise large temporaries would be requested from the system each time."""

    def __init__(self) -> None:
        self._buffers: dict[tuple, Tensor] = {}

    def take(self, key: tuple, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor, valid until the same key is taken again."""
        size = torch.Size(shape).numel()
        if key not in self._buffers or self._buffers[key].numel() < size:
            self._buffers[key] = torch.empty(size, dtype=like.dtype, device=like.device)
        return self._buffers[key][:size].view(shape)


@dataclass
class Own:
    """A step's own parameters: the parameters of each output channel, and what each of them multiplies.

    Zeroing the parameter in column j of channel o changes that channel by -values[o, j] * factors(...)[:, :, j].
    """

    names: tuple[str, ...]  # of the model's parameters: weight, bias
    columns: tuple[int, ...]  # how many columns each of them has
    values: Tensor  # [channels, sum of columns]


class Step:
    """One layer, or a few layers that act as one."""

    own: Own | None = None
    is_linear_layer = False

    def rows(self, channels: int) -> int:
        """The most numbers that this step computes from one column with this many changed channels."""
        return 1

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        """Output for the input ``a`` [positions, window, channels, images], and what ``change`` needs, images last."""
        raise NotImplementedError

    def change(self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        """Change of the output for a change ``d`` of the input's ``channels``; may overwrite ``d``."""
        raise NotImplementedError

    def change_of_product(
        self, factors: Tensor, values: Tensor, saved: Saved, channels: Channels, scratch: Scratch
    ) -> Changed:
        """``change`` for the input change values * factors of one channel."""
        d = torch.mul(factors, values, out=scratch.take((self, "start"), factors.shape, factors))
        return self.change(d.unsqueeze(2), saved, channels, scratch)

    def factors(self, saved: Saved, channel: int, columns: Tensor) -> Tensor:
        """What a channel's own parameters in ``columns`` multiply: [positions, window, columns, images]."""
        raise NotImplementedError


class Mix(Step):
    """Conv2d or Linear: every output channel is a weighted sum over a field of positions and all channels.

    A convolution that feeds a pooling computes the values of one window at once, from the field that they share. Its matrix
    product is larger and better shaped that way, and needs far fewer copies.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, pixels: int, field: Tensor, taps: Tensor, weight: Tensor) -> None:
        """From the layer, and how it acts on positions.

        Args:
            layer: The layer.
            pixels: Positions in; this index stands for padding.
            field: [positions out, field]: input positions that a window of outputs sees.
            taps: [positions out, window, kernel]: input positions that one output of the window sees.
            weight: [window * outputs, field, inputs], zero where an output does not see the field.
        """
        self.is_linear_layer = layer.weight.dim() == 2
        self.pixels, self.weight = pixels, weight
        self.table, self.taps = field.to(weight.device), taps.to(weight.device)
        self.padded = int(field.max()) == pixels
        self.window = taps.shape[1]
        self.outputs, self.inputs = layer.weight.shape[:2]
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.blocks: dict[tuple[int, int], Tensor] = {}

    def rows(self, channels: int) -> int:
        if self.is_linear_layer:
            return self.outputs
        return max(self.table.numel() * channels, len(self.table) * self.window * self.outputs)

    def _block(self, channels: Channels) -> Tensor:
        """Weights of the given input channels as a matrix [window * outputs, field * channels]."""
        if channels == ALL:
            return self.weight.flatten(1)
        key = (channels.start, channels.stop)
        if key not in self.blocks:
            self.blocks[key] = self.weight[:, :, channels].flatten(1).contiguous()
        return self.blocks[key]

    def _product(self, d: Tensor, channels: Channels, scratch: Scratch) -> Tensor:
        """[positions, 1, channels, *columns] -> [positions out, window, outputs, *columns]."""
        weight, columns = self._block(channels), d.shape[3:]
        if not self.is_linear_layer:
            rows = self._rows(d)
            return self._tile(rows, weight, ALL, scratch).view(-1, self.window, self.outputs, *columns)
        d = d.reshape(weight.shape[1], -1)
        if self.outputs < MANY_OUTPUTS:
            out = torch.mm(weight, d, out=scratch.take((self, "product"), (self.outputs, d.shape[1]), d))
        else:
            out = torch.mm(d.T, weight.T, out=scratch.take((self, "product"), (d.shape[1], self.outputs), d)).T
        return out.view(1, 1, self.outputs, *columns)

    def _rows(self, d: Tensor) -> Tensor:
        """A convolution's input by position [positions, channels * columns], and a row of zeros if there is padding."""
        rows = d.reshape(d.shape[0], -1)
        return torch.cat([rows, rows.new_zeros(1, rows.shape[1])]) if self.padded else rows

    def _tile(self, rows: Tensor, weight: Tensor, positions: slice, scratch: Scratch) -> Tensor:
        """Some positions of a convolution's output [positions out, window * outputs, columns]."""
        table = self.table[positions]
        field = scratch.take((self, "field"), (table.numel(), rows.shape[1]), rows)
        torch.index_select(rows, 0, table.flatten(), out=field)
        field = field.view(len(table), weight.shape[1], -1)
        out = scratch.take((self, "product"), (len(table), len(weight), field.shape[2]), rows)
        return torch.bmm(weight.expand(len(table), -1, -1), field, out=out)

    def change_and_gate(self, gate: Gate, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        """``change`` of this step and then of the next ``gate``, whose ``saved`` is given.

        A convolution has many values before the gate. They are computed a few positions at a time, so that they are still
        in the processor's caches when the gate takes them.
        """
        if self.is_linear_layer or d.is_cuda:
            return gate.change(self._product(d, channels, scratch), saved, ALL, scratch)
        weight, columns, rows = self._block(channels), d.shape[3:], self._rows(d)
        out = scratch.take((self, "gated"), (self.outputs, 1, len(self.table), *columns), d).transpose(0, 2)
        several = max(1, TILE // (len(weight) * columns.numel()))
        for first in range(0, len(self.table), several):
            some = slice(first, first + several)
            tile = self._tile(rows, weight, some, scratch).view(-1, self.window, self.outputs, *columns)
            gate.change(tile, tuple(t[some] for t in saved), ALL, scratch, out[some])
        return out, ALL

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        out = self._product(a, ALL, Scratch())
        return (out if self.bias is None else out.add_(self.bias[:, None])), (a,)

    def change(self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        return self._product(d, channels, scratch), ALL

    def values_met(self, saved: Saved) -> Tensor:
        """What the layer's parameters multiply [values, images]: its inputs by position, then zeros for padding and a one for the bias."""
        a = saved[0][:, 0]  # [positions in, inputs, images]
        inputs, images = a.shape[1:]
        return torch.cat([a.reshape(-1, images), a.new_zeros(inputs, images), a.new_ones(1, images)])

    def places_met(self, columns: Tensor) -> Tensor:
        """Which of :meth:`values_met` the parameters in ``columns`` multiply at each output [positions out, window, columns]."""
        kernel = self.taps.shape[2]
        row = self.taps[:, :, columns % kernel] * self.inputs + columns // kernel
        return torch.where(columns >= self.inputs * kernel, (self.pixels + 1) * self.inputs, row)

    def factors(self, saved: Saved, channel: int, columns: Tensor) -> Tensor:
        places = self.places_met(columns)
        return self.values_met(saved).index_select(0, places.flatten()).view(*places.shape, -1)


def running_statistics(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation with which a batch norm normalises in evaluation mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f"{norm} has no running statistics; it must have them")
    return norm.running_mean, (norm.running_var + norm.eps).sqrt()


class Norm(Step):
    """BatchNorm in evaluation mode: a fixed scale and shift of every channel."""

    def __init__(self, module: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        mean, deviation = running_statistics(module)
        self.mean, self.spread = mean[:, None], deviation[:, None]
        self.weight, self.bias = (None if p is None else p.detach()[:, None] for p in (module.weight, module.bias))
        scale = 1 / self.spread if self.weight is None else self.weight / self.spread
        self.scale = scale[:, None]  # [channels, 1, 1]

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        normal = (a - self.mean) / self.spread
        return (normal if self.weight is None else normal * self.weight + self.bias), (normal,)

    def change(self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        return d.mul_(self.scale[channels]), channels

    def factors(self, saved: Saved, channel: int, columns: Tensor) -> Tensor:
        normal = saved[0][:, :, channel]  # [positions, window, images]
        return torch.stack([normal, torch.ones_like(normal)], 2)[:, :, columns]


class Gate(Step):
    """ReLU, max-pooling, or both, by the rule at the top of this module."""

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        top = a if a.shape[1] == 1 else a.amax(1, keepdim=True)
        if self.relu:
            top = top.relu()
        return top, (a - top, -top if self.relu else torch.full_like(top, -torch.inf))

    def change(
        self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch, out: Tensor | None = None
    ) -> Changed:
        gap, floor = (t[:, :, channels, None] for t in saved)
        d.add_(gap)
        if out is None:
            out = d if d.shape[1] == 1 else scratch.take((self, "gate"), (d.shape[0], 1, *d.shape[2:]), d)
        reduce(lambda top, other: torch.maximum(top, other, out=out[:, 0]), [*d.unbind(1), floor[:, 0]])
        return out, channels

    def change_of_product(
        self, factors: Tensor, values: Tensor, saved: Saved, channels: Channels, scratch: Scratch
    ) -> Changed:
        gap, floor = (t[:, :, channels, None] for t in saved)
        shape = (len(factors), *factors.shape[2:])
        d, other = (scratch.take((self, key), shape, factors) for key in ("start", "other"))
        torch.addcmul(gap[:, 0, 0], factors[:, 0], values, out=d)
        for q in range(1, factors.shape[1]):
            torch.addcmul(gap[:, q, 0], factors[:, q], values, out=other)
            torch.maximum(d, other, out=d)
        return torch.maximum(d, floor[:, 0, 0], out=d)[:, None, None], channels


class Windows(Step):
    """Gathers the values of each window of the next pooling, where no convolution has computed them side by side."""

    def __init__(self, table: Tensor, pixels: int, padding: float) -> None:
        self.table = table  # [positions out, window]; ``pixels`` stands for padding
        self.padded, self.padding = int(table.max()) == pixels, padding  # its value

    def _gather(self, a: Tensor, padding: float) -> Tensor:
        """[positions, 1, ...] -> [positions out, window, ...]."""
        a = a[:, 0]
        if self.padded:
            a = torch.cat([a, a.new_full((1, *a.shape[1:]), padding)])
        return a[self.table]

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        return self._gather(a, self.padding), ()

    def change(self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        return self._gather(d, 0.0), channels


class Mean(Step):
    """Average pooling."""

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        return a.mean(1, keepdim=True), ()

    def change(self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        return self.forward(d)[0], channels


class Flat(Step):
    """Flatten: positions become channels, in PyTorch's order (channel by channel)."""

    def __init__(self, positions: int) -> None:
        self.positions = positions

    def forward(self, a: Tensor) -> tuple[Tensor, Saved]:
        return a.transpose(0, 2).reshape(1, 1, -1, *a.shape[3:]), ()

    def change(self, d: Tensor, saved: Saved, channels: Channels, scratch: Scratch) -> Changed:
        if channels != ALL:
            channels = slice(channels.start * self.positions, channels.stop * self.positions)
        return self.forward(d)[0], channels
