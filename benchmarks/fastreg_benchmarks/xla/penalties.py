"""Lines 1 and 2: a penalty of one weight, by size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import fastreg
from fastreg_benchmarks import stats
from fastreg_benchmarks.cases import L1, L2, VALUE_AND_GRADIENT, Case, Inputs, normal
from fastreg_benchmarks.check import DTYPE_SUM_TOLERANCES, MOST_INEXACT, WRONG, finfo
from fastreg_benchmarks.limits.lines import Line, at_most, with_medians
from fastreg_benchmarks.limits.training import MOST_OF_KERAS
from fastreg_benchmarks.measure import prepare, release, time_case
from fastreg_benchmarks.providers import JIT, PROVIDERS
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.timing import Run, warm_up

SIZES = tuple(1 << power for power in (10, 14, 18, 20, 22, 24, 26))
QUICK_SIZES = (1 << 10, 1 << 18, 1 << 22)

LARGE = 1 << 20
MOST_OF_VALUE_AND_GRADIENT, MOST_OF_UPDATE = 0.70, 0.90
"""Of Keras's time, from so many elements on; `MOST_OF_KERAS` below."""

OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(1e-2),
    "Adam": lambda: keras.optimizers.Adam(1e-3),
}

MOST_APART = 1e-4
"""Of fastreg's weights from Keras's, relative to how far both have moved."""


def cases(settings: Settings) -> Iterator[Case]:
    """A float32 weight of every size."""
    for size in QUICK_SIZES if settings.quick else SIZES:
        yield Case(size, "float32", VALUE_AND_GRADIENT)


def value_and_gradient(settings: Settings) -> Iterator[Line]:
    """Line 1."""
    for case in cases(settings):
        inputs = Inputs(case)
        providers = [PROVIDERS[name] for name in ("fastreg", "keras")]
        runs = [provider.run(inputs, JIT) for provider in providers]
        checks = [prepare(inputs, provider, run)[0] for provider, run in zip(providers, runs, strict=True)]
        ours, theirs = time_case(case, runs, settings).samples
        ratio, most = stats.ratio(ours, theirs), _most(case, MOST_OF_VALUE_AND_GRADIENT)
        wrong = any(check.status == WRONG for check in checks)
        found = WRONG if wrong else at_most(ratio, most)
        yield Line(1, str(case), _target(most), with_medians(ratio, ours, theirs), found)
        del inputs, runs
        release()


def updates(settings: Settings) -> Iterator[Line]:
    """Line 2: also without a penalty."""
    for case in cases(settings):
        x, data = normal(case.size, case.dtype), tf.constant(2 * L2 * normal(case.size, case.dtype))
        for name, make in OPTIMIZERS.items():
            steps = [_step(x, data, make(), make_penalty) for make_penalty in _PENALTIES]
            losses = [warm_up(step.run) for step in steps]
            right = _agree(x, [step.weight.numpy() for step in steps[:2]], losses[:2])
            ours, theirs, without = time_case(case, [step.run for step in steps], settings).samples
            ratio, most = stats.ratio(ours, theirs), _most(case, MOST_OF_UPDATE)
            measured = f"{with_medians(ratio, ours, theirs)}, {duration(stats.quantiles(without)[1])} without a penalty"
            yield Line(
                2,
                f"{case}, {name} update",
                _target(most),
                measured,
                at_most(ratio, most) if right else WRONG,
            )
            del steps
            release()


_PENALTIES: tuple[Callable[[], Any], ...] = (
    lambda: fastreg.L1L2(L1, L2),
    lambda: keras.regularizers.L1L2(L1, L2),
    lambda: None,
)


class _Step(NamedTuple):
    run: Run
    weight: tf.Variable


def _step(x: Any, data: tf.Tensor, optimizer: keras.optimizers.Optimizer, make_penalty: Callable[[], Any]) -> _Step:
    """An update by the gradient of a penalty and that of data, which the rest of a model has computed."""
    weight, penalty = keras.Variable(x), make_penalty()
    optimizer.build([weight])

    def step(data: tf.Tensor) -> tf.Tensor:
        loss, gradient = tf.zeros(()), data
        if penalty is not None:
            with tf.GradientTape() as tape:
                loss = penalty(weight)
            gradient += tape.gradient(loss, weight.value)
        optimizer.apply([gradient], [weight])
        return loss

    compiled = tf.function(step, jit_compile=True, autograph=False)
    return _Step(Run(lambda: float(compiled(data))), weight.value)


def _agree(x: Any, weights: list[Any], losses: list[float]) -> bool:
    """Whether weights have gone the same way from x, and losses are the same but for Keras's roundings."""
    ours, theirs = weights
    roundings = max(DTYPE_SUM_TOLERANCES["float32"], min(x.size * float(finfo(x.dtype).eps), MOST_INEXACT))
    apart, moved = np.linalg.norm(ours - theirs), np.linalg.norm(theirs - x)
    return bool(apart <= MOST_APART * moved and np.isclose(losses[0], losses[1], rtol=roundings, atol=0))


def _most(case: Case, of_large: float) -> float:
    return of_large if case.size >= LARGE else MOST_OF_KERAS


def _target(most: float) -> str:
    return f"at most {most:.2f} x Keras's time"
