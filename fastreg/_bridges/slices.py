"""The gradient of a lazily regularised table: slices of the rows looked up, and what weight the loss gives the penalty.

A table is shrunk by its optimizer, not by the gradient of its penalty, but how strongly depends on what the loss makes
of the penalty: it may leave it out, weight it, mask it, count it twice. All that is in the penalty's upstream gradient.
So the penalty's gradient is one more slice, of an index that no row has, whose elements carry it. Whatever is done to
gradients is done to it too: those of several calls are concatenated, and what scales them scales it. Made dense it is
zero, for TensorFlow's sums over segments leave negative indices out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from fastreg._bridges import support

INDEX = -1
"""Of the slice that carries the penalty's upstream gradient: that of no row."""

_ROWS, _WEIGHT, _BAGS = "_fastreg_rows", "_fastreg_weight", "_fastreg_bags"
"""Attributes of tensors of a graph: of indices that are those of rows alone; of a row that carries a weight, and of its
index; of rows that are those of bags."""


class Bags(NamedTuple):
    """Where the rows of a gradient are from: each bag of ids has one, which counts for each id with its weight.

    Attributes
    ----------
    gradient : tf.Tensor of shape (bags, width)
        In the dtype of the arithmetic.
    splits : tf.Tensor of shape (bags + 1,), int64
        Bag b has the ids from `splits[b]` to before `splits[b + 1]`.
    weights : tf.Tensor of shape (n,), or (0,) for ones
    """

    gradient: tf.Tensor
    splits: tf.Tensor
    weights: tf.Tensor


def of_lookup(upstream: tf.Tensor, ids: tf.Tensor, shape: list[int]) -> tf.IndexedSlices:
    """The gradient of a lookup, of a vector of ids, with respect to a table of this shape."""
    if tf.is_symbolic_tensor(ids):
        setattr(ids, _ROWS, True)
    return tf.IndexedSlices(upstream, ids, tf.constant(shape))


def of_bags(
    upstream: tf.Tensor, ids: tf.Tensor, splits: tf.Tensor, weights: tf.Tensor, table: tf.Tensor
) -> tf.IndexedSlices:
    """The gradient of sums of bags with respect to a table: rows, which in a graph nobody computes who asks `split`."""
    values = tf.repeat(upstream, splits[1:] - splits[:-1], axis=0)
    if weights.shape != [0]:
        values *= weights[:, None]
    values = tf.cast(values, table.dtype)
    if tf.is_symbolic_tensor(values):
        setattr(values, _BAGS, Bags(upstream, splits, weights))
    return of_lookup(values, ids, table.shape.as_list())


def of_all(upstream: tf.Tensor) -> tf.IndexedSlices:
    """The gradient of a read of a whole table: of all rows."""
    return of_lookup(upstream, tf.range(upstream.shape[0]), upstream.shape.as_list())


def of_penalty(upstream: tf.Tensor, shape: list[int]) -> tf.IndexedSlices:
    """The gradient of the penalty with respect to a table of this shape."""
    return beyond_rows(elements(upstream, shape[1]), shape)


def elements(upstream: tf.Tensor, width: int) -> tf.Tensor:
    """The row that carries an upstream gradient."""
    row = upstream * tf.constant(_unit(upstream.dtype), upstream.dtype, (1, width))
    if tf.is_symbolic_tensor(row):
        setattr(row, _WEIGHT, upstream)
    return row


def beyond_rows(row: tf.Tensor, shape: Any) -> tf.IndexedSlices:
    """The gradient of a table of this shape that has this row, which carries an upstream gradient, and no other."""
    indices = tf.constant([INDEX])
    if tf.is_symbolic_tensor(indices):
        setattr(indices, _WEIGHT, True)
    return tf.IndexedSlices(row, indices, tf.convert_to_tensor(shape))


def split(gradient: tf.IndexedSlices) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, Bags | None]:
    """Take a gradient apart: values and ids of the rows looked up; the weight of the penalty in the loss, a scalar of
    float64, or None if the loss is known not to contain it; and the bags that the values are from, where that is known.

    In a graph the parts are the inputs of the concatenation, if nothing was done to it, which then nobody computes.
    """
    rows, weights = [], []
    for values, indices in _parts(gradient.values, gradient.indices):
        if _origin(indices, _WEIGHT) is not None:
            upstream = getattr(values, _WEIGHT, None)
            weights.append(_weight(values) if upstream is None else tf.cast(upstream, tf.float64))
        elif _origin(indices, _ROWS) is not None:
            rows.append((values, indices))
        else:
            values, indices, weight = _partitioned(values, indices)
            rows.append((values, indices))
            weights += [] if weight is None else [weight]
    bags = getattr(rows[0][0], _BAGS, None) if len(rows) == 1 else None
    if not weights:
        return gradient.values, gradient.indices, None, bags
    if not rows:
        rows.append((gradient.values[:0], gradient.indices[:0]))
    values, indices = (parts[0] if len(parts) == 1 else tf.concat(parts, 0) for parts in zip(*rows, strict=True))
    return values, indices, weights[0] if len(weights) == 1 else tf.add_n(weights), bags


def _partitioned(values: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """What `split` returns, of a gradient of which nothing is known."""
    if tf.executing_eagerly():
        carry = np.asarray(indices) == INDEX
        count = int(carry.sum())
        if count == 0:
            return values, indices, None
        # A plain number: what else becomes a tensor calls back into Python, which a signal may interrupt there.
        weight = tf.constant(
            float(np.asarray(values)[carry, 0].astype(np.float64).sum()) / _unit(values.dtype), tf.float64
        )
        if carry[-count:].all():  # as they come of one sum of losses
            return values[:-count], indices[:-count], weight
        # Not of NumPy: TensorFlow ends the process where it finds no memory to copy a large array to.
        rows = tf.reshape(tf.where(indices != INDEX), [-1])
        return tf.gather(values, rows), tf.gather(indices, rows), weight
    if support.in_xla():  # where the number of rows is fixed: those that carry a weight stay, as zeros
        carry = (indices == INDEX)[:, None]
        nothing = tf.zeros_like(values)
        return tf.where(carry, nothing, values), indices, _weight(tf.where(carry, values, nothing))
    carry = tf.cast(indices == INDEX, tf.int32)
    (values, carried), (indices, _) = (tf.dynamic_partition(part, carry, 2) for part in (values, indices))
    return values, indices, _weight(carried)


def _parts(values: tf.Tensor, indices: tf.Tensor) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """What a gradient was concatenated from, where the graph tells."""
    sources = [_inputs_of_concat(tensor) for tensor in (values, indices)]
    if sources[0] and len(sources[0]) == len(sources[1]):
        for pair in zip(*sources, strict=True):
            yield from _parts(*pair)
    else:
        yield values, indices


def _inputs_of_concat(tensor: tf.Tensor) -> list[tf.Tensor]:
    if not tf.is_symbolic_tensor(tensor) or tensor.op.type != "ConcatV2":
        return []
    *inputs, axis = tensor.op.inputs
    return inputs if tf.get_static_value(axis) == 0 else []


def _origin(indices: tf.Tensor, mark: str) -> Any:
    """The mark of indices, which TensorFlow casts where it concatenates those of two dtypes."""
    if tf.is_symbolic_tensor(indices) and indices.op.type == "Cast":
        indices = indices.op.inputs[0]
    return getattr(indices, mark, None)


def _weight(carried: tf.Tensor) -> tf.Tensor:
    """The sum of the weights that rows carry."""
    return tf.reduce_sum(tf.cast(carried[:, 0], tf.float64)) / _unit(carried.dtype)


def _unit(dtype: tf.DType) -> float:
    """What a weight of one is as an element: so little that no norm or bound of a gradient notices it, where the dtype
    has such numbers.
    """
    return 1.0 if dtype == tf.float16 else 2.0**-64
