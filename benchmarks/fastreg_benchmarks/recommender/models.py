"""The recommender in Keras, and its steps of training, prediction and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from fastreg_benchmarks.lazy.sizes import SMALL
from fastreg_benchmarks.lazy.steps import EMBEDDINGS, OPTIMIZERS, compile_model
from fastreg_benchmarks.timing import Run, in_turns
from fastreg_benchmarks.workloads import Recommender

Embedding = Callable[[int, int], keras.layers.Layer]
"""Makes a layer of so many rows and columns."""

SMALL_TABLES = f"keras-{SMALL}"

NAMES = {
    "lazy": "lazy",
    "keras": "Keras with L1L2",
    "keras-plain": "Keras without a regularizer",
    SMALL_TABLES: f"Keras's plain {SMALL:,}",
}
"""Providers: the same model around different layers, the last with small tables."""


class Steps(NamedTuple):
    """The kinds of step of one model."""

    fit: Run
    predict: Run
    evaluate: Run


def model(embedding: Embedding, optimizer: keras.optimizers.Optimizer, workload: Recommender) -> keras.Model:
    """DLRM with its features concatenated: the products of pairs that it takes by default are the same work for all
    providers, more than half of a step with small tables, and not what is compared.
    """
    # One input for all ids, split by column inside, rather than an input for each field: those would be as many more
    # arguments to every call, which TensorFlow goes through in Python, where the split is one operation. It was the
    # faster with every kind of layer, if only by a percent or two.
    ids = keras.Input((len(workload.cardinalities),), dtype="int32")
    dense = keras.Input((workload.dense,))
    columns = keras.ops.unstack(ids, axis=1)
    rows = [embedding(count, workload.width)(c) for count, c in zip(workload.cardinalities, columns, strict=True)]
    bottom = keras.layers.Dense(workload.hidden, activation="relu")(dense)
    bottom = keras.layers.Dense(workload.width, activation="relu")(bottom)
    top = keras.layers.Concatenate()([bottom, *rows])
    top = keras.layers.Dense(workload.hidden, activation="relu")(top)
    result = keras.Model([dense, ids], keras.layers.Dense(1)(top))
    compile_model(result, optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    return result


def size_of(provider: str, workload: Recommender) -> Recommender:
    """The workload of a provider: that of small tables has other tables."""
    return workload.resized(SMALL) if provider == SMALL_TABLES else workload


def steps(provider: str, workload: Recommender, *, jit: bool = False) -> Steps:
    """Steps, traced as `fit`, `predict` and `evaluate` trace them, on batches that are in memory.

    Those of training and evaluation give their loss, those of prediction the logits. `jit`: compiled by XLA.
    """
    embedding = EMBEDDINGS["keras-plain" if provider == SMALL_TABLES else provider]
    workload = size_of(provider, workload)
    built = model(embedding, OPTIMIZERS["adagrad"](), workload)
    train = tf.function(lambda x, y: built.train_step((x, y))["loss"], jit_compile=jit)
    predict = tf.function(lambda x: built.predict_step((x,)), jit_compile=jit)
    evaluate = tf.function(lambda x, y: built.test_step((x, y))["loss"], jit_compile=jit)
    batches = [
        ([tf.constant(batch.dense), tf.constant(batch.ids)], tf.constant(batch.labels)) for batch in workload.batches()
    ]
    return Steps(
        in_turns(lambda batch: float(train(*batch)), batches),
        in_turns(lambda batch: predict(batch[0]).numpy(), batches),
        in_turns(lambda batch: float(evaluate(*batch)), batches),
    )
