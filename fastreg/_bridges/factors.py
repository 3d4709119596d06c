"""The factors of a penalty: Python numbers, or scalars that are known only when a step runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from fastreg._bridges import support


class Factors(NamedTuple):
    """Of sum(|x|) and of sum(x²): each a float, or a scalar tensor of a floating dtype."""

    l1: float | tf.Tensor
    l2: float | tf.Tensor

    @property
    def are_zero(self) -> bool:
        """Whether nothing is to be computed, whatever happens later."""
        return all(isinstance(factor, float) and factor == 0.0 for factor in self)

    @property
    def tensors(self) -> list[tf.Tensor]:
        """Those that are tensors, in order."""
        return [factor for factor in self if not isinstance(factor, float)]

    def with_tensors(self, tensors: Sequence[tf.Tensor]) -> Factors:
        """The same with other tensors in the place of its own."""
        remaining = iter(tensors)
        return Factors(*(factor if isinstance(factor, float) else next(remaining) for factor in self))

    def vector(self) -> tf.Tensor:
        """Both as a float64 tensor of shape (2,) on the host."""
        if not self.tensors:
            return _eager_vector(*self) if tf.executing_eagerly() else tf.constant(self, tf.float64)
        with support.on_host():
            return tf.stack([tf.cast(factor, tf.float64) for factor in self])

    def scalar(self, index: int, dtype: tf.DType, times: float = 1.0) -> tf.Tensor:
        """One of them, times a number, in another dtype."""
        factor = self[index]
        if isinstance(factor, float):
            return tf.constant(factor * times, dtype)
        return tf.cast(factor, dtype) * tf.constant(times, dtype)

    def has(self, index: int) -> bool:
        """Whether one of them is anything but the number zero, by which its term is skipped."""
        factor = self[index]
        return not isinstance(factor, float) or factor != 0.0


@functools.lru_cache(maxsize=1024)
def _eager_vector(l1: float, l2: float) -> tf.Tensor:
    with support.on_host():
        return tf.constant(np.array([l1, l2]))
