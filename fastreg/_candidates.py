"""Embeddings of Keras's that could become lazily regularised where they stand, and why some cannot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import fastreg_kernels
import keras
import tensorflow as tf

from fastreg._bridges import support
from fastreg.embedding import Embedding
from fastreg.regularizers import lazy_obstacle


class Candidate(NamedTuple):
    """An embedding of Keras's with a penalty.

    Attributes
    ----------
    layer : keras.layers.Embedding
    penalty : object
    obstacle : str or None
        Why it cannot become lazy where it stands.
    """

    layer: keras.layers.Embedding
    penalty: Any
    obstacle: str | None

    @property
    def name(self) -> str:
        """The layer's path, or its name while it has none."""
        return str(self.layer.path or self.layer.name)


def candidates(model: keras.layers.Layer, layers: Sequence[keras.layers.Layer]) -> Iterator[Candidate]:
    """Every embedding among the layers of a model whose penalty is a dense one."""
    for layer in layers:
        if isinstance(layer, keras.layers.Embedding) and (penalty := _dense_penalty(layer)) is not None:
            obstacle = _obstacle(layer, penalty) or _obstacle_around(layer, model, layers)
            yield Candidate(layer, penalty, obstacle)


def _dense_penalty(layer: keras.layers.Embedding) -> Any:
    """The penalty that an embedding of Keras's has, or will have when it is built; None for a lazy one."""
    if isinstance(layer, Embedding):
        return None
    if not layer.built:
        return layer.embeddings_regularizer
    return getattr(vars(layer).get("_embeddings"), "regularizer", None)  # the layer's attribute has no effect any more


def _obstacle(layer: keras.layers.Embedding, penalty: Any) -> str | None:
    """Why an embedding of Keras's with this penalty cannot become lazy where it stands, or None."""
    if type(layer) is not keras.layers.Embedding:
        return f"{type(layer).__name__} is a subclass of keras.layers.Embedding"
    if "call" in vars(layer):
        return "its call was replaced"
    if layer.lora_enabled or layer.lora_rank or layer.quantization_mode is not None:
        return "it has LoRA weights or is quantized"
    if (obstacle := lazy_obstacle(penalty)) is not None:
        return f"it has the regularizer {penalty!r}, {obstacle}"
    if not layer.built:
        constraint, dtype = layer.embeddings_constraint, layer.variable_dtype
    elif len(layer.weights) != 1:
        return "it has weights beside the embeddings"
    else:
        constraint, dtype = layer.embeddings.constraint, layer.embeddings.dtype
    if constraint is not None:
        return "it has a constraint"
    return None if dtype in fastreg_kernels.DTYPES else f"its dtype {dtype} has no kernels"


def _obstacle_around(
    layer: keras.layers.Layer, model: keras.layers.Layer, layers: Sequence[keras.layers.Layer]
) -> str | None:
    """What a model does with the table of a layer that a lazy one does not bear."""
    strategy = model.distribute_strategy if isinstance(model, keras.Model) else tf.distribute.get_strategy()
    with strategy.scope():
        if (name := support.distribution()) is not None:
            return f"the model is distributed by {name}"
    for each in layers:
        if isinstance(each, keras.layers.RNN) and not each.unroll and layer in each._flatten_layers():
            return f"it is looked up in the loop of {each.name!r}"
    if not layer.built:
        return None
    table = layer.embeddings
    for each in layers:
        own = [*each._trainable_variables, *each._non_trainable_variables]
        if each is not layer and any(variable is table for variable in own):
            return f"its table is a weight of {each.name!r} too"
        for operation in getattr(each, "operations", []):
            for node in operation._inbound_nodes:
                arguments = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
                if any(argument is table for argument in arguments):
                    return f"its whole table is an input of {operation.name!r}"
    return None
