"""The recommender: looked-up embeddings, summed, and a small dense head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import fastreg
from fastreg.compare.settings import LAZY, Settings

SPREAD = 0.05
"""Embeddings start uniform within plus and minus this, as in Keras."""

HIDDEN = 32
"""Units of the hidden layer of the head."""

_CLASSES = {"l1": "L1", "l2": "L2", "l1l2": "L1L2"}
_PENALTIES = {"keras": keras.regularizers, "fastreg": fastreg, LAZY: fastreg}
_LAYERS = {"keras": keras.layers, "fastreg": keras.layers, LAZY: fastreg}
_OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adagrad": keras.optimizers.Adagrad, "adam": keras.optimizers.Adam}


def regularizer(settings: Settings, side: str) -> Any:
    """The regularizer of one side: the class of the same name from Keras or from fastreg."""
    factors = {name: getattr(settings, name) for name in ("l1", "l2") if name in settings.regularizer}
    return getattr(_PENALTIES[side], _CLASSES[settings.regularizer])(**factors)


def build(settings: Settings, side: str, users: int, items: int, crosses: int, mean: float) -> keras.Model:
    """Build and compile the model of one side; its initial weights depend on the seed only.

    Parameters
    ----------
    settings : Settings
    side : {"keras", "fastreg", "lazy"}
        Whose regularizers, or layers, the tables have: the only difference between the models.
    users, items : int
        Rows of these tables.
    crosses : int
        Rows of the table of crosses that one rating looks up.
    mean : float
        Mean rating: what the head's output is added to.

    Returns
    -------
    keras.Model
        From user (batch,), item (batch,) and rows of crosses (batch, crosses) to ratings (batch, 1).
    """
    keras.utils.set_random_seed(settings.seed)
    shapes = {"user": (users, ()), "item": (items, ()), "crosses": (settings.rows, (crosses,))}
    inputs, embedded = [], []
    for number, (name, (rows, shape)) in enumerate(shapes.items()):
        inputs.append(keras.Input(shape, dtype="int32", name=f"{name}_rows"))
        table = _LAYERS[side].Embedding(
            rows,
            settings.dim,
            embeddings_initializer=_uniform(settings.seed, number),
            embeddings_regularizer=regularizer(settings, side),
            name=name,
        )
        embedded.append(table(inputs[-1]))
    embedded[-1] = keras.ops.sum(embedded[-1], axis=1)
    hidden = keras.layers.Dense(HIDDEN, activation="gelu", name="hidden")(keras.layers.Add()(embedded))
    # Without a bias of its own the output stays near the mean at learning rates that the sparse tables need.
    deviation = keras.layers.Dense(1, use_bias=False, name="rating")(hidden)
    model = keras.Model(inputs, keras.layers.Rescaling(1.0, offset=mean)(deviation), name="recommender")
    optimizer = _OPTIMIZERS[settings.optimizer](settings.learning_rate)
    model.compile(
        optimizer=fastreg.LazyRegularization(optimizer) if side == LAZY else optimizer,
        loss="mse",
        run_eagerly=settings.eager,
        jit_compile="auto" if settings.jit is None else settings.jit,
    )
    return model


def _uniform(*seed: int) -> Callable[..., NDArray[np.float32]]:
    """An initializer that draws in NumPy.

    Keras's own leaves its temporaries in TensorFlow's memory pool, where they would hide how much the training needs.
    """

    def draw(shape: tuple[int, ...], dtype: Any = None) -> NDArray[np.float32]:  # noqa: ARG001 - Keras passes it
        values = np.random.default_rng(seed).random(shape, np.float32)
        values -= np.float32(0.5)
        values *= np.float32(2 * SPREAD)
        return values

    return draw
