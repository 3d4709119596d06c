"""Pieces of graphs: branches, and rows whose gradient goes to what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

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


def straight_through(stored: tf.Tensor, rows: tf.Tensor, positions: tf.Tensor, dtype: Any) -> tf.Tensor:
    """The given rows in this dtype. Their gradient goes to the stored rows at these positions, as if it were theirs."""
    width, count = stored.shape[1], tf.shape(stored)[0]

    @tf.custom_gradient
    def through(stored: tf.Tensor) -> Any:
        def backward(upstream: tf.Tensor) -> tf.Tensor:
            return tf.cast(sum_rows(tf.reshape(upstream, [-1, width]), positions, count), stored.dtype)

        return tf.cast(rows, dtype), backward

    return through(stored)
