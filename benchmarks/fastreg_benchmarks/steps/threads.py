"""What the kernels' threads do to others: TensorFlow's own ops in the same step, other penalties at the same time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tensorflow as tf

import fastreg
from fastreg_benchmarks import stats, timing
from fastreg_benchmarks.cases import L1, L2
from fastreg_benchmarks.limits.lines import Line, at_most
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.settings import Settings

SIZE = 1 << 22
SIDE, PRODUCTS = 1024, 8
"""Matrices of the step beside the penalty, and how many products it takes of them."""

MOST_SLOWER = 1.02
THREADS, MOST_TOGETHER = 4, 1.1


def beside_other_ops(settings: Settings) -> Iterator[Line]:
    """Line 3: a step with large matrix products, less the penalty's own time, against one whose penalty is constant."""
    weight, matrix = tf.Variable(tf.random.normal((SIZE,))), tf.Variable(tf.random.normal((SIDE, SIDE)) / SIDE)
    penalty = fastreg.L1L2(L1, L2)
    alone = _traced(lambda: penalty(weight), [weight])
    step = _traced(lambda: _products(matrix) + penalty(weight), [matrix, weight])
    constant = _traced(lambda: _products(matrix) + 1.0, [matrix])
    runs = [timing.Run(call) for call in (step, alone, constant)]
    for run in runs:
        timing.warm_up(run)
    whole, own, base = timing.measure(runs, 5 * settings.seconds).samples
    ratio = stats.ratio(whole - own, base)
    times = [duration(stats.quantiles(samples)[1]) for samples in (whole, own, base)]
    yield Line(
        3,
        f"step with {PRODUCTS} products of {SIDE} x {SIDE} and a penalty of {SIZE:,} float32, less the penalty's time",
        f"at most {MOST_SLOWER} x the step with a constant penalty",
        f"{ratio}; {times[0]} whole, {times[1]} penalty alone, {times[2]} with a constant",
        at_most(ratio, MOST_SLOWER),
    )


def several_at_once(settings: Settings) -> Iterator[Line]:
    """Line 3: penalties in several threads at once, against the same ones in turn."""
    penalty = fastreg.L1L2(L1, L2)
    weights = [tf.Variable(tf.random.normal((SIZE,))) for _ in range(THREADS)]
    calls = [_traced(functools.partial(penalty, weight), [weight]) for weight in weights]
    with ThreadPoolExecutor(THREADS) as executor:
        together = timing.Run(lambda: list(executor.map(lambda call: call(), calls)))
        in_turn = timing.Run(lambda: [call() for call in calls])
        for run in (together, in_turn):
            timing.warm_up(run)
        samples = timing.measure([together, in_turn], 2 * settings.seconds).samples
    ratio = stats.ratio(*samples)
    yield Line(
        3,
        f"{THREADS} penalties of {SIZE:,} float32 in {THREADS} threads at once",
        f"at most {MOST_TOGETHER} x their time in turn",
        str(ratio),
        at_most(ratio, MOST_TOGETHER),
    )


def _products(matrix: Any) -> Any:
    result = matrix
    for _ in range(PRODUCTS):
        result = tf.matmul(result, matrix)
    return tf.reduce_sum(result)


def _traced(value: Callable[[], Any], variables: list[Any]) -> Any:
    """A value and its gradients, as a graph."""

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = value()
        return loss, tape.gradient(loss, variables)

    return tf.function(step, autograph=False)
