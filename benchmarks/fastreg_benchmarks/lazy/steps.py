"""Training steps of one small recommender around tables of any size, and the ids that they look up."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import fastreg
from fastreg_benchmarks.timing import Run

L1, L2 = 1e-7, 1e-6
RATE = 0.01
BATCHES = 8
"""Batches that steps take in turns, so that the rows of one step are not in the caches for the next by luck."""


@dataclass(frozen=True)
class Workload:
    """A table and what each step looks up.

    Attributes
    ----------
    rows, width : int
    batch, fields : int
        `batch * fields` ids a step.
    exponent : float or None
        Of the power law of ids; None: no id occurs twice in a step.
    """

    rows: int
    width: int
    batch: int
    fields: int
    exponent: float | None

    def ids(self, generator: np.random.Generator) -> NDArray[np.int32]:
        """The ids of a step, shape (batch, fields)."""
        count = self.batch * self.fields
        if self.exponent is None:
            chosen = generator.choice(self.rows, count, replace=False)
        else:
            chosen = scattered(power_law(generator, self.rows, self.exponent, count), self.rows)
        return chosen.astype(np.int32).reshape(self.batch, self.fields)


def power_law(generator: np.random.Generator, rows: int, exponent: float, count: int) -> NDArray[np.int64]:
    """Ranks from 0 to rows - 1 with probability about `(rank + 1) ** -exponent`, by the inverse of the integral."""
    power = 1.0 - exponent
    ranks = (1.0 + generator.random(count) * ((rows + 1.0) ** power - 1.0)) ** (1.0 / power)
    return np.asarray(np.clip(ranks.astype(np.int64) - 1, 0, rows - 1), np.int64)


def scattered(ranks: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Frequent ids all over the table, not side by side at its beginning: rank times a number prime to `rows`."""
    factor = next(step for step in range(int(rows * 0.618) | 1, 2 * rows + 3) if np.gcd(step, rows) == 1)
    return np.asarray(ranks * factor % rows, np.int64)


EMBEDDINGS: dict[str, Callable[[int, int], keras.layers.Layer]] = {
    "lazy": lambda rows, width: fastreg.Embedding(rows, width, embeddings_regularizer=fastreg.L1L2(L1, L2)),
    "lazy-l2": lambda rows, width: fastreg.Embedding(rows, width, embeddings_regularizer=fastreg.L2(L2)),
    "fastreg": lambda rows, width: keras.layers.Embedding(rows, width, embeddings_regularizer=fastreg.L1L2(L1, L2)),
    "keras": lambda rows, width: keras.layers.Embedding(
        rows, width, embeddings_regularizer=keras.regularizers.L1L2(L1, L2)
    ),
    "keras-plain": lambda rows, width: keras.layers.Embedding(rows, width),
}
"""Layers by provider: regularised lazily, densely by fastreg, by Keras, and not at all."""

OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "sgd": lambda: keras.optimizers.SGD(RATE),
    "adagrad": lambda: keras.optimizers.Adagrad(RATE),
}


def step(provider: str, optimizer: str, workload: Workload) -> Run:
    """A training step, traced as `fit` traces it, on the next of some batches that are in memory."""
    layer = EMBEDDINGS[provider](workload.rows, workload.width)
    ids = keras.Input((workload.fields,), dtype="int32")
    pooled = keras.layers.GlobalAveragePooling1D()(layer(ids)) if workload.fields > 1 else layer(ids)[:, 0]
    model = keras.Model(ids, keras.layers.Dense(1)(pooled))
    inner = OPTIMIZERS[optimizer]()
    lazy = isinstance(layer, fastreg.Embedding)
    model.compile(fastreg.LazyRegularization(inner) if lazy else inner, "mse", jit_compile=False)
    function = tf.function(lambda x, y: model.train_step((x, y))["loss"])
    generator = np.random.default_rng(workload.rows)
    batches = [
        (tf.constant(workload.ids(generator)), tf.constant(generator.normal(size=(workload.batch, 1)), tf.float32))
        for _ in range(BATCHES)
    ]
    return Run(functools.partial(_next_step, function, batches, [0]))


def _next_step(function: Any, batches: Sequence[tuple[tf.Tensor, tf.Tensor]], turn: list[int]) -> float:
    turn[0] = (turn[0] + 1) % len(batches)
    return float(function(*batches[turn[0]]))
