"""The penalty as a differentiable function of a tensor."""

from __future__ import annotations

import functools
import math
from typing import Any

import fastreg_kernels
import keras
import numpy as np
import tensorflow as tf

from fastreg import _bridge, _buffers, _device, _validation


def l1_l2_penalty(x: Any, l1: float = 0.0, l2: float = 0.0) -> tf.Tensor:
    """Elastic-net penalty `l1 * sum(|x|) + l2 * sum(x²)`.

    Differentiable to any order, eagerly, in a `tf.function` and under XLA. Its gradient is
    `upstream * (l1 * sign(x) + 2 * l2 * x)` with sign(0) = 0, a dense tensor.

    Parameters
    ----------
    x : tensor, variable or array
        Any shape, of a floating dtype.
    l1, l2 : float
        Non-negative factors. If both are zero nothing is computed.

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
        If a factor is negative or not finite.
    """
    l1, l2 = _validation.factor(l1, "l1"), _validation.factor(l2, "l2")
    variable, x = x, _validation.floating_tensor(x)
    if l1 == 0.0 and l2 == 0.0:
        return tf.zeros((), x.dtype)
    bridge = _bridge.choose(x).bridge
    if bridge == "tensorflow":
        return _plain_value(x, l1, l2)
    if isinstance(variable, (keras.Variable, tf.Variable)):
        _buffers.pool.clear_after(variable)
    if bridge == "py_function":
        return _kernel_penalty(x, l1, l2)
    return tf.cond(
        tf.size(x, out_type=tf.int64) >= _bridge.crossover(eager=False, gpu=_device.is_likely(x)),
        lambda: _kernel_penalty(x, l1, l2),
        lambda: _plain_value(x, l1, l2),
    )


def _kernel_penalty(x: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """The penalty by the compiled kernels, registered with its gradient."""
    kernels = _eager_kernels(l1, l2, x.shape, x.dtype) if tf.executing_eagerly() else _PenaltyKernels(l1, l2)
    # Where no tape records, no gradient will be asked for; elsewhere one may be, and one read of x can give both.
    may_differentiate = _bridge.tape_is_active()

    @tf.custom_gradient
    def penalty(x: tf.Tensor) -> Any:
        if may_differentiate:
            value, ahead, assumed = _bridge.call(
                kernels.value_and_gradient, [x], [(), None, ()], [x.dtype, x.dtype, tf.float64]
            )
        else:
            (value,) = _bridge.call(kernels.value, [x], [()], [x.dtype])
            ahead = assumed = None

        def gradient_of_penalty(upstream: tf.Tensor) -> tf.Tensor:
            if not tf.executing_eagerly() and _bridge.in_xla():
                return _plain_gradient(x, upstream, l1, l2)
            return gradient(x, upstream, ahead, assumed)

        return value, gradient_of_penalty

    def gradient(x: tf.Tensor, upstream: tf.Tensor, ahead: tf.Tensor | None, assumed: tf.Tensor | None) -> tf.Tensor:
        @tf.custom_gradient
        def differentiable(x: tf.Tensor, upstream: tf.Tensor) -> Any:
            def computed() -> tf.Tensor:
                return _bridge.call(kernels.gradient, [x, upstream], [x.shape], [x.dtype])[0]

            def second_order(v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                direction = _plain_gradient(x, tf.ones((), x.dtype), l1, l2)
                return upstream * tf.cast(2.0 * l2, x.dtype) * v, tf.reduce_sum(v * direction)

            if ahead is None:
                return computed(), second_order
            as_assumed = tf.cast(upstream, tf.float64) == assumed
            if tf.executing_eagerly():
                return ahead if as_assumed else computed(), second_order
            result = tf.cond(as_assumed, lambda: ahead, computed)
            result.set_shape(x.shape)  # that of `ahead` is unknown: it is empty where nothing was computed ahead
            return result, second_order

        return differentiable(x, upstream)

    return penalty(x)


class _PenaltyKernels:
    """The callbacks of one penalty in one traced function.

    In training, value and gradient are computed in one read of x: the forward writes the gradient as well, assuming the
    upstream gradient of the last two backwards, and the backward hands it over if it has the same. If not, it computes
    its own. Both come to the backward as tensors, so that concurrent runs cannot mix them up.
    """

    def __init__(self, l1: float, l2: float) -> None:
        self._l1, self._l2 = l1, l2
        self._upstreams = (math.nan, math.nan)  # of the last two gradients not computed ahead; NaN equals nothing

    def value(self, x: tf.Tensor) -> tuple[tf.Tensor]:
        if not _bridge.on_host(x):
            penalty = _bridge.on_device(_device.value, x, self._l1, self._l2)
            return (_plain_value(x, self._l1, self._l2) if penalty is None else penalty,)
        sums = fastreg_kernels.forward(_bridge.host_array(x))
        _bridge.statistics.count_kernel_call()
        return (self._weighted(sums, x.dtype),)

    def value_and_gradient(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        before, last = self._upstreams
        nothing = tf.zeros(0, x.dtype), tf.constant(math.nan, tf.float64)
        if before != last:
            return *self.value(x), *nothing
        if not _bridge.on_host(x):
            both = _bridge.on_device(_device.value_and_gradient, x, self._l1, self._l2, last)
            return (*self.value(x), *nothing) if both is None else (*both, tf.constant(last, tf.float64))
        array = _bridge.host_array(x)
        sums, ahead = fastreg_kernels.forward_backward(array, self._l1, self._l2, last, out=_bridge.empty(array))
        _bridge.statistics.count_kernel_call()
        return self._weighted(sums, x.dtype), _bridge.tensor(ahead), tf.constant(last, tf.float64)

    def gradient(self, x: tf.Tensor, upstream: tf.Tensor) -> tuple[tf.Tensor]:
        if not _bridge.on_host(x):
            # Before the host asks what `upstream` is: the kernel need not wait for that.
            slope = _bridge.on_device(_device.gradient, x, upstream, self._l1, self._l2)
            self._upstreams = (self._upstreams[1], float(upstream))
            return (_plain_gradient(x, upstream, self._l1, self._l2) if slope is None else slope,)
        scale = float(upstream)
        self._upstreams = (self._upstreams[1], scale)
        array = _bridge.host_array(x)
        result = fastreg_kernels.backward(array, self._l1, self._l2, scale, out=_bridge.empty(array))
        _bridge.statistics.count_kernel_call()
        return (_bridge.tensor(result),)

    def _weighted(self, sums: Any, dtype: tf.DType) -> tf.Tensor:
        value = 0.0
        if self._l1 != 0.0:
            value += self._l1 * sums[0]
        if self._l2 != 0.0:
            value += self._l2 * sums[1]
        with np.errstate(over="ignore"):  # beyond the range of the dtype the penalty is inf, as in TensorFlow
            return tf.constant(np.asarray(value).astype(dtype.as_numpy_dtype))


@functools.lru_cache(maxsize=1024)
def _eager_kernels(l1: float, l2: float, shape: tf.TensorShape, dtype: tf.DType) -> _PenaltyKernels:  # noqa: ARG001
    """Without a traced function to belong to, callbacks belong to what is penalised; the key is all we know of that."""
    return _PenaltyKernels(l1, l2)


def _plain_value(x: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """The penalty in TensorFlow's ops, as Keras writes it."""
    terms = []
    if l1 != 0.0:
        terms.append(tf.cast(l1, x.dtype) * tf.reduce_sum(tf.abs(x)))
    if l2 != 0.0:
        terms.append(tf.cast(l2, x.dtype) * tf.reduce_sum(tf.square(x)))
    return functools.reduce(tf.add, terms)


def _plain_gradient(x: tf.Tensor, upstream: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """The gradient in TensorFlow's ops."""
    terms = []
    if l1 != 0.0:
        terms.append(upstream * tf.cast(l1, x.dtype) * tf.sign(x))
    if l2 != 0.0:
        terms.append(upstream * tf.cast(2.0 * l2, x.dtype) * x)
    return functools.reduce(tf.add, terms)
