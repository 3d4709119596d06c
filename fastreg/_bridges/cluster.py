"""Penalties that XLA compiles, each by itself, in programs that it does not compile: for GPUs.

TensorFlow's ops move 52 bytes of a float32 element for value and gradient, since each reads and writes all of x. A
cluster for the value, which reads x, and one for the gradient, which reads x and writes the result, move 12, without
Python in a step and without waiting for the GPU. One cluster for both would move 8 if it knew the upstream gradient,
which comes later: multiplied with that afterwards, its gradient would be read and written once more, 16 in all.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from fastreg_kernels import _arrays
from tensorflow.python.eager import context, record

from fastreg._bridges import plain, support, xla
from fastreg._bridges.factors import Factors

_found: list[str] = []


def obstacle() -> str | None:
    """Why XLA cannot serve in this process, as far as is known, or None."""
    return _found[0] if _found else None


def dtype_obstacle(dtype: Any) -> str | None:
    """Why penalties of a dtype cannot be compiled by XLA here, or None; the first call tries it."""
    name = tf.as_dtype(dtype).name
    return _attempt() if name in _arrays.STORED else f"no cluster for {name}"


@functools.cache
def _attempt() -> str | None:
    """What was wrong with a penalty of known numbers: whatever it is, other ways serve, and `info` says why."""
    place = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    factors = Factors(0.5, 0.25)
    try:
        with tf.init_scope(), tf.device(place):
            x = tf.constant([3.0, -2.0, 0.0])
            found = [float(_value(x, factors)), *_gradient(x, tf.constant(2.0), factors).numpy().tolist()]
        if found != [5.75, 4.0, -3.0, 0.0]:
            raise ArithmeticError(f"a penalty and its gradient were {found}")
    except Exception as error:
        _found.append(f"XLA cannot be used: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
    return obstacle()


def penalty(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty of x by clusters, differentiable to any order; beyond the first by TensorFlow's ops."""
    return plain.differentiated(x, factors, _value, _gradient)


def _value(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    return _call(_compiled(x.dtype, *map(factors.has, range(2)))[0], (x,), factors, ())


def _gradient(x: tf.Tensor, upstream: tf.Tensor, factors: Factors) -> tf.Tensor:
    if support.needs_derivable_gradient(upstream):
        return plain.gradient(x, upstream, factors)
    return _call(_compiled(x.dtype, *map(factors.has, range(2)))[1], (x, upstream), factors, x.shape)


def _call(cluster: Any, tensors: tuple[tf.Tensor, ...], factors: Factors, shape: Any) -> tf.Tensor:
    place = tensors[0].device
    # A tape would have the cluster return what its own gradient needs, and a graph differentiates what it finds.
    with record.stop_recording(), tf.device(place) if place else contextlib.nullcontext():
        result = tf.stop_gradient(cluster(*tensors, *(factors.scalar(index, tf.float64) for index in range(2))))
    result.set_shape(shape)
    return result


@functools.cache
def _compiled(dtype: tf.DType, has_l1: bool, has_l2: bool) -> tuple[Any, Any]:
    """The clusters of value and gradient with these terms. Factors are inputs, and shapes are left to XLA, which
    compiles for each that it meets: so there is one trace, of no graph's, for all weights of a dtype.
    """
    number = support.arithmetic_dtype(dtype)

    def local(*factors: tf.Tensor) -> Factors:
        return Factors(*(factor if has else 0.0 for factor, has in zip(factors, (has_l1, has_l2), strict=True)))

    def value(x: tf.Tensor, l1: tf.Tensor, l2: tf.Tensor) -> tf.Tensor:
        each = xla.terms(tf.cast(x, number), local(l1, l2))
        return tf.cast(tf.reduce_sum(tf.cast(each, tf.float64)), dtype)

    def gradient(x: tf.Tensor, upstream: tf.Tensor, l1: tf.Tensor, l2: tf.Tensor) -> tf.Tensor:
        scale = tf.cast(upstream, tf.float64)
        factors = local(scale * l1, scale * l2)
        return tf.cast(plain.gradient(tf.cast(x, number), tf.ones((), number), factors), dtype)

    def compiled(function: Any, *inputs: Any) -> Any:
        signature = [*inputs, *[tf.TensorSpec((), tf.float64)] * 2]
        return tf.function(function, signature, autograph=False, jit_compile=True).get_concrete_function()

    with tf.init_scope(), _no_debugger():
        x, upstream = tf.TensorSpec(None, dtype), tf.TensorSpec((), dtype)
        return compiled(value, x), compiled(gradient, x, upstream)


@contextlib.contextmanager
def _no_debugger() -> Iterator[None]:
    """Have TensorFlow's debuggers, as `enable_check_numerics`, add nothing to what is traced: XLA knows no such ops."""
    here = context.context()
    before, here.invoking_op_callbacks = here.invoking_op_callbacks, True
    try:
        yield
    finally:
        here.invoking_op_callbacks = before
