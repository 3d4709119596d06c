"""16-byte packs of elements for use inside CUDA kernels: one load, one store, and the elements in between.

A GPU moves memory at full speed when each thread loads and stores 16 bytes at a time, which Numba's own array access
never does. A `Pack` is one LLVM value `<4 x i32>`: the intrinsics here load and store it with one instruction, and give
and take its elements as float32 or float64 values. Half types are stored as the integers that `_arrays.stored` makes of
them, and converted here, since Numba would call functions for it that are not in the compiled code.

Numba's simulator (`NUMBA_ENABLE_CUDASIM=1`) runs kernels as Python and knows no intrinsics, so each has a stand-in
there, in `simulated`.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import core_models, intrinsic, register_model
from numba.cuda.np import arrayobj
from numba.cuda.np.numpy_support import from_dtype

from fastreg_kernels._arrays import STORED

PACK_BYTES = 16

FLOAT16, BFLOAT16 = from_dtype(STORED["float16"]), from_dtype(STORED["bfloat16"])
"""How half types are told apart, as in `cpu.vector`: by the integer type in which their bits are passed."""

_INT16, _INT32 = ir.IntType(16), ir.IntType(32)
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()
_WORDS = ir.VectorType(_INT32, PACK_BYTES // 4)


class Pack(types.Type):  # type: ignore[misc]
    """Numba type of 16 bytes of elements of the type `storage`."""

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        super().__init__(name=f"Pack({storage})")


@register_model(Pack)
class _PackModel(core_models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Pack) -> None:
        super().__init__(dmm, fe_type, _WORDS)


def arithmetic_type(storage: Any) -> Any:
    """The Numba type in which elements stored as `storage` are computed with."""
    return types.float64 if storage == types.float64 else types.float32


def _constant(number: int) -> ir.Constant:
    return ir.Constant(_INT32, number)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, pointee: Any) -> Any:
    data = arrayobj.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), pointee.as_pointer())


def _decode(builder: Any, half: Any, storage: Any) -> Any:
    """The float32 value of the 16 bits of a half type; exact."""
    if storage == FLOAT16:
        return builder.fpext(builder.bitcast(half, ir.HalfType()), _FLOAT)
    return builder.bitcast(builder.shl(builder.zext(half, _INT32), _constant(16)), _FLOAT)


def _encode(builder: Any, value: Any, storage: Any) -> Any:
    """The 16 bits of a float32 value rounded to a half type: to nearest, ties to even."""
    if storage == FLOAT16:
        return builder.bitcast(builder.fptrunc(value, ir.HalfType()), _INT16)
    # By integer arithmetic, which every GPU has; the conversion instruction came with compute capability 8.0.
    bits = builder.bitcast(value, _INT32)
    high = builder.lshr(bits, _constant(16))
    odd = builder.and_(high, _constant(1))
    rounded = builder.lshr(builder.add(builder.add(bits, _constant(0x7FFF)), odd), _constant(16))
    quiet_nan = builder.or_(high, _constant(0x40))  # rounding could carry a NaN over to infinity
    chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet_nan, rounded)
    return builder.trunc(chosen, _INT16)


def _is_half(storage: Any) -> bool:
    return storage in (FLOAT16, BFLOAT16)


def _lanes(storage: Any) -> ir.VectorType:
    """The LLVM vector that a pack is when its elements are looked at."""
    if _is_half(storage):
        return _WORDS
    return ir.VectorType(_DOUBLE, 2) if storage == types.float64 else ir.VectorType(_FLOAT, 4)


@intrinsic
def load(typingctx, x, i):
    """The pack `x[i : i + 16 / itemsize]`; its address has to be a multiple of 16."""

    def codegen(context, builder, signature, args):
        pack = builder.load(_pointer(context, builder, signature.args[0], *args, _WORDS))
        pack.align = PACK_BYTES
        return pack

    return Pack(x.dtype)(x, types.int64), codegen


@intrinsic
def store(typingctx, out, i, pack):
    """Write a pack to `out[i : i + 16 / itemsize]`; the address has to be a multiple of 16."""

    def codegen(context, builder, signature, args):
        target = _pointer(context, builder, signature.args[0], *args[:2], _WORDS)
        builder.store(args[2], target).align = PACK_BYTES
        return context.get_dummy_value()

    return types.void(out, types.int64, pack), codegen


@intrinsic
def lane(typingctx, pack, k):
    """Element `k` of a pack, in the arithmetic type."""
    storage = pack.storage

    def codegen(context, builder, signature, args):
        words, index = args
        if not _is_half(storage):
            return builder.extract_element(builder.bitcast(words, _lanes(storage)), index)
        word = builder.extract_element(words, builder.lshr(index, _constant(1)))
        shift = builder.shl(builder.and_(index, _constant(1)), _constant(4))
        return _decode(builder, builder.trunc(builder.lshr(word, shift), _INT16), storage)

    return arithmetic_type(storage)(pack, types.int32), codegen


@intrinsic
def with_lane(typingctx, pack, k, value):
    """A pack whose element `k` is `value`, rounded to the storage type."""
    storage = pack.storage

    def codegen(context, builder, signature, args):
        words, index, element = args
        if not _is_half(storage):
            lanes = builder.insert_element(builder.bitcast(words, _lanes(storage)), element, index)
            return builder.bitcast(lanes, _WORDS)
        position = builder.lshr(index, _constant(1))
        shift = builder.shl(builder.and_(index, _constant(1)), _constant(4))
        others = builder.not_(builder.shl(_constant(0xFFFF), shift))
        bits = builder.shl(builder.zext(_encode(builder, element, storage), _INT32), shift)
        word = builder.or_(builder.and_(builder.extract_element(words, position), others), bits)
        return builder.insert_element(words, word, position)

    return pack(pack, types.int32, arithmetic_type(storage)), codegen


@intrinsic
def element(typingctx, x, i):
    """`x[i]` in the arithmetic type."""
    storage = x.dtype

    def codegen(context, builder, signature, args):
        stored = _INT16 if _is_half(storage) else _DOUBLE if storage == types.float64 else _FLOAT
        value = builder.load(_pointer(context, builder, signature.args[0], *args, stored))
        return _decode(builder, value, storage) if _is_half(storage) else value

    return arithmetic_type(storage)(x, types.int64), codegen


@intrinsic
def set_element(typingctx, out, i, value):
    """`out[i] = value`, rounded to the storage type."""
    storage = out.dtype

    def codegen(context, builder, signature, args):
        stored = _encode(builder, args[2], storage) if _is_half(storage) else args[2]
        builder.store(stored, _pointer(context, builder, signature.args[0], *args[:2], stored.type))
        return context.get_dummy_value()

    return types.void(out, types.int64, arithmetic_type(storage)), codegen


@intrinsic
def factor(typingctx, source, i):
    """A factor in float64: element `i` of an array, the only element of an array of one, or a number itself."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        if not isinstance(kind, types.Array):
            return args[0]
        shape = arrayobj.make_array(kind)(context, builder, args[0]).shape
        single = builder.icmp_signed("==", builder.extract_value(shape, 0), ir.Constant(ir.IntType(64), 1))
        index = builder.select(single, ir.Constant(ir.IntType(64), 0), args[1])
        stored = _INT16 if _is_half(kind.dtype) else _DOUBLE if kind.dtype == types.float64 else _FLOAT
        value = builder.load(_pointer(context, builder, kind, args[0], index, stored))
        if _is_half(kind.dtype):
            value = _decode(builder, value, kind.dtype)
        return value if kind.dtype == types.float64 else builder.fpext(value, _DOUBLE)

    return types.float64(source, types.int64), codegen


@intrinsic
def product(typingctx, a, b):
    """`a * b` rounded to nearest, never contracted with an addition that follows."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        name = "llvm.nvvm.mul.rn.d" if signature.return_type == types.float64 else "llvm.nvvm.mul.rn.f"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(kind, [kind, kind]), name)
        return builder.call(function, args)

    return a(a, a), codegen


@intrinsic
def square_error(typingctx, a, square):
    """`a * a - square` with one rounding: exact where `square` is `a * a` rounded."""

    def codegen(context, builder, signature, args):
        negative = builder.fsub(ir.Constant(args[1].type, -0.0), args[1])  # NVVM has no `fneg`
        return builder.fma(args[0], args[0], negative)

    return a(a, a), codegen
