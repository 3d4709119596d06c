"""Checks of arguments, with errors worded as Keras words them."""

from __future__ import annotations

import math
from typing import Any

import keras
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


def factor_or_source(value: Any, name: str) -> Any:
    """A regularization factor: a Python float, or what gives one when a step runs, as it is.

    Raises
    ------
    ValueError
        If it is neither.
    """
    return value if _is_source(value) else factor(value, name)


def current_factor(value: Any, name: str) -> Any:
    """A regularization factor here and now: a Python float, or a scalar tensor.

    Raises
    ------
    ValueError
        If it is a number that is not a factor, or no real scalar.
    """
    if callable(value) and not isinstance(value, (tf.Variable, keras.Variable)):
        value = value()
    if not _is_source(value):
        return factor(value, name)
    tensor = tf.convert_to_tensor(value)
    if not tensor.shape.is_compatible_with(()) or not (tensor.dtype.is_floating or tensor.dtype.is_integer):
        raise ValueError(
            f"Invalid value for argument {name}: expected a real scalar. "
            f"Received: {name}={value!r} of shape {tensor.shape} and dtype {tensor.dtype.name}"
        )
    return tensor if tensor.dtype.is_floating else tf.cast(tensor, tf.float64)


def _is_source(value: Any) -> bool:
    """Whether it gives a factor when a step runs."""
    return isinstance(value, (tf.Variable, keras.Variable, tf.Tensor)) or callable(value)


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
