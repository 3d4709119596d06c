"""Which bridge serves a call: one table, of what each can do and from which size on it is worth it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from fastreg._bridges import callback, cluster, counters, native, plain, saving, support
from fastreg._bridges.callback import device
from fastreg._bridges.counters import Choice
from fastreg._bridges.factors import Factors
from fastreg._bridges.settings import settings, warn_once

NATIVE_CROSSOVER = 1
GRAPH_CROSSOVER = 1 << 20
EAGER_CROSSOVER = 1
"""Elements from which kernels are faster than TensorFlow's ops in spite of the fixed cost of reaching them: by native
ops, by callbacks in graphs, and by callbacks when eager, which are no callbacks then.

Derived by `fastreg bench --suite crossover`, which prints them.
"""

GPU_CROSSOVER = 1 << 29
"""Elements from which the CUDA kernels are faster than clusters. Counted, not measured: a penalty and its gradient cost
1.2 to 1.8 ms on the host with callbacks, which wait for the GPU nine times; the kernels move 8 bytes of a float32
element and clusters 12. Four bytes take that long at 5e8 elements and the 1.6 TB/s of an A100 (at 1e8 and the 0.3 TB/s
of a T4, at 1e9 and the 3.35 TB/s of an H100).
"""

CLUSTER_CROSSOVER = 1 << 20
"""Elements from which, on a GPU, clusters are faster than TensorFlow's ops. Counted, not measured: they move 40 bytes
of an element less, which take as long here as a penalty's clusters take on the host, 23 to 37 µs. Below, there is
little to win for the tenths of a second in which XLA compiles for each shape.
"""


class Place(NamedTuple):
    """Where a penalty is computed, and of what: what the bridges need to know to say whether they can."""

    dtype: Any
    eager: bool
    known_size: bool = True
    xla: bool = False
    saved: bool = False
    gpu: bool = False
    tpu: bool = False
    forward_mode: bool = False
    elsewhere: bool = False
    factors: Factors | None = None


class Bridge(NamedTuple):
    """A way to compute penalties.

    Attributes
    ----------
    penalty : callable
        `penalty(x, factors)`: the differentiable penalty of a tensor.
    obstacle : callable
        Why it cannot serve at a place, or None.
    crossover : callable
        Elements from which `"auto"` takes it at a place, or None where it never does.
    kernels : bool
        Whether it leads to the kernels, so that `set_crossover` is about it.
    """

    penalty: Callable[[tf.Tensor, Factors], tf.Tensor]
    obstacle: Callable[[Place], str | None]
    crossover: Callable[[Place], int | None]
    kernels: bool = False


def _native_obstacle(place: Place) -> str | None:
    if place.gpu:
        return "native ops serve the host's tensors"
    if place.elsewhere:
        return "parameter servers have no native ops"
    return _kernel_obstacle(place) or native.penalty_obstacle(place.dtype, place.factors)


def _callback_obstacle(place: Place) -> str | None:
    if place.forward_mode and not place.eager:
        return "a callback has no forward-mode derivative in a graph"
    return _kernel_obstacle(place) or (device.obstacle() if place.gpu else None)


def _kernel_obstacle(place: Place) -> str | None:
    if (obstacle := support.dtype_obstacle(place.dtype)) is not None:
        return obstacle
    if place.xla:
        return "a kernel cannot run in code that XLA compiles"
    if place.saved:
        return "a kernel cannot be saved with a model"
    return "no kernel for this device" if place.tpu else None


def _cluster_obstacle(place: Place) -> str | None:
    if place.xla:
        return "XLA compiles it with what is around it"
    if place.forward_mode and not place.eager:
        return "a cluster has no forward-mode derivative in a graph"
    if place.saved:
        return "a file is for processes without XLA too"
    if place.elsewhere:
        return "parameter servers may have no XLA"
    return "no cluster for this device" if place.tpu else cluster.dtype_obstacle(place.dtype)


def _callback_crossover(place: Place) -> int:
    if place.gpu:
        return GPU_CROSSOVER
    return EAGER_CROSSOVER if place.eager else GRAPH_CROSSOVER


def _cluster_crossover(place: Place) -> int | None:
    # XLA would compile for each size that it meets.
    return CLUSTER_CROSSOVER if place.gpu and place.known_size else None


BRIDGES = {
    "native": Bridge(native.penalty, _native_obstacle, lambda place: NATIVE_CROSSOVER, kernels=True),  # noqa: ARG005
    "py_function": Bridge(callback.penalty, _callback_obstacle, _callback_crossover, kernels=True),
    "xla": Bridge(cluster.penalty, _cluster_obstacle, _cluster_crossover),
    "tensorflow": Bridge(plain.penalty, lambda place: None, lambda place: 0),  # noqa: ARG005
}
"""By name, in the order of preference."""


def penalty(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty of a tensor, on the bridge that serves it here and now."""
    choice = choose(x, factors)
    serve = BRIDGES[choice.bridge].penalty if choice.bridge != "dynamic" else _by_size
    return serve(x, factors)


def choose(x: tf.Tensor, factors: Factors) -> Choice:
    """Which bridge serves a penalty of `x` here and now; counted, and warned of where it is not the one that was
    set.
    """
    choice = _choose(_place(x, factors), x.shape.num_elements())
    if settings.bridge == "auto" and x.shape.num_elements() is None and not support.tape_is_active():
        # Keras asks for the penalty of a layer's outputs in inference too, and drops it. TensorFlow then leaves its own
        # ops out, but not a callback; and converters to other formats know no op of ours.
        choice = Choice("tensorflow", "of unknown size, and no gradient tape is recording")
    elif choice.bridge == "tensorflow" and settings.bridge not in ("auto", "tensorflow"):
        warn_once(choice.reason)
    counters.count_choice(choice)
    return choice


def foresee(dtype: Any, size: int | None, eager: bool, xla: bool) -> Choice:
    """Which bridge would serve a tensor of this dtype and size, eagerly or in a graph, for XLA or not."""
    gpu = bool(tf.config.get_visible_devices("GPU"))
    return _choose(Place(dtype, eager, size is not None, xla=xla, gpu=gpu), size)


def _place(x: tf.Tensor, factors: Factors) -> Place:
    eager = tf.executing_eagerly()
    return Place(
        x.dtype,
        eager,
        x.shape.num_elements() is not None,
        xla=support.in_xla(),
        saved=saving.is_saving(),
        gpu=support.is_likely_on_gpu(x),
        tpu="TPU" in x.device,
        forward_mode=not eager and support.has_tangents(x),
        elsewhere=not eager and support.is_on_parameter_servers(),
        factors=factors,
    )


def _choose(place: Place, size: int | None) -> Choice:
    if settings.bridge == "tensorflow":
        return Choice("tensorflow", "set_bridge")
    if settings.bridge != "auto":
        obstacle = BRIDGES[settings.bridge].obstacle(place)
        return Choice(settings.bridge, "set_bridge") if obstacle is None else Choice("tensorflow", obstacle)
    ways, obstacle = _ways(place)
    name, least = ways[0]
    if name == "tensorflow":
        return Choice(name, obstacle)
    if least <= 1:
        return Choice(name, "any size")
    if size is None:
        return Choice("dynamic", f"decided at run time: {name} from {least:,} elements on")
    for name, least in ways[:-1]:
        if size >= least:
            return Choice(name, f"{least:,} elements or more")
    return Choice(ways[-1][0], f"fewer than {min(least for _, least in ways[:-1]):,} elements")


def _ways(place: Place) -> tuple[list[tuple[str, int]], str]:
    """The bridges that can serve, the best first and the last for any size, each with the elements from which it does;
    and what stood in the way of the last that cannot, which is more telling than what did of the first.
    """
    ways, obstacle = [], ""
    for name, bridge in BRIDGES.items():
        least = crossover(name, place)
        if least is None:
            continue
        if (found := bridge.obstacle(place)) is not None:
            obstacle = found
            continue
        ways.append((name, least))
        if least <= 1:
            break
    return ways, obstacle


def crossover(name: str, place: Place) -> int | None:
    """Elements from which `"auto"` uses a bridge, or None where it never does."""
    bridge = BRIDGES[name]
    return settings.crossover if bridge.kernels and settings.crossover is not None else bridge.crossover(place)


def _by_size(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """On the kernels or by TensorFlow's ops, as the size at run time decides."""
    (name, least), *_ = _ways(_place(x, factors))[0]
    by_kernels = functools.partial(BRIDGES[name].penalty, x, factors)
    is_large = tf.size(x, out_type=tf.int64) >= least
    return tf.cond(is_large, by_kernels, functools.partial(plain.penalty, x, factors))
