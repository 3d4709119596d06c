"""Which bridge serves a call: one table, of what each can do and from which size on it is worth it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from fastreg._bridges import callback, counters, native, plain, saving, support
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

GPU_CROSSOVER = 1 << 25
"""The same for tensors on a GPU. Estimated from bytes moved, not measured: `fastreg bench --device gpu` measures."""


class Place(NamedTuple):
    """Where a penalty is computed: what the bridges need to know to say whether they can."""

    dtype: Any
    eager: bool
    xla: bool = False
    saved: bool = False
    gpu: bool = False
    tpu: bool = False
    forward_mode: bool = False
    elsewhere: bool = False
    factors: Factors | None = None


class Bridge(NamedTuple):
    """A way to the kernels.

    Attributes
    ----------
    penalty : callable
        `penalty(x, factors)`: the differentiable penalty of a tensor.
    obstacle : callable
        Why it cannot serve at a place, or None.
    crossover : callable
        Elements from which it is faster than TensorFlow's ops at a place.
    """

    penalty: Callable[[tf.Tensor, Factors], tf.Tensor]
    obstacle: Callable[[Place], str | None]
    crossover: Callable[[Place], int]


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


def _callback_crossover(place: Place) -> int:
    if place.gpu:
        return GPU_CROSSOVER
    return EAGER_CROSSOVER if place.eager else GRAPH_CROSSOVER


BRIDGES = {
    "native": Bridge(native.penalty, _native_obstacle, lambda place: NATIVE_CROSSOVER),  # noqa: ARG005
    "py_function": Bridge(callback.penalty, _callback_obstacle, _callback_crossover),
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
    return _choose(Place(dtype, eager, xla, gpu=bool(tf.config.get_visible_devices("GPU"))), size)


def _place(x: tf.Tensor, factors: Factors) -> Place:
    eager = tf.executing_eagerly()
    return Place(
        x.dtype,
        eager,
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
    name, reason = _first_able(place)
    if name == "tensorflow":
        return Choice(name, reason)
    least = crossover(name, place)
    if least <= 1:
        return Choice(name, "any size")
    if size is None:
        return Choice("dynamic", f"decided at run time: {name} from {least:,} elements on")
    if size < least:
        return Choice("tensorflow", f"fewer than {least:,} elements")
    return Choice(name, f"{least:,} elements or more")


def _first_able(place: Place) -> tuple[str, str]:
    """The first bridge that can serve, and why the first of all cannot, if it cannot."""
    obstacles = {}
    for name, bridge in BRIDGES.items():
        obstacles[name] = bridge.obstacle(place)
        if obstacles[name] is None:
            break
    # The last that stood in the way before TensorFlow's ops is the more telling one.
    return name, obstacles.get("py_function") or obstacles["native"] or ""


def crossover(name: str, place: Place) -> int:
    """Elements from which `"auto"` uses a bridge."""
    return BRIDGES[name].crossover(place) if settings.crossover is None else settings.crossover


def _by_size(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """On the kernels or by TensorFlow's ops, as the size at run time decides."""
    place = _place(x, factors)
    name, _ = _first_able(place)
    by_kernels = functools.partial(BRIDGES[name].penalty, x, factors)
    is_large = tf.size(x, out_type=tf.int64) >= crossover(name, place)
    return tf.cond(is_large, by_kernels, functools.partial(plain.penalty, x, factors))
