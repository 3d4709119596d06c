"""Whole models: replacing Keras's regularizers, and listing what is regularized."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from fastreg._bridges import choose
from fastreg._bridges.counters import Choice
from fastreg._candidates import candidates
from fastreg._changes import Changes
from fastreg._lazy import make_lazy
from fastreg._tables.table import LazyTable, not_converted
from fastreg._traces import forget_traces
from fastreg.embedding import Embedding
from fastreg.regularizers import REPLACEMENTS, _Penalty, replaced


@dataclass(frozen=True)
class RegularizedValue:
    """One regularized weight or activity of a model, or table of which looked-up rows are regularized.

    Attributes
    ----------
    path : str
        Of the weight, or of the layer whose outputs are regularized.
    kind : {"weight", "activity", "rows"}
        The last of a `fastreg.Embedding` whose scope is not the table.
    regularizer : object
    size : int or None
        Elements; None for an activity or rows, whose size depends on the batch.
    dtype : str
    bridge : {"native", "py_function", "xla", "tensorflow", "dynamic", "keras", "lazy"}
        What computes the penalty in `fit`: the kernels, TensorFlow's ops, one of these by the size at run time, or
        the regularizer's own code, if it is not fastreg's; `"lazy"` for the table of a `fastreg.Embedding`, whose
        penalty is tracked as its rows are updated.
    reason : str
        Why; and of an embedding's dense penalty, why it is not lazy.
    """

    path: str
    kind: str
    regularizer: Any
    size: int | None
    dtype: str
    bridge: str
    reason: str


LEAST_ROWS = 2
"""Rows from which a lazily regularised table was no slower than a dense one, the fewest that were measured: line 6 of
`fastreg bench --suite lazy`. That is why `accelerate(model, lazy=True)` converts tables of every size."""


@not_converted
def accelerate(model: keras.Model, lazy: bool = False) -> keras.Model:
    """Replace Keras's L1, L2 and L1L2 regularizers in a model by fastreg's, in place.

    Covers weights and activities of every layer, nested models included, also of layers that are built later. A
    regularizer and its replacement have one set of factors, whichever is asked or set. Other regularizers (and
    subclasses of Keras's) are left alone. Works before and after `compile`, `build` and `fit`: functions that Keras has
    traced are traced anew when next used; weights and optimizer state are kept.

    Where Keras compiles the model with XLA (`jit_compile=True`, and by default on a machine with a GPU), penalties and
    lazy tables are TensorFlow's own ops: compile with `jit_compile=False` to use the kernels.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
    lazy : bool, default False
        Make the regularized `keras.layers.Embedding` layers of the model `fastreg.Embedding`, and wrap the optimizers
        of the model and of models in it, where they are compiled, in `fastreg.LazyRegularization`. The layers, their
        weights, the optimizers and their state stay the same objects with the same values; what a table has in the
        state of an optimizer goes over to the wrapper. Functions of your own that were traced before have to be made
        anew, and other models that share such a layer to be compiled with a wrapper.

    Returns
    -------
    keras.Model
        The same object.

    Raises
    ------
    TypeError
        If `model` is not a Keras layer or model.
    ValueError
        If a factor is a negative number, or, with `lazy`, if an optimizer has no row-wise form. Nothing is changed
        then, whatever the error is.

    Warns
    -----
    UserWarning
        With `lazy`: of embeddings that stay dense, and why; if an optimizer is not SGD, or a penalty has an L1 part,
        so that the numbers differ from Keras's.
    """
    layers = layers_of(model)
    replacement = one_for_one(REPLACEMENTS, replaced)

    def after_build(layer: keras.layers.Layer) -> None:
        with Changes() as changes:
            made = layers_of(layer)
            replace(made, replacement, after_build, changes)
            if lazy and (names := [repr(candidate.name) for candidate in candidates(layer, made)]):
                warnings.warn(
                    f"{', '.join(names)}: made after fastreg.accelerate(model, lazy=True), and dense. Call it again, "
                    "now that the model is built.",
                    UserWarning,
                    stacklevel=2,
                )

    with tf.init_scope(), Changes() as changes:  # now, also where a function is traced
        messages = make_lazy(model, layers, replacement, changes) if lazy else []
        replace(layers, replacement, after_build, changes)
        for layer in layers:
            if isinstance(layer, keras.Model):
                forget_traces(layer, changes)
        for message in messages:
            warnings.warn(message, UserWarning, stacklevel=3)
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
        Weights first, each once, in the order of the model, then tables of which rows are penalised, then activities;
        frozen weights, which Keras does not penalise, are not listed.

    Raises
    ------
    TypeError
        If `model` is not a Keras layer or model.
    """
    layers = layers_of(model)
    notes = {
        id(variable): f"dense: {candidate.obstacle or 'fastreg.accelerate(model, lazy=True) makes it lazy'}"
        for candidate in candidates(model, layers)
        for variable in candidate.layer.weights
    }
    compiled = getattr(model, "compiled", False)
    eager = compiled and bool(model.run_eagerly)
    xla = compiled and not eager and bool(model.jit_compile)
    row = functools.partial(_row, eager=eager, xla=xla)
    rows = [
        _lazy_row(variable, xla)
        if isinstance(variable, LazyTable)
        else row(
            variable.path,
            "weight",
            variable.regularizer,
            math.prod(variable.shape),
            variable.dtype,
            note=notes.get(id(variable)),
        )
        for variable in model.trainable_weights
        if getattr(variable, "regularizer", None) is not None
    ]
    rows += [
        row(
            layer._embeddings.path,
            "rows",
            layer.embeddings_regularizer,
            None,
            layer.variable_dtype,
            note=f"of the rows that a call looks up, {_COUNTED[layer.scope]}",
        )
        for layer in layers
        if isinstance(layer, Embedding) and layer.built and layer.is_penalised_by_rows
    ]
    rows += [
        row(layer.path or layer.name, "activity", layer.activity_regularizer, None, layer.compute_dtype)
        for layer in layers
        if getattr(layer, "activity_regularizer", None) is not None
    ]
    return rows


_COUNTED = {"batch": "each once", "occurrences": "as often as they occur"}
"""How rows count, by the scope of the layer."""


def layers_of(model: Any, kind: type[keras.layers.Layer] = keras.layers.Layer) -> list[keras.layers.Layer]:
    """All of a model's, or a layer's, itself included.

    Raises
    ------
    TypeError
        If it is not of this kind.
    """
    if isinstance(model, kind):
        # The one place where Keras lists layers of every kind recursively, RNN cells and wrapped layers included.
        return list(model._flatten_layers())
    received = type(model).__name__
    if any(base.__module__.startswith(_KERAS_2) for base in type(model).__mro__):
        received += " of Keras 2 (tf_keras). Make the model with the package keras, version 3"
    raise TypeError(f"Invalid type for argument model: expected a Keras model. Received: {received}")


def one_for_one(kinds: Collection[type], make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What `replace` takes: makes one of each value of these classes, so that layers that shared it still do."""
    made: dict[int, tuple[Any, Any]] = {}  # with the value itself, whose number another would have once it is gone

    def replacement(value: Any) -> Any:
        if type(value) not in kinds:
            return value
        if id(value) not in made:
            made[id(value)] = value, make(value)
        return made[id(value)][1]

    return replacement


_KERAS_2 = ("tf_keras.", "tensorflow.python.keras.")
"""Packages that are Keras 2."""


def replace(
    layers: Sequence[keras.layers.Layer],
    replacement: Callable[[Any], Any],
    after_build: Callable[[keras.layers.Layer], None],
    changes: Changes,
) -> None:
    """Replace the regularizers of layers and their weights, and of what is made when they are built.

    Parameters
    ----------
    layers : sequence of keras.layers.Layer
    replacement : callable
        Of whatever an attribute is; returns what is to stay.
    after_build : callable
        What to do with a layer when it is built.
    changes : Changes
    """
    for layer in layers:
        for name, value in list(vars(layer).items()):
            if (new := replacement(value)) is not value:
                changes.set(layer, name, new)
        for variable in layer.weights:
            regularizer = getattr(variable, "regularizer", None)
            if (new := replacement(regularizer)) is not regularizer:
                changes.set(variable, "regularizer", new)
        if not layer.built:
            changes.set(layer, "build", followed_by(after_build, layer))


def followed_by(action: Callable[[keras.layers.Layer], None], layer: keras.layers.Layer) -> Callable[..., None]:
    """The method `build` of a layer, with something to do after it, once."""
    build = layer.build

    @functools.wraps(build)
    def build_and_act(*arguments: Any, **options: Any) -> None:
        with Changes() as changes:
            changes.set(layer, "build", build)
            build(*arguments, **options)
        action(layer)

    method: Callable[..., None] = not_converted(build_and_act)
    return method


def _lazy_row(table: LazyTable, xla: bool) -> RegularizedValue:
    reason = f"a lazily regularised table, by {table.served_by(xla)}; measured no slower from {LEAST_ROWS} rows on"
    return RegularizedValue(
        table.path, "weight", table.penalised_by, math.prod(table.shape), table.dtype, "lazy", reason
    )


def _row(
    path: str,
    kind: str,
    regularizer: Any,
    size: int | None,
    dtype: str,
    *,
    eager: bool,
    xla: bool,
    note: str | None = None,
) -> RegularizedValue:
    if not isinstance(regularizer, _Penalty):
        choice = Choice("keras", "not a regularizer of fastreg")
    else:
        choice = choose.foresee(dtype, size, eager, xla)
    reason = choice.reason if note is None else f"{choice.reason}; {note}"
    return RegularizedValue(path, kind, regularizer, size, dtype, choice.bridge, reason)
