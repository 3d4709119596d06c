"""The ops of tables by TensorFlow's own: where XLA compiles, and where native ops cannot run.

They touch a table as native ops do, at the rows of a step alone. XLA makes of a step some small loops, and writes in
place; what it cannot raise, an id beyond the table or a shrink that is none, is noted in the table's state and raised
when the table is next used outside. TensorFlow copies a variable that sparse ops have touched when it is read as a
whole, which here happens in passes over the table only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops.control_flow_v2_func_graphs import CondBranchFuncGraph, WhileBodyFuncGraph

from fastreg._bridges import slices, state, support, xla
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


def lookup(variable: Any, ids: tf.Tensor, run: Callable[..., Any] | None = None) -> tf.Tensor:
    """See `TableVariable.lookup`; `run` looks up in the place of `looked_up`."""
    rows, ids = (run or looked_up)(variable, ids)
    rows.set_shape([None, variable.shape[1]])
    shape, in_branch = variable.shape.as_list(), _in_branch()

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        def backward(upstream: tf.Tensor) -> Any:
            return upstream if in_branch else slices.of_lookup(upstream, ids, shape)

        return tf.identity(rows), backward

    return through(_gather(variable, ids) if in_branch else variable.handle)


def looked_up(variable: Any, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """True rows, and the ids of their gradient."""
    numbers = _numbers(variable)
    stored = _gather(variable, ids)
    with tf.control_dependencies([stored]):  # which knows how many rows there are, and fails if an id is beyond them
        marks = _marks(variable, _gather(variable.stamps, ids))
    wide = tf.cast(stored, support.arithmetic_dtype(variable.dtype))
    rows = tf.stop_gradient(tf.cast(shrink(wide, *_factors(numbers, marks)), variable.dtype))
    if support.in_xla():  # which takes the nearest row for an id beyond the table
        rows = tf.where(_exist(variable, ids)[:, None], rows, tf.constant(float("nan"), rows.dtype))
        # Looked up before the update, not again after it, for which the table would have to be copied.
        rows = xla.read_once(rows)
        ids = tf.where(ids < 0, ids - 1, ids)  # so that no row that was asked for has the index of no row
    return rows, ids


def weights(variable: Any, run: Callable[..., Any] | None = None) -> tf.Tensor:
    """A copy of the true weights, with the gradient of a whole read; `run` computes in the place of `true_rows`."""
    rows = (run or true_rows)(variable)

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        return tf.identity(rows), lambda upstream: slices.of_all(tf.ensure_shape(upstream, variable.shape))

    return through(variable.handle)


def update(variable: Any, gradient: Any, step: Any, factors: tf.Tensor) -> None:
    """See `TableVariable.update`."""
    update_rows(variable, gradient.ids, gradient.values, step, factors)


def update_rows(variable: Any, ids: tf.Tensor, gradient: tf.Tensor, step: Any, factors: tf.Tensor) -> None:
    """The same, of tensors."""
    numbers = _numbers(variable)
    scale, threshold = 1.0 - 2.0 * step.rate * factors[1], step.rate * factors[0]
    if step.is_implicit:
        scale = 1.0 / (1.0 + 2.0 * step.rate * factors[1])
        threshold *= scale
    is_shrink = (scale > 0.0) & (step.rate >= 0.0) & tf.reduce_all(factors >= 0.0)
    fault = numbers[state.FAULT :]
    if support.in_xla():
        fault = _fault(numbers, ids, _invalid(variable, ids), is_shrink, step.number)
        scale = tf.where(is_shrink, scale, float("nan"))
        checks = []
    else:
        message = (
            "Invalid value for learning_rate * l2: expected 2 * learning_rate * l2 < 1 for the table "
            f"{variable.path}; LazyRegularization(..., implicit=True) takes any. Received learning_rate, l2:"
        )
        checks = [tf.debugging.Assert(is_shrink, [message, step.rate, factors[1]])]
    product = numbers[state.PRODUCT] * scale
    total = numbers[state.TOTAL] + threshold / product
    # A step that does not shrink weights is the one before.
    number = numbers[state.STEP] + tf.cast((scale != 1.0) | (threshold != 0.0), tf.float64)
    with tf.control_dependencies(checks):
        rows = _distinct(variable, ids, gradient)
        a, b = product / rows.marks[:, :1], product * (total - rows.marks[:, 1:])
        stored = _gather(variable, rows.ids)
        shrunk = shrink(tf.cast(stored, gradient.dtype), a, b)
        taken = step.plain(rows.ids, shrunk, rows.sums * tf.cast(step.scale, gradient.dtype))
        written = tf.cast(shrunk - taken, variable.dtype)
        sums = _tracked(numbers, scale, threshold, _changes(rows, stored, written, a, b, numbers))
        sums = tf.where(numbers[state.AGE] < state.OLD, sums, numbers[state.SUM_ABS : state.FAULT])
        _scatter(variable.history, tf.cast(number, tf.int32)[None], tf.stack([product, total])[None])
        _scatter(variable, rows.ids, written)
        _scatter(variable.stamps, rows.ids, tf.fill(tf.shape(rows.ids), tf.cast(number, tf.float32)))
        _set_numbers(variable, tf.concat([tf.stack([product, total, number]), sums, fault], 0))
        due = (product < state.SMALLEST_PRODUCT) | (product * total > state.LARGEST_THRESHOLD)
        due |= number >= state.STEPS - 1
        _when(due, lambda: _write(variable))


def write_rows(variable: Any, ids: tf.Tensor, values: tf.Tensor) -> None:
    """See `TableVariable.write_rows`."""
    numbers = _numbers(variable)
    _scatter(variable, ids, values)
    _scatter(variable.stamps, ids, tf.fill(tf.shape(ids), tf.cast(numbers[state.STEP], tf.float32)))
    _set_numbers(variable, tf.tensor_scatter_nd_update(numbers, [[state.AGE]], [state.OLD]))


def flush(variable: Any) -> None:
    """See `TableVariable.flush`."""
    _when(_numbers(variable)[state.STEP] != 0.0, lambda: _write(variable))


def penalty(variable: Any, factors: Factors, every: int, run: Callable[..., Any] | None = None) -> tf.Tensor:
    """See `TableVariable.penalty`; `run` computes in the place of `penalty_value`."""
    value = run(variable, factors.vector()) if run else penalty_value(variable, factors.vector(), every)
    shape, in_branch = variable.shape.as_list(), _in_branch()

    @differentiable
    def through(source: tf.Tensor) -> Any:  # noqa: ARG001
        def backward(upstream: tf.Tensor) -> Any:
            return slices.elements(upstream, shape[1]) if in_branch else slices.of_penalty(upstream, shape)

        return tf.identity(value), backward

    return through(_row_beyond(variable) if in_branch else variable.handle)


def penalty_value(variable: Any, vector: tf.Tensor, every: int) -> tf.Tensor:
    """The penalty, by a vector of factors."""
    numbers = _numbers(variable)
    age = numbers[state.AGE]
    is_old = age >= 1.0 if every == 0 else (age >= every) & _are_doubtful(numbers)
    numbers = _measured(variable, numbers, (is_old | (age >= state.OLD)) & tf.reduce_any(vector != 0.0))
    total = tf.reduce_sum(tf.math.multiply_no_nan(tf.maximum(numbers[state.SUM_ABS : state.COUNT], 0.0), vector))
    return tf.stop_gradient(tf.cast(total, variable.dtype))


def count_zeros(variable: Any) -> tf.Tensor:
    """See `TableVariable.count_zeros`."""
    rows = true_rows(variable)
    return tf.reduce_sum(tf.cast(rows == 0, tf.int64))


def sum_duplicates(variable: Any, values: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums of the rows that have the same id, and the ids, each once; under XLA with zeros, of no row, in between."""
    rows = _distinct(variable, ids, values)
    if rows.exist is None:
        return rows.sums, rows.ids
    _scatter(variable.stamps, rows.ids, rows.stamps)
    # What is no id stays what it is, so that an update notes it.
    return rows.sums, tf.where(rows.exist | _invalid(variable, ids), ids, tf.constant(slices.INDEX, ids.dtype))


def take_fault(variable: Any) -> tuple[float, float]:
    """The fault that was noted first, and its number; it counts as reported then."""
    numbers = _numbers(variable)
    fault = numbers[state.FAULT :]
    if fault[0] != state.NO_FAULT:
        _set_numbers(variable, tf.concat([numbers[: state.FAULT], tf.zeros(2, tf.float64)], 0))
    return float(fault[0]), float(fault[1])


class _Rows(NamedTuple):
    """Rows of a table, each once.

    Attributes
    ----------
    ids : tf.Tensor of shape (n,)
        Under XLA, where shapes are fixed, those that are left over are beyond the table, and written by nobody.
    sums : tf.Tensor of shape (n, width)
        Of the gradients of each.
    stamps, marks : tf.Tensor of shape (n,) and (n, 2)
        Of each: the stamp, and P and S of that step.
    exist : tf.Tensor of shape (n,) or None
        Which are rows of the table, where not all are.
    """

    ids: tf.Tensor
    sums: tf.Tensor
    stamps: tf.Tensor
    marks: tf.Tensor
    exist: tf.Tensor | None


def _distinct(variable: Any, ids: tf.Tensor, values: tf.Tensor) -> _Rows:
    """Sum the values of each id. Under XLA the stamps of these rows are to be written after it."""
    if not support.in_xla():
        unique, positions = tf.unique(ids)
        sums = tf.math.unsorted_segment_sum(values, positions, tf.size(unique))
        stamps = _gather(variable.stamps, unique)
        return _Rows(unique, sums, stamps, _marks(variable, stamps), None)
    # Read once, or kernels that use them would gather them again after they are written, from a copy.
    exist, stamps = _exist(variable, ids), xla.read_once(_gather(variable.stamps, ids))
    marks = xla.read_once(_marks(variable, stamps))
    beyond = tf.constant(variable.shape[0], ids.dtype)
    positions = tf.range(tf.size(ids))
    # Each id writes its position into the stamp of its row, the largest one stays, and all that find it there are
    # summed. To sort ids would take longer than all the rest.
    codes = xla.after(tf.bitcast(positions + _FIRST_CODE, tf.float32), marks, values, _numbers(variable))
    rows = tf.where(exist, ids, beyond)
    tf.raw_ops.ResourceScatterMax(resource=variable.stamps.handle, indices=rows, updates=codes)
    found = tf.bitcast(xla.read_once(_gather(variable.stamps, ids)), tf.int32) - _FIRST_CODE
    sums = tf.math.unsorted_segment_sum(values, tf.where(exist, found, -1), tf.size(ids))
    exist &= found == positions
    return _Rows(tf.where(exist, ids, beyond), sums, stamps, marks, exist)


_FIRST_CODE = int(np.float32(state.STEPS).view(np.int32))
"""The bits of a number above those of all steps. Larger bits are larger numbers, so that of positions added to it,
900 million of them, the largest can be found among floats."""


def _marks(variable: Any, stamps: tf.Tensor) -> tf.Tensor:
    """P and S of the steps that stamps are of, of shape (n, 2)."""
    return _gather(variable.history, tf.cast(stamps, tf.int32))


def _exist(variable: Any, ids: tf.Tensor) -> tf.Tensor:
    return (ids >= 0) & (ids < tf.constant(variable.shape[0], ids.dtype))


def _invalid(variable: Any, ids: tf.Tensor) -> tf.Tensor:
    """Which ids were looked up and are no rows."""
    return tf.logical_not(_exist(variable, ids)) & (ids != slices.INDEX)


def _fault(numbers: tf.Tensor, ids: tf.Tensor, invalid: tf.Tensor, is_shrink: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """What went wrong first, before this step or in it, and its number."""
    first = tf.gather(tf.concat([ids, tf.zeros(1, ids.dtype)], 0), tf.argmax(tf.concat([invalid, [True]], 0)))
    first += tf.cast(first < 0, ids.dtype)  # which `lookup` has moved
    ids_fault = tf.stack([tf.constant(state.INVALID_ID, tf.float64), tf.cast(first, tf.float64)])
    shrink_fault = tf.stack([tf.constant(state.INVALID_SHRINK, tf.float64), tf.cast(step, tf.float64)])
    fault = tf.where(is_shrink, tf.zeros(2, tf.float64), shrink_fault)
    fault = tf.where(tf.reduce_any(invalid), ids_fault, fault)
    return tf.where(numbers[state.FAULT] != state.NO_FAULT, numbers[state.FAULT :], fault)


def _numbers(variable: Any) -> tf.Tensor:
    """Those of the whole table; see `fastreg._bridges.state`."""
    return variable.numbers.stored()


def _set_numbers(variable: Any, numbers: tf.Tensor) -> None:
    variable.numbers.assign(numbers, read_value=False)


def _gather(variable: Any, rows: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.ResourceGather(resource=variable.handle, indices=rows, dtype=variable.dtype)


def _scatter(variable: Any, rows: tf.Tensor, values: tf.Tensor) -> None:
    tf.raw_ops.ResourceScatterUpdate(resource=variable.handle, indices=rows, updates=values)


def _factors(numbers: tf.Tensor, marks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and threshold of rows: `P / P0` and `P · (S − S0)`, of shape (rows, 1)."""
    product, total = numbers[state.PRODUCT], numbers[state.TOTAL]
    return product / marks[:, :1], product * (total - marks[:, 1:])


def true_rows(variable: Any) -> tf.Tensor:
    """All true rows."""
    wide = tf.cast(variable.stored(), support.arithmetic_dtype(variable.dtype))
    marks = _marks(variable, variable.stamps.stored())
    return tf.cast(shrink(wide, *_factors(_numbers(variable), marks)), variable.dtype)


def _write(variable: Any) -> None:
    """Write the true weights; the sums count as never measured."""
    fault = _numbers(variable)[state.FAULT :]
    variable.assign(true_rows(variable))  # which restarts the stamps
    _set_numbers(variable, tf.concat([tf.constant(state.INITIAL[: state.FAULT], tf.float64), fault], 0))


def _measured(variable: Any, numbers: tf.Tensor, is_due: tf.Tensor) -> tf.Tensor:
    """The numbers of a table, with its true weights summed up anew, in float64, if that is due."""

    def measured() -> tf.Tensor:
        rows, zero = tf.abs(tf.cast(true_rows(variable), tf.float64)), tf.zeros((), tf.float64)
        terms = (tf.identity, tf.square, lambda rows: tf.cast(rows != 0.0, tf.float64))
        sums = [xla.total(rows, of) if support.in_xla() else tf.reduce_sum(of(rows)) for of in terms]
        sums += [zero, numbers[state.TOTAL], zero]
        return tf.concat([numbers[: state.SUM_ABS], sums, numbers[state.FAULT :]], 0)

    if tf.executing_eagerly():
        if not is_due:
            return numbers
        numbers = measured()
    else:
        numbers = tf.cond(is_due, measured, lambda: numbers)
    _set_numbers(variable, numbers)
    return numbers


def _changes(
    rows: _Rows, stored: tf.Tensor, written: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor, numbers: tf.Tensor
) -> list[tf.Tensor]:
    """Of the rows updated: how the sums of |w|, of w² and of w ≠ 0 change, and the magnitude of the squares."""
    before, after = (tf.abs(tf.cast(values, tf.float64)) for values in (stored, written))
    was_there = before > rows.marks[:, :1] * tf.maximum(numbers[state.MEASURED] - rows.marks[:, 1:], 0.0)
    before = tf.where(was_there, scale * before - threshold, 0.0)
    if rows.exist is not None:
        before, after = (tf.where(rows.exist[:, None], values, 0.0) for values in (before, after))
        was_there &= rows.exist[:, None]
    count = tf.reduce_sum(tf.cast(after > 0.0, tf.float64)) - tf.reduce_sum(tf.cast(was_there, tf.float64))
    squares = [tf.reduce_sum(tf.square(values)) for values in (before, after)]
    return [tf.reduce_sum(after - before), squares[1] - squares[0], count, squares[1] + squares[0]]


def _tracked(numbers: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor, changes: list[tf.Tensor]) -> tf.Tensor:
    """The numbers from `SUM_ABS` on after a step; see `fastreg._bridges.state`."""
    sum_abs, sum_squares, count, age, measured, noise = tf.unstack(numbers[state.SUM_ABS : state.FAULT])
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
    """Do it if the condition holds: now if executing eagerly, else in the graph."""
    if tf.executing_eagerly():
        if condition:
            action()
        return

    def done() -> tf.Tensor:
        action()
        return tf.constant(False)

    if support.in_xla():  # which writes in place in a loop, where of a branch it makes a choice, element by element
        tf.while_loop(lambda due: due, lambda due: done(), [condition])  # noqa: ARG005
    else:
        tf.cond(condition, done, lambda: tf.constant(False))


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
