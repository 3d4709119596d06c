"""Penalties by the kernels in callbacks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import fastreg_kernels
import numpy as np
import tensorflow as tf

from fastreg._bridges import buffers, counters, plain, support
from fastreg._bridges.callback import device
from fastreg._bridges.callback.exchange import call, host_array, on_host, tensor
from fastreg._bridges.custom_gradient import differentiable
from fastreg._bridges.factors import Factors


def penalty(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty of x by callbacks, differentiable to any order.

    A callback alone would give zero for its derivatives: gradients of both orders are written out.
    """
    kernels = _eager_kernels(factors, x.shape, x.dtype) if tf.executing_eagerly() else _PenaltyKernels()
    # Where no tape records, no gradient will be asked for; elsewhere one may be, and one read of x can give both.
    may_differentiate = support.tape_is_active()

    @differentiable
    def penalty(x: tf.Tensor, vector: tf.Tensor, *tensors: tf.Tensor) -> Any:
        if may_differentiate:
            shapes, dtypes = [(), x.shape, (2,)], [x.dtype, x.dtype, tf.float64]
            value, *ahead = call(kernels.value_and_gradient, [x, vector], shapes, dtypes)
        else:
            (value,), ahead = call(kernels.value, [x, vector], [()], [x.dtype]), []
        local = factors.with_tensors(tensors)

        def backward(upstream: tf.Tensor) -> Any:
            slope = _gradient(kernels, x, upstream, vector, local, ahead)
            return slope, None, *plain.of_factors(x, upstream, tensors, local)

        return value, backward

    return penalty(x, tf.stop_gradient(factors.vector()), *factors.tensors)


def _gradient(
    kernels: _PenaltyKernels,
    x: tf.Tensor,
    upstream: tf.Tensor,
    vector: tf.Tensor,
    factors: Factors,
    ahead: Sequence[tf.Tensor],
) -> tf.Tensor:
    @differentiable
    def slope(x: tf.Tensor, upstream: tf.Tensor, vector: tf.Tensor, *tensors: tf.Tensor) -> Any:
        local = factors.with_tensors(tensors)
        if support.needs_derivable_gradient(upstream):
            result = plain.gradient(x, upstream, local)
        else:
            (result,) = call(kernels.gradient, [x, upstream, vector, *ahead], [x.shape], [x.dtype])

        def backward(v: tf.Tensor) -> Any:
            of_x, of_upstream = plain.second_order(x, upstream, v, local)
            return of_x, of_upstream, None, *plain.of_factors_of_gradient(x, upstream, v, tensors, local)

        return result, backward

    return slope(x, upstream, vector, *factors.tensors)


class _PenaltyKernels:
    """The callbacks of one penalty in one traced function.

    In training, value and gradient are computed in one read of x: the forward writes the gradient as well, assuming the
    upstream gradient of the last two backwards, and the backward hands it over if it has the same. If not, it computes
    its own. Both come to the backward as tensors, so that concurrent runs cannot mix them up.
    """

    def __init__(self) -> None:
        self._upstreams = (math.nan, math.nan)  # of the last two gradients not computed ahead; NaN equals nothing

    def value(self, x: tf.Tensor, vector: tf.Tensor) -> tuple[tf.Tensor]:
        """The penalty of x."""
        l1, l2 = map(float, vector.numpy())
        if not on_host(x):
            penalty = device.attempt(device.value, x, l1, l2)
            return (plain.value(x, Factors(l1, l2)) if penalty is None else penalty,)
        sums = fastreg_kernels.forward(host_array(x))
        counters.count_kernel_call()
        return (_weighted(sums, l1, l2, x.dtype),)

    def value_and_gradient(self, x: tf.Tensor, vector: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The penalty, a gradient computed ahead, and two numbers: whether it was, and for which upstream gradient.

        Where nothing is computed ahead, x stands in for the gradient, since loops stack tensors of one shape only.
        """
        before, last = self._upstreams
        if before != last:
            return *self.value(x, vector), x, _nothing()
        l1, l2 = map(float, vector.numpy())
        if not on_host(x):
            both = device.attempt(device.value_and_gradient, x, l1, l2, last)
            return (*self.value(x, vector), x, _nothing()) if both is None else (*both, _assumed(last))
        array = host_array(x)
        sums, ahead = fastreg_kernels.forward_backward(array, l1, l2, last, out=buffers.array(array.shape, array.dtype))
        counters.count_kernel_call()
        return _weighted(sums, l1, l2, x.dtype), tensor(ahead), _assumed(last)

    def gradient(
        self,
        x: tf.Tensor,
        upstream: tf.Tensor,
        vector: tf.Tensor,
        ahead: tf.Tensor | None = None,
        assumed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor]:
        """The gradient of the penalty times the upstream gradient: what was computed ahead, if that was assumed."""
        scale = float(upstream)
        if assumed is not None and tuple(assumed.numpy()) == (1.0, scale):
            return (ahead,)
        self._upstreams = (self._upstreams[1], scale)
        l1, l2 = map(float, vector.numpy())
        if not on_host(x):
            slope = device.attempt(device.gradient, x, upstream, l1, l2)
            return (plain.gradient(x, upstream, Factors(l1, l2)) if slope is None else slope,)
        array = host_array(x)
        result = fastreg_kernels.backward(array, l1, l2, scale, out=buffers.array(array.shape, array.dtype))
        counters.count_kernel_call()
        return (tensor(result),)


def _weighted(sums: Any, l1: float, l2: float, dtype: tf.DType) -> tf.Tensor:
    value = 0.0
    if l1 != 0.0:
        value += l1 * float(sums[0])
    if l2 != 0.0:
        value += l2 * float(sums[1])
    # Beyond the range of the dtype the penalty is inf, as in TensorFlow.
    if dtype.size >= 4:
        return tf.constant(value, dtype)
    with np.errstate(over="ignore"):  # TensorFlow would round to float32 on the way to a half type
        return tf.constant(np.asarray(value).astype(dtype.as_numpy_dtype))


def _assumed(upstream: float) -> tf.Tensor:
    return tf.constant([1.0, upstream], tf.float64)


def _nothing() -> tf.Tensor:
    """In the place of an assumed upstream gradient: nothing was computed ahead."""
    return tf.zeros(2, tf.float64)


@functools.lru_cache(maxsize=1024)
def _eager_kernels_of(key: Any, shape: tf.TensorShape, dtype: tf.DType) -> _PenaltyKernels:  # noqa: ARG001
    return _PenaltyKernels()


def _eager_kernels(factors: Factors, shape: tf.TensorShape, dtype: tf.DType) -> _PenaltyKernels:
    """Without a traced function to belong to, callbacks belong to what is penalised; the key is all we know of that."""
    return _eager_kernels_of(tuple(f for f in factors if isinstance(f, float)), shape, dtype)
