"""Gradients as the optimizer wrapper needs them: those of tables are scaled, clipped and checked without becoming
dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from fastreg._bridges import slices, support
from fastreg._tables.table import LazyTable


class TableGradient(NamedTuple):
    """The gradient of a lazily regularised table, taken apart.

    Attributes
    ----------
    values, ids : tf.Tensor
        Of the rows looked up, in the dtype of the arithmetic; rows may occur several times.
    scale : tf.Tensor or float
        By which these values are still to be multiplied: a scalar of float64, or 1.
    weight : tf.Tensor or None
        Of the penalty in the loss, a scalar of float64, to be multiplied by nothing; None if the loss is known not to
        contain the penalty.
    bags : slices.Bags or None
        What the values are from, where that is known: enough for an update.
    """

    values: tf.Tensor
    ids: tf.Tensor
    scale: tf.Tensor | float
    weight: tf.Tensor | None
    bags: slices.Bags | None = None

    def scaled(self, factor: tf.Tensor) -> TableGradient:
        """The gradient of the loss times a scalar."""
        factor = tf.cast(factor, tf.float64)
        return self._replace(scale=self.scale * factor, weight=None if self.weight is None else self.weight * factor)

    def summed(self, table: LazyTable) -> TableGradient:
        """The same with every row once, and multiplied."""
        values, ids = table.sum_duplicates(self.values, self.ids)
        values *= tf.cast(self.scale, values.dtype)
        return self._replace(values=values, ids=ids, scale=1.0, bags=None)

    def clipped(self, optimizer: keras.optimizers.Optimizer) -> TableGradient:
        """Clipped as the optimizer clips the gradient of one variable, by `clipnorm` or `clipvalue`: the rows, which
        occur once, and not the penalty.
        """
        if optimizer.clipnorm and optimizer.clipnorm > 0:
            return self._replace(values=tf.clip_by_norm(self.values, optimizer.clipnorm))
        limit = optimizer.clipvalue
        return self._replace(values=tf.clip_by_value(self.values, -limit, limit))


def of_variable(gradient: Any, variable: Any) -> Any:
    """The gradient of a variable as the functions here take it: taken apart, if the variable is a table.

    Raises
    ------
    ValueError
        If it is a table, and the gradient dense.
    """
    if gradient is None or not isinstance(variable, LazyTable) or isinstance(gradient, TableGradient):
        return gradient
    if not isinstance(gradient, tf.IndexedSlices):
        raise ValueError(
            f"Invalid gradient of the lazily regularised table {variable.path!r}: expected tf.IndexedSlices, from "
            "lookups. Received: a dense gradient, as of lookups in a tf.while_loop, for which keras.layers.Embedding "
            "is the layer to use. Of gradients that were added up by hand, tf.IndexedSlices(total, tf.range(rows)) is "
            "one without the penalty."
        )
    values, ids, weight, bags = slices.split(gradient)
    return TableGradient(tf.cast(values, support.arithmetic_dtype(values.dtype)), ids, 1.0, weight, bags)


def all_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether every element of every gradient is finite, of the slices where a gradient is sparse."""
    values = [_values(gradient) for gradient in gradients if gradient is not None]
    values += [g.weight for g in gradients if isinstance(g, TableGradient) and g.weight is not None]
    return tf.reduce_all([tf.constant(True), *(tf.reduce_all(tf.math.is_finite(value)) for value in values)])


def scaled(gradient: Any, factor: tf.Tensor) -> Any:
    """The gradient times a scalar."""
    if gradient is None:
        return None
    if isinstance(gradient, TableGradient):
        return gradient.scaled(factor)
    values = _values(gradient) * tf.cast(factor, _values(gradient).dtype)
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def joint_scale(gradients: Sequence[Any], norm: float) -> tf.Tensor:
    """By what Keras's `global_clipnorm` scales these gradients: their joint norm counts; NaN if it is not finite."""
    squares = [tf.reduce_sum(tf.square(tf.cast(_values(gradient), tf.float64))) for gradient in gradients]
    total = tf.sqrt(tf.add_n(squares))
    return norm * tf.minimum(1.0 / total, 1.0 / norm) + (total - total)


def _values(gradient: Any) -> tf.Tensor:
    is_sparse = isinstance(gradient, (tf.IndexedSlices, TableGradient))
    return gradient.values if is_sparse else tf.convert_to_tensor(gradient)
