"""Checks of arguments, with errors worded as Keras words them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf


def factor(value: Any, name: str) -> float:
    """A regularization factor as a Python float.

    Accepts what Keras accepts (int, bool, float) and NumPy real scalars.

    Raises
    ------
    ValueError
        If it is not a non-negative, finite real number.
    """
    real = isinstance(value, (float, int, np.floating, np.integer, np.bool_))
    if not real or not math.isfinite(value) or value < 0:
        raise ValueError(
            f"Invalid value for argument {name}: expected a non-negative float. Received: {name}={value!r}"
        )
    return float(value)


def floating_tensor(x: Any) -> tf.Tensor:
    """The values to penalise as a dense tensor of a floating dtype.

    A Keras or TensorFlow variable gives its value, a ragged tensor its flat values, `tf.IndexedSlices` the dense tensor
    that they stand for.

    Raises
    ------
    TypeError
        If x is sparse or not of a real floating dtype.
    """
    if isinstance(x, tf.SparseTensor):
        raise TypeError("Invalid type for argument x: expected a dense tensor. Received: a SparseTensor")
    if isinstance(x, tf.RaggedTensor):
        x = x.flat_values
    tensor = tf.convert_to_tensor(x)
    if not tensor.dtype.is_floating:
        raise TypeError(f"Invalid dtype for argument x: expected a floating dtype. Received: {tensor.dtype.name}")
    return tensor
