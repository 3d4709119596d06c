"""Whole models: replacing Keras's regularizers, and listing what is regularized."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from fastreg import _bridge
from fastreg.regularizers import L1, L1L2, L2, _Penalty

_REPLACEMENTS = {keras.regularizers.L1: L1, keras.regularizers.L2: L2, keras.regularizers.L1L2: L1L2}


@dataclass(frozen=True)
class RegularizedValue:
    """One regularized weight or activity of a model.

    Attributes
    ----------
    path : str
        Of the weight, or of the layer whose outputs are regularized.
    kind : {"weight", "activity"}
    regularizer : object
    size : int or None
        Elements; None for an activity, whose size depends on the batch.
    dtype : str
    bridge : {"py_function", "tensorflow", "dynamic", "keras"}
        What computes the penalty in `fit`: the kernels, TensorFlow's ops, one of these by the size at run time, or
        the regularizer's own code, if it is not fastreg's.
    reason : str
        Why.
    """

    path: str
    kind: str
    regularizer: Any
    size: int | None
    dtype: str
    bridge: str
    reason: str


def accelerate(model: keras.Model) -> keras.Model:
    """Replace Keras's L1, L2 and L1L2 regularizers in a model by fastreg's, in place.

    Covers weights and activities of every layer, nested models included. Factors stay as they are, other regularizers
    (and subclasses of Keras's) are left alone. Works before and after `compile`, `build` and `fit`: functions that are
    traced already are traced anew when next used; weights and optimizer state are kept.

    Where Keras compiles the model with XLA (`jit_compile=True`, and by default on a machine with a GPU), the penalties
    are computed by TensorFlow's own ops, as before: compile with `jit_compile=False` to use the kernels.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer

    Returns
    -------
    keras.Model
        The same object.

    Raises
    ------
    TypeError
        If `model` is not a Keras layer or model.
    """
    replaced: dict[int, _Penalty] = {}

    def replacement(regularizer: Any) -> _Penalty:
        # One for one, so that layers that shared a regularizer still do.
        if id(regularizer) not in replaced:
            replaced[id(regularizer)] = _REPLACEMENTS[type(regularizer)](**regularizer.get_config())
        return replaced[id(regularizer)]

    for layer in _layers(model):
        for name, value in list(vars(layer).items()):
            if type(value) in _REPLACEMENTS:
                setattr(layer, name, replacement(value))
        for variable in layer.weights:
            if type(getattr(variable, "regularizer", None)) in _REPLACEMENTS:
                variable.regularizer = replacement(variable.regularizer)
        if isinstance(layer, keras.Model):
            layer.train_function = layer.test_function = layer.predict_function = None
    return model


def inspect(model: keras.Model) -> list[RegularizedValue]:
    """List every regularized weight and activity of a model, and which bridge would serve it in `fit`.

    A compiled model tells whether `fit` runs eagerly or under XLA; one that is not counts as neither.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
        Weights of layers that are not built yet do not exist and are not listed.

    Returns
    -------
    list of RegularizedValue
        Weights first, each once, in the order of the model; frozen weights, which Keras does not penalise, are not
        listed.

    Raises
    ------
    TypeError
        If `model` is not a Keras layer or model.
    """
    layers = list(_layers(model))
    compiled = getattr(model, "compiled", False)
    eager = compiled and bool(model.run_eagerly)
    row = functools.partial(_row, eager=eager, xla=compiled and not eager and bool(model.jit_compile))
    rows = [
        row(variable.path, "weight", variable.regularizer, math.prod(variable.shape), variable.dtype)
        for variable in model.trainable_weights
        if getattr(variable, "regularizer", None) is not None
    ]
    rows += [
        row(layer.path or layer.name, "activity", layer.activity_regularizer, None, layer.compute_dtype)
        for layer in layers
        if getattr(layer, "activity_regularizer", None) is not None
    ]
    return rows


def _layers(model: Any) -> Iterator[keras.layers.Layer]:
    if not isinstance(model, keras.layers.Layer):
        raise TypeError(f"Invalid type for argument model: expected a Keras model. Received: {type(model).__name__}")
    # The one place where Keras lists layers of every kind recursively, RNN cells and wrapped layers included.
    yield from model._flatten_layers()


def _row(
    path: str, kind: str, regularizer: Any, size: int | None, dtype: str, *, eager: bool, xla: bool
) -> RegularizedValue:
    if not isinstance(regularizer, _Penalty):
        choice = _bridge.Choice("keras", "not a regularizer of fastreg")
    else:
        choice = _bridge.foresee(dtype, size, eager, xla)
    return RegularizedValue(path, kind, regularizer, size, dtype, choice.bridge, choice.reason)
