"""Tensors on a GPU: how they reach the CUDA kernels without a copy, and in order with what TensorFlow does there.

TensorFlow runs its ops on streams of its own, which Python cannot get and which no default stream waits for. So order
is made with the two things it offers:

- Exporting a tensor through DLPack waits until the GPU has done all that TensorFlow had asked of it. Outputs are
  therefore allocated first and every tensor is exported after that: then the inputs are there, and nothing reads or
  writes any more what the memory of the outputs held before.
- A tensor that is returned is taken to be ready. So the kernels run on a stream of our own, which is waited for.

All memory comes from TensorFlow: results, and the workspace of the sums.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from fastreg_kernels import _shared

from fastreg._bridges import counters
from fastreg._bridges.settings import settings, warn_once


class UnavailableError(RuntimeError):
    """The kernels cannot run on this GPU; nothing was launched."""


_lock = _shared.lock_for_forks(threading.Lock())
_failure: str | None = None
_failures = 0
_ATTEMPTS = 3
"""A GPU that is busy or full for a moment is tried again; after so many failures in a row it is not."""

_prepared: set[tuple[Any, ...]] = set()
"""What was compiled: dtype, terms and GPU."""


def obstacle() -> str | None:
    """Why the kernels cannot serve GPUs in this process, as far as is known, or None."""
    if importlib.util.find_spec("numba_cuda") is None:
        return "no kernel for GPUs without numba-cuda"
    return _failure


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of this module returns, or None where the CUDA kernels turn out not to be available.

    Raises
    ------
    UnavailableError
        Then, if the bridge is set to `"py_function"`.
    """
    try:
        result = function(*arguments)
    except UnavailableError as error:
        if settings.bridge == "py_function":
            raise
        warn_once(str(error))
        return None
    counters.count_kernel_call()
    return result


def value(x: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """The penalty of an eager tensor on a GPU: a scalar tensor there, of the dtype of x.

    Raises
    ------
    UnavailableError
        If the kernels cannot be had: no driver, another version of it, or they do not compile.
    fastreg_kernels.cuda.DeviceError
        If the driver fails later.
    """
    return _with_sums(x, l1, l2, None)[0]


def value_and_gradient(x: tf.Tensor, l1: float, l2: float, upstream: float) -> tuple[tf.Tensor, tf.Tensor]:
    """`value` and the gradient for an upstream gradient, in one read of x. Errors are those of `value`."""
    return _with_sums(x, l1, l2, upstream)


def gradient(x: tf.Tensor, upstream: tf.Tensor, l1: float, l2: float) -> tf.Tensor:
    """`upstream * (l1 * sign(x) + 2 * l2 * x)`; the kernel reads `upstream` on the GPU. Errors are those of `value`."""
    if x.shape.num_elements() == 0:
        return tf.zeros_like(x)
    with _current(x, l1, l2) as (launch, ordinal):
        with tf.device(x.device):
            scale, out = tf.identity(upstream), _empty(x.shape, x.dtype)
        source, target, factor = (_exported(tensor) for tensor in (x, out, scale))
        stream = _stream(ordinal)
        launch.gradient(source, target, l1, l2, factor.flat(), ordinal, stream)
        stream.synchronize()
    return out


def _with_sums(x: tf.Tensor, l1: float, l2: float, upstream: float | None) -> tuple[Any, Any]:
    if x.shape.num_elements() == 0:
        return tf.zeros((), x.dtype), tf.zeros_like(x)
    with _current(x, l1, l2) as (launch, ordinal):
        with tf.device(x.device):
            workspace, penalty = _empty([launch.workspace_size(ordinal)], tf.float64), _empty([], tf.float64)
            out = None if upstream is None else _empty(x.shape, x.dtype)
        source, space, total = (_exported(tensor) for tensor in (x, workspace, penalty))
        sums, stream = launch.Sums(space, total, l1, l2), _stream(ordinal)
        if out is None:
            launch.sums(source, sums, ordinal, stream)
        else:
            launch.both(source, sums, _exported(out), l1, l2, upstream, ordinal, stream)
        stream.synchronize()
    with tf.device(x.device):
        return tf.cast(penalty, x.dtype), out


def _empty(shape: Any, dtype: tf.DType) -> tf.Tensor:
    """Uninitialised memory of TensorFlow's."""
    return tf.raw_ops.Empty(shape=shape, dtype=dtype)


def _exported(x: tf.Tensor) -> Any:
    """The memory of a tensor, all that TensorFlow had to do on its GPU done."""
    from fastreg_kernels.cuda import arrays

    return arrays.of_capsule(tf.experimental.dlpack.to_dlpack(x), "x")


@contextlib.contextmanager
def _current(x: tf.Tensor, l1: float, l2: float) -> Iterator[tuple[Any, int]]:
    """Make the GPU of a tensor current, with kernels loaded: gives the module that launches them, and the GPU's number.

    What fails here before anything was launched leaves TensorFlow's ops to fall back to.
    """
    global _failures
    if _failure is not None:
        raise UnavailableError(_failure)
    with contextlib.ExitStack() as stack:
        try:
            from fastreg_kernels.cuda import devices, launch

            ordinal = devices.ordinal_of(_exported(x).address)
            stack.enter_context(devices.on(ordinal))
        except Exception as error:
            if _prepared:  # it worked before: this is no missing driver
                raise
            raise _unavailable(error) from error
        key = (x.dtype.name, l1 != 0.0, l2 != 0.0, ordinal)
        if key not in _prepared:
            with _lock:
                try:
                    launch.prepare(*key)
                except Exception as error:
                    raise _unavailable(error) from error
                _prepared.add(key)
        _failures = 0
        yield launch, ordinal


def _unavailable(error: Exception) -> UnavailableError:
    global _failure, _failures
    _failures += 1
    summary = " ".join(str(error).split())
    reason = f"the CUDA kernels cannot be used: {type(error).__name__}: {summary[:300]}"
    if _failures >= _ATTEMPTS or isinstance(error, ImportError):
        _failure = reason
    return UnavailableError(reason)


@functools.cache
def _stream(ordinal: int) -> Any:  # noqa: ARG001 - a stream belongs to the GPU that is current
    """Our stream on a GPU."""
    from numba import cuda

    return cuda.stream()
