"""What callbacks do in the memory of a table's variables, with the compiled kernels.

They take resource handles, not variables: in a graph these are inputs of the callback, by which TensorFlow orders it
among the other reads and writes of the same variables.
"""

from __future__ import annotations

import ctypes
import functools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import fastreg_kernels
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager import record

from fastreg._bridges import buffers, counters
from fastreg._bridges.callback import exchange
from fastreg._lazy.formulas import FRESH, LARGEST_THRESHOLD, SMALLEST_PRODUCT

_CHUNK_BYTES = 4 << 20
"""Rows are taken in chunks of about so many bytes: a chunk read twice is in the cache the second time."""


_LOCK = threading.RLock()
"""Held while a callback works on a table. Two at once, of a training and of a prediction in another thread, would make
TensorFlow copy the variable under the hands of the one that writes: its updates would be lost."""


class State(NamedTuple):
    """What a table keeps beside its rows, in this order in a variable of float64."""

    product: float = FRESH[0]
    total: float = FRESH[1]
    sum_abs: float = 0.0
    sum_squares: float = 0.0
    age: float = math.inf
    """Steps since the sums were computed."""


UNTRACKED = -1.0
"""Stands for sum(|w|) while only sum(w²) is tracked."""


@contextmanager
def opened(dtype: tf.DType, table: tf.Tensor, stamps: tf.Tensor, state: tf.Tensor) -> Iterator[Any]:
    """The memory of rows, stamps and state, as arrays that can be written to, to this thread alone."""
    with (
        _LOCK,
        writable(table, dtype) as rows,
        writable(stamps, tf.float64) as marks,
        writable(state, tf.float64) as numbers,
    ):
        yield rows, marks, numbers


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
        array = exchange.host_array(tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype))
    memory = (ctypes.c_byte * array.nbytes).from_address(array.__array_interface__["data"][0])
    try:
        yield np.ctypeslib.as_array(memory).view(array.dtype).reshape(array.shape)
    finally:
        del array  # held until here: it owns the memory; not longer, though an error's traceback refers to this frame


@functools.cache
def _first_row() -> tf.Tensor:
    with tf.init_scope():
        return tf.constant([0])


def lookup(
    dtype: tf.DType, table: tf.Tensor, stamps: tf.Tensor, state: tf.Tensor, ids: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """True rows of the ids, the distinct ids, and the position of each id among these.

    Raises
    ------
    InvalidValueError
        If an id is negative or not below the number of rows.
    """
    array = exchange.host_array(ids)
    with opened(dtype, table, stamps, state) as (weights, marks, numbers):
        wrong = np.flatnonzero((array < 0) | (array >= len(weights)))
        if wrong.size:
            message = f"ids[{wrong[0]}] = {array[wrong[0]]} is not in [0, {len(weights)})"
            raise InvalidValueError(None, None, message)
        rows = buffers.array((len(array), weights.shape[1]), weights.dtype)
        unique, positions = fastreg_kernels.lookup_rows(weights, marks, array, numbers[0], numbers[1], rows)
    counters.count_kernel_call()
    return exchange.tensor(rows), tf.constant(unique), tf.constant(positions)


class InvalidValueError(tf.errors.InvalidArgumentError, ValueError):  # type: ignore[misc]
    """A value that cannot be used. In a graph TensorFlow makes its own `InvalidArgumentError` of a ValueError."""


def flush(dtype: tf.DType, *handles: tf.Tensor) -> None:
    """Write the true weights of all rows, and restart at P = 1, S = 0. Reads and writes the table once.

    The sums count as old: a run that goes on after saving then has the losses of one that loads, to the last bit.
    """
    with opened(dtype, *handles) as (rows, marks, numbers):
        for part in _chunks(rows):
            fastreg_kernels.shrink(rows[part], *_factors(numbers, marks[part]), out=rows[part])
            marks[part] = FRESH
            counters.count_kernel_call()
        numbers[[0, 1, 4]] = *FRESH, math.inf


def refresh(dtype: tf.DType, *handles: tf.Tensor) -> None:
    """Compute sum(|w|) and sum(w²) of the true weights anew, accumulated in float64. Reads the table once."""
    with opened(dtype, *handles) as (rows, marks, numbers):
        sums = np.zeros(2)
        for part in _chunks(rows):
            sums += fastreg_kernels.forward(fastreg_kernels.shrink(rows[part], *_factors(numbers, marks[part])))
            counters.count_kernel_call()
        numbers[2:] = *sums, 0.0


def update(
    dtype: tf.DType,
    l1: float,
    l2: float,
    table: tf.Tensor,
    stamps: tf.Tensor,
    state: tf.Tensor,
    learning_rate: tf.Tensor,
    indices: tf.Tensor,
    step: tf.Tensor,
) -> bool:
    """One step: shrink all rows, by what is kept in mind of them, and subtract `step` from those at `indices`.

    Returns
    -------
    bool
        Whether it is time to flush.

    Raises
    ------
    InvalidValueError
        If the shrink would turn weights around.
    """
    rate, tracked = float(learning_rate), l1 == 0.0 and l2 != 0.0
    scale = 1.0 - 2.0 * rate * l2
    if not scale > 0.0:
        message = f"expected 2 * learning_rate * l2 < 1. Received: learning_rate={rate}, l2={l2}"
        raise InvalidValueError(None, None, f"Invalid value for learning_rate * l2: {message}")
    rows, steps = exchange.host_array(indices), exchange.host_array(step)
    with opened(dtype, table, stamps, state) as (weights, marks, numbers):
        product = numbers[0] * scale
        total = numbers[1] + rate * l1 / product
        change = fastreg_kernels.update_rows(weights, marks, rows, product, total, steps, tracked)
        if tracked:  # no weight is clipped then, and sum(w²) follows from the rows touched
            numbers[:4] = product, total, UNTRACKED, np.maximum(numbers[3] * scale**2 + change, 0.0)
        else:
            numbers[[0, 1, 4]] = product, total, numbers[4] + 1.0
    counters.count_kernel_call()
    return bool(product < SMALLEST_PRODUCT or product * total > LARGEST_THRESHOLD)


def zeros(dtype: tf.DType, table: tf.Tensor) -> int:
    """How many stored weights are exactly zero."""
    with _LOCK, writable(table, dtype) as rows:
        return rows.size - sum(int(np.count_nonzero(rows[part])) for part in _chunks(rows))


def _chunks(rows: NDArray[Any]) -> Iterator[slice]:
    count = max(1, _CHUNK_BYTES // max(1, rows.nbytes // len(rows)))
    return (slice(start, start + count) for start in range(0, len(rows), count))


def _factors(numbers: NDArray[np.float64], marks: NDArray[np.float64]) -> tuple[Any, Any]:
    product, total = numbers[:2]
    return product / marks[:, 0], product * (total - marks[:, 1])
