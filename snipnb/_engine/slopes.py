"""Compiled: slopes of the logits along the parameters of a convolution of stride 1, and the columns that reach its input.

Columns of the logits are innermost, 16 to a vector. Behind a gate, most columns that reach a convolution are zero, because a ReLU is off
or another value of the window is the largest. Only the others are gone through. This module needs Numba.
"""

from __future__ import annotations

import numpy as np

from snipnb._engine.vectors import LANES, add_product, add_scaled, compiled, filled, load_all, store, store_four


@compiled
def of_convolution(x, b, weight, dilation, found, back):
    """Add up the slopes along every parameter, and their squares, over images.

    Args:
        x: Padded input [images, inputs, height, width].
        b: Columns that reach the output [images, columns, outputs, rows, width of the output].
        weight: [outputs, inputs, kernel, kernel].
        dilation: (vertical, horizontal).
        found: [2, outputs, weights of an output and the bias, columns filled up to a multiple of 16], added to: slopes, and squares.
        back: Columns that reach the input [images, columns, inputs, height, width], written; empty if they are not wanted.
    """
    images, columns, outputs, rows, wide = b.shape
    (inputs, height, width), kernel = x.shape[1:], weight.shape[2:]
    taps, whole, plane = found.shape[2] - 1, found.shape[3], height * width
    live = np.zeros(rows * wide * whole, x.dtype)  # columns of one output, where one of them is not zero
    places, near = np.empty(rows * wide, np.int64), np.empty(taps + 4, np.int64)
    for t in range(taps + 4):
        tap = min(t, taps - 1)
        y, right = tap // kernel[1] % kernel[0] * dilation[0], tap % kernel[1] * dilation[1]
        near[t] = tap // (kernel[0] * kernel[1]) * plane + y * width + right
    reached = np.zeros((inputs * plane if back.size else 0) * whole, x.dtype)
    constants, room = np.array([0, 1], x.dtype), np.empty(4 * LANES, x.dtype)
    flat_b, some = b.reshape(-1), np.empty(rows * wide, x.dtype)
    flat_weight, slopes, squares = weight.reshape(-1), found[0].reshape(-1), found[1].reshape(-1)
    for i in range(images):
        flat_x = x[i].reshape(-1)
        reached[:] = 0
        for o in range(outputs):
            begin = (i * columns * outputs + o) * rows * wide
            n = _list_live(flat_b, begin, columns, outputs * rows * wide, rows, wide, width, whole, some, live, places)
            for lane in range(0, whole, LANES):
                a = filled(constants, 0)
                for k in range(n):
                    a = add_scaled(a, constants, 1, load_all(live, k * whole + lane))
                store(room, 0, a)
                _add(room, 1, slopes, squares, (o * (taps + 1) + taps) * whole + lane, whole, constants)
                for t in range(0, taps, 4):
                    _four_taps(flat_x, places, near, t, n, live, lane, whole, constants, room)
                    _add(room, min(4, taps - t), slopes, squares, (o * (taps + 1) + t) * whole + lane, whole, constants)
                if back.size:
                    for k in range(n):
                        value = load_all(live, k * whole + lane)
                        for t in range(taps):
                            at = (places[k] + near[t]) * whole + lane
                            store(reached, at, add_scaled(load_all(reached, at), flat_weight, o * taps + t, value))
        if back.size:
            for c in range(columns):
                flat_back = back[i, c].reshape(-1)
                for place in range(inputs * plane):
                    flat_back[place] = reached[place * whole + c]


@compiled
def _list_live(b, begin, columns, apart, rows, wide, width, whole, some, live, places):
    """Copy the columns at places where one is not zero, and list these places. Returns how many there are."""
    positions = rows * wide
    some[:] = 0
    for c in range(columns):
        row = b[begin + c * apart : begin + c * apart + positions]  # a slice of its own is compiled to vectors
        for k in range(positions):
            some[k] += abs(row[k])
    n = 0
    for k in range(positions):
        if some[k] != 0:
            for c in range(columns):
                live[n * whole + c] = b[begin + c * apart + k]
            places[n] = k // wide * width + k % wide
            n += 1
    return n


@compiled
def _four_taps(x, places, near, t, n, live, lane, whole, constants, room):
    """Slopes along four weights of one output."""
    zero = filled(constants, 0)
    a, b, c, d = zero, zero, zero, zero
    p, q, r, s = near[t], near[t + 1], near[t + 2], near[t + 3]
    for k in range(n):
        value, place = load_all(live, k * whole + lane), places[k]
        a, b = add_scaled(a, x, place + p, value), add_scaled(b, x, place + q, value)
        c, d = add_scaled(c, x, place + r, value), add_scaled(d, x, place + s, value)
    store_four(room, 0, LANES, a, b, c, d)


@compiled
def _add(room, count, slopes, squares, at, apart, constants):
    for k in range(count):
        a, place = load_all(room, k * LANES), at + k * apart
        store(squares, place, add_product(load_all(squares, place), a, a))
        store(slopes, place, add_scaled(load_all(slopes, place), constants, 1, a))
