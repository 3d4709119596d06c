"""What is done with a model, and what is noted of it."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import fastreg
from fastreg_benchmarks.soak.cases import Training
from fastreg_benchmarks.soak.models import BATCH, Maker, Side, data

Notes = list[tuple[str, Any]]
"""Results, each with where it comes from: numbers and arrays."""


def run(training: Training, ours: bool, nudge: int = 0) -> Notes:
    """Train, and note losses, penalties, predictions and weights.

    Parameters
    ----------
    training : Training
    ours : bool
        Whether with fastreg.
    nudge : int, default 0
        Seed by which weights at the start are changed by a rounding; not, if zero.
    """
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(training.policy)  # of this thread
    try:
        session = _Session(training, ours, nudge)
        for number, mode in enumerate(training.modes):
            session.enter(number, mode)
        return session.notes
    finally:
        keras.config.set_dtype_policy(previous)


class _Session:
    def __init__(self, training: Training, ours: bool, nudge: int) -> None:
        self.training, self.side, self.notes = training, Side(training, ours), Notes()
        self.x, self.y = data(training)
        self.execution, self.steps_per_execution = training.execution, training.steps_per_execution
        self.model = Maker(self.side).build()
        if nudge:
            generator = np.random.default_rng(nudge)
            for variable in self.model.trainable_variables:
                value = np.asarray(variable)
                variable.assign(np.nextafter(value, value + generator.choice((-1, 1), value.shape).astype(value.dtype)))
        self._accelerate("made")
        self._compile()
        self._accelerate("compiled")

    def _accelerate(self, when: str) -> None:
        training = self.training
        if self.side.ours and training.penalties == "accelerate" and when == training.when:
            fastreg.accelerate(self.model, lazy=training.lazy)

    def _compile(self) -> None:
        self.model.compile(
            self.side.optimizer(),
            "mse",
            metrics=["mae"],
            run_eagerly=self.execution == "eager",
            jit_compile=self.execution == "jit",
            steps_per_execution=self.steps_per_execution,
        )

    def enter(self, number: int, mode: str) -> None:
        """Do the mode of this number, and note what it led to."""
        self.chooser, self.where = random.Random(f"{self.training.seed} {number}"), f"{number} {mode}"
        getattr(self, "_" + mode.replace(" ", "_"))()
        if number == 0:
            self._accelerate("trained")
        self._note("prediction", self.model(self.x[:BATCH], training=False))
        for index, penalty in enumerate(self.model.losses):
            self._note(f"penalty {index}", penalty)
        for index, weight in enumerate(self.model.get_weights()):
            self._note(f"weight {index}", weight)

    def _note(self, what: str, value: Any) -> None:
        # NumPy makes no array of what TensorFlow has as a scalar of bfloat16.
        value = [float(each) for each in value] if isinstance(value, list) else value
        value = value.numpy() if tf.is_tensor(value) else value
        self.notes.append((f"{self.where}: {what}", np.asarray(value)))

    def _batch(self) -> tuple[Any, Any]:
        start = self.chooser.randrange(len(self.x) - BATCH + 1)
        return tf.constant(self.x[start : start + BATCH]), tf.constant(self.y[start : start + BATCH])

    def _fit(self) -> None:
        options: dict[str, Any] = {"validation_split": self.chooser.choice((0.0, 0.25))}
        if self.chooser.random() < 0.3:
            options["sample_weight"] = np.linspace(0.5, 1.0, len(self.x), dtype=self.y.dtype)
        history = self.model.fit(self.x, self.y, BATCH, epochs=2, shuffle=False, verbose=0, **options)
        for name, values in history.history.items():
            self._note(name, values)

    def _train_on_batch(self) -> None:
        for _ in range(3):
            self._note("loss", self.model.train_on_batch(*self._batch()))

    def _loop(self) -> None:
        """As in the guides, with a weight of the penalties where the reference has their gradient."""
        strength = self.chooser.choice((1.0, 0.5)) if self.training.is_keras_s else 1.0
        step = self._traced(lambda x, y: self._gradients(x, y, strength))
        for _ in range(3):
            self._note("loss", step(*self._batch()))

    def _gradients(self, x: Any, y: Any, strength: float) -> Any:
        model = self.model
        with tf.GradientTape() as tape:
            loss = self._loss(x, y, strength)
            scaled = model.optimizer.scale_loss(loss)
        model.optimizer.apply(tape.gradient(scaled, model.trainable_variables), model.trainable_variables)
        return loss

    def _loss(self, x: Any, y: Any, strength: float) -> Any:
        error = tf.reduce_mean(tf.square(tf.cast(self.model(x, training=True), y.dtype) - y))
        return error + strength * sum(tf.cast(each, y.dtype) for each in self.model.losses)

    def _two_batches(self) -> None:
        """One step of the mean of two losses: in one tape where a gradient may be sparse, else in two."""

        def accumulate(x: Any, y: Any) -> Any:
            model, halves = self.model, ((x[:4], y[:4]), (x[4:], y[4:]))
            if self.training.lazy:
                with tf.GradientTape() as tape:
                    loss = sum(self._loss(*half, 1.0) for half in halves) / 2
                    scaled = model.optimizer.scale_loss(loss)
                gradients = tape.gradient(scaled, model.trainable_variables)
            else:
                loss, gradients = 0.0, None
                for half in halves:
                    with tf.GradientTape() as tape:
                        part = self._loss(*half, 1.0) / 2
                        scaled = model.optimizer.scale_loss(part)
                    new = [tf.convert_to_tensor(each) for each in tape.gradient(scaled, model.trainable_variables)]
                    gradients = new if gradients is None else [a + b for a, b in zip(gradients, new, strict=True)]
                    loss += part
            model.optimizer.apply(gradients, model.trainable_variables)
            return loss

        step = self._traced(accumulate)
        for _ in range(2):
            self._note("loss", step(*self._batch()))

    def _traced(self, step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        self.model.optimizer.build(self.model.trainable_variables)
        if self.execution == "eager":
            return step
        traced: Callable[[Any, Any], Any] = tf.function(step, jit_compile=self.execution == "jit", autograph=False)
        return traced

    def _evaluate(self) -> None:
        self._note("loss", self.model.evaluate(self.x, self.y, BATCH, verbose=0))

    def _test_on_batch(self) -> None:
        self._note("loss", self.model.test_on_batch(*self._batch()))

    def _predict(self) -> None:
        self._note("outputs", self.model.predict(self.x, BATCH, verbose=0))

    def _reload(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            self.model.save(path)
            self.model = keras.saving.load_model(path)

    def _weights(self) -> None:
        """Out, changed, and in again, as averaging of weights does."""
        self.model.set_weights([weight * 0.5 if weight.ndim else weight for weight in self.model.get_weights()])

    def _recompile(self) -> None:
        others = ("graph", "eager") if self.training.lazy else ("graph", "eager", "jit")
        self.execution, self.steps_per_execution = self.chooser.choice(others), 1
        self._compile()
        self._wrap()

    def _freeze(self) -> None:
        layer = self.chooser.choice([each for each in self.model.layers if each.weights])
        layer.trainable = not layer.trainable
        if not self.model.trainable_variables:
            layer.trainable = True
        self._compile()
        self._wrap()

    def _strengthen(self) -> None:
        """Half the factors from the next trace on."""
        penalties = {}
        for layer in self.model._flatten_layers():
            for name in dir(layer):
                if name.endswith("_regularizer") and (penalty := getattr(layer, name)) is not None:
                    penalties[id(penalty)] = penalty
        for penalty in penalties.values():
            for name in ("l1", "l2"):
                if hasattr(penalty, name):
                    setattr(penalty, name, getattr(penalty, name) / 2)
        self._compile()
        self._wrap()

    def _wrap(self) -> None:
        """Accelerate again what was compiled anew, if the optimizer is one that it wraps."""
        ours = self.side.ours and self.training.lazy and self.training.penalties == "accelerate"
        if ours and self.training.when != "made" and not self._is_wrapped():
            fastreg.accelerate(self.model, lazy=True)

    def _is_wrapped(self) -> bool:
        optimizer = self.model.optimizer
        inside = getattr(optimizer, "inner_optimizer", None)
        return any(isinstance(each, fastreg.LazyRegularization) for each in (optimizer, inside))

    def _rate(self) -> None:
        optimizer = self.model.optimizer
        while hasattr(optimizer, "inner_optimizer"):
            optimizer = optimizer.inner_optimizer
        optimizer.learning_rate = float(np.asarray(optimizer.learning_rate)) / 2
