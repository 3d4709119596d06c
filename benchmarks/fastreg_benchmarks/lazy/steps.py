"""Training steps of one small recommender around tables of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import fastreg
from fastreg_benchmarks.timing import Run, in_turns
from fastreg_benchmarks.workloads import BATCHES, L1, L2, RATE, Workload

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


def compile_model(model: keras.Model, optimizer: keras.optimizers.Optimizer, loss: Any) -> None:
    """Compile without XLA, as Keras does by default on a processor, and with the wrapper that lazy tables need."""
    lazy = any(isinstance(layer, fastreg.Embedding) for layer in model.layers)
    model.compile(fastreg.LazyRegularization(optimizer) if lazy else optimizer, loss, jit_compile=False)


def step(provider: str, optimizer: str, workload: Workload) -> Run:
    """A training step, traced as `fit` traces it, on the next of some batches that are in memory."""
    layer = EMBEDDINGS[provider](workload.rows, workload.width)
    ids = keras.Input((workload.fields,), dtype="int32")
    pooled = keras.layers.GlobalAveragePooling1D()(layer(ids)) if workload.fields > 1 else layer(ids)[:, 0]
    model = keras.Model(ids, keras.layers.Dense(1)(pooled))
    compile_model(model, OPTIMIZERS[optimizer](), "mse")
    function = tf.function(lambda x, y: model.train_step((x, y))["loss"])
    generator = np.random.default_rng(workload.rows)
    batches = [
        (tf.constant(workload.ids(generator)), tf.constant(generator.normal(size=(workload.batch, 1)), tf.float32))
        for _ in range(BATCHES)
    ]
    return in_turns(lambda batch: float(function(*batch)), batches)
