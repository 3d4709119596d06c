"""Pieces of graphs: branches, and rows whose gradient goes to what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from fastreg._lazy import formulas
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


def true_rows(stored: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor, positions: tf.Tensor, dtype: Any) -> tf.Tensor:
    """Shrunk rows at these positions. Their gradient goes to the stored rows as if these were the true ones."""
    width, count = stored.shape[1], tf.shape(stored)[0]
    arithmetic = formulas.arithmetic_dtype(stored.dtype)

    @tf.custom_gradient
    def rows(stored: tf.Tensor) -> Any:
        shrunk = formulas.shrink(tf.cast(stored, arithmetic), scale, threshold)
        # Rounded as a flush would, then gathered in the dtype of the result, which may be narrower.
        result = tf.gather(tf.cast(tf.cast(shrunk, stored.dtype), dtype), positions)

        def backward(upstream: tf.Tensor) -> tf.Tensor:
            return tf.cast(sum_rows(tf.reshape(upstream, [-1, width]), positions, count), stored.dtype)

        return result, backward

    return rows(stored)
