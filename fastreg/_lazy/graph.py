"""Pieces of graphs: branches, and rows whose gradient goes to what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import variable_accessed

from fastreg._lazy.gradients import sum_rows


def when(condition: tf.Tensor, action: Callable[[], None]) -> None:
    """Do it if the condition holds: now if executing eagerly, else in a branch of the graph."""
    if tf.executing_eagerly():
        if condition:
            action()
        return

    def branch() -> tf.Tensor:
        action()
        return tf.constant(True)

    tf.cond(condition, branch, lambda: tf.constant(False))


def with_gradient(
    variable: tf.Variable, rows: tf.Tensor, ids: tf.Tensor, positions: tf.Tensor | None, dtype: Any
) -> tf.Tensor:
    """The given rows in this dtype, with the gradient of a lookup in this variable: tf.IndexedSlices.

    TensorFlow's own lookup is not made for that. Like every sparse access, it would copy a variable that another thread
    has open just then (`memory`).

    Parameters
    ----------
    ids : tf.Tensor
        Rows of the variable that have a gradient.
    positions : tf.Tensor or None
        Which of these each row is; None if they are in order.
    """
    shape, stored = variable.shape, variable.dtype
    variable_accessed(variable)  # so that tapes watch it

    @tf.custom_gradient
    def through(handle: tf.Tensor) -> Any:  # noqa: ARG001
        def backward(upstream: tf.Tensor) -> tf.IndexedSlices:
            values = tf.reshape(upstream, [-1, shape[1]])
            if positions is not None:
                values = sum_rows(values, positions, tf.size(ids))
            return tf.IndexedSlices(tf.cast(values, stored), ids, tf.constant(shape.as_list(), tf.int64))

        return tf.cast(rows, dtype), backward

    return through(variable.handle)
