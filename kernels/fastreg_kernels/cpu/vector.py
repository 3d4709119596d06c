"""Vectors of a fixed number of virtual lanes, for use inside Numba functions.

A `Vector` is one LLVM value `<LANES x dtype>`. LLVM splits it over whatever registers the processor has (SSE, AVX2,
AVX-512, NEON), so one source serves every width and the arithmetic of each lane, hence every result, has the same bits
on all of them: no reassociation, and fused multiply-add only where it changes no bit (`_multiply_add`).

Numba offers neither explicit vectors nor non-temporal stores; `numba.extending.intrinsic` lets us emit both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from llvmlite import ir
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from fastreg_kernels._arrays import STORED
from fastreg_kernels.cpu.jit import inner

LANES = 16
"""Elements per vector. 16 float64 sums of each kind fill 8 AVX2 registers: enough to hide the latency of addition,
few enough to leave registers for the data."""

STREAM_ALIGNMENT = 64
"""Bytes to which `out` must be aligned for `stream`, which has no unaligned form."""


class Vector(types.Type):  # type: ignore[misc]
    """Numba type of `LANES` values of the scalar type `dtype`."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype} x {LANES})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, _llvm_type(fe_type.dtype))


_SCALARS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_BITS = {types.float32: ir.IntType(32), types.float64: ir.IntType(64)}

FLOAT16, BFLOAT16 = from_dtype(STORED["float16"]), from_dtype(STORED["bfloat16"])
"""How half types are told apart here: by the integer type in which their bits are passed.

They are converted to float32 as they are loaded and rounded to nearest, ties to even, as they are stored.

A bfloat16 is the upper half of a float32, so that one instruction makes a float32 of either of two that share 32 bits.
Hence the lanes of a vector from a bfloat16 array are its even elements, then its odd ones. `store` expects the same;
where dtypes meet, `in_order` and `as_if_of` translate. Rounding adds to the bits as to an integer, by which the payload
of a NaN could carry over into the sign. NaN that comes of bfloat16 numbers, and of factors without a payload, has an
empty lower half; `as_if_of` empties that of others."""

_PAIRS, _UPPER_HALF = LANES // 2, 0xFFFF0000


def arithmetic_type(storage: Any) -> Any:
    """The Numba type in which elements stored as `storage` are computed with."""
    return types.float32 if storage in (FLOAT16, BFLOAT16) else storage


def _llvm_type(dtype: Any) -> ir.VectorType:
    return ir.VectorType(_SCALARS[dtype], LANES)


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, _integers(0))


def _zeros(dtype: Any) -> ir.Constant:
    return ir.Constant(_llvm_type(dtype), [0.0] * LANES)


def _element_pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index], inbounds=True)


def _stored_type(storage: Any) -> Any:
    return ir.IntType(16) if storage in (FLOAT16, BFLOAT16) else _SCALARS[storage]


def _decode(builder: Any, stored: Any, storage: Any) -> Any:
    """From the bits in memory to a vector to compute with."""
    if storage == FLOAT16:
        return builder.fpext(builder.bitcast(stored, ir.VectorType(ir.HalfType(), LANES)), _llvm_type(types.float32))
    if storage == BFLOAT16:
        pairs = builder.bitcast(stored, ir.VectorType(ir.IntType(32), _PAIRS))
        even, odd = builder.shl(pairs, _integers(16, _PAIRS)), builder.and_(pairs, _integers(_UPPER_HALF, _PAIRS))
        return builder.bitcast(builder.shuffle_vector(even, odd, _lanes(range(LANES))), _llvm_type(types.float32))
    return stored


def _encode(builder: Any, value: Any, storage: Any) -> Any:
    """The reverse of `_decode`."""
    if storage == FLOAT16:
        halves = builder.fptrunc(value, ir.VectorType(ir.HalfType(), LANES))
        return builder.bitcast(halves, ir.VectorType(ir.IntType(16), LANES))
    if storage == BFLOAT16:
        bits = builder.bitcast(value, ir.VectorType(ir.IntType(32), LANES))
        to_even = builder.and_(builder.lshr(bits, _integers(16)), _integers(1))
        rounded = builder.add(builder.add(bits, _integers(0x7FFF)), to_even)
        even = builder.shuffle_vector(rounded, rounded, _lanes(range(_PAIRS)))
        odd = builder.shuffle_vector(rounded, rounded, _lanes(range(_PAIRS, LANES)))
        lower, upper = builder.lshr(even, _integers(16, _PAIRS)), builder.and_(odd, _integers(_UPPER_HALF, _PAIRS))
        pairs = builder.or_(lower, upper)
        return builder.bitcast(pairs, ir.VectorType(ir.IntType(16), LANES))
    return value


def _apart(builder: Any, value: Any) -> Any:
    """The same vector of floating type, behind a fence for the compiler: it cannot tell what it is made of."""
    name = f"llvm.arithmetic.fence.v{value.type.count}{'f64' if value.type.element == ir.DoubleType() else 'f32'}"
    fence = cgutils.get_or_insert_function(builder.module, ir.FunctionType(value.type, [value.type]), name)
    return builder.call(fence, [value])


def _integers(number: int, lanes: int = LANES) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), lanes), [number] * lanes)


def _lanes(numbers: Iterable[int]) -> ir.Constant:
    """Of `shuffle_vector`: where each lane comes from."""
    lanes = list(numbers)
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)


def _stored_vector(storage: Any) -> ir.VectorType:
    return ir.VectorType(_stored_type(storage), LANES)


@intrinsic
def load(typingctx, x, i):
    """The vector `x[i : i + LANES]`; any alignment."""

    def codegen(context, builder, signature, args):
        storage = signature.args[0].dtype
        pointer = _element_pointer(context, builder, signature.args[0], *args)
        typed = builder.bitcast(pointer, _stored_vector(storage).as_pointer())
        return _decode(builder, builder.load(typed, align=storage.bitwidth // 8), storage)

    return Vector(arithmetic_type(x.dtype))(x, types.intp), codegen


@intrinsic
def load_first(typingctx, x, i, count):
    """The vector `x[i : i + count]`, filled up with zeros."""

    def codegen(context, builder, signature, args):
        storage = signature.args[0].dtype
        padded = cgutils.alloca_once_value(builder, ir.Constant(_stored_vector(storage), None))
        source = _element_pointer(context, builder, signature.args[0], *args[:2])
        target = builder.bitcast(padded, _stored_type(storage).as_pointer())
        _copy(builder, source, target, args[2])
        return _decode(builder, builder.load(padded), storage)

    return Vector(arithmetic_type(x.dtype))(x, types.intp, types.intp), codegen


@intrinsic
def store(typingctx, out, i, v):
    """`out[i : i + LANES] = v`; any alignment."""

    def codegen(context, builder, signature, args):
        storage = signature.args[0].dtype
        pointer = _element_pointer(context, builder, signature.args[0], *args[:2])
        typed = builder.bitcast(pointer, _stored_vector(storage).as_pointer())
        builder.store(_encode(builder, args[2], storage), typed, align=storage.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(out, types.intp, v), codegen


@intrinsic
def stream(typingctx, out, i, v):
    """`out[i : i + LANES] = v` past the caches; follow the last one with `fence`.

    The address must be a multiple of `STREAM_ALIGNMENT`, or of the vector's size if that is smaller.
    """

    def codegen(context, builder, signature, args):
        storage = signature.args[0].dtype
        pointer = _element_pointer(context, builder, signature.args[0], *args[:2])
        stored = _encode(builder, args[2], storage)
        if storage in (FLOAT16, BFLOAT16):
            # LLVM fuses a narrowing conversion with the store after it into one instruction, never a non-temporal one.
            stored = _apart(builder, builder.bitcast(stored, ir.VectorType(ir.FloatType(), _PAIRS)))
        align = min(STREAM_ALIGNMENT, LANES * storage.bitwidth // 8)
        instruction = builder.store(stored, builder.bitcast(pointer, stored.type.as_pointer()), align=align)
        one = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        instruction.set_metadata("nontemporal", one)
        return context.get_dummy_value()

    return types.void(out, types.intp, v), codegen


@intrinsic
def store_first(typingctx, out, i, v, count):
    """`out[i : i + count] = v[:count]`."""

    def codegen(context, builder, signature, args):
        storage = signature.args[0].dtype
        stored = cgutils.alloca_once_value(builder, _encode(builder, args[2], storage))
        source = builder.bitcast(stored, _stored_type(storage).as_pointer())
        _copy(builder, source, _element_pointer(context, builder, signature.args[0], *args[:2]), args[3])
        return context.get_dummy_value()

    return types.void(out, types.intp, v, types.intp), codegen


def _copy(builder: Any, source: Any, target: Any, count: Any) -> None:
    with cgutils.for_range(builder, count) as loop:
        builder.store(builder.load(builder.gep(source, [loop.index])), builder.gep(target, [loop.index]))


@intrinsic
def fence(typingctx):
    """Order streamed stores before everything that follows."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def in_order(typingctx, x, v):
    """`v`, which `load(x, i)` gave, with its lanes in the order of the elements; see `BFLOAT16`."""

    def codegen(context, builder, signature, args):
        if signature.args[0].dtype != BFLOAT16:
            return args[1]
        return builder.shuffle_vector(args[1], args[1], _lanes(n // 2 + n % 2 * _PAIRS for n in range(LANES)))

    return v(x, v), codegen


@intrinsic
def as_if_of(typingctx, x, v):
    """`v`, lanes in order and from elsewhere, made fit to be combined with `load(x, i)` and stored in `x`.

    The reverse of `in_order`, and NaN without a payload if `x` is of `BFLOAT16`.
    """

    def codegen(context, builder, signature, args):
        if signature.args[0].dtype != BFLOAT16:
            return args[1]
        order = _lanes(2 * n % LANES + n // _PAIRS for n in range(LANES))
        value = builder.shuffle_vector(args[1], args[1], order)
        plain = ir.Constant(_llvm_type(types.float32), [math.nan] * LANES)
        return builder.select(builder.fcmp_unordered("uno", value, value), plain, value)

    return v(x, v), codegen


@intrinsic
def prefetch(typingctx, x, i):
    """Ask for the cache line of the element at `i` of the memory of `x`, of any number of dimensions, to be written."""

    def codegen(context, builder, signature, args):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        address = builder.bitcast(_element_pointer(context, builder, signature.args[0], *args), byte)
        # To write, with the highest locality, data not instructions.
        builder.call(function, [address, *(ir.Constant(word, number) for number in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(x, types.intp), codegen


@intrinsic
def zeros(typingctx):
    """A float64 vector of zeros: an accumulator."""

    def codegen(context, builder, signature, args):
        return _zeros(types.float64)

    return Vector(types.float64)(), codegen


@intrinsic
def widen(typingctx, v):
    """`v` in float64, the accumulator dtype."""

    def codegen(context, builder, signature, args):
        if signature.args[0].dtype == types.float64:
            return args[0]
        return builder.fpext(args[0], _llvm_type(types.float64))

    return Vector(types.float64)(v), codegen


@intrinsic
def add(typingctx, sums, v):
    """`sums + v` in float64.

    A `v` that is narrower is multiplied by one. That changes no bit, but lets a processor with fused multiply-add use
    the units of `add_squares`; those that only add are, on some processors, busy with conversions.
    """

    def codegen(context, builder, signature, args):
        sums, values = args
        if signature.args[1].dtype == types.float64:
            return builder.fadd(sums, values)
        wide = builder.fpext(values, _llvm_type(types.float64))
        one = _apart(builder, ir.Constant(_llvm_type(types.float64), [1.0] * LANES))
        return _multiply_add(builder, wide, one, sums)

    return sums(sums, v), codegen


@intrinsic
def add_squares(typingctx, sums, v):
    """`sums + v * v` in float64, rounded once where `v` is narrower, and so everywhere the same.

    The product of two float32 numbers is exact in float64. A processor that multiplies and adds in one instruction,
    which halves the work here, therefore has no other bits than one that does not. Squares of float64 numbers are
    rounded on their own everywhere.
    """

    def codegen(context, builder, signature, args):
        sums, values = args
        if signature.args[1].dtype == types.float64:
            return builder.fadd(sums, builder.fmul(values, values))
        wide = builder.fpext(values, _llvm_type(types.float64))
        return _multiply_add(builder, wide, wide, sums)

    return sums(sums, v), codegen


def _multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """`a * b + c` where the product is exact: in one instruction if there is one."""
    return builder.fadd(c, builder.fmul(a, b, flags=("contract",)), flags=("contract",))


@intrinsic
def total(typingctx, v):
    """The sum of the lanes of a float64 vector, first to last."""

    def codegen(context, builder, signature, args):
        result = ir.Constant(ir.DoubleType(), 0.0)
        for lane in range(LANES):
            result = builder.fadd(result, builder.extract_element(args[0], ir.Constant(ir.IntType(32), lane)))
        return result

    return types.float64(v), codegen


@intrinsic
def signed(typingctx, magnitude, v):
    """`magnitude * sign(v)` for a scalar and a vector, with sign(±0) = +0; where `v` is NaN, as where it is 0."""

    def codegen(context, builder, signature, args):
        dtype = signature.return_type.dtype
        scalar, value = _splat(builder, args[0]), args[1]
        nonzero = builder.fcmp_ordered("!=", value, _zeros(dtype))
        # Not simply zero: an infinite magnitude makes NaN of it, a negative one -0.
        otherwise = _splat(builder, builder.fmul(args[0], ir.Constant(_SCALARS[dtype], 0.0)))
        return builder.select(nonzero, _copysign(builder, scalar, value, dtype), otherwise)

    return v(v.dtype, v), codegen


@intrinsic
def keep_nan(typingctx, result, v):
    """`v` where it is NaN, and `result` elsewhere."""

    def codegen(context, builder, signature, args):
        return builder.select(builder.fcmp_unordered("uno", args[1], args[1]), args[1], args[0])

    return v(v, v), codegen


@intrinsic
def soft_threshold(typingctx, magnitude, v):
    """`sign(v) * max(0, magnitude)`, with +0 wherever `magnitude <= 0`; a NaN magnitude stays NaN."""

    def codegen(context, builder, signature, args):
        dtype = signature.return_type.dtype
        with_sign = _copysign(builder, args[0], args[1], dtype)
        vanishes = builder.fcmp_ordered("<=", args[0], _zeros(dtype))
        return builder.select(vanishes, _zeros(dtype), with_sign)

    return v(v, v), codegen


@intrinsic
def where_above(typingctx, v, limit, then):
    """`then` where `v > limit`, a scalar, or `v` is NaN, and +0 elsewhere."""

    def codegen(context, builder, signature, args):
        is_above = builder.fcmp_unordered(">", args[0], _splat(builder, args[1]))
        return builder.select(is_above, args[2], _zeros(signature.return_type.dtype))

    return then(v, v.dtype, then), codegen


@intrinsic
def ones(typingctx):
    """A float64 vector of ones."""

    def codegen(context, builder, signature, args):
        return ir.Constant(_llvm_type(types.float64), [1.0] * LANES)

    return Vector(types.float64)(), codegen


def _copysign(builder: Any, magnitude: Any, value: Any, dtype: Any) -> Any:
    bits = ir.VectorType(_BITS[dtype], LANES)
    sign_bit = ir.Constant(bits, [1 << (dtype.bitwidth - 1)] * LANES)
    sign = builder.and_(builder.bitcast(value, bits), sign_bit)
    return builder.bitcast(builder.xor(builder.bitcast(magnitude, bits), sign), _llvm_type(dtype))


@intrinsic
def _abs(typingctx, v):
    def codegen(context, builder, signature, args):
        return _magnitude(builder, args[0], signature.return_type.dtype)

    return v(v), codegen


def _magnitude(builder: Any, value: Any, dtype: Any) -> Any:
    bits = ir.VectorType(_BITS[dtype], LANES)
    mask = ir.Constant(bits, [(1 << (dtype.bitwidth - 1)) - 1] * LANES)
    return builder.bitcast(builder.and_(builder.bitcast(value, bits), mask), _llvm_type(dtype))


def _arithmetic(instruction: str) -> Any:
    """An intrinsic that applies one LLVM instruction to two vectors, or to a vector and a scalar."""

    @intrinsic
    def apply(typingctx, a, b):
        def codegen(context, builder, signature, args):
            operands = [
                value if isinstance(kind, Vector) else _splat(builder, value)
                for kind, value in zip(signature.args, args, strict=True)
            ]
            return getattr(builder, instruction)(*operands)

        vector = a if isinstance(a, Vector) else b
        other = vector if isinstance(a, Vector) and isinstance(b, Vector) else vector.dtype
        return (vector(vector, other) if vector is a else vector(other, vector)), codegen

    return apply


def _register(operation: Any, apply: Any) -> None:
    @overload(operation)
    def vector_operation(a, b):
        if isinstance(a, Vector) or isinstance(b, Vector):
            return lambda a, b: apply(a, b)
        return None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(_operation, _arithmetic(_instruction))


@intrinsic
def square_root(typingctx, v):
    """The square root of each lane, rounded to nearest."""

    def codegen(context, builder, signature, args):
        kind = _llvm_type(signature.return_type.dtype)
        width = "f64" if signature.return_type.dtype == types.float64 else "f32"
        kind_of = ir.FunctionType(kind, [kind])
        function = cgutils.get_or_insert_function(builder.module, kind_of, f"llvm.sqrt.v{LANES}{width}")
        return builder.call(function, [args[0]])

    return v(v), codegen


@overload(abs)
def _vector_abs(v):
    if isinstance(v, Vector):
        return lambda v: _abs(v)
    return None


@inner
def load_part(x, i, count):
    """The `count` elements of x from i on, a whole vector or its first lanes."""
    return load(x, i) if count == LANES else load_first(x, i, count)


@inner
def store_part(out, i, v, count):
    """Store the first `count` lanes of a vector, all or fewer."""
    if count == LANES:
        store(out, i, v)
    else:
        store_first(out, i, v, count)
