"""Models, the same whoever's penalties they have."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

import fastreg
from fastreg_benchmarks.soak import decoupled
from fastreg_benchmarks.soak.cases import Training

SAMPLES, BATCH = 20, 8
"""The last batch is smaller."""

ROWS, IDS, WIDTH = 23, 4, 5
"""Of tables, and what a sample looks up."""

SHAPES = {"features": (6,), "series": (4, 3), "images": (6, 6, 2)}

RATES = {
    "sgd": 0.125,
    "scaled": 0.125,
    "momentum": 0.0625,
    "adam": 0.03125,
    "adamw": 0.03125,
    "adagrad": 0.125,
    "rowwise": 0.125,
    "rmsprop": 0.015625,
    "nadam": 0.03125,
    "adamax": 0.03125,
}
EPSILON = 2.0**-7
"""Of optimizers that divide by the size of gradients, for which one that is nearly zero would be a step of any sign."""


@dataclass(frozen=True)
class Side:
    """Whose penalties a model has: fastreg's, or what they are compared with."""

    training: Training
    ours: bool

    def penalty(self, l1: float, l2: float) -> Any:
        """Of a dense weight or of outputs."""
        module = fastreg if self.ours and self.training.penalties == "layers" else keras.regularizers
        if l1 and l2:
            return module.L1L2(l1, l2)
        return module.L1(l1) if l1 else module.L2(l2)

    def embedding(self, rows: int, width: int, l1: float, l2: float, **options: Any) -> Any:
        """An embedding with a penalty."""
        training = self.training
        if self.ours and training.lazy and training.penalties == "layers":
            return fastreg.Embedding(rows, width, embeddings_regularizer=self.penalty(l1, l2), **options)
        if not self.ours and not training.is_keras_s:
            penalty = decoupled.Reported(l1, l2, training.implicit)
        else:
            penalty = self.penalty(l1, l2)
        return layers.Embedding(rows, width, embeddings_regularizer=penalty, **options)

    def optimizer(self) -> Any:
        """The optimizer of the training."""
        training, name = self.training, self.training.optimizer
        options: dict[str, Any] = {"learning_rate": RATES[name], **dict(training.options)}
        if name == "momentum":
            options["momentum"] = 0.75
        elif name in ("adagrad", "rowwise"):
            options.update(initial_accumulator_value=0.125, epsilon=EPSILON)
        elif name not in ("sgd", "scaled"):
            options["epsilon"] = EPSILON
        if name == "adam":
            options.update(beta_1=0.875, beta_2=0.984375)  # exact in float32, to which Keras rounds them
        module = keras.optimizers
        classes = {
            "sgd": module.SGD,
            "scaled": module.SGD,
            "momentum": module.SGD,
            "adam": module.Adam,
            "adamw": module.AdamW,
            "adagrad": module.Adagrad,
            "rowwise": module.Adagrad,
            "rmsprop": module.RMSprop,
            "nadam": module.Nadam,
            "adamax": module.Adamax,
        }
        if not self.ours and not training.is_keras_s:
            reference = {"adam": decoupled.Adam, "adagrad": decoupled.Adagrad, "rowwise": decoupled.RowwiseAdagrad}
            made = reference.get(name, decoupled.SGD)(**options)
        else:
            made = classes[name](**options)
        if name == "scaled":
            made = module.LossScaleOptimizer(made, initial_scale=1024.0, dynamic_growth_steps=3)
        # `accelerate` wraps the optimizer that a model has, but knows nothing of these options.
        wraps = training.penalties == "layers" or training.when == "made" or training.implicit or name == "rowwise"
        if self.ours and training.lazy and wraps:
            return fastreg.LazyRegularization(made, rowwise=name == "rowwise", implicit=training.implicit)
        return made


class Maker:
    """Draws layers and their penalties."""

    def __init__(self, side: Side) -> None:
        self.side, self.training = side, side.training
        self.chooser = random.Random(f"{side.training.seed} model")

    def build(self) -> Any:
        """The model, with weights of the seed."""
        model = getattr(self, "_" + self.training.model.replace(" ", "_"))()
        if not model.built:
            if self.side.ours and self.training.penalties == "accelerate" and self.training.when == "made":
                fastreg.accelerate(model)  # before anything is built
            model(data(self.training)[0][:1])
        generator = np.random.default_rng(self.training.seed)
        for variable in model.trainable_variables:
            # Multiples of 2^-10, of which every dtype has many.
            variable.assign(np.round(generator.normal(size=variable.shape, scale=0.3) * 1024) / 1024)
        return model

    def _factors(self) -> tuple[float, float]:
        """Exact in float32, to which Keras rounds them."""
        l1, l2 = self.chooser.choice((2.0**-6, 2.0**-8)), self.chooser.choice((2.0**-4, 2.0**-6, 0.0703125))
        return self.chooser.choice(((l1, 0.0), (0.0, l2), (l1, l2)))

    def _penalties(self, *names: str) -> dict[str, Any]:
        chosen = {}
        for name in names:
            factors, is_chosen = self._factors(), self.chooser.random() < 0.6
            # Keras cannot add a penalty in half precision to a loss in single.
            if is_chosen and not (name == "activity" and self.training.policy.startswith("mixed")):
                chosen[f"{name}_regularizer"] = self.side.penalty(*factors)
        return chosen

    def _table(self, **options: Any) -> Any:
        l1, l2 = self._factors()
        if self.training.only_l2:
            l1, l2 = 0.0, l2 or 2.0**-5
        return self.side.embedding(ROWS, WIDTH, l1, l2, **options)

    def _dense(self, units: int, activation: str | None = "tanh") -> Any:
        return layers.Dense(units, activation, **self._penalties("kernel", "bias", "activity"))

    def _head(self) -> Any:
        return layers.Dense(1, **self._penalties("kernel", "bias"))

    def _hidden(self) -> Any:
        """One of the layers that keep two axes."""
        makers: tuple[Callable[[], Any], ...] = (
            lambda: self._dense(5),
            lambda: layers.LayerNormalization(**self._penalties("gamma", "beta")),
            lambda: layers.BatchNormalization(**self._penalties("gamma", "beta")),
            lambda: layers.PReLU(**self._penalties("alpha")),
            lambda: layers.EinsumDense("bi,io->bo", 4, bias_axes="o", **self._penalties("kernel", "bias")),
            lambda: layers.Dropout(0.25, seed=3),
        )
        return self.chooser.choice(makers)()

    def _features(self) -> Any:
        hidden = [self._hidden() for _ in range(self.chooser.randrange(1, 4))]
        return keras.Sequential([keras.Input((6,)), self._dense(6), *hidden, self._head()])

    def _deferred(self) -> Any:
        return keras.Sequential([self._dense(6), self._hidden(), self._head()])

    def _shared(self) -> Any:
        x, shared = keras.Input((6,)), self._dense(6)
        return keras.Model(x, self._head()(layers.Add()([shared(self._hidden_of_6()(shared(x))), shared(x)])))

    def _hidden_of_6(self) -> Any:
        return layers.Dense(6, "tanh", **self._penalties("kernel", "activity"))

    def _nested(self) -> Any:
        inner = keras.Sequential([keras.Input((6,)), self._dense(6), keras.Sequential([self._hidden_of_6()])])
        x = keras.Input((6,))
        return keras.Model(x, self._head()(layers.Concatenate()([inner(x), inner(layers.Rescaling(0.5)(x))])))

    def _subclassed(self) -> Any:
        return Subclassed(self._dense(6), self._hidden(), self._head())

    def _series(self) -> Any:
        recurrent = ("kernel", "recurrent", "bias")
        convolution = ("depthwise", "pointwise")
        makers: tuple[Callable[[], Any], ...] = (
            lambda: layers.LSTM(3, **self._penalties(*recurrent)),
            lambda: layers.GRU(3, **self._penalties(*recurrent, "activity")),
            lambda: layers.Bidirectional(layers.SimpleRNN(3, **self._penalties(*recurrent))),
            lambda: layers.RNN([layers.LSTMCell(2, **self._penalties(*recurrent)) for _ in range(2)]),
            lambda: layers.TimeDistributed(self._dense(3)),
            lambda: layers.Conv1D(3, 2, activation="tanh", **self._penalties("kernel", "bias", "activity")),
            lambda: layers.SeparableConv1D(3, 2, activation="tanh", **self._penalties(*convolution)),
        )
        first = self.chooser.choice(makers)()
        return keras.Sequential([keras.Input((4, 3)), first, layers.Flatten(), self._head()])

    def _images(self) -> Any:
        makers: tuple[Callable[[], Any], ...] = (
            lambda: layers.Conv2D(3, 3, activation="tanh", **self._penalties("kernel", "bias", "activity")),
            lambda: layers.DepthwiseConv2D(3, activation="tanh", **self._penalties("depthwise", "bias")),
            lambda: layers.SeparableConv2D(3, 3, activation="tanh", **self._penalties("depthwise", "pointwise")),
            lambda: layers.Conv2DTranspose(2, 2, activation="tanh", **self._penalties("kernel", "bias")),
        )
        stack = [self.chooser.choice(makers)() for _ in range(self.chooser.randrange(1, 3))]
        return keras.Sequential([keras.Input((6, 6, 2)), *stack, layers.GlobalAveragePooling2D(), self._head()])

    def _tokens(self) -> Any:
        lookup = self._table(mask_zero=self.chooser.random() < 0.3)
        pooled = self.chooser.choice(
            (
                layers.GlobalAveragePooling1D,
                lambda: layers.LSTM(3, **self._penalties("kernel", "recurrent")),
            )
        )()
        return keras.Sequential([keras.Input((IDS,), dtype="int32"), lookup, pooled, self._dense(4), self._head()])

    def _two_tables(self) -> Any:
        """One of them looked up twice."""
        ids, users, pool = keras.Input((IDS,), dtype="int32"), self._table(), layers.GlobalAveragePooling1D()
        first, rest = users(ids[:, :2]), users(ids[:, 2:])
        joined = layers.Concatenate()([pool(first), pool(rest), layers.Flatten()(self._table()(ids[:, 1:3]))])
        return keras.Model(ids, self._head()(self._dense(4)(joined)))


@keras.saving.register_keras_serializable(package="fastreg_benchmarks")
class Subclassed(keras.Model):  # type: ignore[misc]
    """Layers as attributes."""

    def __init__(self, first: Any, second: Any, head: Any) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, head

    def call(self, x: Any, training: bool = False) -> Any:
        """Layer by layer; the first twice in training, as models that regularise by consistency do."""
        hidden = self.first(x)
        if training:
            hidden = (hidden + self.first(x * 0.5)) / 2
        return self.head(self.second(hidden))

    def get_config(self) -> dict[str, Any]:
        """Its layers, serialized."""
        serialize = keras.saving.serialize_keras_object
        return {name: serialize(getattr(self, name)) for name in ("first", "second", "head")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Subclassed:
        """The reverse of `get_config`."""
        return cls(**{name: keras.saving.deserialize_keras_object(layer) for name, layer in config.items()})


def data(training: Training) -> tuple[Any, Any]:
    """Inputs and targets."""
    generator = np.random.default_rng([training.seed, 1])
    dtype = "float64" if training.policy == "float64" else "float32"
    if training.model in ("tokens", "two tables"):
        x = ((generator.zipf(1.4, (SAMPLES, IDS)) - 1) % (ROWS - 4)).astype("int32")  # some rows are never looked up
    else:
        shape = SHAPES.get(training.model, SHAPES["features"])
        x = (np.round(generator.normal(size=(SAMPLES, *shape)) * 64) / 64).astype(dtype)
    return x, (np.round(generator.normal(size=(SAMPLES, 1)) * 64) / 64).astype(dtype)
