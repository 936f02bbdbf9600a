"""Compiled convolutions and sparse linear layers for a processor: images side by side in vector registers, a few outputs at a time.

Activations are [channels, height, width, images] with images innermost. The number of images is a multiple of :data:`LANES`. For one
position and 16 images, a convolution computes four or six outputs together. Each loaded value serves all of these outputs, and each
weight serves all images. The sums stay in registers, as in a matrix product, but nothing is copied into columns. Where most
weights are zero, only the others are gone through, one by one, for 64 images and neighbouring positions at a time. Gradients of
weights are then computed only for kept weights. So a network takes less time the more it is pruned. Only stride 1 is covered. The
vector instructions are written in the compiler's own vector types, which it translates to whatever the processor has.

This module needs Numba. Where Numba is missing, ``ensembles.py`` does without this module. docs/kernels.md explains the kernels.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

LANES = 16  # images that are computed together; sums over images take half as many
DENSE = 0.5  # share of nonzero weights from which a tile of outputs is computed as if it had no zeros
_DEAD = 255  # marks a value that a ReLU cuts off, in place of its position in the window


def _compiled(function, *, any_order: bool = False):
    """The function, compiled. It sums in the order that is written, unless any order will do."""
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"contract", *(("reassoc", "nsz") if any_order else ())},
    }
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # there is no writable folder for the cache
        return njit(**options)(function)


# --- vectors ----------------------------------------------------------------------------------------------------------


class _Vector(types.Type):
    def __init__(self, dtype: types.Float, lanes: int) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector: _Vector) -> None:
        numbers = {types.float32: ir.FloatType(), types.float64: ir.DoubleType(), types.uint8: ir.IntType(8)}
        super().__init__(manager, vector, ir.VectorType(numbers[vector.dtype], vector.lanes))


def _place(context, builder, kind, array, index):
    """Address of an element of a flat array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _load(lanes: int):
    @intrinsic
    def load(typing, array, index):
        vector = _Vector(array.dtype, lanes)

        def code(context, builder, signature, values):
            kind = context.get_value_type(vector).as_pointer()
            loaded = builder.load(builder.bitcast(_place(context, builder, signature.args[0], *values), kind))
            loaded.align = array.dtype.bitwidth // 8  # not the vector's
            return loaded

        return vector(array, types.intp), code

    return load


_load_all, _load_half = _load(LANES), _load(LANES // 2)


@intrinsic
def _store(typing, array, index, vector):
    def code(context, builder, signature, values):
        kind = context.get_value_type(signature.args[2]).as_pointer()
        place = builder.bitcast(_place(context, builder, signature.args[0], *values[:2]), kind)
        builder.store(values[2], place).align = array.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), code


def _whole(kind, number):
    return ir.Constant(kind, [number] * kind.count)


def _spread(builder, value, kind):
    undefined, zero = ir.Constant(kind, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), [0] * kind.count)
    return builder.shuffle_vector(builder.insert_element(undefined, value, zero), undefined, lanes)


@intrinsic
def _filled(typing, array, index):
    """A vector full of one element."""
    vector = _Vector(array.dtype, LANES)

    def code(context, builder, signature, values):
        value = builder.load(_place(context, builder, signature.args[0], *values))
        return _spread(builder, value, context.get_value_type(vector))

    return vector(array, types.intp), code


@intrinsic
def _zeros(typing, array):
    vector = _Vector(array.dtype, LANES // 2)

    def code(context, builder, signature, values):
        return _whole(context.get_value_type(vector), 0.0)

    return vector(array), code


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


@intrinsic
def _add_scaled(typing, sums, array, index, vector):
    """``sums + array[index] * vector``."""

    def code(context, builder, signature, values):
        value = builder.load(_place(context, builder, signature.args[1], *values[1:3]))
        factor = _spread(builder, value, context.get_value_type(signature.args[0]))
        return _multiply_add(builder, factor, values[3], values[0])

    return sums(sums, array, types.intp, vector), code


@intrinsic
def _add_product(typing, sums, a, b):
    def code(context, builder, signature, values):
        return _multiply_add(builder, values[1], values[2], values[0])

    return sums(sums, a, b), code


@intrinsic
def _total(typing, vector):
    def code(context, builder, signature, values):
        parts = [builder.extract_element(values[0], ir.Constant(ir.IntType(32), i)) for i in range(vector.lanes)]
        while len(parts) > 1:  # pairs of pairs, always in this order
            parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return vector.dtype(vector), code


def _choice(from_values, otherwise):
    """An intrinsic on two vectors that keeps the second unless the first is larger (or is not a number)."""

    def code(context, builder, signature, values):
        larger = builder.or_(
            builder.fcmp_ordered(">", values[0], values[1]), builder.fcmp_unordered("uno", values[0], values[0])
        )
        return builder.select(larger, from_values(context, builder, signature, values), values[otherwise])

    return code


@intrinsic
def _largest(typing, values, best):
    return best(values, best), _choice(lambda context, builder, signature, given: given[0], 1)


@intrinsic
def _winner(typing, values, best, which, place):
    """Where the largest value comes from: ``place`` where the values are larger, else as before."""

    def number(context, builder, signature, given):
        kind = context.get_value_type(signature.return_type)
        return _spread(builder, builder.trunc(given[3], ir.IntType(8)), kind)

    return which(values, best, which, types.intp), _choice(number, 2)


@intrinsic
def _first(typing, vector):
    """The first winners of a vector: all zero."""
    which = _Vector(types.uint8, vector.lanes)

    def code(context, builder, signature, values):
        return _whole(context.get_value_type(which), 0)

    return which(vector), code


@intrinsic
def _cut(typing, best):
    def code(context, builder, signature, values):
        zero = _whole(values[0].type, 0.0)
        return builder.select(builder.fcmp_ordered("<=", values[0], zero), zero, values[0])

    return best(best), code


@intrinsic
def _cut_winner(typing, best, which):
    def code(context, builder, signature, values):
        off = builder.fcmp_ordered("<=", values[0], _whole(values[0].type, 0.0))
        return builder.select(off, _whole(values[1].type, _DEAD), values[1])

    return which(best, which), code


@intrinsic
def _if_won(typing, values, which, place):
    """The values where this place is the winner, else zero."""

    def code(context, builder, signature, given):
        number = _spread(builder, builder.trunc(given[2], ir.IntType(8)), given[1].type)
        return builder.select(builder.icmp_unsigned("==", given[1], number), given[0], _whole(given[0].type, 0.0))

    return values(values, which, types.intp), code


# --- convolution ------------------------------------------------------------------------------------------------------


@_compiled
def _four(x, apart, start, ys, xs, weight, bias, kernel, first, out, at, between):
    """Outputs ``first`` to ``first + 3`` at one position for 16 images.

    Arrays are flat. ``apart`` holds the number of channels of x, and the distances between channels, between taps below each
    other and between taps next to each other. ``between`` is the distance between outputs. weight is [outputs / 4, channels,
    kernel, kernel, 4]. Only the taps from ``ys[0]`` to ``ys[1]`` and from ``xs[0]`` to ``xs[1]`` are used: the others meet the padding.
    """
    a, b = _filled(bias, first), _filled(bias, first + 1)
    c, d = _filled(bias, first + 2), _filled(bias, first + 3)
    channels, plane, row, step = apart
    for channel in range(channels):
        for tap in range(ys[0], ys[1]):
            k = (first // 4 * channels * kernel[0] + channel * kernel[0] + tap) * kernel[1] * 4 + xs[0] * 4
            place = start + channel * plane + tap * row + xs[0] * step
            for _ in range(xs[0], xs[1]):
                value = _load_all(x, place)
                a, b = _add_scaled(a, weight, k, value), _add_scaled(b, weight, k + 1, value)
                c, d = _add_scaled(c, weight, k + 2, value), _add_scaled(d, weight, k + 3, value)
                k += 4
                place += step
    _store(out, at, a)
    _store(out, at + between, b)
    _store(out, at + 2 * between, c)
    _store(out, at + 3 * between, d)


@_compiled
def _six(x, apart, start, ys, xs, weight, bias, kernel, first, out, at, between):
    """:func:`_four` for six outputs."""
    a, b, c = _filled(bias, first), _filled(bias, first + 1), _filled(bias, first + 2)
    d, e, f = _filled(bias, first + 3), _filled(bias, first + 4), _filled(bias, first + 5)
    channels, plane, row, step = apart
    for channel in range(channels):
        for tap in range(ys[0], ys[1]):
            k = (first // 6 * channels * kernel[0] + channel * kernel[0] + tap) * kernel[1] * 6 + xs[0] * 6
            place = start + channel * plane + tap * row + xs[0] * step
            for _ in range(xs[0], xs[1]):
                value = _load_all(x, place)
                a, b = _add_scaled(a, weight, k, value), _add_scaled(b, weight, k + 1, value)
                c, d = _add_scaled(c, weight, k + 2, value), _add_scaled(d, weight, k + 3, value)
                e, f = _add_scaled(e, weight, k + 4, value), _add_scaled(f, weight, k + 5, value)
                k += 6
                place += step
    _store(out, at, a)
    _store(out, at + between, b)
    _store(out, at + 2 * between, c)
    _store(out, at + 3 * between, d)
    _store(out, at + 4 * between, e)
    _store(out, at + 5 * between, f)


@_compiled
def _copy(x, start, out, at, count):
    """Copy ``count`` values, a multiple of the lanes; assigning slices takes long to compile."""
    for i in range(0, count, LANES):
        _store(out, at + i, _load_all(x, start + i))


@_compiled
def _met(position, before, kernel, dilation, size):
    """Which taps of a kernel meet the input, not the padding, at one position along one axis: from, to."""
    low = max(0, -((position - before) // dilation))
    high = min(kernel, (size - 1 - position + before) // dilation + 1)
    return low, max(low, high)


@_compiled
def _stretch(x, start, places, values, begin, end, bias, output, out, at):
    """One output for 64 images and positions in a row, from the nonzero weights.

    Arrays are flat. ``places`` holds the place of each weight's input, counted from ``start``.
    """
    a, b, c, d = _filled(bias, output), _filled(bias, output), _filled(bias, output), _filled(bias, output)
    for i in range(begin, end):
        place = start + places[i]
        a = _add_scaled(a, values, i, _load_all(x, place))
        b = _add_scaled(b, values, i, _load_all(x, place + LANES))
        c = _add_scaled(c, values, i, _load_all(x, place + 2 * LANES))
        d = _add_scaled(d, values, i, _load_all(x, place + 3 * LANES))
    _store(out, at, a)
    _store(out, at + LANES, b)
    _store(out, at + 2 * LANES, c)
    _store(out, at + 3 * LANES, d)


@_compiled
def _piece(x, start, places, values, begin, end, bias, output, out, at):
    """:func:`_stretch` for 16 images."""
    a = _filled(bias, output)
    for i in range(begin, end):
        a = _add_scaled(a, values, i, _load_all(x, start + places[i]))
    _store(out, at, a)


@_compiled
def _listed(weight, first, tile, kernel, apart, places, values, levels, ends):
    """List the nonzero weights of one tile, output by output, up to ``ends``: their values, the places of their inputs, and
    their rows in the kernel. Returns how many there are."""
    channels, plane, row, step = apart
    n = 0
    for t in range(tile):
        for channel in range(channels):
            for ky in range(kernel[0]):
                k = ((first // tile * channels + channel) * kernel[0] + ky) * kernel[1] * tile + t
                for kx in range(kernel[1]):
                    value = weight[k + kx * tile]
                    if value != 0:
                        places[n], values[n], levels[n] = channel * plane + ky * row + kx * step, value, ky
                        n += 1
        ends[t] = n
    return n


@_compiled
def convolve(x, weight, bias, dilation, zeros, pool, relu, out, winner):
    """Convolution of stride 1, then max-pooling over windows side by side, then ReLU.

    Where few weights of a tile of outputs are nonzero, only these are gone through. The sums are the same to the last bit.

    Args:
        x: [networks or 1, channels, height, width, images]; if 1, all networks share it.
        weight: [networks, outputs / tile, channels, kernel, kernel, tile], tile 4 or 6: see :func:`packed`.
        bias: [networks, outputs rounded up to whole tiles].
        dilation: Of the kernel, (vertical, horizontal).
        zeros: Rows of zeros to assume above the input (and below it, as many as the output needs), and columns of zeros that the
            input contains on its left and on its right, enough for all outputs.
        pool: (height, width) of the windows; (1, 1) for none.
        relu: Whether to cut off negative values.
        out: [networks, outputs, height, width, images], written.
        winner: uint8 in the shape of ``out``: the place of its window that each value comes from, or 255 if it is cut off. Written,
            unless empty.
    """
    networks, outputs, rows, columns, images = out.shape
    _, channels, height, width, _ = x.shape
    kernel, tile = weight.shape[3:5], weight.shape[5]
    wide, taps = columns * pool[1], channels * kernel[0] * kernel[1]
    some = np.empty((tile, pool[0], wide, images), x.dtype)  # the outputs of one row of windows
    flat_some, between = some.reshape(-1), pool[0] * wide * images
    apart = (channels, height * width * images, dilation[0] * width * images, dilation[1] * images)
    flat_out, flat_winner = out.reshape(-1), winner.reshape(-1)
    most = tile * taps
    places, values, levels = np.empty(most, np.int64), np.empty(most, x.dtype), np.empty(most, np.int64)
    near, factors = np.empty(most, np.int64), np.empty(most, x.dtype)
    ends, last = np.empty(tile, np.int64), np.empty(tile, np.int64)
    for k in range(networks):
        flat_x, flat_weight, flat_bias = x[k % len(x)].reshape(-1), weight[k].reshape(-1), bias[k]
        for first in range(0, len(flat_bias), tile):
            listed = _listed(flat_weight, first, tile, kernel, apart, places, values, levels, ends)
            sparse = listed < DENSE * most
            for y in range(rows):
                for inner in range(pool[0]):
                    top = y * pool[0] + inner
                    ys = _met(top, zeros[0], kernel[0], dilation[0], height)
                    row = (top - zeros[0]) * width * images
                    if sparse:
                        n = 0
                        for t in range(tile):
                            for i in range(ends[t - 1] if t else 0, ends[t]):
                                if ys[0] <= levels[i] < ys[1]:
                                    near[n], factors[n] = places[i], values[i]
                                    n += 1
                            last[t] = n
                        done = 0
                        while done < wide * images:
                            whole = done + 4 * LANES <= wide * images
                            for t in range(min(tile, outputs - first)):
                                begin, at = last[t - 1] if t else 0, (t * pool[0] + inner) * wide * images + done
                                given = (near, factors, begin, last[t], flat_bias, first + t, flat_some, at)
                                if whole:
                                    _stretch(flat_x, row + done, *given)
                                else:
                                    _piece(flat_x, row + done, *given)
                            done += 4 * LANES if whole else LANES
                        continue
                    for position in range(wide):
                        xs = _met(position, zeros[1], kernel[1], dilation[1], width - zeros[1] - zeros[2])
                        start = row + position * images
                        for image in range(0, images, LANES):
                            at = (inner * wide + position) * images + image
                            here = (flat_x, apart, start + image, ys, xs, flat_weight, flat_bias, kernel, first)
                            if tile == 4:
                                _four(*here, flat_some, at, between)
                            else:
                                _six(*here, flat_some, at, between)
                for t in range(min(tile, outputs - first)):
                    to = ((k * outputs + first + t) * rows + y) * columns * images
                    if winner.size == 0:
                        _copy(flat_some, t * between, flat_out, to, columns * images)
                        continue
                    for column in range(columns):
                        for image in range(0, images, LANES):
                            at = (t * pool[0] * wide + column * pool[1]) * images + image
                            best = _load_all(flat_some, at)
                            which = _first(best)
                            for down in range(pool[0]):
                                for right in range(pool[1]):
                                    found = _load_all(flat_some, at + (down * wide + right) * images)
                                    which = _winner(found, best, which, down * pool[1] + right)
                                    best = _largest(found, best)
                            if relu:
                                which = _cut_winner(best, which)
                                best = _cut(best)
                            _store(flat_out, to + column * images + image, best)
                            _store(flat_winner, to + column * images + image, which)


@_compiled
def _pair(x, offsets, g, second, columns, apart, down, rows, total):
    """Sums over images and positions of two outputs' gradients times the values at five taps, into total [2, 5].

    Arrays are flat. Rows of the gradient are ``apart`` from each other, and rows of the input ``down``.
    """
    o, p, q, r, s = offsets[0], offsets[1], offsets[2], offsets[3], offsets[4]
    a, b, c, d, e = _zeros(x), _zeros(x), _zeros(x), _zeros(x), _zeros(x)
    f, h, i, j, k = _zeros(x), _zeros(x), _zeros(x), _zeros(x), _zeros(x)
    for y in range(rows):
        for n in range(0, columns, LANES // 2):
            place = y * down + n
            one, two = _load_half(g, y * apart + n), _load_half(g, second + y * apart + n)
            value = _load_half(x, o + place)
            a, f = _add_product(a, one, value), _add_product(f, two, value)
            value = _load_half(x, p + place)
            b, h = _add_product(b, one, value), _add_product(h, two, value)
            value = _load_half(x, q + place)
            c, i = _add_product(c, one, value), _add_product(i, two, value)
            value = _load_half(x, r + place)
            d, j = _add_product(d, one, value), _add_product(j, two, value)
            value = _load_half(x, s + place)
            e, k = _add_product(e, one, value), _add_product(k, two, value)
    total[0, 0], total[0, 1], total[0, 2], total[0, 3] = _total(a), _total(b), _total(c), _total(d)
    total[1, 0], total[1, 1], total[1, 2], total[1, 3] = _total(f), _total(h), _total(i), _total(j)
    total[0, 4], total[1, 4] = _total(e), _total(k)


@_compiled
def _eight(x, offsets, g, columns, apart, down, rows, total):
    """:func:`_pair` for one output and eight taps, into total [8]."""
    o, p, q, r = offsets[0], offsets[1], offsets[2], offsets[3]
    s, t, u, v = offsets[4], offsets[5], offsets[6], offsets[7]
    a, b, c, d = _zeros(x), _zeros(x), _zeros(x), _zeros(x)
    e, f, h, i = _zeros(x), _zeros(x), _zeros(x), _zeros(x)
    for y in range(rows):
        for n in range(0, columns, LANES // 2):
            place, one = y * down + n, _load_half(g, y * apart + n)
            a, b = _add_product(a, one, _load_half(x, o + place)), _add_product(b, one, _load_half(x, p + place))
            c, d = _add_product(c, one, _load_half(x, q + place)), _add_product(d, one, _load_half(x, r + place))
            e, f = _add_product(e, one, _load_half(x, s + place)), _add_product(f, one, _load_half(x, t + place))
            h, i = _add_product(h, one, _load_half(x, u + place)), _add_product(i, one, _load_half(x, v + place))
    total[0], total[1], total[2], total[3] = _total(a), _total(b), _total(c), _total(d)
    total[4], total[5], total[6], total[7] = _total(e), _total(f), _total(h), _total(i)


@_compiled
def _four_taps(x, offsets, g, columns, apart, down, rows, total):
    """:func:`_eight` for four taps."""
    o, p, q, r = offsets[0], offsets[1], offsets[2], offsets[3]
    a, b, c, d = _zeros(x), _zeros(x), _zeros(x), _zeros(x)
    for y in range(rows):
        for n in range(0, columns, LANES // 2):
            place, one = y * down + n, _load_half(g, y * apart + n)
            a, b = _add_product(a, one, _load_half(x, o + place)), _add_product(b, one, _load_half(x, p + place))
            c, d = _add_product(c, one, _load_half(x, q + place)), _add_product(d, one, _load_half(x, r + place))
    total[0], total[1], total[2], total[3] = _total(a), _total(b), _total(c), _total(d)


@partial(_compiled, any_order=True)
def _sum(values, winner):
    """The sum of the values that were not cut off, or of all values if there are no winners."""
    summed = 0.0
    if winner.size == 0:
        for i in range(values.size):
            summed += values[i]
    else:
        for i in range(values.size):
            summed += 0 if winner[i] == _DEAD else values[i]
    return summed


@_compiled
def gradients(x, gradient, winner, dilation, pool, of_weight, of_bias, weight, of_x, kept):
    """Gradients of what :func:`convolve` computes without zeros around the input.

    Args:
        x: As given to :func:`convolve`.
        gradient: Gradient of its output.
        winner: As written by it; empty if it was empty there.
        dilation: As given to it.
        pool: As given to it.
        of_weight: [networks, outputs, channels, kernel, kernel], written; for weights that are not kept, zero or their gradient.
        of_bias: [networks, outputs], written.
        weight: Weights for the gradient of the input: inputs and outputs exchanged, kernels turned around, packed.
        of_x: The gradient of the input, written; empty if it is not wanted.
        kept: bool like ``of_weight``: which gradients are wanted; empty for all.
    """
    networks, outputs, rows, columns, images = gradient.shape
    _, channels, height, width, _ = x.shape
    kernel = of_weight.shape[3:]
    high, wide = rows * pool[0], columns * pool[1]
    taps = channels * kernel[0] * kernel[1]
    buffered = outputs if of_x.size else min(2, outputs)
    reach = ((kernel[0] - 1) * dilation[0], (kernel[1] - 1) * dilation[1])
    margin, right = (reach[1], width - wide) if of_x.size else (0, 0)  # columns of zeros, for the gradient of the input
    before = np.zeros((1, buffered, high, margin + wide + right, images), x.dtype)  # gradient before the pooling
    apart, down = before.shape[3] * images, width * images
    total, offsets = np.empty((2, 5), x.dtype), np.empty(max(taps, 5), np.int64)
    which, some, nearby = np.empty(taps, np.int64), np.empty(8, np.int64), np.empty(5, np.int64)
    eight = np.empty(8, x.dtype)
    none, no_bias = np.empty((0, 0, 0, 0, 0), np.uint8), np.zeros((1, weight.shape[1] * weight.shape[5]), x.dtype)
    for t in range(taps):
        ky, kx, channel = t // kernel[1] % kernel[0], t % kernel[1], t // (kernel[0] * kernel[1])
        offsets[t] = ((channel * height + ky * dilation[0]) * width + kx * dilation[1]) * images
    no_winner = none.reshape(-1)
    flat_gradient, flat_winner, flat_before = gradient.reshape(-1), winner.reshape(-1), before.reshape(-1)
    flat_kept, flat_of_weight = kept.reshape(-1), of_weight.reshape(-1)
    for k in range(networks):
        flat_x = x[k % len(x)].reshape(-1)
        for pair in range(0, outputs, 2):
            first = max(0, min(pair, outputs - 2))
            second = min(1, outputs - 1)
            for o in range(first, first + second + 1):
                of_bias[k, o] = _sum(gradient[k, o].reshape(-1), winner[k, o].reshape(-1) if winner.size else no_winner)
                at, to = (k * outputs + o) * rows * columns * images, o % buffered * high * apart + margin * images
                for y in range(rows):
                    if winner.size == 0:
                        _copy(flat_gradient, at + y * columns * images, flat_before, to + y * apart, columns * images)
                        continue
                    for column in range(columns):
                        for image in range(0, images, LANES):
                            g, which_won = _load_all(flat_gradient, at), _load_all(flat_winner, at)
                            at += LANES
                            for down_by in range(pool[0]):
                                place = to + (y * pool[0] + down_by) * apart + column * pool[1] * images + image
                                for right_by in range(pool[1]):
                                    won = _if_won(g, which_won, down_by * pool[1] + right_by)
                                    _store(flat_before, place + right_by * images, won)
            begin = (k * outputs + first) * taps
            wanted = (second + 1) * taps
            if kept.size:
                wanted = 0
                for i in range(begin, begin + (second + 1) * taps):
                    wanted += flat_kept[i]
            if wanted < DENSE * (second + 1) * taps:
                for o in range(first, first + second + 1):
                    begin, n = (k * outputs + o) * taps, 0
                    for t in range(taps):
                        flat_of_weight[begin + t] = 0
                        if flat_kept[begin + t]:
                            which[n] = t
                            n += 1
                    flat, done = before[0, o % buffered].reshape(-1)[margin * images :], 0
                    while done < n:
                        for t in range(8):
                            some[t] = offsets[which[min(done + t, n - 1)]]
                        if n - done > 4:
                            _eight(flat_x, some, flat, wide * images, apart, down, high, eight)
                        else:
                            _four_taps(flat_x, some, flat, wide * images, apart, down, high, eight)
                        for t in range(min(8, n - done)):
                            flat_of_weight[begin + which[done + t]] = eight[t]
                        done += 8
                continue
            flat = before[0, first % buffered :].reshape(-1)[margin * images :]
            other = (((first + second) % buffered) - first % buffered) * high * apart
            for group in range(0, taps, 5):
                start = max(0, min(group, taps - 5))
                for t in range(5):
                    nearby[t] = offsets[min(start + t, taps - 1)]
                _pair(flat_x, nearby, flat, other, wide * images, apart, down, high, total)
                for t in range(min(5, taps)):
                    for o in range(second + 1):
                        flat_of_weight[begin + o * taps + start + t] = total[o, t]
        if of_x.size:
            zeros = (reach[0], margin, right)
            convolve(before, weight[k : k + 1], no_bias, dilation, zeros, (1, 1), False, of_x[k : k + 1], none)


# --- linear layers of few weights -----------------------------------------------------------------------------------------


@_compiled
def linear(x, weight, bias, ends, inputs, out):
    """A linear layer, computed from its kept weights.

    Args:
        x: [networks, inputs, images].
        weight: [networks, outputs, inputs].
        bias: [networks, outputs].
        ends: Where the kept weights of each output of each network begin in ``inputs``, and where the last ones end.
        inputs: Inputs of the kept weights, ascending for each output.
        out: [networks, outputs, images], written.
    """
    networks, outputs, images = out.shape
    flat_x, flat_weight, flat_bias, flat_out = x.reshape(-1), weight.reshape(-1), bias.reshape(-1), out.reshape(-1)
    for row in range(networks * outputs):
        start, at = row // outputs * x.shape[1], row * x.shape[1]
        for image in range(0, images, LANES):
            sums = _filled(flat_bias, row)
            for i in range(ends[row], ends[row + 1]):
                values = _load_all(flat_x, (start + inputs[i]) * images + image)
                sums = _add_scaled(sums, flat_weight, at + inputs[i], values)
            _store(flat_out, row * images + image, sums)


@_compiled
def linear_gradients(x, weight, gradient, ends, inputs, of_x, of_weight, of_bias):
    """Gradients of what :func:`linear` computes: of the input and of kept weights (both must be zero before), and of biases."""
    networks, outputs, images = gradient.shape
    flat_x, flat_weight, flat_gradient = x.reshape(-1), weight.reshape(-1), gradient.reshape(-1)
    flat_of_x, flat_of_weight, flat_of_bias = of_x.reshape(-1), of_weight.reshape(-1), of_bias.reshape(-1)
    for row in range(networks * outputs):
        start, at = row // outputs * x.shape[1], row * x.shape[1]
        flat_of_bias[row] = _sum(flat_gradient[row * images : (row + 1) * images], np.empty(0, np.uint8))
        for i in range(ends[row], ends[row + 1]):
            place, total = (start + inputs[i]) * images, _zeros(flat_x)
            for image in range(0, images, LANES):
                g = _load_all(flat_gradient, row * images + image)
                sums = _add_scaled(_load_all(flat_of_x, place + image), flat_weight, at + inputs[i], g)
                _store(flat_of_x, place + image, sums)
            for image in range(0, images, LANES // 2):
                g = _load_half(flat_gradient, row * images + image)
                total = _add_product(total, g, _load_half(flat_x, place + image))
            flat_of_weight[at + inputs[i]] = _total(total)


def packed(weight: np.ndarray, bias: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weights [networks, outputs, channels, kernel, kernel] and biases as :func:`convolve` takes them."""
    networks, outputs, *rest = weight.shape
    tile = min((4, 6), key=lambda size: (-(-outputs // size) * size, size))
    whole = -(-outputs // tile) * tile
    full = np.zeros((networks, whole, *rest), weight.dtype)
    full[:, :outputs] = weight
    biases = np.zeros((networks, whole), weight.dtype)
    if bias is not None:
        biases[:, :outputs] = bias
    return np.ascontiguousarray(np.moveaxis(full.reshape(networks, whole // tile, tile, *rest), 2, -1)), biases
