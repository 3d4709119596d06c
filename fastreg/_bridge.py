"""Which bridge serves a call, and how its tensors reach the kernels without a copy.

The bridges are `py_function` (the compiled kernels, through `tf.py_function` while tracing and directly when eager) and
`tensorflow` (the same formulas in TensorFlow's own ops).
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import fastreg_kernels
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.framework import ops
from tensorflow.python.saved_model import save_context

from fastreg import _buffers, _device

BRIDGES = ("auto", "py_function", "tensorflow")

GRAPH_CROSSOVER = 1 << 20
EAGER_CROSSOVER = 1
"""Elements from which the kernels are faster than TensorFlow's ops in spite of the fixed cost of reaching them.

Derived by `fastreg bench --suite crossover`, which prints both.
"""

GPU_CROSSOVER = 1 << 25
"""The same for tensors on a GPU. Estimated from bytes moved, not measured: `fastreg bench --device gpu` measures."""


@dataclass(frozen=True)
class Choice:
    """Which bridge serves a call, and why. `bridge` is `"dynamic"` where the size is known at run time only."""

    bridge: str
    reason: str


class _Settings:
    def __init__(self) -> None:
        self.bridge = _checked_bridge(os.environ.get("FASTREG_BRIDGE", "auto"), "environment variable FASTREG_BRIDGE")
        self.crossover: int | None = None


def _checked_bridge(name: Any, where: str) -> str:
    if name not in BRIDGES:
        expected = ", ".join(repr(bridge) for bridge in BRIDGES)
        raise ValueError(f"Invalid value for {where}: expected one of {expected}. Received: {name!r}")
    return str(name)


_settings = _Settings()


def set_bridge(name: str) -> None:
    """Choose how penalties are computed from now on; functions that are traced already stay as they are.

    Parameters
    ----------
    name : {"auto", "py_function", "tensorflow"}
        `"auto"`: the compiled kernels where they can run and are faster, TensorFlow's ops elsewhere.
        `"py_function"`: the kernels wherever they can run. `"tensorflow"`: never the kernels.

    Raises
    ------
    ValueError
        If there is no such bridge.
    """
    _settings.bridge = _checked_bridge(name, "argument name")


def get_bridge() -> str:
    """The bridge that was chosen: `"auto"`, `"py_function"` or `"tensorflow"`."""
    return _settings.bridge


def set_crossover(n: int | None) -> None:
    """Use the kernels from `n` elements on; `None` restores the sizes that were measured.

    Raises
    ------
    ValueError
        If n is not a non-negative integer or None.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0):
        raise ValueError(f"Invalid value for argument n: expected a non-negative integer or None. Received: n={n!r}")
    _settings.crossover = None if n is None else int(n)


def crossover(eager: bool, gpu: bool = False) -> int:
    """Elements from which `"auto"` uses the kernels."""
    if _settings.crossover is not None:
        return min(_settings.crossover, int(tf.int64.max))  # no tensor is larger, and graphs compare with it
    if gpu:
        return GPU_CROSSOVER
    return EAGER_CROSSOVER if eager else GRAPH_CROSSOVER


def choose(x: tf.Tensor) -> Choice:
    """Which bridge serves a penalty of `x` here and now."""
    least = crossover(tf.executing_eagerly(), _device.is_likely(x))
    choice = _choose(_obstacle(x), x.shape.num_elements(), least)
    if choice.bridge == "dynamic" and not tape_is_active():
        # Keras asks for the penalty of a layer's outputs in inference too, and drops it. TensorFlow then leaves its own
        # ops out, but not a callback, which converters to other formats refuse.
        choice = Choice("tensorflow", "of unknown size, and no gradient tape is recording")
    if choice.bridge == "tensorflow" and _settings.bridge == "py_function":
        _warn_once(choice.reason)
    statistics.count_choice(choice)
    return choice


def foresee(dtype: Any, size: int | None, eager: bool, xla: bool) -> Choice:
    """Which bridge would serve a tensor of this dtype and size on the host, eagerly or in a graph, for XLA or not."""
    return _choose(_dtype_obstacle(dtype) or (_XLA_OBSTACLE if xla else None), size, crossover(eager))


def _choose(obstacle: str | None, size: int | None, least: int) -> Choice:
    if _settings.bridge == "tensorflow":
        return Choice("tensorflow", "set_bridge")
    if obstacle is not None:
        return Choice("tensorflow", obstacle)
    if _settings.bridge == "py_function":
        return Choice("py_function", "set_bridge")
    if size is None:
        return Choice("dynamic", f"decided at run time: the kernels from {least:,} elements on")
    if size < least:
        return Choice("tensorflow", f"fewer than {least:,} elements")
    return Choice("py_function", f"{least:,} elements or more")


_XLA_OBSTACLE = "a callback cannot run in code that XLA compiles"


def _dtype_obstacle(dtype: Any) -> str | None:
    name = tf.as_dtype(dtype).name
    return None if name in fastreg_kernels.DTYPES else f"no kernel for {name}"


def in_xla() -> bool:
    """Whether what is being traced will be compiled by XLA, where a callback cannot run."""
    return tf.__internal__.get_enclosing_xla_context() is not None


def tape_is_active() -> bool:
    """Whether any gradient tape is recording."""
    return bool(record.could_possibly_record())


def local(x: tf.Tensor) -> tf.Tensor:
    """The same tensor, as one of the graph that is being traced.

    A gradient function that refers to a tensor of a graph further out cannot be traced inside of nested control flow.
    """
    return x if tf.executing_eagerly() else tf.identity(x)


def on_host(x: tf.Tensor) -> bool:
    """Whether this eager tensor is in the host's memory."""
    return "CPU" in x.device


def host_array(x: tf.Tensor) -> NDArray[Any]:
    """The memory of an eager tensor as a read-only array, without a copy."""
    # A 0-d bfloat16 tensor gives NumPy a scalar where it asks for an array.
    return np.asarray(x) if x.ndim else np.asarray(x.numpy(), x.dtype.as_numpy_dtype)


def empty(x: NDArray[Any]) -> NDArray[Any]:
    """A buffer like `x` that `tensor` can hand to TensorFlow."""
    return _buffers.pool.take(x.shape, x.dtype)


def tensor(buffer: NDArray[Any]) -> tf.Tensor:
    """A filled buffer as an eager tensor, without a copy; the buffer is free again once TensorFlow lets go of it."""
    if buffer.size == 0:
        return tf.zeros(buffer.shape, buffer.dtype)
    if buffer.dtype.name == "bfloat16":  # NumPy cannot name it in DLPack
        return tf.bitcast(tensor(buffer.view(np.uint16)), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())


def on_device(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of `_device` returns, or None where the CUDA kernels turn out not to be available.

    Raises
    ------
    fastreg._device.UnavailableError
        Then, if the bridge is set to `"py_function"`.
    """
    try:
        result = function(*arguments)
    except _device.UnavailableError as error:
        if _settings.bridge == "py_function":
            raise
        _warn_once(str(error))
        return None
    statistics.count_kernel_call()
    return result


def call(
    function: Callable[..., Any], inputs: Sequence[tf.Tensor], shapes: Sequence[Any], dtypes: Sequence[Any]
) -> Any:
    """Run `function` on eager tensors: now if executing eagerly, else when the graph that is being traced runs.

    An eager `tf.py_function` would keep its closure, and under a tape its tensors, for the life of the process.
    """
    if tf.executing_eagerly():
        return function(*inputs)
    with tf.device(inputs[0].device) if inputs[0].device else contextlib.nullcontext():  # a GPU's tensor stays on it
        outputs = tf.py_function(function, inputs, list(dtypes))
    # Gradients are registered by the callers. Without the stop, TensorFlow would build its own of the callback as well,
    # wherever it differentiates intermediate results, and would keep the callback's tensors for that.
    outputs = tuple(tf.stop_gradient(output) for output in outputs)
    for output, shape in zip(outputs, shapes, strict=True):
        output.set_shape(shape)
    return outputs


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `tf.custom_gradient` makes of a function of tensors, but with gradients that go when their graph goes.

    TensorFlow registers the gradient of each traced call by a name of its own, for good, and so keeps whatever it
    refers to: the graph and, by what the graph captures, the memory of every variable of the model. Here the graph
    keeps it.
    """
    with_gradient = tf.custom_gradient(function)

    def call(*inputs: tf.Tensor) -> Any:
        outputs = with_gradient(*inputs)
        if not tf.executing_eagerly():
            _hand_to_graph(tf.nest.flatten(outputs)[0].op)
        return outputs

    return call


def _hand_to_graph(op: tf.Operation) -> None:
    """Have the graph of an operation keep the operation's gradient, and the registry refer to it weakly."""
    registered = ops.gradient_registry._registry
    name = op.get_attr("_gradient_op_type").decode()
    gradient = registered[name]["type"]
    if not hasattr(op.graph, "_fastreg_gradients"):
        op.graph._fastreg_gradients = []
    op.graph._fastreg_gradients.append(gradient)
    registered[name]["type"] = weakref.proxy(gradient)
    weakref.finalize(gradient, registered.pop, name, None).atexit = False


class _Statistics:
    """What this process did, for `fastreg.info()`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.kernel_calls = 0
        self.choices: Counter[Choice] = Counter()

    def count_kernel_call(self) -> None:
        with self._lock:
            self.kernel_calls += 1

    def count_choice(self, choice: Choice) -> None:
        with self._lock:
            self.choices[choice] += 1


statistics = _Statistics()

_warned: set[str] = set()


def _warn_once(obstacle: str) -> None:
    if obstacle not in _warned:
        _warned.add(obstacle)
        although = " although the bridge is set to 'py_function'" if _settings.bridge == "py_function" else ""
        warnings.warn(f"fastreg uses TensorFlow's ops{although}: {obstacle}", RuntimeWarning, stacklevel=2)


def _obstacle(x: tf.Tensor) -> str | None:
    """Why the kernels cannot serve `x` here, or None."""
    obstacle = _dtype_obstacle(x.dtype)
    if obstacle is not None:
        return obstacle
    if in_xla():
        return _XLA_OBSTACLE
    if save_context.in_save_context():
        return "a callback cannot be saved with a model"
    if not tf.executing_eagerly() and forwardprop_util.pack_tangents([x]).tangents:
        return "a callback has no forward-mode derivative in a graph"
    if "TPU" in x.device:
        return "no kernel for this device"
    return _device.obstacle() if _device.is_likely(x) else None
