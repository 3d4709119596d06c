"""A copy of a model whose embeddings are regularised lazily."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from fastreg.embedding import Embedding
from fastreg.optimizers import LazyRegularization, unscaled
from fastreg.regularizers import REPLACEMENTS, _Penalty


def lazy_clone(model: Any) -> keras.Model:
    """The clone that `fastreg.accelerate(model, lazy=True)` returns, with its weights, compiled as the model is.

    Raises
    ------
    TypeError
        If `model` is not a Keras model.
    ValueError
        If it is subclassed, so that Keras cannot clone it, or if its optimizer has no row-wise form.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"Invalid type for argument model: expected a Keras model. Received: {type(model).__name__}")
    differs: list[str] = []

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not _becomes_lazy(layer):
            return layer.__class__.from_config(layer.get_config())
        if getattr(layer.embeddings_regularizer, "l1", 0.0):
            differs.append(f"the L1 part of {layer.name!r} stops at zero, where Keras's oscillates")
        lazy = Embedding.from_config(layer.get_config())
        lazy.trainable = layer.trainable
        return lazy

    with _not_compiled(model):
        result = keras.models.clone_model(model, clone_function=clone, recursive=True)
    result.set_weights(model.get_weights())
    if getattr(model, "compiled", False):
        config = model.get_compile_config()
        if config is None:
            raise ValueError("Invalid value for argument model: expected one that was compiled by compile().")
        optimizer = keras.optimizers.deserialize(config["optimizer"])
        if not isinstance(unscaled(optimizer), LazyRegularization):
            optimizer = LazyRegularization(optimizer)
        inner = unscaled(unscaled(optimizer).inner_optimizer)
        if type(inner) is not keras.optimizers.SGD:
            name = type(inner).__name__
            differs.append(f"with {name} the penalty is decoupled from the gradient, and idle rows keep their slots")
        config["optimizer"] = keras.optimizers.serialize(optimizer)
        # Keras's configuration does not tell whether `compile` was to leave the loss alone.
        config["auto_scale_loss"] = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        result.compile_from_config(config)
    if differs:
        warnings.warn(f"The numbers will differ from Keras's: {'; '.join(differs)}.", UserWarning, stacklevel=3)
    return result


@contextmanager
def _not_compiled(model: keras.Model) -> Iterator[None]:
    """Have Keras take a model, and those in it, for not compiled: it would compile clones with the bare optimizer."""
    compiled = [layer for layer in model._flatten_layers() if getattr(layer, "compiled", False)]
    try:
        for layer in compiled:
            layer.compiled = False
        yield
    finally:
        for layer in compiled:
            layer.compiled = True


def _becomes_lazy(layer: keras.layers.Layer) -> bool:
    """Whether it is Keras's own embedding with a penalty that can be applied lazily, and nothing that forbids it."""
    if type(layer) is not keras.layers.Embedding:
        return False
    penalty = layer.embeddings_regularizer
    if not isinstance(penalty, _Penalty) and type(penalty) not in REPLACEMENTS:
        return False
    forbidden = layer.embeddings_constraint is not None or layer.lora_enabled or layer.quantization_mode is not None
    return not forbidden
