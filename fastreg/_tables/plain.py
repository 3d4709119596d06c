"""The ops of tables by TensorFlow's own: where native ops cannot run. Right, and slower; a lookup compiles with XLA.

No sparse op of TensorFlow's takes the stamps, since it would make TensorFlow copy them at every read from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops.control_flow_v2_func_graphs import CondBranchFuncGraph, WhileBodyFuncGraph

from fastreg._bridges import slices, state, support
from fastreg._bridges.custom_gradient import differentiable, register_gradient
from fastreg._bridges.factors import Factors


def shrink(rows: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """`sign(x) · max(0, scale · |x| − threshold)` in the dtype of `rows`, to which the factors are rounded.

    The same bits as the kernels.
    """
    scaled = rows * tf.cast(scale, rows.dtype)
    bound = tf.cast(threshold, rows.dtype)
    # What lies within the threshold minus itself is +0; NaN stays NaN, infinity stays infinity.
    return scaled - tf.maximum(tf.minimum(scaled, bound), -bound)


def lookup(variable: Any, ids: tf.Tensor) -> tf.Tensor:
    """See `TableVariable.lookup`."""
    stamps = variable.stamps.stored()
    numbers = tf.reshape(stamps[-state.ROWS :], [-1])
    stored = tf.raw_ops.ResourceGather(resource=variable.handle, indices=ids, dtype=variable.dtype)
    with tf.control_dependencies([stored]):  # which knows how many rows there are, and fails if an id is beyond them
        marks = tf.gather(stamps, ids)
    wide = tf.cast(stored, support.arithmetic_dtype(variable.dtype))
    rows = tf.stop_gradient(tf.cast(shrink(wide, *_factors(numbers, marks)), variable.dtype))
    if support.in_xla():  # which takes the nearest row for an id beyond the table
        valid = (ids >= 0) & (ids < tf.constant(variable.shape[0], ids.dtype))
        rows = tf.where(valid[:, None], rows, tf.constant(float("nan"), rows.dtype))
    rows.set_shape([None, variable.shape[1]])
    shape, in_branch = variable.shape.as_list(), _in_branch()

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        def backward(upstream: tf.Tensor) -> Any:
            return upstream if in_branch else slices.of_lookup(upstream, ids, shape)

        return tf.identity(rows), backward

    return through(stored if in_branch else variable.handle)


def weights(variable: Any) -> tf.Tensor:
    """A copy of the true weights, with the gradient of a whole read."""
    stamps = variable.stamps.stored()
    rows = _true(variable.stored(), stamps)

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        return tf.identity(rows), lambda upstream: slices.of_all(tf.ensure_shape(upstream, variable.shape))

    return through(variable.handle)


def update(variable: Any, ids: tf.Tensor, gradient: tf.Tensor, step: Any, factors: tf.Tensor) -> None:
    """See `TableVariable.update`."""
    unique, positions = tf.unique(ids)
    sums = tf.math.unsorted_segment_sum(gradient, positions, tf.size(unique)) * tf.cast(step.scale, gradient.dtype)
    stamps = variable.stamps.stored()
    numbers = tf.reshape(stamps[-state.ROWS :], [-1])
    scale, threshold = 1.0 - 2.0 * step.rate * factors[1], step.rate * factors[0]
    if step.is_implicit:
        scale = 1.0 / (1.0 + 2.0 * step.rate * factors[1])
        threshold *= scale
    product = numbers[state.PRODUCT] * scale
    total = numbers[state.TOTAL] + threshold / product
    message = (
        "Invalid value for learning_rate * l2: expected 2 * learning_rate * l2 < 1 for the table "
        f"{variable.path}; LazyRegularization(..., implicit=True) takes any. Received learning_rate, l2:"
    )
    with tf.control_dependencies([tf.debugging.Assert(scale > 0.0, [message, step.rate, factors[1]])]):
        taken = step.plain(unique, sums)
        marks = tf.gather(stamps, unique)
        stored = tf.raw_ops.ResourceGather(resource=variable.handle, indices=unique, dtype=variable.dtype)
        a, b = product / marks[:, :1], product * (total - marks[:, 1:])
        wide = tf.cast(stored, gradient.dtype)
        written = tf.cast(shrink(wide, a, b) - taken, variable.dtype)
        sums = _tracked(numbers, scale, threshold, _changes(stored, written, a, b, marks, numbers))
        sums = tf.where(numbers[state.AGE] < state.OLD, sums, numbers[state.SUM_ABS :])
        after = tf.concat([[product, total], sums], 0)
        tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=unique, updates=written)
        now = tf.tile(tf.stack([product, total])[None], [tf.size(unique), 1])
        rows = tf.concat([unique, tf.cast(tf.range(-state.ROWS, 0) + stamps.shape[0], unique.dtype)], 0)
        values = tf.concat([now, tf.reshape(after, [state.ROWS, 2])], 0)
        variable.stamps.assign(tf.tensor_scatter_nd_update(stamps, rows[:, None], values))
        due = (product < state.SMALLEST_PRODUCT) | (product * total > state.LARGEST_THRESHOLD)
        _when(due, lambda: _write(variable))


def flush(variable: Any) -> None:
    """See `TableVariable.flush`."""
    numbers = variable.stamps.stored()[-state.ROWS]
    _when(tf.reduce_any(numbers != tf.constant(state.FRESH, tf.float64)), lambda: _write(variable))


def penalty(variable: Any, factors: Factors, every: int) -> tf.Tensor:
    """See `TableVariable.penalty`."""
    numbers = tf.reshape(variable.stamps.stored()[-state.ROWS :], [-1])
    vector = factors.vector()
    age = numbers[state.AGE]
    is_old = age >= 1.0 if every == 0 else (age >= every) & _are_doubtful(numbers)
    _when((is_old | (age >= state.OLD)) & tf.reduce_any(vector != 0.0), lambda: _measure(variable))
    sums = tf.reshape(variable.stamps.stored()[-state.ROWS :], [-1])[state.SUM_ABS : state.COUNT]
    total = tf.reduce_sum(tf.math.multiply_no_nan(tf.maximum(sums, 0.0), vector))
    value = tf.stop_gradient(tf.cast(total, variable.dtype))
    shape, in_branch = variable.shape.as_list(), _in_branch()

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        def backward(upstream: tf.Tensor) -> Any:
            return slices.elements(upstream, shape[1]) if in_branch else slices.of_penalty(upstream, shape)

        return tf.identity(value), backward

    return through(_row_beyond(variable) if in_branch else variable.handle)


def count_zeros(variable: Any) -> tf.Tensor:
    """See `TableVariable.count_zeros`."""
    rows = _true(variable.stored(), variable.stamps.stored())
    return tf.reduce_sum(tf.cast(rows == 0, tf.int64))


def sum_duplicates(values: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums of the rows that have the same id, and the ids, each once."""
    unique, positions = tf.unique(ids)
    return tf.math.unsorted_segment_sum(values, positions, tf.size(unique)), unique


def _factors(numbers: tf.Tensor, marks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and threshold of rows: `P / P0` and `P · (S − S0)`, of shape (rows, 1)."""
    product, total = numbers[state.PRODUCT], numbers[state.TOTAL]
    return product / marks[:, :1], product * (total - marks[:, 1:])


def _true(stored: tf.Tensor, stamps: tf.Tensor) -> tf.Tensor:
    numbers = tf.reshape(stamps[-state.ROWS :], [-1])
    wide = tf.cast(stored, support.arithmetic_dtype(stored.dtype))
    return tf.cast(shrink(wide, *_factors(numbers, stamps[: -state.ROWS])), stored.dtype)


def _write(variable: Any) -> None:
    """Write the true weights; the sums count as never measured."""
    variable.assign(_true(variable.stored(), variable.stamps.stored()))  # which restarts the stamps


def _measure(variable: Any) -> None:
    """Sum the true weights up, in float64."""
    stamps = variable.stamps.stored()
    rows = tf.abs(tf.cast(_true(variable.stored(), stamps), tf.float64))
    zero, count = tf.zeros((), tf.float64), tf.reduce_sum(tf.cast(rows != 0.0, tf.float64))
    numbers = [tf.reduce_sum(rows), tf.reduce_sum(tf.square(rows)), count, zero, stamps[-state.ROWS, 1], zero]
    end = tf.concat([stamps[-state.ROWS][None], tf.reshape(tf.stack(numbers), [-1, 2])], 0)
    variable.stamps.assign(tf.concat([stamps[: -state.ROWS], end], 0))


def _changes(
    stored: tf.Tensor, written: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor, marks: tf.Tensor, numbers: tf.Tensor
) -> list[tf.Tensor]:
    """Of the rows updated: how the sums of |w|, of w² and of w ≠ 0 change, and the magnitude of the squares."""
    before, after = (tf.abs(tf.cast(rows, tf.float64)) for rows in (stored, written))
    was_there = before > marks[:, :1] * tf.maximum(numbers[state.MEASURED] - marks[:, 1:], 0.0)
    before = tf.where(was_there, scale * before - threshold, 0.0)
    count = tf.reduce_sum(tf.cast(after > 0.0, tf.float64)) - tf.reduce_sum(tf.cast(was_there, tf.float64))
    squares = [tf.reduce_sum(tf.square(rows)) for rows in (before, after)]
    return [tf.reduce_sum(after - before), squares[1] - squares[0], count, squares[1] + squares[0]]


def _tracked(numbers: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor, changes: list[tf.Tensor]) -> tf.Tensor:
    """The numbers from `SUM_ABS` on after a step; see `fastreg._bridges.state`."""
    sum_abs, sum_squares, count, age, measured, noise = tf.unstack(numbers[state.SUM_ABS :])
    of_products = 2.0 * scale * threshold * sum_abs
    squares = scale * scale * sum_squares - of_products + threshold * threshold * count
    noise = scale * scale * noise + state.EPSILON * (tf.abs(sum_squares) + changes[3])
    sum_abs = scale * sum_abs - threshold * count
    return tf.stack([sum_abs + changes[0], squares + changes[1], count + changes[2], age + 1.0, measured, noise])


def _are_doubtful(numbers: tf.Tensor) -> tf.Tensor:
    """Whether the sums may be off by more than they should."""
    since = numbers[state.PRODUCT] * (numbers[state.TOTAL] - numbers[state.MEASURED])
    is_near = since * numbers[state.COUNT] <= state.LARGEST_SHARE * numbers[state.SUM_ABS]
    is_quiet = numbers[state.NOISE] <= state.LARGEST_NOISE * numbers[state.SUM_SQUARES]
    return tf.logical_not(is_near & is_quiet)


def _when(condition: tf.Tensor, action: Callable[[], None]) -> None:
    """Do it if the condition holds: now if executing eagerly, else in a branch of the graph."""
    if tf.executing_eagerly():
        if condition:
            action()
        return

    def branch() -> tf.Tensor:
        action()
        return tf.constant(True)

    tf.cond(condition, branch, lambda: tf.constant(False))


_ROW_BEYOND = "FastregRowBeyond"


def _row_beyond(variable: Any) -> tf.Tensor:
    """Some row, which stands for one that the table has not: its gradient is that row's, for tapes and for the gradient
    of a branch.
    """
    graph = tf.compat.v1.get_default_graph()
    with record.stop_recording(), graph.gradient_override_map({"ResourceGather": _ROW_BEYOND}):
        row = tf.raw_ops.ResourceGather(resource=variable.handle, indices=[0], dtype=variable.dtype)
    shape = variable.shape.as_list()
    record.record_operation(_ROW_BEYOND, [row], [variable.handle], lambda up: [slices.beyond_rows(up, shape)])
    return row


@register_gradient(_ROW_BEYOND)
def _gradient_of_row_beyond(op: Any, upstream: tf.Tensor) -> Any:
    return slices.beyond_rows(upstream, tf.raw_ops.VariableShape(input=op.inputs[0])), None


def _in_branch() -> bool:
    """Whether a branch of `tf.cond` is traced, where a custom gradient cannot be one of a resource."""
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        if isinstance(graph, (CondBranchFuncGraph, WhileBodyFuncGraph)):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False
