"""How tensors reach the kernels in Python, and results TensorFlow, without a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fastreg._bridges import saving


def on_host(x: tf.Tensor) -> bool:
    """Whether this eager tensor is in the host's memory."""
    return "CPU" in x.device


def host_array(x: tf.Tensor) -> NDArray[Any]:
    """The memory of an eager tensor as a read-only array, without a copy."""
    # A 0-d bfloat16 tensor gives NumPy a scalar where it asks for an array.
    return np.asarray(x) if x.ndim else np.asarray(x.numpy(), x.dtype.as_numpy_dtype)


def tensor(buffer: NDArray[Any]) -> tf.Tensor:
    """A filled buffer as an eager tensor, without a copy; the buffer is free again once TensorFlow lets go of it."""
    if buffer.size == 0:
        return tf.zeros(buffer.shape, buffer.dtype)
    if buffer.dtype.name == "bfloat16":  # NumPy cannot name it in DLPack
        return tf.bitcast(tensor(buffer.view(np.uint16)), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())


def call(
    function: Callable[..., Any], inputs: Sequence[tf.Tensor], shapes: Sequence[Any], dtypes: Sequence[Any]
) -> Any:
    """Run `function` on eager tensors: now if executing eagerly, else when the graph that is being traced runs.

    An eager `tf.py_function` would keep its closure, and under a tape its tensors, for the life of the process.
    """
    if tf.executing_eagerly():
        return function(*inputs)
    saving.keep_from_files("callbacks into Python")
    with tf.device(inputs[0].device) if inputs[0].device else contextlib.nullcontext():  # a GPU's tensor stays on it
        outputs = tf.py_function(function, inputs, list(dtypes))
    # Gradients are registered by the callers. Without the stop, TensorFlow would build its own of the callback as well,
    # wherever it differentiates intermediate results, and would keep the callback's tensors for that.
    outputs = tuple(tf.stop_gradient(output) for output in outputs)
    for output, shape in zip(outputs, shapes, strict=True):
        output.set_shape(shape)
    return outputs
