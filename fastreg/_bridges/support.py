"""What a call may have around it that decides which bridge can serve: XLA, tapes, devices."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import fastreg_kernels
import numpy as np
import tensorflow as tf
from fastreg_kernels import _arrays
from tensorflow.python.eager import forwardprop_util, record


def in_xla() -> bool:
    """Whether what is being traced will be compiled by XLA, where neither a callback nor a native op can run."""
    return not tf.executing_eagerly() and tf.__internal__.get_enclosing_xla_context() is not None


def tape_is_active() -> bool:
    """Whether any gradient tape is recording."""
    return bool(record.could_possibly_record())


def is_on_parameter_servers() -> bool:
    """Whether what is being traced runs in other processes, which need not have imported fastreg."""
    return isinstance(tf.distribute.get_strategy(), tf.distribute.ParameterServerStrategy)


def distribution() -> str | None:
    """The name of the strategy around a call, if it is one of several devices or processes, or None."""
    strategy = tf.distribute.get_strategy()
    is_one = not tf.distribute.has_strategy() or isinstance(strategy, tf.distribute.OneDeviceStrategy)
    return None if is_one else type(strategy).__name__


def has_tangents(x: tf.Tensor) -> bool:
    """Whether forward-mode differentiation goes through x."""
    return bool(forwardprop_util.pack_tangents([x]).tangents)


def needs_derivable_gradient(upstream: tf.Tensor) -> bool:
    """Whether a gradient has to be TensorFlow's ops though its forward was not: it alone is compiled, or the upstream
    gradient has tangents, which x had not.
    """
    return not tf.executing_eagerly() and (in_xla() or has_tangents(upstream))


@functools.cache
def has_gpu() -> bool:
    """Whether this machine has a GPU that TensorFlow knows, visible or not."""
    return bool(tf.config.list_physical_devices("GPU"))


def on_host() -> contextlib.AbstractContextManager[Any]:
    """Have ops run on the host: nothing to say where there is nowhere else."""
    return tf.device("CPU:0") if has_gpu() else contextlib.nullcontext()


def beside(variable: tf.Variable) -> contextlib.AbstractContextManager[Any]:
    """Have ops run where a variable is: nothing to say where there is one place, or where XLA compiles for one."""
    return tf.device(variable.device) if has_gpu() and not in_xla() else contextlib.nullcontext()


def is_likely_on_gpu(x: tf.Tensor) -> bool:
    """Whether a tensor is on a GPU, or will be: what is not placed yet, TensorFlow places there if there is one."""
    if x.device:
        return "GPU" in x.device
    return has_gpu() and bool(tf.config.get_visible_devices("GPU"))


def arithmetic_dtype(dtype: Any) -> tf.DType:
    """The dtype in which elements of this dtype are computed with: as the kernels, float32 for the half types."""
    return tf.as_dtype(_arrays.arithmetic_dtype(np.dtype(tf.as_dtype(dtype).as_numpy_dtype)))


def dtype_obstacle(dtype: Any) -> str | None:
    """Why there is no kernel for a dtype, or None."""
    name = tf.as_dtype(dtype).name
    return None if name in fastreg_kernels.DTYPES else f"no kernel for {name}"
