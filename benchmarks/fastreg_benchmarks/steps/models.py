"""Models of many layers, a penalty on each kernel: one `train_on_batch`, by Keras's regularizers or fastreg's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import fastreg
from fastreg_benchmarks import stats, timing
from fastreg_benchmarks.limits.lines import Line, at_most
from fastreg_benchmarks.limits.training import MOST_OF_KERAS
from fastreg_benchmarks.measure import release
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.settings import Settings

FACTOR = 1e-4
LAYERS, UNITS, WIDE_LAYERS, WIDE_UNITS = 60, 512, 6, 2048
BATCH = 8


def perceptron(layers: int, units: int) -> keras.Model:
    """Dense layers, one after the other."""
    stack = [keras.layers.Dense(units, "relu") for _ in range(layers)]
    return keras.Sequential([keras.Input((units,)), *stack, keras.layers.Dense(1)])


def residual() -> keras.Model:
    """ResNet-50 on small images, so that its weights matter beside its convolutions."""
    return keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=1, classifier_activation=None)


MODELS: dict[str, Callable[[], keras.Model]] = {
    f"{LAYERS} dense layers of {UNITS}": lambda: perceptron(LAYERS, UNITS),
    f"{WIDE_LAYERS} dense layers of {WIDE_UNITS}": lambda: perceptron(WIDE_LAYERS, WIDE_UNITS),
    "ResNet-50": residual,
}


def many_layers(settings: Settings) -> Iterator[Line]:
    """Line 3: a whole step with an L2 penalty on every kernel."""
    for name, build in MODELS.items():
        runs = [_step(build, change) for change in (_accelerated, _regularized, lambda model: model)]
        for run in runs:
            timing.warm_up(run)
        ours, theirs, without = timing.measure(runs, 3 * settings.seconds).samples
        ratio = stats.ratio(ours, theirs)
        times = [duration(stats.quantiles(samples)[1]) for samples in (ours, theirs, without)]
        measured = f"{ratio}; {times[0]} against {times[1]}, {times[2]} without penalties"
        what = f"step of {name}, L2 on every kernel"
        yield Line(3, what, f"at most {MOST_OF_KERAS} x Keras's time", measured, at_most(ratio, MOST_OF_KERAS))
        del runs
        release()


def _regularized(model: keras.Model) -> keras.Model:
    for layer in model.layers:
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            layer.kernel_regularizer = kernel.regularizer = keras.regularizers.L2(FACTOR)
    return model


def _accelerated(model: keras.Model) -> keras.Model:
    return fastreg.accelerate(_regularized(model))


def _step(build: Callable[[], keras.Model], change: Callable[[keras.Model], keras.Model]) -> timing.Run:
    model = change(build())
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=False)
    generator = np.random.default_rng(0)
    x: Any = generator.standard_normal((BATCH, *model.input_shape[1:]), np.float32)
    y = np.zeros((BATCH, 1), np.float32)
    return timing.Run(lambda: model.train_on_batch(x, y))
