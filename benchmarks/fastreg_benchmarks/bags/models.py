"""Models of tables alone, and their training steps."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from fastreg_benchmarks.check import WRONG
from fastreg_benchmarks.lazy.steps import compile_model
from fastreg_benchmarks.limits.lines import PASS, Line
from fastreg_benchmarks.timing import Run, in_turns
from fastreg_benchmarks.workloads import Bags

Reduce = Callable[[keras.KerasTensor], keras.KerasTensor]
"""Vectors of shape (batch, width) of ids of shape (batch, bag); one for each table."""

Head = Callable[[list[keras.KerasTensor]], keras.KerasTensor]
"""Logits, of shape (batch, 1), of the vectors of all tables."""

TOLERANCE = 1e-5
"""Of weights that a few steps change by some hundredths."""


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


def agree(line: int, what: str, ours: keras.Model, theirs: keras.Model, bags: Bags) -> Line:
    """Whether two models have the same weights after training on the same batches."""
    theirs.set_weights(ours.get_weights())
    before = ours.get_weights()
    for ids, labels in bags.batches():
        for trained in (ours, theirs):
            trained.train_on_batch(ids, labels)
    after, expected = ours.get_weights(), theirs.get_weights()
    difference = max(float(np.abs(mine - other).max()) for mine, other in zip(after, expected, strict=True))
    moved = min(float(np.abs(mine - other).max()) for mine, other in zip(after, before, strict=True))
    right = difference <= TOLERANCE < moved
    return Line(line, what, f"within {TOLERANCE:g}", f"differ by {difference:.1e}", PASS if right else WRONG)
