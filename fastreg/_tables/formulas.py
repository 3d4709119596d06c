"""The rules of optimizers in TensorFlow's ops; formulas stand in `fastreg_kernels.cpu.updates`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from fastreg_kernels.cpu import updates


def _sgd(step: Any, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    return rate * gradient


def _adagrad(step: Any, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    squares = _squares(gradient, step.slots[0])
    (accumulator,) = _advance(step.slots, rows, lambda old: [old[0] + squares])
    return rate * gradient / tf.sqrt(accumulator + tf.constant(step.settings[0], gradient.dtype))


def _adam(step: Any, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    beta_1, beta_2, epsilon, _ = step.settings
    squares = _squares(gradient, step.slots[1])

    def moments(old: list[tf.Tensor]) -> list[tf.Tensor]:
        momentum, velocity = old
        momentum += (gradient - momentum) * tf.constant(1.0 - beta_1, gradient.dtype)
        return [momentum, velocity + (squares - velocity) * tf.constant(1.0 - beta_2, gradient.dtype)]

    momentum, velocity = _advance(step.slots, rows, moments)
    time = tf.cast(step.number + 1, tf.float64)
    powers = [tf.pow(tf.constant(beta, tf.float64), time) for beta in (beta_1, beta_2)]
    alpha = rate * tf.cast(tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0]), gradient.dtype)
    return alpha * momentum / (tf.sqrt(velocity) + tf.constant(epsilon, gradient.dtype))


def _rmsprop(step: Any, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    rho, rest, epsilon = (
        tf.constant(number, gradient.dtype) for number in (step.settings[0], 1.0 - step.settings[0], step.settings[1])
    )
    terms = [tf.square(gradient), gradient][: len(step.slots)]
    velocity, *average = _advance(
        step.slots, rows, lambda old: [rho * before + rest * term for before, term in zip(old, terms, strict=True)]
    )
    if average:
        velocity -= tf.square(average[0])
    return rate * gradient / tf.sqrt(velocity + epsilon)


def _ftrl(step: Any, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    l1, l2, pull, beta = (tf.constant(number, gradient.dtype) for number in step.settings[:4])

    def state(old: list[tf.Tensor]) -> list[tf.Tensor]:
        accumulator, linear = old
        grown = accumulator + tf.square(gradient)
        growth = (tf.sqrt(grown) - tf.sqrt(accumulator)) / rate
        return [grown, linear + gradient + 2.0 * pull * weights - growth * weights]

    accumulator, linear = _advance(step.slots, rows, state)
    beyond = linear - tf.clip_by_value(linear, -l1, l1)
    return weights + beyond / ((tf.sqrt(accumulator) + beta) / rate + 2.0 * l2)


def _squares(gradient: tf.Tensor, slot: keras.Variable) -> tf.Tensor:
    """What a slot is told of the squares of a gradient: all of them, or their means if it has one number per row."""
    squares = tf.square(gradient)
    return tf.reduce_mean(squares, axis=1, keepdims=True) if slot.shape[1] != gradient.shape[1] else squares


def _advance(
    slots: Sequence[keras.Variable], rows: tf.Tensor, change: Callable[[list[tf.Tensor]], list[tf.Tensor]]
) -> list[tf.Tensor]:
    """New values of these rows of slots, written and returned. Only the rows are read."""
    old = [tf.raw_ops.ResourceGather(resource=s.value.handle, indices=rows, dtype=s.value.dtype) for s in slots]
    new = change(old)
    for slot, values in zip(slots, new, strict=True):
        tf.raw_ops.ResourceScatterUpdate(resource=slot.value.handle, indices=rows, updates=values)
    return new


STEPS = {
    updates.SGD: _sgd,
    updates.ADAGRAD: _adagrad,
    updates.ROWWISE_ADAGRAD: _adagrad,
    updates.ADAM: _adam,
    updates.ROWWISE_ADAM: _adam,
    updates.RMSPROP: _rmsprop,
    updates.CENTERED_RMSPROP: _rmsprop,
    updates.FTRL: _ftrl,
}
"""What to subtract from rows whose shrunk weights are given, by the number of the rule; slots are updated."""
