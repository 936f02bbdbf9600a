"""Vectors for compiled code: each function stands for one instruction on 8 or 16 numbers at once.

The instructions are written in the compiler's own vector types, which it translates to whatever the processor has. Arrays are flat.

This module needs Numba. docs/kernels.md explains it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

LANES = 16  # numbers in a vector (of images, parameters or columns); sums over images take half as many at a time
DEAD = 255  # marks a value that a ReLU cuts off, in place of its position in the window


def compiled(function, *, any_order: bool = False):
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


load_all, load_half = _load(LANES), _load(LANES // 2)


@intrinsic
def store(typing, array, index, vector):
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
def filled(typing, array, index):
    """A vector full of one element."""
    vector = _Vector(array.dtype, LANES)

    def code(context, builder, signature, values):
        value = builder.load(_place(context, builder, signature.args[0], *values))
        return _spread(builder, value, context.get_value_type(vector))

    return vector(array, types.intp), code


@intrinsic
def zero_sums(typing, array):
    vector = _Vector(array.dtype, LANES // 2)

    def code(context, builder, signature, values):
        return _whole(context.get_value_type(vector), 0.0)

    return vector(array), code


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=("contract",)), c, flags=("contract",))


@intrinsic
def add_scaled(typing, sums, array, index, vector):
    """``sums + array[index] * vector``."""

    def code(context, builder, signature, values):
        value = builder.load(_place(context, builder, signature.args[1], *values[1:3]))
        factor = _spread(builder, value, context.get_value_type(signature.args[0]))
        return _multiply_add(builder, factor, values[3], values[0])

    return sums(sums, array, types.intp, vector), code


@intrinsic
def add_product(typing, sums, a, b):
    def code(context, builder, signature, values):
        return _multiply_add(builder, values[1], values[2], values[0])

    return sums(sums, a, b), code


@intrinsic
def sum_lanes(typing, vector):
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
def largest(typing, values, best):
    return best(values, best), _choice(lambda context, builder, signature, given: given[0], 1)


@intrinsic
def later_winner(typing, values, best, which, place):
    """Where the largest value comes from: ``place`` where the values are larger, else as before."""

    def number(context, builder, signature, given):
        kind = context.get_value_type(signature.return_type)
        return _spread(builder, builder.trunc(given[3], ir.IntType(8)), kind)

    return which(values, best, which, types.intp), _choice(number, 2)


@intrinsic
def first_winner(typing, vector):
    """The first winners of a vector: all zero."""
    which = _Vector(types.uint8, vector.lanes)

    def code(context, builder, signature, values):
        return _whole(context.get_value_type(which), 0)

    return which(vector), code


@intrinsic
def cut(typing, best):
    def code(context, builder, signature, values):
        zero = _whole(values[0].type, 0.0)
        return builder.select(builder.fcmp_ordered("<=", values[0], zero), zero, values[0])

    return best(best), code


@intrinsic
def cut_winner(typing, best, which):
    def code(context, builder, signature, values):
        off = builder.fcmp_ordered("<=", values[0], _whole(values[0].type, 0.0))
        return builder.select(off, _whole(values[1].type, DEAD), values[1])

    return which(best, which), code


@intrinsic
def if_won(typing, values, which, place):
    """The values where this place is the winner, else zero."""

    def code(context, builder, signature, given):
        number = _spread(builder, builder.trunc(given[2], ir.IntType(8)), given[1].type)
        return builder.select(builder.icmp_unsigned("==", given[1], number), given[0], _whole(given[0].type, 0.0))

    return values(values, which, types.intp), code


@compiled
def copy_all(x, start, out, at, count):
    """Copy ``count`` values, a multiple of the lanes; assigning slices takes long to compile."""
    for i in range(0, count, LANES):
        store(out, at + i, load_all(x, start + i))


@compiled
def store_four(out, at, apart, a, b, c, d):
    """Store four vectors, ``apart`` from each other."""
    store(out, at, a)
    store(out, at + apart, b)
    store(out, at + 2 * apart, c)
    store(out, at + 3 * apart, d)
