"""Line 1: before anything is timed, whether the lazily regularised model is Keras's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import fastreg
from fastreg_benchmarks.check import WRONG
from fastreg_benchmarks.limits.lines import PASS, Line
from fastreg_benchmarks.recommender.models import model
from fastreg_benchmarks.results import RecommenderRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import RATE, Recommender

L2 = 0.1
"""So large that without the penalty the weights would be others by far more than is tolerated."""

TOLERANCE = 1e-5
"""Of weights below 0.2, of which a few steps change some hundredths."""

WORKLOAD = Recommender(cardinalities=(5, 40, 300), batch=64)


def weights(settings: Settings) -> Iterator[tuple[list[RecommenderRow], list[Line]]]:  # noqa: ARG001
    """Weights of a model with three small tables after steps of SGD with L2, with which the rule is Keras's."""
    ours = model(
        lambda rows, width: fastreg.Embedding(rows, width, embeddings_regularizer=fastreg.L2(L2)),
        keras.optimizers.SGD(RATE),
        WORKLOAD,
    )
    theirs = model(
        lambda rows, width: keras.layers.Embedding(rows, width, embeddings_regularizer=keras.regularizers.L2(L2)),
        keras.optimizers.SGD(RATE),
        WORKLOAD,
    )
    batches = [([batch.dense, batch.ids], batch.labels) for batch in WORKLOAD.batches()]
    what = f"lazy, sgd with L2: weights after {len(batches)} steps, against Keras's"
    yield [], [agree(1, what, ours, theirs, batches)]


def agree(
    line: int, what: str, ours: keras.Model, theirs: keras.Model, batches: Sequence[tuple[Any, NDArray[Any]]]
) -> Line:
    """Whether two models have the same losses and weights when they train on the same batches, and whether that moves
    their weights.
    """
    before = ours.get_weights()
    theirs.set_weights(before)
    losses, expected = ([float(each.train_on_batch(*batch)) for batch in batches] for each in (ours, theirs))
    after = ours.get_weights()
    difference = max(_differences(after, theirs.get_weights()))
    right = difference <= TOLERANCE < min(_differences(after, before)) and np.allclose(losses, expected, rtol=TOLERANCE)
    return Line(line, what, f"within {TOLERANCE:g}", f"differ by {difference:.1e}", PASS if right else WRONG)


def _differences(some: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]]) -> list[float]:
    """The largest difference in each weight."""
    return [float(np.abs(one - other).max()) for one, other in zip(some, others, strict=True)]
