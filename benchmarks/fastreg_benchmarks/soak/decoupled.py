"""The rule of lazy tables, for every row at every step, out of Keras's own optimizers."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="fastreg_benchmarks")
class Reported(keras.regularizers.Regularizer):  # type: ignore[misc]
    """A penalty that counts in the loss, and of which no gradient comes: `Decoupled` shrinks by it."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0, implicit: bool = False) -> None:
        self.l1, self.l2, self.implicit = l1, l2, implicit

    def __call__(self, x: Any) -> Any:
        """The penalty, summed in float64."""
        wide = tf.cast(tf.stop_gradient(tf.convert_to_tensor(x)), tf.float64)
        return tf.cast(self.l1 * tf.reduce_sum(tf.abs(wide)) + self.l2 * tf.reduce_sum(tf.square(wide)), x.dtype)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {"l1": self.l1, "l2": self.l2, "implicit": self.implicit}


class _Decoupled:
    """Before an optimizer of Keras's: weights of tables shrink, and only rows with a gradient are updated."""

    def _clip_gradients(self, grads: Any) -> Any:
        return super()._clip_gradients([tf.convert_to_tensor(each) for each in grads])  # type: ignore[misc]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """The optimizer's, for one variable: a `tf.Variable`."""
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        penalty = self._trainable_variables[index].regularizer  # type: ignore[attr-defined]
        if not isinstance(penalty, Reported):
            super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]
            return
        rate = tf.cast(learning_rate, tf.float64)
        gradient = tf.convert_to_tensor(gradient)
        touched = tf.reduce_any(gradient != 0, axis=1, keepdims=True)
        wide = tf.cast(variable, tf.float64)
        size = tf.abs(wide)
        if penalty.implicit:
            size = tf.maximum(size - rate * penalty.l1, 0.0) / (1.0 + 2.0 * rate * penalty.l2)
        else:
            size = tf.maximum((1.0 - 2.0 * rate * penalty.l2) * size - rate * penalty.l1, 0.0)
        variable.assign(tf.cast(tf.sign(wide) * size, variable.dtype))
        kept = [variable, *self._slots(variable)]
        before = [tf.identity(tf.convert_to_tensor(each)) for each in kept]
        self._update_all(gradient, variable, learning_rate)
        for each, old in zip(kept, before, strict=True):
            each.assign(tf.where(touched, tf.convert_to_tensor(each), old))

    def _update_all(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def _slots(self, variable: Any) -> list[Any]:
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        lists = (getattr(self, name, None) for name in ("_accumulators", "_momentums", "_velocities"))
        return [slots[index] for slots in lists if slots]


@keras.saving.register_keras_serializable(package="fastreg_benchmarks")
class SGD(_Decoupled, keras.optimizers.SGD):  # type: ignore[misc]
    """Decoupled SGD."""


@keras.saving.register_keras_serializable(package="fastreg_benchmarks")
class Adam(_Decoupled, keras.optimizers.Adam):  # type: ignore[misc]
    """Decoupled lazy Adam."""


@keras.saving.register_keras_serializable(package="fastreg_benchmarks")
class Adagrad(_Decoupled, keras.optimizers.Adagrad):  # type: ignore[misc]
    """Decoupled Adagrad."""


@keras.saving.register_keras_serializable(package="fastreg_benchmarks")
class RowwiseAdagrad(Adagrad):
    """The same with one accumulator per row, here repeated for each of its weights."""

    def _update_all(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        (accumulator,) = self._slots(variable)
        squares = tf.reduce_mean(tf.square(gradient), axis=1, keepdims=True)
        accumulator.assign(accumulator.value + squares)
        step = tf.cast(learning_rate, variable.dtype) * gradient / tf.sqrt(accumulator.value + self.epsilon)
        variable.assign(variable - step)
