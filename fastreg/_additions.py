"""Penalties added to the weights of a model that is there."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from fastreg import _traces
from fastreg._changes import Changes
from fastreg._tables.table import LazyTable, not_converted
from fastreg.embedding import Embedding
from fastreg.models import followed_by, layers_of
from fastreg.regularizers import REPLACEMENTS, replaced

Criterion = str | type[keras.layers.Layer] | Callable[[keras.layers.Layer, str], bool]
"""What says of a weight, by its layer and its name, whether it is meant."""


class AddedPenalty(NamedTuple):
    """What `regularize` did with one weight.

    Attributes
    ----------
    path : str
        Of the layer, and the name of the weight.
    regularizer : object
        What the weight has now.
    added : bool
        Whether it is the one that was given.
    note : str
        Why not, or what there is to know.
    """

    path: str
    regularizer: Any
    added: bool
    note: str


@not_converted
def regularize(
    model: keras.layers.Layer,
    regularizer: Any,
    include: Criterion | Sequence[Criterion] | None = None,
    exclude: Criterion | Sequence[Criterion] | None = ("bias", "gamma", "beta"),
) -> list[AddedPenalty]:
    """Add a penalty to the weights of a model, in place: to those that are included, not excluded and have none.

    As if the layers had been made with it: it is saved with the model, for weights that Keras's layers have an argument
    for, `kernel_regularizer` and the like. Works before and after `build`, `compile` and `fit`: functions that Keras
    has traced are traced anew when next used. Layers that are built later are followed.

    Parameters
    ----------
    model : keras.Model or keras.layers.Layer
    regularizer : fastreg.L1, L2 or L1L2, or what `keras.regularizers.get` knows
        One of Keras's own three becomes fastreg's.
    include : str, class of layers, callable, or several of these; optional
        Which weights. A word is the name of a weight, such as "kernel", or of a layer; what has a slash or one of
        `*?[` is a pattern, as of `fnmatch`, of how the path ends, such as `"encoder/*/kernel"`. A class stands for all
        weights of its layers. A callable is given the layer and the name. By default all weights.
    exclude : the same, default ("bias", "gamma", "beta")
        Which of these not.

    Returns
    -------
    list of AddedPenalty
        One for each weight that was meant, in the order of the model; of layers that are not built, for each that
        their arguments tell of.

    Raises
    ------
    TypeError
        If `model` is not a Keras layer or model, or a criterion is none.
    ValueError
        If there is no such regularizer, or nothing that was meant. Nothing is changed then.

    Examples
    --------
    >>> fastreg.regularize(model, fastreg.L2(1e-4))
    >>> fastreg.regularize(model, fastreg.L1(1e-6), include=keras.layers.Embedding)
    """
    layers = layers_of(model)
    found = keras.regularizers.get(regularizer)
    if found is None:
        raise ValueError("Invalid value for argument regularizer: expected one. Received: None")
    penalty = replaced(found) if type(found) in REPLACEMENTS else found
    is_included, is_excluded = _criterion(include, "include", True), _criterion(exclude, "exclude", False)

    def is_meant(layer: keras.layers.Layer, name: str) -> bool:
        return is_included(layer, name) and not is_excluded(layer, name)

    with tf.init_scope(), Changes() as changes:
        done = _add(layers, penalty, is_meant, changes)
        if not done and all(layer.built for layer in layers):
            raise ValueError(
                f"Invalid value for argument include: expected what a weight of the model {model.name!r} meets that is "
                f"not excluded. Received: include={include!r}, exclude={exclude!r}"
            )
        _traces.forget_traces_of(layers, changes)
    return done


def _add(
    layers: Sequence[keras.layers.Layer],
    penalty: Any,
    is_meant: Callable[[keras.layers.Layer, str], bool],
    changes: Changes,
) -> list[AddedPenalty]:
    def after_build(layer: keras.layers.Layer) -> None:
        with Changes() as changes:
            _add(layers_of(layer), penalty, is_meant, changes)

    done = []
    for layer in layers:
        arguments = dict(_arguments(layer))
        variables = {variable.name: variable for variable in layer._trainable_variables}
        for name in dict.fromkeys([*variables, *arguments]):
            variable, attribute = variables.get(name), arguments.get(name)
            if not is_meant(layer, name) or not (variable is None or keras.backend.is_float_dtype(variable.dtype)):
                continue
            added = _add_one(layer, name, variable, attribute, penalty, changes)
            if variable is not None or not layer.built:  # else of layers in this one, which have their own
                done.append(added)
        if not layer.built:
            changes.set(layer, "build", followed_by(after_build, layer))
    return done


def _add_one(
    layer: keras.layers.Layer, name: str, variable: Any, attribute: str | None, penalty: Any, changes: Changes
) -> AddedPenalty:
    path = _path(layer, name)
    if isinstance(variable, LazyTable):
        return AddedPenalty(path, variable.penalised_by, False, "has a penalty, of a lazily regularised table")
    present = getattr(variable, "regularizer", None) or (getattr(layer, attribute) if attribute else None)
    if present is not None:
        return AddedPenalty(path, present, False, "has a penalty")
    if isinstance(layer, Embedding) and name == "embeddings":
        if layer.built and layer.scope == "table":
            return AddedPenalty(path, None, False, "is no table, for the layer was built without a regularizer")
        changes.set(layer, "embeddings_regularizer", penalty)
        lazy = (
            "lazily: to be trained by fastreg.LazyRegularization" if layer.scope == "table" else "of the rows looked up"
        )
        return AddedPenalty(path, layer.embeddings_regularizer, True, lazy)
    if attribute is not None:
        changes.set(layer, attribute, penalty)
    if variable is not None:
        changes.set(variable, "regularizer", penalty)
    note = "" if attribute else "not saved with the model, for the layer has no argument for it"
    return AddedPenalty(path, penalty, True, note)


def _arguments(layer: keras.layers.Layer) -> Iterator[tuple[str, str]]:
    """Names of weights, and the attributes in which a layer keeps the regularizers that it was made with."""
    own = vars(layer)
    if isinstance(layer, Embedding):  # in whose dictionary it is not
        yield "embeddings", "embeddings_regularizer"
    for attribute in list(own):
        match = re.fullmatch(r"_?(\w+)_regularizer", attribute)
        if match is None or match[1] == "activity":
            continue
        name = match[1]
        if name in ("recurrent", "pointwise") or (name == "depthwise" and "pointwise_regularizer" in own):
            name = f"{name}_kernel"
        yield "kernel" if name == "depthwise" else name, attribute


def _path(layer: keras.layers.Layer, name: str) -> str:
    return f"{layer.path or layer.name}/{name}"


def _criterion(given: Any, argument: str, default: bool) -> Callable[[keras.layers.Layer, str], bool]:
    """Whether a weight meets one of the criteria."""
    if given is None:
        return lambda layer, name: default  # noqa: ARG005
    each = list(given) if isinstance(given, (list, tuple, set, frozenset)) else [given]
    tests = [_test(criterion, argument) for criterion in each]
    return lambda layer, name: any(test(layer, name) for test in tests)


def _test(criterion: Any, argument: str) -> Callable[[keras.layers.Layer, str], bool]:
    if isinstance(criterion, str):
        if re.search(r"[/*?\[]", criterion):
            return lambda layer, name: fnmatch.fnmatchcase(f"/{_path(layer, name)}", f"*/{criterion}")
        return lambda layer, name: criterion in (name, layer.name)
    if isinstance(criterion, type) and issubclass(criterion, keras.layers.Layer):
        return lambda layer, name: isinstance(layer, criterion)  # noqa: ARG005
    if callable(criterion) and not isinstance(criterion, type):
        return lambda layer, name: bool(criterion(layer, name))
    raise TypeError(
        f"Invalid type for argument {argument}: expected names or patterns, classes of layers or callables. "
        f"Received: {criterion!r}"
    )
