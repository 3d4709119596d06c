"""The ops of tables by native ops."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from fastreg._bridges.factors import Factors
from fastreg._bridges.native import table_ops
from fastreg._bridges.native.messages import NAME
from fastreg._bridges.native.op import VARIANT, VARIANTS
from fastreg._bridges.native.table_ops import memory, shared


def lookup(variable: Any, ids: tf.Tensor) -> tf.Tensor:
    """See `TableVariable.lookup`."""
    table_ops.LOOKUP.prepare(variable.dtype, ids.dtype)
    return table_ops.LOOKUP(*_table(variable), ids, **{NAME: variable.path})


def sum_bags(variable: Any, ids: tf.Tensor, splits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """See `TableVariable.sum_bags`."""
    table_ops.SUM_BAGS.prepare(variable.dtype, ids.dtype)
    sums = table_ops.SUM_BAGS(*_table(variable), ids, splits, weights, **{NAME: variable.path})
    if not tf.executing_eagerly():
        sums.set_shape([None if splits.shape[0] is None else splits.shape[0] - 1, variable.shape[1]])
    return sums


def update(variable: Any, gradient: Any, step: Any, factors: tf.Tensor) -> None:
    """See `TableVariable.update`."""
    table_ops.UPDATE.prepare(variable.dtype, gradient.ids.dtype, step.rule)
    none = tf.zeros(0, gradient.values.dtype)
    absent = (variable.handle, none)
    values, splits, weights = gradient.bags or (gradient.values, tf.zeros(0, tf.int64), none)
    slots = [memory(slot.value) for slot in step.slots]
    slots += [absent] * (2 - len(slots))
    table_ops.UPDATE(
        *_table(variable),
        *slots[0],
        *slots[1],
        gradient.ids,
        values,
        step.rate,
        step.scale,
        factors,
        tf.constant(step.settings, tf.float64),
        step.number,
        splits,
        weights,
        **{VARIANT: VARIANTS[step.rule], NAME: variable.path},
    )


def write_rows(variable: Any, ids: tf.Tensor, values: tf.Tensor) -> None:
    """See `TableVariable.write_rows`."""
    table_ops.WRITE_ROWS.prepare(variable.dtype, ids.dtype)
    table_ops.WRITE_ROWS(*_table(variable), ids, values, **{NAME: variable.path})


def flush(variable: Any) -> None:
    """See `TableVariable.flush`."""
    table_ops.FLUSH.prepare(variable.dtype)
    table_ops.FLUSH(*_table(variable))


def weights(variable: Any) -> tf.Tensor:
    """A copy of the true weights."""
    table_ops.WEIGHTS.prepare(variable.dtype)
    return table_ops.WEIGHTS(*_table(variable))


def penalty(variable: Any, factors: Factors, every: int) -> tf.Tensor:
    """See `TableVariable.penalty`."""
    table_ops.PENALTY.prepare(variable.dtype)
    return table_ops.PENALTY(*_table(variable), factors.vector(), tf.constant(every, tf.int64))


def count_zeros(variable: Any) -> tf.Tensor:
    """See `TableVariable.count_zeros`."""
    table_ops.COUNT_ZEROS.prepare(variable.dtype)
    return table_ops.COUNT_ZEROS(*_table(variable))


def sum_duplicates(
    variable: Any,  # noqa: ARG001
    values: tf.Tensor,
    ids: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums of the rows that have the same id, and the ids, each once."""
    table_ops.SUM_DUPLICATES.prepare(values.dtype, ids.dtype)
    sums, unique = table_ops.SUM_DUPLICATES(values, ids)
    if not tf.executing_eagerly():
        sums.set_shape([None, values.shape[1]])
        unique.set_shape([None])
    return sums, unique


def _table(variable: Any) -> tuple[tf.Tensor, ...]:
    of_rows = *memory(variable), *memory(variable.stamps)
    return *of_rows, shared(variable.history), shared(variable.numbers)
