"""Copies of models that are made of Keras's own classes, for files that load without fastreg."""

from __future__ import annotations

import pathlib
import tempfile
import types
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.saving.serialization_lib import SafeModeScope

from fastreg._changes import Changes
from fastreg.embedding import Embedding
from fastreg.metrics import PenaltyMetric
from fastreg.models import layers_of, one_for_one, replace
from fastreg.optimizers import LazyRegularization, LossScaledLazyRegularization, unscaled, unwrapped
from fastreg.regularizers import REPLACEMENTS, _Penalty

_TWINS = {ours: theirs for theirs, ours in REPLACEMENTS.items()}

_WRAPPERS = (LazyRegularization, LossScaledLazyRegularization)


def to_keras(model: keras.Model) -> keras.Model:
    """Copy a model into one of Keras's own layers, regularizers and optimizer.

    What the copy saves loads where fastreg is not installed. It has the structure, the weights (the true ones of
    lazily regularised tables) and the compile arguments of the model, and its optimizer the state: steps, learning
    rate or schedule, slots. The model stays as it is.

    Parameters
    ----------
    model : keras.Model
        It is copied through a temporary file, so Keras must be able to save and load it: a subclassed model needs a
        configuration, a `compile` of its own also a `compile_from_config`. Classes of layers, and losses and metrics
        that it is compiled with, need not be registered.

    Returns
    -------
    keras.Model
        `fastreg.L1`, `L2` and `L1L2` are those of `keras.regularizers` with the factors of the moment, a
        `fastreg.Embedding` is a `keras.layers.Embedding`, the optimizer is what `fastreg.LazyRegularization` wraps, and
        there is no `fastreg.PenaltyMetric`.

    Raises
    ------
    TypeError
        If `model` is not a Keras model.
    ValueError
        If a regularizer, layer or optimizer is of a subclass of one of fastreg's, for which Keras has nothing.

    Warns
    -----
    UserWarning
        If the numbers will differ when the copy is trained on, and why: of a lazily regularised table a penalty with
        an L1 part, an optimizer other than SGD, `rowwise` or `implicit`; a factor that is a variable or callable and
        becomes a number; penalties of the rows that a batch looks up, which the copy has not.

    Examples
    --------
    >>> fastreg.to_keras(model).save("model.keras")
    """
    layers = layers_of(model, keras.Model)
    penalties, wrappers = _penalties(layers), _wrappers(layers)
    _refuse_subclasses([*layers, *penalties, *wrappers])
    with SafeModeScope(False), keras.saving.custom_object_scope(_unregistered(layers)):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "model.keras")
            keras.saving.save_model(model, path)
            copied = keras.saving.load_model(path, compile=False)
        _revert(copied)
        for original, copy in zip(_models(layers), _models(layers_of(copied)), strict=True):
            if original is model or _wrappers([original]):  # others are compiled, now that they are loaded
                _compile_as(original, copy)
    if differences := [*_differences(penalties, wrappers), *_left_out(layers)]:
        message = f"Trained on, the copy's numbers will differ from the model's: {'; '.join(differences)}."
        warnings.warn(message, UserWarning, stacklevel=2)
    return copied


def _revert(model: keras.layers.Layer) -> None:
    """Put what Keras has in the place of what is fastreg's; also in what layers make when they are built."""
    twin = one_for_one(_TWINS, lambda regularizer: _TWINS[type(regularizer)](**regularizer.get_config()))
    layers = layers_of(model)
    for layer in layers:
        if isinstance(layer, Embedding):
            layer.revert(twin(layer.embeddings_regularizer) if layer.scope == "table" else None)
    with Changes() as changes:
        replace(layers, twin, _revert, changes)


def _compile_as(original: keras.Model, copy: keras.Model) -> None:
    """Compile a model as another, and give its optimizer the state of the other's, but for wrappers."""
    config = original.get_compile_config()
    if not config:
        return
    copy.compile_from_config(_without_fastreg(config))
    if not copy.compiled or not original.optimizer.built:
        return
    if any(wrapper.tables_optimizer is not None for wrapper in _wrappers([original])):
        return  # the copy's one optimizer trains other variables, and another way
    state, own = list(original.optimizer.variables), copy.optimizer.variables
    if len(state) == len(own):  # else Keras says so
        # What a row-wise optimizer has for a row is that of each of its weights.
        state = [tf.broadcast_to(value, variable.shape) for value, variable in zip(state, own, strict=True)]
    copy.optimizer.load_own_variables({str(index): value for index, value in enumerate(state)})


def _without_fastreg(config: Any) -> Any:
    """A configuration with each wrapper's replaced by that of the optimizer that it wraps, and without metrics of
    penalties.
    """
    if isinstance(config, dict):
        if _is_of(config, *_WRAPPERS):
            config = config["config"]["optimizer"]
        return {key: None if _is_of(value, PenaltyMetric) else _without_fastreg(value) for key, value in config.items()}
    if isinstance(config, list):
        return [_without_fastreg(value) for value in config if not _is_of(value, PenaltyMetric)]
    return config


def _is_of(config: Any, *classes: type) -> bool:
    names = [keras.saving.get_registered_name(cls) for cls in classes]
    return isinstance(config, dict) and config.get("registered_name") in names


def _unregistered(layers: Sequence[keras.layers.Layer]) -> dict[str, Any]:
    """Classes and functions that the configurations of models name, which are the user's."""
    used: list[Any] = [type(layer) for layer in layers]
    for model in _models(layers):
        leaves = keras.tree.flatten(getattr(getattr(model, "_compile_config", None), "config", {}))
        used += [leaf if isinstance(leaf, types.FunctionType) else type(leaf) for leaf in leaves]
    registered = keras.saving.get_registered_name
    return {registered(each): each for each in used if each.__module__.split(".")[0] not in ("keras", "builtins")}


def _models(layers: Sequence[keras.layers.Layer]) -> list[keras.Model]:
    return [layer for layer in layers if isinstance(layer, keras.Model)]


def _wrappers(layers: Sequence[keras.layers.Layer]) -> list[LazyRegularization]:
    """Those that models among the layers are compiled with, each once."""
    found = {}
    for model in _models(layers):
        outer = unscaled(getattr(model, "optimizer", None))
        for optimizer in (outer, *getattr(outer, "optimizers", ())):  # of a `MultiOptimizer`
            if isinstance(optimizer, LazyRegularization):
                found[id(optimizer)] = optimizer
    return list(found.values())


def _penalties(layers: Sequence[keras.layers.Layer]) -> dict[_Penalty, bool]:
    """Fastreg's regularizers among the attributes of layers and their weights, and whether they are applied lazily."""
    found: dict[_Penalty, bool] = {}
    for layer in layers:
        held = [*vars(layer).values(), *(getattr(variable, "regularizer", None) for variable in layer.weights)]
        found |= {value: found.get(value, False) for value in held if isinstance(value, _Penalty)}
        if isinstance(layer, Embedding) and layer.scope == "table" and layer.embeddings_regularizer is not None:
            found[layer.embeddings_regularizer] = True
    return found


def _refuse_subclasses(parts: Sequence[Any]) -> None:
    known = (*_TWINS, Embedding, *_WRAPPERS)
    for part in parts:
        if isinstance(part, known) and type(part) not in known:
            base = next(base for base in type(part).__mro__ if base in known)
            raise ValueError(
                "Invalid value for argument model: expected fastreg's own classes, in whose place Keras's can stand. "
                f"Received: a model with {type(part).__name__}, a subclass of fastreg.{base.__name__}"
            )


def _differences(penalties: dict[_Penalty, bool], wrappers: Sequence[LazyRegularization]) -> list[str]:
    """Why a copy, trained on, will have other numbers."""
    names = {type(wrapper.tables_optimizer or unwrapped(wrapper)).__name__ for wrapper in wrappers}
    said = [
        f"with {name} the penalty of an embedding is part of the gradient, and all its rows are trained at every step"
        for name in sorted(names - {"SGD"})
    ]
    if any(wrapper.rowwise for wrapper in wrappers):
        said.append("squares of gradients are followed for each weight, from the number of its row on")
    for wrapper in wrappers:
        if wrapper.tables_optimizer is not None:
            before, now = (type(each).__name__ for each in (wrapper.tables_optimizer, unwrapped(wrapper)))
            said.append(f"{now} trains the tables too, which {before} did, and starts anew")
    if any(wrapper.implicit for wrapper in wrappers):
        said.append("the step of the penalty is not implicit")
    if any(lazy and penalty.get_config().get("l1") for penalty, lazy in penalties.items()):
        said.append("Keras's L1 penalty of an embedding oscillates at zero, where weights had stopped")
    said += [
        f"{name} of {type(penalty).__name__} is {penalty.get_config()[name]}, where it was {factor!r}"
        for penalty in penalties
        for name in penalty.factors
        if isinstance(factor := getattr(penalty, name), (tf.Variable, keras.Variable)) or callable(factor)
    ]
    return said


def _left_out(layers: Sequence[keras.layers.Layer]) -> list[str]:
    """Which penalties a copy has not, since Keras has nothing in their place."""
    return [
        f"Keras has no penalty of the rows that a batch looks up, which {layer.name!r} has (scope={layer.scope!r}), "
        "and the copy has none in its place"
        for layer in layers
        if isinstance(layer, Embedding) and layer.scope != "table" and layer.embeddings_regularizer is not None
    ]
