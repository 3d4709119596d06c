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
        If it is neither, or a variable or tensor that is no real scalar.
    """
    if not _is_source(value):
        return factor(value, name)
    if not _is_to_be_called(value):
        _require_real_scalar(value, name)
    return value


def called_factor(value: Any, name: str) -> Any:
    """A regularization factor: a Python float, or the variable or tensor that gives it; what can be called is called.

    Raises
    ------
    ValueError
        If it is a number that is not a factor, or no real scalar.
    """
    if _is_to_be_called(value):
        value = value()
    if not isinstance(value, _SOURCES):
        return factor(value, name)
    _require_real_scalar(value, name)
    return value


def current_factor(value: Any, name: str) -> Any:
    """A regularization factor here and now: a Python float, or a scalar tensor. Errors are those of `called_factor`."""
    value = called_factor(value, name)
    if isinstance(value, float):
        return value
    tensor = tf.convert_to_tensor(value)
    return tensor if tensor.dtype.is_floating else tf.cast(tensor, tf.float64)


def known_factor(value: Any, name: str) -> float:
    """A regularization factor as the Python float that it is now, for configurations.

    Raises
    ------
    ValueError
        If it is no factor, or a tensor of a graph, whose value is not known before that runs.
    """
    with tf.init_scope():  # a variable is read now, not when the function runs that is being traced
        current = current_factor(value, name)
        if isinstance(current, float):
            return current
        number = tf.get_static_value(current)
    if number is None:
        raise ValueError(
            f"Invalid value for argument {name}: a graph gives it when it runs. Received: {name}={value!r}"
        )
    return float(number)


_SOURCES = (tf.Variable, keras.Variable, tf.Tensor)


def _is_source(value: Any) -> bool:
    """Whether it gives a factor when a step runs."""
    return isinstance(value, _SOURCES) or callable(value)


def _is_to_be_called(value: Any) -> bool:
    return callable(value) and not isinstance(value, _SOURCES)


def _require_real_scalar(value: Any, name: str) -> None:
    shape, dtype = tf.TensorShape(value.shape), tf.as_dtype(value.dtype)
    if not shape.is_compatible_with(()) or not (dtype.is_floating or dtype.is_integer):
        raise ValueError(
            f"Invalid value for argument {name}: expected a real scalar. "
            f"Received: {name}={value!r} of shape {shape} and dtype {dtype.name}"
        )


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
