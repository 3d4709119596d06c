"""Sparse gradients as the optimizer wrapper needs them: each row once, clipped and checked without becoming dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fastreg_kernels
import keras
import numpy as np
import tensorflow as tf

from fastreg._bridges import buffers, counters, support
from fastreg._bridges.callback import exchange
from fastreg._bridges.custom_gradient import differentiable
from fastreg._lazy.formulas import arithmetic_dtype

UNIQUE_IDS = "fastreg_unique_ids"
"""Name of the operation in a graph that gives the distinct ids of a lookup."""


def reduced(gradient: Any, path: str) -> tf.IndexedSlices:
    """The gradient of a table with every row once, duplicates summed, in the arithmetic dtype of the table.

    Raises
    ------
    ValueError
        If the gradient is dense.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        raise ValueError(
            f"Invalid gradient of the lazily regularised table {path!r}: expected tf.IndexedSlices, from lookups. "
            "Received: a dense gradient. A training step that reads the whole table, as tied output weights do, or "
            "that looks rows up in a tf.while_loop, trains all rows: use keras.layers.Embedding for it."
        )
    values = tf.cast(gradient.values, arithmetic_dtype(gradient.values.dtype))
    if _is_unique(gradient.indices):
        return tf.IndexedSlices(values, gradient.indices)
    unique, positions = tf.unique(gradient.indices)
    return tf.IndexedSlices(sum_rows(values, positions, tf.size(unique)), unique)


def sum_rows(values: tf.Tensor, positions: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Sums of the rows that have the same position, in the arithmetic dtype; differentiable.

    By the kernel of that name, except under XLA.
    """
    dtype = arithmetic_dtype(values.dtype)
    if support.in_xla():
        return tf.math.unsorted_segment_sum(tf.cast(values, dtype), positions, count)

    @differentiable
    def summed(values: tf.Tensor) -> Any:
        (sums,) = exchange.call(_sum_rows, [values, positions, count], [(None, values.shape[1])], [dtype])
        return sums, lambda upstream: tf.cast(tf.gather(upstream, positions), values.dtype)

    return summed(values)


def _sum_rows(values: tf.Tensor, positions: tf.Tensor, count: tf.Tensor) -> tuple[tf.Tensor]:
    array = exchange.host_array(values)
    buffer = buffers.array((int(count), array.shape[1]), np.dtype(arithmetic_dtype(values.dtype).as_numpy_dtype))
    fastreg_kernels.sum_rows(array, exchange.host_array(positions), int(count), out=buffer)
    counters.count_kernel_call()
    return (exchange.tensor(buffer),)


def all_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether every element of every gradient is finite, of the slices where a gradient is sparse."""
    values = [_values(gradient) for gradient in gradients if gradient is not None]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(value)) for value in values])


def scaled(gradient: Any, factor: Any) -> Any:
    """The gradient times a scalar."""
    if gradient is None:
        return None
    values = _values(gradient) * tf.cast(factor, _values(gradient).dtype)
    return _with_values(gradient, values)


def clipped(gradient: tf.IndexedSlices, optimizer: keras.optimizers.Optimizer) -> tf.IndexedSlices:
    """Clip as the optimizer clips the gradient of one variable: by `clipnorm` or `clipvalue`."""
    if optimizer.clipnorm and optimizer.clipnorm > 0:
        return _with_values(gradient, tf.clip_by_norm(gradient.values, optimizer.clipnorm))
    if optimizer.clipvalue and optimizer.clipvalue > 0:
        limit = optimizer.clipvalue
        return _with_values(gradient, tf.clip_by_value(gradient.values, -limit, limit))
    return gradient


def joint_scale(gradients: Sequence[Any], norm: float) -> tf.Tensor:
    """By what Keras's `global_clipnorm` scales these gradients: their joint norm counts; NaN if it is not finite."""
    squares = [
        tf.reduce_sum(tf.square(tf.cast(_values(gradient), tf.float64)))
        for gradient in gradients
        if gradient is not None
    ]
    total = tf.sqrt(tf.add_n(squares))
    return norm * tf.minimum(1.0 / total, 1.0 / norm) + (total - total)


def _values(gradient: Any) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else tf.convert_to_tensor(gradient)


def _with_values(gradient: Any, values: tf.Tensor) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def _is_unique(indices: tf.Tensor) -> bool:
    """Whether the graph shows that these indices are one lookup's, which are unique already."""
    if tf.executing_eagerly():
        return False
    operation = indices.op
    while operation.type in ("Identity", "Reshape"):
        if UNIQUE_IDS in operation.name:
            return True
        operation = operation.inputs[0].op
    return False
