"""The penalty as a differentiable function of a tensor."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from fastreg import _validation
from fastreg._bridges import buffers, choose
from fastreg._bridges.factors import Factors


@tf.autograph.experimental.do_not_convert  # it would turn float() into a cast to float32
def l1_l2_penalty(x: Any, l1: Any = 0.0, l2: Any = 0.0) -> tf.Tensor:
    """Elastic-net penalty `l1 * sum(|x|) + l2 * sum(x²)`.

    Differentiable to any order, eagerly, in a `tf.function` and under XLA. Its gradient is
    `upstream * (l1 * sign(x) + 2 * l2 * x)` with sign(0) = 0, a dense tensor.

    Parameters
    ----------
    x : tensor, variable or array
        Any shape, of a floating dtype.
    l1, l2 : float, variable, scalar tensor or callable
        Non-negative factors. A `keras.Variable`, `tf.Variable` or scalar tensor is read whenever the penalty is
        computed, so that it can change between the steps of one traced function; the penalty is differentiable with
        respect to it. A callable without arguments is called when the penalty is traced, and returns one of these or a
        number. Of numbers that are both zero nothing is computed: the penalty is a constant, whose gradient is None.

    Returns
    -------
    tf.Tensor
        Scalar, in the dtype of `x`. The kernels accumulate in float64 and round once; where TensorFlow's own ops serve
        (see `set_bridge`), they accumulate in the dtype of `x`.

    Raises
    ------
    TypeError
        If `x` is sparse or not floating.
    ValueError
        If a factor is a number that is negative or not finite, or something else that is no scalar.
    """
    factors = Factors(_validation.current_factor(l1, "l1"), _validation.current_factor(l2, "l2"))
    variable, x = x, _validation.floating_tensor(x)
    if factors.are_zero:
        return tf.zeros((), x.dtype)
    if isinstance(variable, (keras.Variable, tf.Variable)):
        buffers.clear_after(variable)
    return choose.penalty(x, factors)
