"""Functions that models have traced, which a change of what they were traced with makes wrong."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence

import keras

from fastreg._changes import Changes


def models_with(layers: Sequence[keras.layers.Layer]) -> Iterator[keras.Model]:
    """Every model in the process that has one of these layers: models share layers without knowing of each other."""
    if not layers:
        return
    wanted = {id(layer) for layer in layers}
    for model in gc.get_objects():
        # By its type: some objects look like others when they are asked.
        if not issubclass(type(model), keras.Model) or not hasattr(model, "_layers"):
            continue
        if any(id(layer) in wanted for layer in model._flatten_layers()):
            yield model


def forget_traces_of(layers: Sequence[keras.layers.Layer], changes: Changes) -> None:
    """Have all models that have one of these layers trace their functions anew: they would use the old memory."""
    for model in models_with(layers):
        forget_traces(model, changes)


def forget_traces(model: keras.Model, changes: Changes) -> None:
    """Have a model trace its functions anew when they are next used, also by a `fit` that is under way."""
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function", None) is not None:
            changes.set(model, f"{kind}_function", None)
            getattr(model, f"make_{kind}_function")()
