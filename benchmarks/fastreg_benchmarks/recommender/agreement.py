"""Line 1: before anything is timed, whether the lazily regularised model is Keras's."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

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
    theirs.set_weights(ours.get_weights())
    batches = WORKLOAD.batches()
    losses, expected = (
        [float(trained.train_on_batch([batch.dense, batch.ids], batch.labels)) for batch in batches]
        for trained in (ours, theirs)
    )
    differences = [
        float(np.abs(mine - other).max()) for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True)
    ]
    right = max(differences) <= TOLERANCE and np.allclose(losses, expected, rtol=TOLERANCE)
    what = f"lazy, sgd with L2: weights after {len(batches)} steps, against Keras's"
    measured = f"differ by {max(differences):.1e}"
    yield [], [Line(1, what, f"within {TOLERANCE:g}", measured, PASS if right else WRONG)]
