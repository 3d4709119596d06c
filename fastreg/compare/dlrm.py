"""DLRM (Naumov et al. 2019) on Criteo's impressions, or on impressions of their sizes."""

from __future__ import annotations

import argparse
import math
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fastreg.compare import clicks, criteo, model, quality
from fastreg.compare.data import Data, Examples, Figures
from fastreg.compare.job import Defaults, Job, Notify
from fastreg.compare.settings import Settings

BOTTOM, TOP = (512, 256, 64), (512, 256)
"""Units of the hidden layers, as DLRM's authors have them for Criteo Kaggle; the bottom ends with those of a row."""


def load(options: argparse.Namespace, notify: Notify) -> Examples:
    """The impressions of a file, or made-up ones."""
    if options.criteo is None:
        return clicks.generate(options.rows, options.table_rows, options.seed, notify)
    return criteo.load(options.criteo, options.rows, options.table_rows, notify)


def build(settings: Settings, side: str, data: Data) -> keras.Model:
    """Build and compile the model of one side; its initial weights depend on the seed only.

    An MLP makes a vector of the counts, a table for each category another one; the products of all pairs of these
    vectors, and the first vector, go through a second MLP.

    Parameters
    ----------
    settings : Settings
    side : {"keras", "lazy"}
    data : Data
        As `criteo.load` and `clicks.generate` have it.

    Returns
    -------
    keras.Model
        From counts (batch, 13) and ids (batch, 26) to probabilities of a click (batch, 1).
    """
    keras.utils.set_random_seed(settings.seed)
    counts = keras.Input((criteo.COUNTS,), name="counts")
    ids = keras.Input((len(data.tables),), dtype="int32", name="ids")
    bottom = _mlp(counts, (*BOTTOM, settings.dim), "bottom")
    columns = keras.ops.unstack(ids, axis=1)
    rows = [
        model.table(settings, side, name, number, size, 1 / math.sqrt(size))(column)
        for number, ((name, size), column) in enumerate(zip(data.tables.items(), columns, strict=True))
    ]
    products = interactions(keras.ops.stack([bottom, *rows], axis=1))
    top = _mlp(keras.ops.concatenate([bottom, products], axis=1), TOP, "top")
    click = keras.layers.Dense(1, activation="sigmoid", kernel_initializer="glorot_normal", name="click")(top)
    result = keras.Model([counts, ids], click, name="dlrm")
    model.compile_model(result, settings, side, "binary_crossentropy")
    return result


def interactions(vectors: Any) -> Any:
    """The products of all pairs of vectors, of shape (batch, n (n - 1) / 2), from (batch, n, dim)."""
    count = vectors.shape[1]
    products = keras.ops.matmul(vectors, keras.ops.transpose(vectors, (0, 2, 1)))
    flat = keras.ops.reshape(products, (-1, count * count))
    row, column = np.tril_indices(count, -1)
    return keras.ops.take(flat, row * count + column, axis=1)


def _mlp(x: Any, units: tuple[int, ...], name: str) -> Any:
    for number, size in enumerate(units, 1):
        layer = keras.layers.Dense(size, "relu", kernel_initializer="glorot_normal", name=f"{name}_{number}")
        x = layer(x)
    return x


def validate(predicted: NDArray[Any], targets: NDArray[np.float32]) -> Figures:
    """Measure predicted probabilities of clicks."""
    return {"auc": quality.auc(predicted, targets), "log_loss": quality.log_loss(predicted, targets)}


JOB = Job(
    defaults=Defaults(
        rows=500_000,
        table_rows=200_000,
        dim=16,
        l1=2e-5,
        l2=1e-6,
        learning_rates={"sgd": 0.3, "adagrad": 0.02, "adam": 0.001},
        batch_size=2048,
        steps=120,
        # The MLPs amplify rounding from step to step: two runs of Keras that start one bit apart end that far apart.
        tolerance=5e-2,
    ),
    only=frozenset({"criteo", "table_rows"}),
    load=load,
    build=build,
    validate=validate,
    figures={"auc": "validation AUC", "log_loss": "validation log loss"},
)
