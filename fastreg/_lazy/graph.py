"""Pieces of graphs: branches, and rows whose gradient goes to what is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.ops.control_flow_v2_func_graphs import CondBranchFuncGraph, WhileBodyFuncGraph
from tensorflow.python.ops.resource_variable_ops import variable_accessed

from fastreg._bridges.custom_gradient import differentiable
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

    branch = _in_branch()

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        def backward(upstream: tf.Tensor) -> Any:
            values = tf.reshape(upstream, [-1, shape[1]])
            if positions is not None:
                values = sum_rows(values, positions, tf.size(ids))
            if branch:
                return tf.cast(values, stored)
            return tf.IndexedSlices(tf.cast(values, stored), ids, tf.constant(shape.as_list(), tf.int64))

        return tf.cast(rows, dtype), backward

    return through(variable.sparse_read(ids) if branch else variable.handle)


def _in_branch() -> bool:
    """Whether a branch of `tf.cond` is traced, whose gradient TensorFlow cannot take with respect to a resource."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if isinstance(graph, (CondBranchFuncGraph, WhileBodyFuncGraph)):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False
