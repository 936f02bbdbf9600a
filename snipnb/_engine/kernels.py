"""Compiled convolutions and sparse linear layers for a processor: images side by side in vector registers, a few outputs at a time.

Activations are [channels, height, width, images] with images innermost. The number of images is a multiple of :data:`LANES`. For one
position and 16 images, a convolution computes four or six outputs together. Each loaded value serves all of these outputs, and each
weight serves all images. The sums stay in registers, as in a matrix product, but nothing is copied into columns. Where most
weights are zero, only the others are gone through, one by one, for 64 images and neighbouring positions at a time. Gradients of
weights are then computed only for kept weights. So a network takes less time the more it is pruned. Only stride 1 is covered.

This module needs Numba. Where Numba is missing, ``ensembles.py`` does without this module. docs/kernels.md explains the kernels.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from snipnb._engine.vectors import (
    DEAD,
    LANES,
    add_product,
    add_scaled,
    compiled,
    copy_all,
    cut,
    cut_winner,
    filled,
    first_winner,
    if_won,
    largest,
    later_winner,
    load_all,
    load_half,
    store,
    store_four,
    sum_lanes,
    zero_sums,
)

DENSE = 0.5  # share of nonzero weights from which a tile of outputs is computed as if it had no zeros


# --- convolution ------------------------------------------------------------------------------------------------------


@compiled
def _four(x, apart, start, ys, xs, weight, bias, kernel, first, out, at, between):
    """Outputs ``first`` to ``first + 3`` at one position for 16 images.

    Arrays are flat. ``apart`` holds the number of channels of x, and the distances between channels, between taps below each
    other and between taps next to each other. ``between`` is the distance between outputs. weight is [outputs / 4, channels,
    kernel, kernel, 4]. Only the taps from ``ys[0]`` to ``ys[1]`` and from ``xs[0]`` to ``xs[1]`` are used: the others meet the padding.
    """
    a, b = filled(bias, first), filled(bias, first + 1)
    c, d = filled(bias, first + 2), filled(bias, first + 3)
    channels, plane, row, step = apart
    for channel in range(channels):
        for tap in range(ys[0], ys[1]):
            k = (first // 4 * channels * kernel[0] + channel * kernel[0] + tap) * kernel[1] * 4 + xs[0] * 4
            place = start + channel * plane + tap * row + xs[0] * step
            for _ in range(xs[0], xs[1]):
                value = load_all(x, place)
                a, b = add_scaled(a, weight, k, value), add_scaled(b, weight, k + 1, value)
                c, d = add_scaled(c, weight, k + 2, value), add_scaled(d, weight, k + 3, value)
                k += 4
                place += step
    store_four(out, at, between, a, b, c, d)


@compiled
def _six(x, apart, start, ys, xs, weight, bias, kernel, first, out, at, between):
    """:func:`_four` for six outputs."""
    a, b, c = filled(bias, first), filled(bias, first + 1), filled(bias, first + 2)
    d, e, f = filled(bias, first + 3), filled(bias, first + 4), filled(bias, first + 5)
    channels, plane, row, step = apart
    for channel in range(channels):
        for tap in range(ys[0], ys[1]):
            k = (first // 6 * channels * kernel[0] + channel * kernel[0] + tap) * kernel[1] * 6 + xs[0] * 6
            place = start + channel * plane + tap * row + xs[0] * step
            for _ in range(xs[0], xs[1]):
                value = load_all(x, place)
                a, b = add_scaled(a, weight, k, value), add_scaled(b, weight, k + 1, value)
                c, d = add_scaled(c, weight, k + 2, value), add_scaled(d, weight, k + 3, value)
                e, f = add_scaled(e, weight, k + 4, value), add_scaled(f, weight, k + 5, value)
                k += 6
                place += step
    store_four(out, at, between, a, b, c, d)
    store(out, at + 4 * between, e)
    store(out, at + 5 * between, f)


@compiled
def _met(position, before, kernel, dilation, size):
    """Which taps of a kernel meet the input, not the padding, at one position along one axis: from, to."""
    low = max(0, -((position - before) // dilation))
    high = min(kernel, (size - 1 - position + before) // dilation + 1)
    return low, max(low, high)


@compiled
def _stretch(x, start, places, values, begin, end, bias, output, out, at):
    """One output for 64 images and positions in a row, from the nonzero weights.

    Arrays are flat. ``places`` holds the place of each weight's input, counted from ``start``.
    """
    a, b, c, d = filled(bias, output), filled(bias, output), filled(bias, output), filled(bias, output)
    for i in range(begin, end):
        place = start + places[i]
        a = add_scaled(a, values, i, load_all(x, place))
        b = add_scaled(b, values, i, load_all(x, place + LANES))
        c = add_scaled(c, values, i, load_all(x, place + 2 * LANES))
        d = add_scaled(d, values, i, load_all(x, place + 3 * LANES))
    store_four(out, at, LANES, a, b, c, d)


@compiled
def _piece(x, start, places, values, begin, end, bias, output, out, at):
    """:func:`_stretch` for 16 images."""
    a = filled(bias, output)
    for i in range(begin, end):
        a = add_scaled(a, values, i, load_all(x, start + places[i]))
    store(out, at, a)


@compiled
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


@compiled
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
                        copy_all(flat_some, t * between, flat_out, to, columns * images)
                        continue
                    for column in range(columns):
                        for image in range(0, images, LANES):
                            at = (t * pool[0] * wide + column * pool[1]) * images + image
                            best = load_all(flat_some, at)
                            which = first_winner(best)
                            for down in range(pool[0]):
                                for right in range(pool[1]):
                                    found = load_all(flat_some, at + (down * wide + right) * images)
                                    which = later_winner(found, best, which, down * pool[1] + right)
                                    best = largest(found, best)
                            if relu:
                                which = cut_winner(best, which)
                                best = cut(best)
                            store(flat_out, to + column * images + image, best)
                            store(flat_winner, to + column * images + image, which)


@compiled
def _pair(x, offsets, g, first, second, columns, apart, down, rows, total):
    """Sums over images and positions of two outputs' gradients times the values at five taps, into total [2, 5].

    Arrays are flat. The gradients begin at ``first`` and at ``second``. Their rows are ``apart`` from each other, and rows of the input ``down``.
    """
    o, p, q, r, s = offsets[0], offsets[1], offsets[2], offsets[3], offsets[4]
    a, b, c, d, e = zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x)
    f, h, i, j, k = zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x)
    for y in range(rows):
        for n in range(0, columns, LANES // 2):
            place = y * down + n
            one, two = load_half(g, first + y * apart + n), load_half(g, second + y * apart + n)
            value = load_half(x, o + place)
            a, f = add_product(a, one, value), add_product(f, two, value)
            value = load_half(x, p + place)
            b, h = add_product(b, one, value), add_product(h, two, value)
            value = load_half(x, q + place)
            c, i = add_product(c, one, value), add_product(i, two, value)
            value = load_half(x, r + place)
            d, j = add_product(d, one, value), add_product(j, two, value)
            value = load_half(x, s + place)
            e, k = add_product(e, one, value), add_product(k, two, value)
    total[0, 0], total[0, 1], total[0, 2], total[0, 3] = sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)
    total[1, 0], total[1, 1], total[1, 2], total[1, 3] = sum_lanes(f), sum_lanes(h), sum_lanes(i), sum_lanes(j)
    total[0, 4], total[1, 4] = sum_lanes(e), sum_lanes(k)


@compiled
def _eight(x, offsets, g, columns, apart, down, rows, total):
    """:func:`_pair` for one output and eight taps, into total [8]."""
    o, p, q, r = offsets[0], offsets[1], offsets[2], offsets[3]
    s, t, u, v = offsets[4], offsets[5], offsets[6], offsets[7]
    a, b, c, d = zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x)
    e, f, h, i = zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x)
    for y in range(rows):
        for n in range(0, columns, LANES // 2):
            place, one = y * down + n, load_half(g, y * apart + n)
            a, b = add_product(a, one, load_half(x, o + place)), add_product(b, one, load_half(x, p + place))
            c, d = add_product(c, one, load_half(x, q + place)), add_product(d, one, load_half(x, r + place))
            e, f = add_product(e, one, load_half(x, s + place)), add_product(f, one, load_half(x, t + place))
            h, i = add_product(h, one, load_half(x, u + place)), add_product(i, one, load_half(x, v + place))
    total[0], total[1], total[2], total[3] = sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)
    total[4], total[5], total[6], total[7] = sum_lanes(e), sum_lanes(f), sum_lanes(h), sum_lanes(i)


@compiled
def _four_taps(x, offsets, g, columns, apart, down, rows, total):
    """:func:`_eight` for four taps."""
    o, p, q, r = offsets[0], offsets[1], offsets[2], offsets[3]
    a, b, c, d = zero_sums(x), zero_sums(x), zero_sums(x), zero_sums(x)
    for y in range(rows):
        for n in range(0, columns, LANES // 2):
            place, one = y * down + n, load_half(g, y * apart + n)
            a, b = add_product(a, one, load_half(x, o + place)), add_product(b, one, load_half(x, p + place))
            c, d = add_product(c, one, load_half(x, q + place)), add_product(d, one, load_half(x, r + place))
    total[0], total[1], total[2], total[3] = sum_lanes(a), sum_lanes(b), sum_lanes(c), sum_lanes(d)


@partial(compiled, any_order=True)
def _sum(values, winner):
    """The sum of the values that were not cut off, or of all values if there are no winners."""
    summed = 0.0
    if winner.size == 0:
        for i in range(values.size):
            summed += values[i]
    else:
        for i in range(values.size):
            summed += 0 if winner[i] == DEAD else values[i]
    return summed


@compiled
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
        kept: bool like ``of_weight``: which gradients are wanted.
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
                        copy_all(
                            flat_gradient, at + y * columns * images, flat_before, to + y * apart, columns * images
                        )
                        continue
                    for column in range(columns):
                        for image in range(0, images, LANES):
                            g, which_won = load_all(flat_gradient, at), load_all(flat_winner, at)
                            at += LANES
                            for down_by in range(pool[0]):
                                place = to + (y * pool[0] + down_by) * apart + column * pool[1] * images + image
                                for right_by in range(pool[1]):
                                    won = if_won(g, which_won, down_by * pool[1] + right_by)
                                    store(flat_before, place + right_by * images, won)
            begin = (k * outputs + first) * taps
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
            one = first % buffered * high * apart + margin * images
            other = (first + second) % buffered * high * apart + margin * images
            for group in range(0, taps, 5):
                start = max(0, min(group, taps - 5))
                for t in range(5):
                    nearby[t] = offsets[min(start + t, taps - 1)]
                _pair(flat_x, nearby, flat_before, one, other, wide * images, apart, down, high, total)
                for t in range(min(5, taps)):
                    for o in range(second + 1):
                        flat_of_weight[begin + o * taps + start + t] = total[o, t]
        if of_x.size:
            zeros = (reach[0], margin, right)
            convolve(before, weight[k : k + 1], no_bias, dilation, zeros, (1, 1), False, of_x[k : k + 1], none)


# --- linear layers of few weights -----------------------------------------------------------------------------------------


@compiled
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
            sums = filled(flat_bias, row)
            for i in range(ends[row], ends[row + 1]):
                values = load_all(flat_x, (start + inputs[i]) * images + image)
                sums = add_scaled(sums, flat_weight, at + inputs[i], values)
            store(flat_out, row * images + image, sums)


@compiled
def linear_gradients(x, weight, gradient, ends, inputs, of_x, of_weight, of_bias):
    """Gradients of what :func:`linear` computes: of the input and of kept weights (both must be zero before), and of biases."""
    networks, outputs, images = gradient.shape
    flat_x, flat_weight, flat_gradient = x.reshape(-1), weight.reshape(-1), gradient.reshape(-1)
    flat_of_x, flat_of_weight, flat_of_bias = of_x.reshape(-1), of_weight.reshape(-1), of_bias.reshape(-1)
    for row in range(networks * outputs):
        start, at = row // outputs * x.shape[1], row * x.shape[1]
        flat_of_bias[row] = _sum(flat_gradient[row * images : (row + 1) * images], np.empty(0, np.uint8))
        for i in range(ends[row], ends[row + 1]):
            place, total = (start + inputs[i]) * images, zero_sums(flat_x)
            for image in range(0, images, LANES):
                g = load_all(flat_gradient, row * images + image)
                sums = add_scaled(load_all(flat_of_x, place + image), flat_weight, at + inputs[i], g)
                store(flat_of_x, place + image, sums)
            for image in range(0, images, LANES // 2):
                g = load_half(flat_gradient, row * images + image)
                total = add_product(total, g, load_half(flat_x, place + image))
            flat_of_weight[at + inputs[i]] = sum_lanes(total)


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
