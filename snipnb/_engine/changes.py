"""Compiled: the loss changes of all parameters of a layer that only linear layers and ReLUs follow.

While no gate (ReLU) of the following layers switches, the change of the logits is linear in the change d of the disturbed
channel, dz = J d, with one small J per image and channel for all parameters of the channel. So dz is J d plus what the gates that do
switch add. Bounds of d over all parameters of the channel say beforehand which gates are *at risk*. Only their inputs are
computed, layer by layer. A gate with input a, which changes by s, adds

    max(a + s, 0) if it is off (a <= 0), and max(-(a + s), 0) if it is on,

to what follows, like one more disturbed unit. This is exactly zero unless the gate switches. Nothing is approximated: a gate that
the bounds clear cannot switch.

The columns of parameters are innermost, so 16 parameters are computed together. Jacobians are [sources, units]; a source is a
disturbed unit or a gate that has switched. This module needs Numba. docs/kernels.md explains it.
"""

from __future__ import annotations

import math

import numpy as np

from snipnb._engine.vectors import (
    LANES,
    add_product,
    add_scaled,
    compiled,
    copy_all,
    cut,
    filled,
    largest,
    load_all,
    store,
    store_four,
)

BLOCK = 512  # columns that are computed before the next ones: what belongs to them stays in the caches
SLACK = 1.001  # bounds are widened by this factor, because they are rounded
FARTHEST = 1.0  # largest change of a logit, relative to the label's, for which the series of expm1 is used
CLOSE = 0.2  # up to this change, the sum over classes needs no look before its logarithm is taken
NEAR = 0.3  # largest magnitude of the sum for which the series of log1p is used


def series(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, float]:
    """Coefficients of expm1(t) / t and of log1p(t) / t, each with a zero at the end, and the precision to which they are summed."""
    exponential = [1 / math.factorial(k + 1) for k in range(20)]
    logarithm = [(-1) ** k / (k + 1) for k in range(40)]
    return np.array([*exponential, 0], dtype), np.array([*logarithm, 0], dtype), float(np.finfo(dtype).eps) / 8


@compiled
def loss_changes(
    x, places, values, gap, floor, first, weights, sizes, hidden, p, log_p, labels, exponential, logarithm, eps, sums
):
    """Add, for every parameter of a layer, the sum over images of the loss change when the parameter is set to zero.

    Args:
        x: What the parameters multiply [images, values].
        places: int64 [channels or 1, window, positions, columns]: which value each parameter multiplies at each place of the channel.
        values: Parameters with their sign reversed [channels, columns], filled up with zeros to a multiple of 32 columns.
        gap: [images, channels, window, positions]: values before the channel's own gate minus the largest one of the window (or 0).
        floor: [images, channels, positions]: minus that largest one; minus infinity if there is no ReLU.
        first: Weights of the next layer [channels * positions + 4, units].
        weights: Weights of the layers after it, flat, each [units, units of the next layer].
        sizes: Units of these layers; the last are the classes. All are filled up to a multiple of 16, with weights of zero.
        hidden: Inputs of the gates between the layers [images, sum of ``sizes`` without the last].
        p: Probabilities [images, classes].
        log_p: Their logarithms.
        labels: int64 [images].
        exponential: Coefficients of expm1(t) / t, and a zero.
        logarithm: Coefficients of log1p(t) / t, and a zero.
        eps: Precision of the series.
        sums: float64 [channels, columns], added to.
    """
    images, (channels, columns), (window, positions) = len(x), values.shape, gap.shape[2:]
    layers, classes, gates, sources = len(sizes), p.shape[1], sizes[:-1].sum(), channels * positions
    width, widest, taps = min(columns, BLOCK), sizes.max(), window * positions
    seen, rows = np.empty(taps * columns, x.dtype), np.empty((positions + gates + 4) * width, x.dtype)
    low, high = np.zeros(positions + gates + 4, x.dtype), np.zeros(positions + gates + 4, x.dtype)
    down, up = np.empty(widest, x.dtype), np.empty(widest, x.dtype)
    bases = np.zeros((sources + 4) * (sizes[1:].sum() if layers > 1 else sizes[0]), x.dtype)
    more, other = np.zeros((gates + 4) * widest, x.dtype), np.zeros((gates + 4) * widest, x.dtype)
    on, ons, units = np.empty(gates, np.int64), np.zeros(layers, np.int64), np.zeros(widest + 4, np.int64)
    starts, signs = np.zeros(4, x.dtype), np.zeros(4, x.dtype)
    room = np.zeros(5 * LANES, x.dtype)  # 0, -1, and space for four vectors
    room[1] = -1
    changes, total = np.empty((classes + 4) * width, x.dtype), np.empty(width, x.dtype)
    flat_first, flat_values, flat_places = first.reshape(-1), values.reshape(-1), places.reshape(-1)
    flat_gap, flat_floor = gap.reshape(-1), floor.reshape(-1)
    everyone = np.arange(classes + 4) % classes
    for i in range(images):
        _list_on(hidden, i, sizes, on, ons)
        last = _all_jacobians(flat_first, sources, sizes, on, ons, weights, labels[i], room, bases)
        for o in range(channels):
            if o == 0 or len(places) > 1:
                for t in range(taps * columns):
                    seen[t] = x[i, flat_places[o % len(places) * taps * columns + t]]
            for begin in range(0, columns, BLOCK):
                count = min(BLOCK, columns - begin)
                place = (o * columns + begin, (i * channels + o) * positions, window, positions, columns, begin, count)
                _own_changes(seen, flat_values, flat_gap, flat_floor, place, rows)
                dead = True
                for m in range(positions):
                    low[m], high[m] = _range_of(rows, m * count, count, room)
                    dead = dead and low[m] == 0 and high[m] == 0
                if dead:
                    continue
                extra = 0  # gates that have switched
                at, h, base = 0, 0, 0  # where weights, gates and Jacobians of a layer begin
                for layer in range(layers - 1):
                    size, after = sizes[layer], sizes[layer + 1]
                    jacobian = flat_first if layer == 0 else bases[base:]
                    risky = _at_risk(
                        jacobian, o * positions, positions, more, extra, size, low, high, down, up, hidden, i, h, units
                    )
                    new = 0
                    for t in range(0, risky, 4):
                        for k in range(4):
                            a = hidden[i, h + units[t + k]]
                            signs[k] = -1 if a > 0 else 1
                            starts[k] = a * signs[k]
                        to = positions + extra + new
                        shape = (o * positions, positions, extra, size, count, to * count, True)
                        _four_units(jacobian, more, shape, units, t, rows, starts, signs, room, rows)
                        for k in range(min(4, risky - t)):
                            top = _top(room, (1 + k) * LANES)
                            if top > 0:
                                row = positions + extra + new
                                if row != to + k:
                                    copy_all(rows, (to + k) * count, rows, row * count, count)
                                low[row], high[row], units[new] = 0, top, units[t + k]
                                new += 1
                    _advance(more, extra, size, on[h:], ons[layer], weights, at, after, room, other, 0)
                    for k in range(new):
                        for s in range(0, after, LANES):
                            store(other, (extra + k) * after + s, load_all(weights, at + units[k] * after + s))
                    more, other = other, more
                    extra += new
                    base += (sources + 4) * size if layer else 0
                    at += size * after
                    h += size
                _relative_to(more, sizes[-1], classes, labels[i], 0, extra)
                farthest = _bounds(bases[last:], o * positions, positions, more, extra, sizes[-1], low, high, down, up)
                for c in range(0, classes, 4):
                    shape = (o * positions, positions, extra, sizes[-1], count, c * count, False)
                    _four_units(bases[last:], more, shape, everyone, c, rows, starts, signs, room, changes)
                series = (exponential, logarithm, eps)
                _add_changes_of_loss(
                    p, log_p, i, changes, farthest, count, series, room, total, sums[o, begin : begin + count]
                )


@compiled
def _list_on(hidden, i, sizes, on, ons):
    """List the gates that are on, layer by layer."""
    h = 0
    for layer in range(len(sizes) - 1):
        n = 0
        for u in range(sizes[layer]):
            if hidden[i, h + u] > 0:
                on[h + n] = u
                n += 1
        ons[layer] = n
        h += sizes[layer]


@compiled
def _all_jacobians(first, sources, sizes, on, ons, weights, label, room, bases):
    """The Jacobians of all layers but the first, for all channels, one after the other. Returns where the last one begins.

    The last one, of the logits, is relative to the label's logit. If there is one layer only, this is its own."""
    classes, begin, before, at, h = sizes[-1], 0, 0, 0, 0
    for layer in range(len(sizes) - 1):
        size, after = sizes[layer], sizes[layer + 1]
        jacobian = first if layer == 0 else bases[before:]
        _advance(jacobian, sources, size, on[h:], ons[layer], weights, at, after, room, bases, begin)
        before, begin = begin, begin + (sources + 4) * after
        at += size * after
        h += size
    if len(sizes) == 1:
        bases[: sources * classes] = first[: sources * classes]
    _relative_to(bases, classes, classes, label, before, sources)
    return before


@compiled
def _relative_to(jacobian, size, classes, label, begin, count):
    for source in range(count):
        k = begin + source * size
        own = jacobian[k + label]
        for c in range(classes):
            jacobian[k + c] -= own


@compiled
def _own_changes(seen, values, gap, floor, place, rows):
    """Changes of a channel after its own gate, position by position, for some columns."""
    at, of_channel, window, positions, columns, begin, count = place
    for m in range(positions):
        for j in range(0, count, LANES):
            best, factor = filled(floor, of_channel + m), load_all(values, at + j)
            for q in range(window):
                start = filled(gap, of_channel * window + q * positions + m)
                value = load_all(seen, (q * positions + m) * columns + begin + j)
                best = largest(add_product(start, factor, value), best)
            store(rows, m * count + j, best)


@compiled
def _top(values, at):
    """The largest value of one vector."""
    top = values[at]
    for k in range(1, LANES):
        top = max(top, values[at + k])
    return top


@compiled
def _range_of(values, at, count, room):
    """The smallest and the largest of some values and zero."""
    zero = filled(room, 0)
    high, low = zero, zero  # low: of the negated values
    for j in range(0, count, LANES):
        value = load_all(values, at + j)
        high, low = largest(value, high), largest(add_scaled(zero, room, 1, value), low)
    store(room, LANES, high)
    store(room, 2 * LANES, low)
    return -_top(room, 2 * LANES), _top(room, LANES)


@compiled
def _bounds(base, start, first, more, extra, size, low, high, down, up):
    """Bounds of the inputs' changes of all units of a layer, from the ranges of all sources. Returns the largest magnitude."""
    down[:size], up[:size] = 0, 0
    for source in range(first + extra):
        k = (start + source) * size if source < first else (source - first) * size
        row = (base if source < first else more)[k : k + size]  # a slice of its own is compiled to vectors
        smallest, greatest = low[source], high[source]
        for u in range(size):
            one, other = row[u] * smallest, row[u] * greatest
            up[u] += max(one, other)
            down[u] += min(one, other)
    farthest = up[0]
    for u in range(size):
        farthest = max(farthest, up[u], -down[u])
    return farthest


@compiled
def _at_risk(base, start, first, more, extra, size, low, high, down, up, hidden, i, h, units):
    """List the units of a layer whose gates may switch, filled up to a multiple of four. Returns how many there are."""
    _bounds(base, start, first, more, extra, size, low, high, down, up)
    count = 0
    for u in range(size):
        a = hidden[i, h + u]
        if (SLACK * down[u] + a < 0) if a > 0 else (SLACK * up[u] + a > 0):
            units[count] = u
            count += 1
    units[count : count + 4] = units[0]
    return count


@compiled
def _four_units(base, more, shape, units, t, rows, starts, signs, room, out):
    """Changes of the inputs of four units for some columns, or what their gates add. The largest go into ``room``."""
    start, first, extra, size, count, to, gated = shape
    p, q, r, s = units[t], units[t + 1], units[t + 2], units[t + 3]
    zero = filled(room, 0)
    top_a, top_b, top_c, top_d = zero, zero, zero, zero
    for j in range(0, count, LANES):
        a, b, c, d = zero, zero, zero, zero
        k = start * size
        for source in range(first):
            value = load_all(rows, source * count + j)
            a, b = add_scaled(a, base, k + p, value), add_scaled(b, base, k + q, value)
            c, d = add_scaled(c, base, k + r, value), add_scaled(d, base, k + s, value)
            k += size
        k = 0
        for source in range(first, first + extra):
            value = load_all(rows, source * count + j)
            a, b = add_scaled(a, more, k + p, value), add_scaled(b, more, k + q, value)
            c, d = add_scaled(c, more, k + r, value), add_scaled(d, more, k + s, value)
            k += size
        if gated:
            a, b = cut(add_scaled(filled(starts, 0), signs, 0, a)), cut(add_scaled(filled(starts, 1), signs, 1, b))
            c, d = cut(add_scaled(filled(starts, 2), signs, 2, c)), cut(add_scaled(filled(starts, 3), signs, 3, d))
            top_a, top_b, top_c, top_d = largest(a, top_a), largest(b, top_b), largest(c, top_c), largest(d, top_d)
        store_four(out, to + j, count, a, b, c, d)
    store_four(room, LANES, LANES, top_a, top_b, top_c, top_d)


@compiled
def _advance(jacobian, sources, size, on, ons, weights, at, after, room, out, begin):
    """The Jacobian of the next layer from the Jacobian of this one, through the gates that are on; four sources at a time."""
    zero = filled(room, 0)
    for source in range(0, sources, 4):
        for s in range(0, after, LANES):
            a, b, c, d = zero, zero, zero, zero
            for n in range(ons):
                k, value = source * size + on[n], load_all(weights, at + on[n] * after + s)
                a, b = add_scaled(a, jacobian, k, value), add_scaled(b, jacobian, k + size, value)
                c, d = add_scaled(c, jacobian, k + 2 * size, value), add_scaled(d, jacobian, k + 3 * size, value)
            store_four(out, begin + source * after + s, after, a, b, c, d)


@compiled
def _add_changes_of_loss(p, log_p, i, changes, farthest, count, series, room, total, sums):
    """Add log(1 + sum over classes of p expm1(change of the logit)) of every column."""
    exponential, logarithm, eps = series
    classes, zero, flat_p = p.shape[1], filled(room, 0), p.reshape(-1)
    if farthest > CLOSE:
        low, high = _range_of(changes, 0, classes * count, room)
        farthest = max(-low, high)
    terms = _terms_for(exponential, min(farthest, FARTHEST), eps)
    for j in range(0, count, 2 * LANES):
        a, b = zero, zero
        for c in range(classes):
            x, y = load_all(changes, c * count + j), load_all(changes, c * count + j + LANES)
            x, y = _power_series(exponential, terms, zero, x, y)
            a, b = add_scaled(a, flat_p, i * classes + c, x), add_scaled(b, flat_p, i * classes + c, y)
        store(total, j, a)
        store(total, j + LANES, b)
    widest = 1.5 * farthest
    if farthest > CLOSE:
        low, high = _range_of(total, 0, count, room)
        widest = max(-low, high)
    if farthest > FARTHEST or not widest <= NEAR:
        for j in range(count):
            sums[j] += _careful(p, log_p, i, changes, count, j)
        return
    terms = _terms_for(logarithm, widest, eps)
    for j in range(0, count, 2 * LANES):
        x, y = _power_series(logarithm, terms, zero, load_all(total, j), load_all(total, j + LANES))
        store(total, j, x)
        store(total, j + LANES, y)
    for j in range(count):
        sums[j] += total[j]


@compiled
def _terms_for(coefficients, farthest, eps):
    """How many terms of a power series reach the precision, for arguments up to ``farthest``."""
    terms, power = 1, farthest
    while terms < len(coefficients) - 1 and abs(coefficients[terms]) * power > eps:
        terms, power = terms + 1, power * farthest
    return terms


@compiled
def _power_series(coefficients, terms, zero, x, y):
    """x and y, each times a power series in itself."""
    a, b = filled(coefficients, terms - 1), filled(coefficients, terms - 1)
    for k in range(terms - 2, -1, -1):
        a, b = add_product(filled(coefficients, k), a, x), add_product(filled(coefficients, k), b, y)
    return add_product(zero, a, x), add_product(zero, b, y)


@compiled
def _careful(p, log_p, i, changes, count, j):
    """The loss change of one column, whatever the size of the changes."""
    total, farthest = 0.0, -np.inf
    for c in range(p.shape[1]):
        change, log = np.float64(changes[c * count + j]), np.float64(log_p[i, c])
        farthest = max(farthest, log + change)
        total += np.exp(min(log + change, 700.0)) - p[i, c] if change > 1 else p[i, c] * np.expm1(change)
    if -0.5 < total < 1e300:
        return np.log1p(total)
    whole = 0.0
    for c in range(p.shape[1]):
        whole += np.exp(log_p[i, c] + np.float64(changes[c * count + j]) - farthest)
    return farthest + np.log(whole)
