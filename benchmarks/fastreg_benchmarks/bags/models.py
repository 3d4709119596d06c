"""Models of tables alone, and their training steps."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from fastreg_benchmarks.lazy.steps import compile_model
from fastreg_benchmarks.timing import Run, in_turns
from fastreg_benchmarks.workloads import Bags

Reduce = Callable[[keras.KerasTensor], keras.KerasTensor]
"""Vectors of shape (batch, width) of ids of shape (batch, bag); one for each table."""

Head = Callable[[list[keras.KerasTensor]], keras.KerasTensor]
"""Logits, of shape (batch, 1), of the vectors of all tables."""


def model(reduce: Callable[[], Reduce], head: Head, optimizer: keras.optimizers.Optimizer, bags: Bags) -> keras.Model:
    """One input for all ids, split by field inside; see `recommender.models.model`."""
    ids = keras.Input((bags.tables, bags.bag), dtype="int32")
    vectors = [reduce()(field) for field in keras.ops.unstack(ids, axis=1)]
    result = keras.Model(ids, head(vectors))
    compile_model(result, optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    return result


def step(built: keras.Model, bags: Bags) -> Run:
    """A training step, traced as `fit` traces it, on the next of some batches that are in memory; it gives the loss."""
    train = tf.function(lambda x, y: built.train_step((x, y))["loss"])
    batches = [(tf.constant(ids), tf.constant(labels)) for ids, labels in bags.batches()]
    return in_turns(lambda batch: float(train(*batch)), batches)
