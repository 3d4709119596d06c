"""Line 2: a linear model of many tables of width 1, as wide models are, trained by Ftrl with penalties of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import keras

import fastreg
from fastreg_benchmarks.bags import models
from fastreg_benchmarks.limits.lines import Line
from fastreg_benchmarks.recommender.agreement import agree
from fastreg_benchmarks.recommender.rows import compared, measure
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import Bags

BAGS, QUICK_BAGS = Bags(width=1, bag=1), Bags(rows=20_000, width=1, batch=512, bag=1)
SMALL = Bags(tables=3, rows=300, width=1, batch=64, bag=1, exponent=None)
"""No id occurs twice in a step: of duplicates Keras squares the gradients one by one."""


def training(settings: Settings) -> Iterator[Line]:
    """Steps, interleaved, after weights were compared."""
    ours, theirs = (_model(layer, SMALL) for layer in (_lazy, _keras))
    yield agree(2, "linear, Ftrl: weights after steps, against Keras's", ours, theirs, SMALL.batches())
    bags = QUICK_BAGS if settings.quick else BAGS
    runs = {name: models.step(_model(layer, bags), bags) for name, layer in (("lazy", _lazy), ("keras", _keras))}
    timed = measure(runs, settings)
    what = f"linear, {bags.tables} tables of {bags.rows:,} x 1, {bags.batch:,} ids in each, Ftrl"
    yield compared(2, f"{what}: lazy, times faster than Keras's", timed["keras"], timed["lazy"], least=1.0)


def _model(layer: Callable[[Bags], keras.layers.Layer], bags: Bags) -> keras.Model:
    # Where weights start as zeros, Ftrl of rows that are touched is Ftrl of all.
    optimizer = keras.optimizers.Ftrl(0.05, l1_regularization_strength=1e-4, l2_regularization_strength=1e-4)

    def reduce() -> models.Reduce:
        table = layer(bags)
        return lambda ids: keras.layers.Flatten()(table(ids))

    return models.model(reduce, keras.layers.Add(), optimizer, bags)


def _lazy(bags: Bags) -> keras.layers.Layer:
    return fastreg.Embedding(
        bags.rows, bags.width, embeddings_initializer="zeros", embeddings_regularizer=fastreg.L2(0.0)
    )


def _keras(bags: Bags) -> keras.layers.Layer:
    return keras.layers.Embedding(bags.rows, bags.width, embeddings_initializer="zeros")
