"""MovieLens: looked-up embeddings of users, items and crosses, summed, and a small dense head."""

from __future__ import annotations

import argparse
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from fastreg.compare import crosses, model, quality, ratings
from fastreg.compare.data import Data, Examples, Figures
from fastreg.compare.job import Defaults, Job, Notify
from fastreg.compare.settings import Settings

SPREAD = 0.05
"""Embeddings start uniform within plus and minus this, as in Keras."""

HIDDEN = 32
"""Units of the hidden layer of the head."""


def load(options: argparse.Namespace, notify: Notify) -> Examples:
    """The ratings of a file, or of MovieLens."""
    notify("reading ratings", 0)
    return examples(ratings.load(options.ratings), options.rows)


def examples(source: ratings.Ratings, rows: int) -> Examples:
    """What the model looks up for each rating, with a table of crosses of so many rows."""
    users, items = int(source.users.max()) + 1, int(source.items.max()) + 1
    return Examples(
        {"users": source.users, "items": source.items, "crosses": crosses.crosses(source, rows)},
        source.ratings,
        {"user": users, "item": items, "crosses": rows},
        f"{source.source}: {len(source.ratings):,} ratings of {items:,} items by {users:,} users",
    )


def build(settings: Settings, side: str, data: Data) -> keras.Model:
    """Build and compile the model of one side; its initial weights depend on the seed only.

    Parameters
    ----------
    settings : Settings
    side : {"keras", "fastreg", "lazy"}
    data : Data
        As `examples` has it; the head's output is added to the mean of the ratings of training.

    Returns
    -------
    keras.Model
        From user (batch,), item (batch,) and rows of crosses (batch, crosses) to ratings (batch, 1).
    """
    keras.utils.set_random_seed(settings.seed)
    inputs, embedded = [], []
    for number, ((name, rows), column) in enumerate(zip(data.tables.items(), data.training.inputs, strict=True)):
        inputs.append(keras.Input(column.shape[1:], dtype="int32", name=f"{name}_rows"))
        embedded.append(model.table(settings, side, name, number, rows, SPREAD)(inputs[-1]))
    embedded[-1] = keras.ops.sum(embedded[-1], axis=1)
    hidden = keras.layers.Dense(HIDDEN, activation="gelu", name="hidden")(keras.layers.Add()(embedded))
    # Without a bias of its own the output stays near the mean at learning rates that the sparse tables need.
    deviation = keras.layers.Dense(1, use_bias=False, name="rating")(hidden)
    mean = float(data.training.targets.mean(dtype=np.float64))
    result = keras.Model(inputs, keras.layers.Rescaling(1.0, offset=mean)(deviation), name="recommender")
    model.compile_model(result, settings, side, "mse")
    return result


def validate(predicted: NDArray[Any], targets: NDArray[np.float32]) -> Figures:
    """Measure predicted ratings."""
    return {"rmse": quality.rmse(predicted, targets)}


JOB = Job(
    defaults=Defaults(
        rows=1_000_000,
        table_rows=None,
        dim=64,
        l1=1e-7,
        l2=1e-6,
        # Rates at which an epoch of MovieLens brings the error well below that of the mean.
        learning_rates={"sgd": 0.5, "adagrad": 0.3, "adam": 0.001},
        batch_size=1024,
        steps=90,  # an epoch in batches of the default size, and a little more
        tolerance=1e-5,
    ),
    only=frozenset({"ratings", "lazy"}),
    load=load,
    build=build,
    validate=validate,
    figures={"rmse": "validation RMSE"},
)
