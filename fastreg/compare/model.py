"""What the models of all jobs have in common: their regularizers, tables and optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

import fastreg
from fastreg.compare.settings import LAZY, Settings

_CLASSES = {"l1": "L1", "l2": "L2", "l1l2": "L1L2"}
_PENALTIES = {"keras": keras.regularizers, "fastreg": fastreg, LAZY: fastreg}
_LAYERS = {"keras": keras.layers, "fastreg": keras.layers, LAZY: fastreg}
_OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adagrad": keras.optimizers.Adagrad, "adam": keras.optimizers.Adam}


def regularizer(settings: Settings, side: str) -> Any:
    """The regularizer of one side: the class of the same name from Keras or from fastreg."""
    factors = {name: getattr(settings, name) for name in ("l1", "l2") if name in settings.regularizer}
    return getattr(_PENALTIES[side], _CLASSES[settings.regularizer])(**factors)


def table(settings: Settings, side: str, name: str, number: int, rows: int, spread: float) -> keras.layers.Layer:
    """The table of one side: the regularizer and the layer are the only difference between the models.

    Parameters
    ----------
    settings : Settings
    side : {"keras", "fastreg", "lazy"}
    name : str
    number : int
        Among the tables of the model; it and the seed decide on the initial weights.
    rows : int
    spread : float
        The weights start uniform within plus and minus this.
    """
    return _LAYERS[side].Embedding(
        rows,
        settings.dim,
        embeddings_initializer=_uniform(spread, settings.seed, number),
        embeddings_regularizer=regularizer(settings, side),
        name=name,
    )


def compile_model(model: keras.Model, settings: Settings, side: str, loss: Any) -> None:
    """Compile the model of one side as the settings say."""
    optimizer = _OPTIMIZERS[settings.optimizer](settings.learning_rate)
    model.compile(
        optimizer=fastreg.LazyRegularization(optimizer) if side == LAZY else optimizer,
        loss=loss,
        run_eagerly=settings.eager,
        jit_compile="auto" if settings.jit is None else settings.jit,
    )


def _uniform(spread: float, *seed: int) -> Callable[..., NDArray[np.float32]]:
    """An initializer that draws in NumPy.

    Keras's own leaves its temporaries in TensorFlow's memory pool, where they would hide how much the training needs.
    """

    def draw(shape: tuple[int, ...], dtype: Any = None) -> NDArray[np.float32]:  # noqa: ARG001 - Keras passes it
        values = np.random.default_rng(seed).random(shape, np.float32)
        values -= np.float32(0.5)
        values *= np.float32(2 * spread)
        return values

    return draw
