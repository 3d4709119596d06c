"""Penalties in code that XLA compiles: of one sum, which XLA puts into one loop over x with the gradient and what an
optimizer does with that.

Two sums, of |x| and of x², would be two loops: XLA does not put sums of different terms into one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from fastreg._bridges import support
from fastreg._bridges.custom_gradient import differentiable
from fastreg._bridges.factors import Factors

_SIDE = 32
BLOCK = _SIDE * _SIDE
"""Elements that are added up in the dtype of the arithmetic; their sums in float64. One sum over all elements is off by
1e-3 at 2^26 on processors, where XLA adds one after another.

A block is a square: on processors XLA splits sums over a dimension of more than 32, and then writes the terms out, as
many as x has elements, before it adds them up."""


@differentiable
def read_once(x: tf.Tensor) -> Any:
    """The same tensor, of which XLA does not look behind: what uses this one reads x in one place.

    Where XLA sees that a variable is also looked up by rows, for the loss, it puts that after the update, and then
    needs a copy of the whole variable.
    """
    return _barrier(x), lambda upstream: upstream


def value(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """`sum(l1 * |x| + l2 * x²)`, with half types computed in float32."""
    wide = tf.cast(x, support.arithmetic_dtype(x.dtype))
    return tf.cast(total(wide, lambda part: terms(part, factors)), x.dtype)


def total(x: tf.Tensor, of: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """`sum(of(x))` in float64, of a function of each element; blocks are added up in the dtype that it returns."""
    flat = tf.reshape(x, [-1])
    size = tf.size(flat, out_type=tf.int64)
    whole = size - size % BLOCK
    sums = tf.reduce_sum(of(tf.reshape(flat[:whole], [-1, _SIDE, _SIDE])), axis=[1, 2])
    sums = tf.concat([sums, of(flat[whole:])], 0)
    # The barrier keeps XLA from making one sum of both.
    return tf.reduce_sum(tf.cast(_barrier(sums), tf.float64))


def after(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
    """The same tensor, computed when the others have been.

    What XLA writes in place it would copy first if it did not know that all that reads it has been computed. Barriers
    are gone when it decides that: a square below -1, which it does not know to be impossible, is not.
    """
    for other in others:
        impossible = tf.square(tf.cast(tf.reshape(other, [-1])[:1], tf.float64)) < -1.0
        x += tf.cast(tf.reduce_any(impossible), x.dtype)
    return x


def terms(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """`l1 * |x| + l2 * x²` of each element."""
    found = []
    if factors.has(0):
        found.append(factors.scalar(0, x.dtype) * tf.abs(x))
    if factors.has(1):
        found.append(factors.scalar(1, x.dtype) * tf.square(x))
    return reduce(tf.add, found)


def _barrier(x: tf.Tensor) -> tf.Tensor:
    (same,) = gen_xla_ops.xla_optimization_barrier([x])
    return same
