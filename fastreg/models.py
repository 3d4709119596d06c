"""Whole models: replacing Keras's regularizers, and listing what is regularized."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from fastreg._bridges import choose
from fastreg._bridges.counters import Choice
from fastreg._clone import lazy_clone
from fastreg._tables.table import LazyTable
from fastreg.regularizers import REPLACEMENTS, _Penalty, replaced


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
    bridge : {"native", "py_function", "tensorflow", "dynamic", "keras", "lazy"}
        What computes the penalty in `fit`: the kernels, TensorFlow's ops, one of these by the size at run time, or
        the regularizer's own code, if it is not fastreg's; `"lazy"` for the table of a `fastreg.Embedding`, whose
        penalty is tracked as its rows are updated.
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


def accelerate(model: keras.Model, lazy: bool = False) -> keras.Model:
    """Replace Keras's L1, L2 and L1L2 regularizers in a model by fastreg's, in place.

    Covers weights and activities of every layer, nested models included. Factors stay as they are, other regularizers
    (and subclasses of Keras's) are left alone. Works before and after `compile`, `build` and `fit`: functions that are
    traced already are traced anew when next used; weights and optimizer state are kept.

    Where Keras compiles the model with XLA (`jit_compile=True`, and by default on a machine with a GPU), the penalties
    are computed by TensorFlow's own ops, as before: compile with `jit_compile=False` to use the kernels.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
    lazy : bool, default False
        Return a clone instead, of a Functional or Sequential model, whose regularized `keras.layers.Embedding` layers
        are `fastreg.Embedding` and whose optimizer, if the model is compiled, is a fresh one of the same settings in a
        `fastreg.LazyRegularization`. The clone has the weights of the model, but not the state of its optimizer.

    Returns
    -------
    keras.Model
        The same object, or the clone.

    Raises
    ------
    TypeError
        If `model` is not a Keras layer or model.
    ValueError
        If a lazy clone is not possible: of a subclassed model, or with an optimizer without a row-wise form.

    Warns
    -----
    UserWarning
        If the clone's optimizer is not SGD, or a penalty has an L1 part: its numbers then differ from Keras's.
    """
    if lazy:
        model = lazy_clone(model)
    replacements: dict[int, _Penalty] = {}

    def replacement(regularizer: Any) -> _Penalty:
        # One for one, so that layers that shared a regularizer still do.
        if id(regularizer) not in replacements:
            replacements[id(regularizer)] = replaced(regularizer)
        return replacements[id(regularizer)]

    for layer in _layers(model):
        for name, value in list(vars(layer).items()):
            if type(value) in REPLACEMENTS:
                setattr(layer, name, replacement(value))
        for variable in layer.weights:
            if type(getattr(variable, "regularizer", None)) in REPLACEMENTS:
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
        _lazy_row(variable)
        if isinstance(variable, LazyTable)
        else row(variable.path, "weight", variable.regularizer, math.prod(variable.shape), variable.dtype)
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


def _lazy_row(table: LazyTable) -> RegularizedValue:
    reason = f"a lazily regularised table, by {table.served_by()}"
    return RegularizedValue(
        table.path, "weight", table.penalised_by, math.prod(table.shape), table.dtype, "lazy", reason
    )


def _row(
    path: str, kind: str, regularizer: Any, size: int | None, dtype: str, *, eager: bool, xla: bool
) -> RegularizedValue:
    if not isinstance(regularizer, _Penalty):
        choice = Choice("keras", "not a regularizer of fastreg")
    else:
        choice = choose.foresee(dtype, size, eager, xla)
    return RegularizedValue(path, kind, regularizer, size, dtype, choice.bridge, choice.reason)
