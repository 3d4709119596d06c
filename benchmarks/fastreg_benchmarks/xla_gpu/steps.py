"""Training steps of one layer, as HLO that is not optimised yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import keras
import tensorflow as tf

import fastreg
from fastreg._bridges import support
from fastreg_benchmarks.workloads import L1, L2, RATE

UNITS, BATCH = 4096, 32
"""Of the dense layer, which has as many inputs."""

ROWS, WIDTH, LOOKUPS = 1 << 18, 64, 4096
"""Of tables; as many weights as the dense layer has."""

PENALTIES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "keras": lambda: keras.regularizers.L1L2(L1, L2),
    "fastreg": lambda: fastreg.L1L2(L1, L2),
}

OPTIMIZERS: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
    "SGD": lambda: keras.optimizers.SGD(RATE),
    "Adam": lambda: keras.optimizers.Adam(RATE),
}


class Step(NamedTuple):
    """The step of a layer with a penalty and an optimizer, each by its name."""

    layer: str
    penalty: str
    optimizer: str

    def hlo(self) -> str:
        """What XLA is given where tensors are on a GPU."""
        layer, inputs = LAYERS[self.layer](PENALTIES[self.penalty]())
        weights = layer.trainable_weights
        optimizer = OPTIMIZERS[self.optimizer]()
        if isinstance(layer, fastreg.Embedding):
            optimizer = fastreg.LazyRegularization(optimizer)
        optimizer.build(weights)

        def step(inputs: Any, targets: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(layer(inputs) - targets))
                loss = tf.add_n([loss, *layer.losses])
            optimizer.apply(tape.gradient(loss, weights), weights)
            return loss

        compiled = tf.function(step, jit_compile=True, autograph=False)
        targets = tf.zeros_like(layer(inputs))
        with mock.patch.object(support, "is_likely_on_gpu", return_value=True):
            text: str = compiled.experimental_get_compiler_ir(inputs, targets)(stage="hlo")
        return text


def _dense(penalty: Any) -> tuple[keras.Layer, Any]:
    layer = keras.layers.Dense(UNITS, use_bias=False, kernel_initializer="zeros", kernel_regularizer=penalty)
    layer.build((None, UNITS))
    return layer, tf.zeros((BATCH, UNITS))


def _embedding(cls: type[keras.layers.Embedding], penalty: Any) -> tuple[keras.Layer, Any]:
    layer = cls(ROWS, WIDTH, embeddings_initializer="zeros", embeddings_regularizer=penalty)
    layer.build()
    return layer, tf.zeros(LOOKUPS, tf.int32)


LAYERS: dict[str, Callable[[Any], tuple[keras.Layer, Any]]] = {
    "dense layer": _dense,
    "dense table": lambda penalty: _embedding(keras.layers.Embedding, penalty),
    "lazy table": lambda penalty: _embedding(fastreg.Embedding, penalty),
}
"""Each makes a layer with a penalty, and what a step gives to it."""
