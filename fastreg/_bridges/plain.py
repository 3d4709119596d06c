"""Penalties in TensorFlow's own ops: what serves where no kernel can, and the formulas that all bridges share.

The gradients are written out. TensorFlow's own gradient of a sum first writes the upstream gradient out to the size of
x, and goes over x once more for each factor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import tensorflow as tf

from fastreg._bridges import saving, support, xla
from fastreg._bridges.custom_gradient import differentiable
from fastreg._bridges.factors import Factors


def penalty(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty, differentiable to any order: with respect to x and to factors that are tensors."""
    if saving.is_saving():  # a file need not keep gradients that are written out
        return value(x, factors)
    if _for_xla(x):
        x = xla.read_once(x)
    return differentiated(x, factors, value, gradient)


def differentiated(
    x: tf.Tensor, factors: Factors, value: Callable[..., tf.Tensor], gradient: Callable[..., tf.Tensor]
) -> tf.Tensor:
    """The penalty by functions that compute `value` and `gradient`, as those of this module do, with derivatives."""

    @differentiable
    def penalty(x: tf.Tensor, *tensors: tf.Tensor) -> Any:
        local = factors.with_tensors(tensors)
        total = value(x, local)

        def backward(upstream: tf.Tensor) -> Any:
            if _for_xla(x) and not support.is_likely_on_gpu(x):
                # An update in place can follow only what has read x, which GPUs do in the same loop.
                upstream = xla.after(upstream, total)
            return (_slope(x, upstream, local, gradient), *of_factors(x, upstream, tensors, local))

        return total, backward

    return penalty(x, *factors.tensors)


def _slope(x: tf.Tensor, upstream: tf.Tensor, factors: Factors, gradient: Callable[..., tf.Tensor]) -> tf.Tensor:
    """The gradient with respect to x, itself with a gradient that is written out."""

    @differentiable
    def slope(x: tf.Tensor, upstream: tf.Tensor, *tensors: tf.Tensor) -> Any:
        local = factors.with_tensors(tensors)

        def backward(v: tf.Tensor) -> Any:
            return (*second_order(x, upstream, v, local), *of_factors_of_gradient(x, upstream, v, tensors, local))

        return gradient(x, upstream, local), backward

    return slope(x, upstream, *factors.tensors)


def value(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """`l1 * sum(|x|) + l2 * sum(x²)`."""
    if _for_xla(x):
        return xla.value(x, factors)
    terms = []
    if factors.has(0):
        terms.append(factors.scalar(0, x.dtype) * tf.reduce_sum(tf.abs(x)))
    # l2_loss is sum(x²) / 2 and writes no squares. Half types overflow where Keras's do.
    if factors.has(1) and x.dtype in (tf.float32, tf.float64):
        terms.append(factors.scalar(1, x.dtype, 2.0) * tf.nn.l2_loss(x))
    elif factors.has(1):
        terms.append(factors.scalar(1, x.dtype) * tf.reduce_sum(tf.square(x)))
    return reduce(tf.add, terms)


def gradient(x: tf.Tensor, upstream: tf.Tensor, factors: Factors) -> tf.Tensor:
    """`upstream * (l1 * sign(x) + 2 * l2 * x)`, with the factors multiplied as scalars."""
    terms = []
    if factors.has(0):
        terms.append(upstream * factors.scalar(0, x.dtype) * tf.sign(x))
    if factors.has(1):
        terms.append(upstream * factors.scalar(1, x.dtype, 2.0) * x)
    return reduce(tf.add, terms)


def second_order(x: tf.Tensor, upstream: tf.Tensor, v: tf.Tensor, factors: Factors) -> tuple[tf.Tensor, tf.Tensor]:
    """The derivatives of `sum(v * gradient)` with respect to x and to the upstream gradient."""
    direction = gradient(x, tf.ones((), x.dtype), factors)
    of_x = upstream * factors.scalar(1, x.dtype, 2.0) * v if factors.has(1) else tf.zeros_like(x)
    return of_x, tf.reduce_sum(v * direction)


def of_factors(x: tf.Tensor, upstream: tf.Tensor, tensors: Sequence[tf.Tensor], factors: Factors) -> list[tf.Tensor]:
    """The derivatives of the penalty with respect to factors that are tensors: the sums."""
    sums = (partial(tf.abs, x), partial(tf.square, x))
    wanted = [tf.reduce_sum(of()) for factor, of in zip(factors, sums, strict=True) if not isinstance(factor, float)]
    return [tf.cast(upstream * total, tensor.dtype) for total, tensor in zip(wanted, tensors, strict=True)]


def of_factors_of_gradient(
    x: tf.Tensor, upstream: tf.Tensor, v: tf.Tensor, tensors: Sequence[tf.Tensor], factors: Factors
) -> list[tf.Tensor]:
    """The derivatives of `sum(v * gradient)` with respect to factors that are tensors."""
    sums = (partial(tf.sign, x), partial(tf.multiply, x, 2.0))
    wanted = [of() for factor, of in zip(factors, sums, strict=True) if not isinstance(factor, float)]
    return [tf.cast(upstream * tf.reduce_sum(v * w), t.dtype) for w, t in zip(wanted, tensors, strict=True)]


def _for_xla(x: tf.Tensor) -> bool:
    """Whether XLA compiles this, but not in forward mode, which differentiates ops one by one: barriers have none."""
    return support.in_xla() and not support.has_tangents(x)
