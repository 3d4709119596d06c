"""Sparse gradients as the optimizer wrapper needs them: clipped and checked without becoming dense."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from fastreg._bridges.support import arithmetic_dtype
from fastreg._tables.table import LazyTable


def sparse(gradient: Any, table: LazyTable) -> tf.IndexedSlices:
    """The gradient of a table in the arithmetic dtype of the table, of all rows if it is dense.

    Warns
    -----
    UserWarning
        If it is dense.
    """
    if not isinstance(gradient, tf.IndexedSlices):
        warnings.warn(
            f"A training step reads all of the table {table.path!r}, as tied output weights do, or looks rows up in a "
            "tf.while_loop. It then trains all rows, lazily or not: keras.layers.Embedding is as fast.",
            UserWarning,
            stacklevel=2,
        )
        gradient = tf.IndexedSlices(gradient, tf.range(table.shape[0]), tf.constant(tuple(table.shape), tf.int64))
    return _with_values(gradient, tf.cast(gradient.values, arithmetic_dtype(gradient.values.dtype)))


def summed(gradient: tf.IndexedSlices, table: LazyTable) -> tf.IndexedSlices:
    """The gradient of a table with every row once."""
    values, ids = table.sum_duplicates(gradient.values, gradient.indices)
    return tf.IndexedSlices(values, ids, gradient.dense_shape)


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
