"""Passes over a whole table, in the memory of its variable and with the compiled kernels.

A pass takes resource handles, not variables: in a graph they are inputs of the callback, by which TensorFlow orders the
pass among the other reads and writes of the same variables.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fastreg_kernels
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager import record

from fastreg import _bridge, _buffers
from fastreg._lazy.formulas import FRESH

_CHUNK_BYTES = 4 << 20
"""Rows are taken in chunks of about so many bytes: a chunk read twice is in the cache the second time."""


@contextmanager
def writable(handle: tf.Tensor, dtype: tf.DType) -> Iterator[NDArray[Any]]:
    """The memory of a variable on the host, as an array that can be written to, without a copy.

    The one place where fastreg writes to memory of TensorFlow's. It is safe because nobody else refers to it: a sparse
    access makes TensorFlow give the variable a buffer of its own if a tensor shares it. The array must not outlive the
    context, or the next sparse update would copy the variable.
    """
    with record.stop_recording():  # a tape would keep the tensor, hence a second reference, alive
        tf.raw_ops.ResourceGather(resource=handle, indices=_first_row(), dtype=dtype)
        tf.raw_ops.DisableCopyOnRead(resource=handle)  # or the next line would copy
        array = _bridge.host_array(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))
    memory = (ctypes.c_byte * array.nbytes).from_address(array.__array_interface__["data"][0])
    yield np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
    del array  # held until here: it owns the memory


@functools.cache
def _first_row() -> tf.Tensor:
    with tf.init_scope():
        return tf.constant([0])


def lookup(
    dtype: tf.DType, table: tf.Tensor, stamps: tf.Tensor, clock: tf.Tensor, ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """True rows of the ids, the distinct ids, and the position of each id among these.

    Raises
    ------
    InvalidIdError
        If an id is negative or not below the number of rows.
    """
    product, total = tf.raw_ops.ReadVariableOp(resource=clock, dtype=tf.float64).numpy()
    array = _bridge.host_array(ids)
    with writable(table, dtype) as weights, writable(stamps, tf.float64) as marks:
        wrong = np.flatnonzero((array < 0) | (array >= len(weights)))
        if wrong.size:
            message = f"ids[{wrong[0]}] = {array[wrong[0]]} is not in [0, {len(weights)})"
            raise InvalidIdError(None, None, message)
        rows = _buffers.pool.take((len(array), weights.shape[1]), weights.dtype)
        unique, positions = fastreg_kernels.lookup_rows(weights, marks, array, product, total, rows)
    _bridge.statistics.count_kernel_call()
    return _bridge.tensor(rows), tf.constant(unique), tf.constant(positions)


class InvalidIdError(tf.errors.InvalidArgumentError, ValueError):  # type: ignore[misc]
    """An id without a row. In a graph TensorFlow makes its own `InvalidArgumentError` of a ValueError."""


def flush(dtype: tf.DType, table: tf.Tensor, stamps: tf.Tensor, clock: tf.Tensor) -> None:
    """Write the true weights of all rows, and restart at P = 1, S = 0. Reads and writes the table once."""
    product, total = tf.raw_ops.ReadVariableOp(resource=clock, dtype=tf.float64).numpy()
    with writable(table, dtype) as rows, writable(stamps, tf.float64) as marks:
        for part in _chunks(rows):
            fastreg_kernels.shrink(rows[part], *_factors(product, total, marks[part]), out=rows[part])
            marks[part] = FRESH
            _bridge.statistics.count_kernel_call()
    tf.raw_ops.AssignVariableOp(resource=clock, value=tf.constant(FRESH, tf.float64))


def true_sums(dtype: tf.DType, table: tf.Tensor, stamps: tf.Tensor, clock: tf.Tensor) -> NDArray[np.float64]:
    """`[sum(|w|), sum(w²)]` of the true weights, accumulated in float64. Reads the table once and writes nothing."""
    product, total = tf.raw_ops.ReadVariableOp(resource=clock, dtype=tf.float64).numpy()
    sums = np.zeros(2)
    with writable(table, dtype) as rows, writable(stamps, tf.float64) as marks:
        for part in _chunks(rows):
            shrunk = fastreg_kernels.shrink(rows[part], *_factors(product, total, marks[part]))
            sums += fastreg_kernels.forward(shrunk)
            _bridge.statistics.count_kernel_call()
    return sums


def update(
    dtype: tf.DType,
    sums: bool,
    table: tf.Tensor,
    stamps: tf.Tensor,
    clock: tf.Tensor,
    rows: tf.Tensor,
    step: tf.Tensor,
) -> float:
    """Bring some rows to the time of `clock`, a value, and subtract a step from them.

    Returns
    -------
    float
        What the step, not the shrink, adds to the sum of squares, if `sums`.
    """
    product, total = clock.numpy()
    indices, steps = _bridge.host_array(rows), _bridge.host_array(step)
    with writable(table, dtype) as weights, writable(stamps, tf.float64) as marks:
        change = fastreg_kernels.update_rows(weights, marks, indices, product, total, steps, sums)
    _bridge.statistics.count_kernel_call()
    return change


def zeros(dtype: tf.DType, table: tf.Tensor) -> int:
    """How many stored weights are exactly zero."""
    with writable(table, dtype) as rows:
        return rows.size - sum(int(np.count_nonzero(rows[part])) for part in _chunks(rows))


def _chunks(rows: NDArray[Any]) -> Iterator[slice]:
    count = max(1, _CHUNK_BYTES // max(1, rows.nbytes // len(rows)))
    return (slice(start, start + count) for start in range(0, len(rows), count))


def _factors(product: float, total: float, marks: NDArray[np.float64]) -> tuple[Any, Any]:
    return product / marks[:, 0], product * (total - marks[:, 1])
