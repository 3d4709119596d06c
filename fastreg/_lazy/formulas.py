"""The shrink of rows that were not looked up for a while, on tensors.

A step with learning rate η shrinks every weight, `w ← sign(w) · max(0, a·|w| − b)`, with `a = 1 − 2·η·l2` and
`b = η·l1`. Zero is absorbing, so any number of such steps is one: with the running product `P = Π a` and the running
sum `S = Σ b / P` (P after that step), a weight that was last written when they were `P0` and `S0` now is

    sign(w) · max(0, (P / P0) · |w| − P · (S − S0))

Sources: Carpenter (2008), "Lazy sparse stochastic gradient descent for regularized multinomial logistic regression";
Lipton and Elkan (2015), "Efficient elastic net regularization for sparse linear models", arXiv:1505.06449.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

SMALLEST_PRODUCT = 1e-150
"""A table is flushed when P falls below: far from underflow, also of 1 / P."""

LARGEST_THRESHOLD = 64.0
"""A table is flushed when P · S, the shrink that a row not written since the last flush has to come, exceeds this. Its
rounding error is then about 1e-14, which is nothing beside weights of float32 and little beside those of float64."""

FRESH = (1.0, 0.0)
"""P and S after a flush."""


def factors(clock: tf.Tensor, stamps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Scale and threshold of rows: `P / P0` and `P · (S − S0)`.

    Parameters
    ----------
    clock : tf.Tensor of shape (2,), float64
        P and S now.
    stamps : tf.Tensor of shape (rows, 2), float64
        P0 and S0 of each row.

    Returns
    -------
    tuple of tf.Tensor
        Two of shape (rows, 1), float64.
    """
    return clock[0] / stamps[:, :1], clock[0] * (clock[1] - stamps[:, 1:])


def shrink(rows: tf.Tensor, scale: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """`sign(x) · max(0, scale · |x| − threshold)` in the dtype of `rows`, to which the factors are rounded.

    The same bits as the kernel `fastreg_kernels.shrink`, which flushes: a row reads the same before and after.
    """
    scaled = rows * tf.cast(scale, rows.dtype)
    bound = tf.cast(threshold, rows.dtype)
    # What lies within the threshold minus itself is +0; NaN stays NaN, infinity stays infinity.
    return scaled - tf.maximum(tf.minimum(scaled, bound), -bound)


def arithmetic_dtype(dtype: Any) -> tf.DType:
    """The dtype in which rows of this dtype are computed with: as the kernels, float32 for the half types."""
    dtype = tf.as_dtype(dtype)
    return tf.float32 if dtype.size < 4 else dtype
