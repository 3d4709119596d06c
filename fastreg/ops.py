"""The penalty as a differentiable function of a tensor."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import fastreg_kernels
import keras
import numpy as np
import tensorflow as tf

from fastreg import _bridge, _buffers, _device, _validation


@tf.autograph.experimental.do_not_convert  # it would turn float() into a cast to float32
def l1_l2_penalty(x: Any, l1: float = 0.0, l2: float = 0.0) -> tf.Tensor:
    """Elastic-net penalty `l1 * sum(|x|) + l2 * sum(x²)`.

    Differentiable to any order, eagerly, in a `tf.function` and under XLA. Its gradient is
    `upstream * (l1 * sign(x) + 2 * l2 * x)` with sign(0) = 0, a dense tensor.

    Parameters
    ----------
    x : tensor, variable or array
        Any shape, of a floating dtype.
    l1, l2 : float
        Non-negative factors. If both are zero nothing is computed: the penalty is a constant, whose gradient is None.

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
    if bridge != "tensorflow" and isinstance(variable, (keras.Variable, tf.Variable)):
        _buffers.pool.clear_after(variable)
    kernels = _eager_kernels(l1, l2, x.shape, x.dtype) if tf.executing_eagerly() else _PenaltyKernels(l1, l2)
    # Where no tape records, no gradient will be asked for; elsewhere one may be, and one read of x can give both.
    may_differentiate = _bridge.tape_is_active()

    @_bridge.differentiable
    def penalty(x: tf.Tensor) -> Any:
        def by_kernels() -> Any:
            if may_differentiate:
                shapes, dtypes = [(), x.shape, ()], [x.dtype, x.dtype, tf.float64]
                return _bridge.call(kernels.value_and_gradient, [x], shapes, dtypes)
            return _bridge.call(kernels.value, [x], [()], [x.dtype])

        def by_ops() -> Any:
            value = _plain_value(x, l1, l2)
            # Both branches return the same, and where the size decides a tape records (`_bridge.choose`).
            return (value, x, _nothing()) if bridge == "dynamic" else (value,)

        value, *ahead = _on(bridge, x, by_kernels, by_ops)
        return value, lambda upstream: _gradient(bridge, kernels, x, upstream, ahead)

    return penalty(_bridge.local(x))


def _gradient(
    bridge: str, kernels: _PenaltyKernels, x: tf.Tensor, upstream: tf.Tensor, ahead: Sequence[tf.Tensor]
) -> Any:
    """The gradient of the penalty, itself differentiable; a callback alone would give zero for its derivatives."""
    l1, l2 = kernels.l1, kernels.l2

    @_bridge.differentiable
    def gradient(x: tf.Tensor, upstream: tf.Tensor) -> Any:
        def by_kernels() -> Any:
            return _bridge.call(kernels.gradient, [x, upstream, *ahead], [x.shape], [x.dtype])

        def by_ops() -> Any:
            return (_plain_gradient(x, upstream, l1, l2),)

        compiled = not tf.executing_eagerly() and _bridge.in_xla()  # by XLA, though the forward was not
        (result,) = _on("tensorflow" if compiled else bridge, x, by_kernels, by_ops)

        def second_order(v: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            direction = _plain_gradient(x, tf.ones((), x.dtype), l1, l2)
            return upstream * tf.constant(2.0 * l2, x.dtype) * v, tf.reduce_sum(v * direction)

        return result, second_order

    return gradient(_bridge.local(x), _bridge.local(upstream))


def _on(bridge: str, x: tf.Tensor, by_kernels: Callable[[], Any], by_ops: Callable[[], Any]) -> Any:
    """What the kernels or TensorFlow's ops return: which, is known now or depends on the size at run time."""
    if bridge == "dynamic":
        least = _bridge.crossover(eager=False, gpu=_device.is_likely(x))
        return tf.cond(tf.size(x, out_type=tf.int64) >= least, by_kernels, by_ops)
    return by_kernels() if bridge == "py_function" else by_ops()


class _PenaltyKernels:
    """The callbacks of one penalty in one traced function.

    In training, value and gradient are computed in one read of x: the forward writes the gradient as well, assuming the
    upstream gradient of the last two backwards, and the backward hands it over if it has the same. If not, it computes
    its own. Both come to the backward as tensors, so that concurrent runs cannot mix them up.
    """

    def __init__(self, l1: float, l2: float) -> None:
        self.l1, self.l2 = l1, l2
        self._upstreams = (math.nan, math.nan)  # of the last two gradients not computed ahead; NaN equals nothing

    def value(self, x: tf.Tensor) -> tuple[tf.Tensor]:
        """The penalty of x."""
        if not _bridge.on_host(x):
            penalty = _bridge.on_device(_device.value, x, self.l1, self.l2)
            return (_plain_value(x, self.l1, self.l2) if penalty is None else penalty,)
        sums = fastreg_kernels.forward(_bridge.host_array(x))
        _bridge.statistics.count_kernel_call()
        return (self._weighted(sums, x.dtype),)

    def value_and_gradient(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The penalty, a gradient computed ahead, and the upstream gradient that it assumes.

        Where nothing is computed ahead, x stands in for the gradient, since loops stack tensors of one shape only, and
        NaN for the upstream gradient.
        """
        before, last = self._upstreams
        if before != last:
            return *self.value(x), x, _nothing()
        if not _bridge.on_host(x):
            both = _bridge.on_device(_device.value_and_gradient, x, self.l1, self.l2, last)
            return (*self.value(x), x, _nothing()) if both is None else (*both, tf.constant(last, tf.float64))
        array = _bridge.host_array(x)
        sums, ahead = fastreg_kernels.forward_backward(array, self.l1, self.l2, last, out=_bridge.empty(array))
        _bridge.statistics.count_kernel_call()
        return self._weighted(sums, x.dtype), _bridge.tensor(ahead), tf.constant(last, tf.float64)

    def gradient(
        self, x: tf.Tensor, upstream: tf.Tensor, ahead: tf.Tensor | None = None, assumed: tf.Tensor | None = None
    ) -> tuple[tf.Tensor]:
        """The gradient of the penalty times the upstream gradient: what was computed ahead, if that was assumed."""
        scale = float(upstream)
        if assumed is not None and scale == float(assumed):
            return (ahead,)
        self._upstreams = (self._upstreams[1], scale)
        if not _bridge.on_host(x):
            slope = _bridge.on_device(_device.gradient, x, upstream, self.l1, self.l2)
            return (_plain_gradient(x, upstream, self.l1, self.l2) if slope is None else slope,)
        array = _bridge.host_array(x)
        result = fastreg_kernels.backward(array, self.l1, self.l2, scale, out=_bridge.empty(array))
        _bridge.statistics.count_kernel_call()
        return (_bridge.tensor(result),)

    def _weighted(self, sums: Any, dtype: tf.DType) -> tf.Tensor:
        value = 0.0
        if self.l1 != 0.0:
            value += self.l1 * float(sums[0])
        if self.l2 != 0.0:
            value += self.l2 * float(sums[1])
        # Beyond the range of the dtype the penalty is inf, as in TensorFlow.
        if dtype.size >= 4:
            return tf.constant(value, dtype)
        with np.errstate(over="ignore"):  # TensorFlow would round to float32 on the way to a half type
            return tf.constant(np.asarray(value).astype(dtype.as_numpy_dtype))


def _nothing() -> tf.Tensor:
    """In the place of an assumed upstream gradient: nothing was computed ahead. NaN equals no upstream gradient."""
    return tf.constant(math.nan, tf.float64)


@functools.lru_cache(maxsize=1024)
def _eager_kernels(l1: float, l2: float, shape: tf.TensorShape, dtype: tf.DType) -> _PenaltyKernels:  # noqa: ARG001
    """Without a traced function to belong to, callbacks belong to what is penalised; the key is all we know of that."""
    return _PenaltyKernels(l1, l2)


def _plain_value(x: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """The penalty in TensorFlow's ops."""
    terms = []
    if l1 != 0.0:
        terms.append(tf.constant(l1, x.dtype) * tf.reduce_sum(tf.abs(x)))
    # l2_loss is sum(x²) / 2 and writes no squares. Half types overflow where Keras's do.
    if l2 != 0.0 and x.dtype in (tf.float32, tf.float64):
        terms.append(tf.constant(2.0 * l2, x.dtype) * tf.nn.l2_loss(x))
    elif l2 != 0.0:
        terms.append(tf.constant(l2, x.dtype) * tf.reduce_sum(tf.square(x)))
    return functools.reduce(tf.add, terms)


def _plain_gradient(x: tf.Tensor, upstream: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """The gradient in TensorFlow's ops."""
    terms = []
    if l1 != 0.0:
        terms.append(upstream * tf.constant(l1, x.dtype) * tf.sign(x))
    if l2 != 0.0:
        terms.append(upstream * tf.constant(2.0 * l2, x.dtype) * x)
    return functools.reduce(tf.add, terms)
