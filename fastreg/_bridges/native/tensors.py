"""Tensors of an op, from compiled code: inputs, outputs, memory of our own, scalars of any dtype, failures."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from fastreg_kernels import _arrays, _shared
from fastreg_kernels.cpu.jit import inner
from fastreg_kernels.cpu.vector import as_if_of, in_order, load, load_first, store, store_first
from numba import carray, types
from numba.extending import overload

from fastreg._bridges import buffers
from fastreg._bridges.native import capi
from fastreg._bridges.native.compiler import callback

FLOAT64 = tf.float64.as_datatype_enum


class Kind(NamedTuple):
    """A floating dtype as compiled code needs it: of the elements in memory, of the arithmetic, and TensorFlow's
    number.
    """

    stored: Any
    arithmetic: Any
    number: int


def kind(dtype: tf.DType) -> Kind:
    """What compiled code needs to know of a floating dtype."""
    numpy = np.dtype(dtype.as_numpy_dtype)
    return Kind(_arrays.storage(numpy).type, _arrays.arithmetic_dtype(numpy).type, dtype.as_datatype_enum)


@inner
def handle_of_input(context, i, status):
    """The i-th input, to be given back with `DeleteTensor`."""
    box = capi.word()
    capi.GetInput(context, i, box, status)
    return carray(box, 1, np.uintp)[0]


@inner
def shape_of(tensor):
    """The shape of a tensor, with one element more, so that a scalar's has an address too."""
    rank = capi.NumDims(tensor)
    shape = np.ones(rank + 1, np.int64)
    for axis in range(rank):
        shape[axis] = capi.Dim(tensor, axis)
    return shape


_wrong_count = capi.text("an input of this op has another number of elements than the op expects")


@inner
def expect(tensor, count, status):
    """Whether an input has so many elements; if not, the status says so. Nothing else may be called with that then."""
    if capi.TensorElementCount(tensor) == count:
        return True
    capi.SetStatus(status, capi.INVALID_ARGUMENT, _wrong_count())
    return False


@callback(types.void(types.voidptr, types.uintp, types.uintp))
def _let_go(data, size, slot):
    """TensorFlow's last reference to a buffer is gone."""
    buffers.release(slot)


_let_go_address = _shared.address("fastreg_let_go")


def publish() -> None:
    """What must be done before a kernel with outputs is compiled."""
    _let_go.publish("fastreg_let_go")


@inner
def output(context, i, number, shape, size, status):
    """Memory for the i-th output, of `size` bytes: from the pool if it is large. Give back with `DeleteTensor`.

    Zero if there is none; the status says why.
    """
    rank = shape.size - 1
    if size >= buffers.SMALLEST:
        slot = buffers.take(size)
        if slot != buffers.NONE:
            data = capi.pointer(np.uintp(buffers.data(slot)))
            tensor = capi.NewTensor(number, capi.memory(shape), rank, data, size, _let_go_address(), np.uintp(slot))
            capi.SetOutput(context, i, tensor, status)
            return tensor
    return capi.AllocateOutput(context, i, number, capi.memory(shape), rank, size, status)


@inner
def scalar_output(context, i, number, size, status):
    """Memory for a scalar as the i-th output; zero if there is none."""
    return capi.AllocateOutput(context, i, number, capi.memory(np.ones(1, np.int64)), 0, size, status)


@inner
def discard(tensor):
    """Give a tensor back, if there is one."""
    if tensor != 0:
        capi.DeleteTensor(tensor)


@inner
def failed(status):
    """Whether a call with this status failed."""
    return capi.GetCode(status) != 0


_no_memory = capi.text("there is no memory for what a kernel needs beside its inputs and outputs")


@inner
def no_memory(status):
    """Have an op fail with `ResourceExhaustedError` when it finishes.

    For the exception of an allocation in compiled code, which must not leave what TensorFlow calls: the op would end
    as one that succeeded.
    """
    capi.SetStatus(status, capi.RESOURCE_EXHAUSTED, _no_memory())


@inner
def finish(context, status):
    """Report what failed, if anything, and give the status back."""
    if capi.GetCode(status) != 0:
        capi.Failure(context, status)
    capi.DeleteStatus(status)


def first(array: Any) -> float:
    """The first element of an array of any kind as float64."""
    raise NotImplementedError  # compiled code only


@overload(first)
def _first(array):
    if isinstance(array.dtype, types.Float):
        return lambda array: np.float64(array[0])

    def of_half(array):
        wide = np.empty(16, np.float32)
        store(wide, 0, in_order(array, load_first(array, 0, 1)))
        return np.float64(wide[0])

    return of_half


def put_first(array: Any, number: float) -> None:
    """Write a float64 number, rounded once, to the first element of an array of any kind."""
    raise NotImplementedError  # compiled code only


@overload(put_first)
def _put_first(array, number):
    if isinstance(array.dtype, types.Float):

        def of_float(array, number):
            array[0] = number

        return of_float

    def of_half(array, number):
        wide = np.zeros(16, np.float32)
        wide[0] = _to_odd(number)
        store_first(array, 0, as_if_of(array, load(wide, 0)), 1)

    return of_half


@inner
def _to_odd(number):
    """To float32, so that rounding that to nearest in a half type is as rounding the number itself.

    What is inexact gets an odd last bit: it then lies on the same side of every half number and every middle between
    two as before. Source: Boldo and Melquiond (2008), "Emulation of a FMA and correctly rounded sums: proved algorithms
    using rounding to odd", IEEE Transactions on Computers 57(4).
    """
    box = np.empty(1, np.float32)
    box[0] = number
    if np.float64(box[0]) != number and number == number:
        bits = box.view(np.uint32)
        if abs(np.float64(box[0])) > abs(number):
            bits[0] -= np.uint32(1)
        bits[0] |= np.uint32(1)
    return box[0]
