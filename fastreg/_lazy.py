"""Models whose embeddings become lazily regularised where they stand: the layers, and the optimizers of the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from fastreg._candidates import candidates
from fastreg._changes import Changes
from fastreg._tables import rules
from fastreg._tables.table import LazyTable
from fastreg._traces import forget_traces_of
from fastreg.embedding import Embedding
from fastreg.optimizers import LazyRegularization, unscaled, unwrapped
from fastreg.regularizers import _Penalty


def make_lazy(
    model: keras.layers.Layer,
    layers: Sequence[keras.layers.Layer],
    replacement: Callable[[Any], _Penalty],
    changes: Changes,
) -> list[str]:
    """Make every embedding lazy that can be, and wrap the optimizers of the models among the layers that have one.

    Parameters
    ----------
    model : keras.layers.Layer
    layers : sequence of keras.layers.Layer
        All of the model's.
    replacement : callable
        Fastreg's regularizer for one of Keras's.
    changes : Changes

    Returns
    -------
    list of str
        What there is to say: which embeddings were left, and whose numbers will differ from Keras's.

    Raises
    ------
    ValueError
        If an optimizer has no row-wise form.
    """
    left, differs, converted = [], [], []
    for candidate in candidates(model, layers):
        if candidate.obstacle is not None:
            left.append(f"{candidate.name!r}: {candidate.obstacle}")
            continue
        penalty = replacement(candidate.penalty)
        if "l1" in penalty.factors and not (isinstance(penalty.l1, (int, float)) and penalty.l1 == 0.0):
            differs.append(f"the L1 part of {candidate.name!r} stops at zero, where Keras's oscillates")
        _convert(candidate.layer, penalty, changes)
        converted.append(candidate.layer)
    messages = []
    if left:
        messages.append(f"These embeddings stay dense, with all rows trained at every step: {'; '.join(left)}.")
    elif not any(_is_lazy(layer) for layer in layers):
        messages.append("Nothing became lazy: the model has no keras.layers.Embedding with a regularizer.")
    wrapping = _Wrapping(changes)
    for each in layers:
        if isinstance(each, keras.Model) and any(_is_lazy(layer) for layer in each._flatten_layers()):
            wrapping.wrap(each)
    messages += wrapping.left
    names = {type(unwrapped(wrapper)).__name__ for wrapper in wrapping.new(bool(converted))} - {"SGD"}
    differs += [
        f"with {name} the penalty is decoupled from the gradient, so that strengths mean something else, and idle rows "
        "keep their slots"
        for name in sorted(names)
    ]
    rules.explained.update(names)
    if differs:
        messages.append(f"The numbers will differ from Keras's: {'; '.join(differs)}.")
    forget_traces_of(converted, changes)
    return messages


class _Wrapping:
    """Optimizers of models, and their wrappers; models may share one.

    Attributes
    ----------
    wrappers : dict
        By the identity of what they wrap.
    left : list of str
        Which were not wrapped, and why.
    """

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self.wrappers: dict[int, keras.optimizers.Optimizer] = {}
        self.left: list[str] = []

    def wrap(self, model: keras.Model) -> None:
        """Wrap what trains the tables of a model: of its optimizers that are in use those that know one, else any."""
        held = {name: each for name, each in vars(model).items() if isinstance(each, keras.optimizers.Optimizer)}
        for name, optimizer in held.items():
            inner = unwrapped(optimizer)
            in_use = any(isinstance(variable, LazyTable) for variable in inner._trainable_variables)
            if inner.built and not in_use:
                continue
            if id(optimizer) not in self.wrappers:
                try:
                    self._add(optimizer)
                except ValueError as error:
                    reason = f"The optimizer of the model {model.name!r}: {error}"
                    if in_use or len(held) == 1:
                        raise ValueError(reason) from error
                    self.left.append(f"{reason}. It must not train a lazy embedding.")
                    continue
            if self.wrappers[id(optimizer)] is not optimizer:
                self._set(model, name, self.wrappers[id(optimizer)])

    def new(self, converted: bool) -> list[keras.optimizers.Optimizer]:
        """Wrappers that were not there before, or all if a layer was converted."""
        return [wrapper for key, wrapper in self.wrappers.items() if converted or key != id(wrapper)]

    def _add(self, optimizer: keras.optimizers.Optimizer) -> None:
        inside = unscaled(optimizer)
        if isinstance(inside, LazyRegularization):  # with or without a `LossScaleOptimizer` of Keras's around it
            wrapper, outermost = inside, optimizer
        else:
            wrapper = outermost = LazyRegularization(optimizer)
        wrapper.take_over(self._changes)
        self.wrappers[id(optimizer)] = outermost

    def _set(self, model: keras.Model, name: str, wrapper: keras.optimizers.Optimizer) -> None:
        self._changes.set(model, name, wrapper)
        if name == "optimizer" and (config := _compile_config(model)) is not None:
            self._changes.keep(config)
            config["optimizer"] = wrapper


def _compile_config(model: keras.Model) -> dict[str, Any] | None:
    """What a file says of how a model was compiled; None if it was not, or by a `compile` of its own only."""
    return getattr(getattr(model, "_compile_config", None), "config", None)


def _convert(layer: keras.layers.Embedding, penalty: _Penalty, changes: Changes) -> None:
    """Make an embedding of Keras's a lazily regularised one: the same layer, and the same variable if it is built."""
    if layer.built:
        LazyTable.convert(layer.embeddings, penalty, changes)
    changes.become(layer, Embedding, embeddings_regularizer=penalty, penalty_every=None, scope="table")


def _is_lazy(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, Embedding) and layer.scope == "table" and layer.embeddings_regularizer is not None
