"""What each optimizer subtracts from the rows that a step touched, and the slots it keeps for them.

Keras's own sparse updates read and write whole slots. These gather and scatter the touched rows; idle rows keep theirs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from fastreg._lazy.table import LazyTable

AddSlot = Callable[[LazyTable, str, tuple[int, ...], float], keras.Variable]
"""Makes an optimizer variable: of a table, with a name, a shape and an initial value."""


class Rule(ABC):
    """A row-wise form of one of Keras's optimizers, with that optimizer's hyper-parameters.

    Parameters
    ----------
    optimizer : keras.optimizers.Optimizer
        Read when a step is traced.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._slots: dict[int, tuple[keras.Variable, ...]] = {}

    def build(self, table: LazyTable, add_slot: AddSlot) -> None:
        """Make the slots of a table."""
        self._slots[id(table)] = self._make_slots(table, add_slot)

    def knows(self, table: LazyTable) -> bool:
        """Whether slots were made for this table."""
        return id(table) in self._slots

    def step(self, table: LazyTable, gradient: tf.IndexedSlices, rate: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Update the slots of the rows of the gradient, and return what to subtract from these rows.

        Parameters
        ----------
        table : LazyTable
        gradient : tf.IndexedSlices
            Each row once.
        rate : tf.Tensor
            Learning rate of this step, a scalar.
        count : tf.Tensor
            Steps before this one, a scalar integer.
        """
        values = gradient.values
        slots = self._slots[id(table)]
        return self._step(slots, gradient.indices, values, tf.cast(rate, values.dtype), count)

    def _make_slots(self, table: LazyTable, add_slot: AddSlot) -> tuple[keras.Variable, ...]:  # noqa: ARG002
        return ()

    @abstractmethod
    def _step(self, slots: Any, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """`step` on tensors of the touched rows."""


class Sgd(Rule):
    """`η · g`."""

    def _step(self, slots: Any, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor, count: tf.Tensor) -> tf.Tensor:  # noqa: ARG002
        return rate * gradient


class Adagrad(Rule):
    """`n ← n + g²`, then `η · g / sqrt(n + ε)`, with an accumulator per weight."""

    def _make_slots(self, table: LazyTable, add_slot: AddSlot) -> tuple[keras.Variable, ...]:
        return (add_slot(table, "accumulator", tuple(table.shape), self._optimizer.initial_accumulator_value),)

    def _step(self, slots: Any, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor, count: tf.Tensor) -> tf.Tensor:  # noqa: ARG002
        accumulator = _read(slots[0], rows, gradient.dtype) + self._squares(gradient)
        _write(slots[0], rows, accumulator)
        return rate * gradient / tf.sqrt(accumulator + self._optimizer.epsilon)

    def _squares(self, gradient: tf.Tensor) -> tf.Tensor:
        return tf.square(gradient)


class RowwiseAdagrad(Adagrad):
    """`n ← n + mean(g²)` over the row, then `η · g / sqrt(n + ε)`, with an accumulator per row."""

    def _make_slots(self, table: LazyTable, add_slot: AddSlot) -> tuple[keras.Variable, ...]:
        return (add_slot(table, "row_accumulator", (table.shape[0], 1), self._optimizer.initial_accumulator_value),)

    def _squares(self, gradient: tf.Tensor) -> tf.Tensor:
        return tf.reduce_mean(tf.square(gradient), axis=1, keepdims=True)


class LazyAdam(Rule):
    """Adam with moments of touched rows only: `m ← m + (g − m)·(1 − β1)`, `v ← v + (g² − v)·(1 − β2)`, then
    `η · sqrt(1 − β2^t) / (1 − β1^t) · m / (sqrt(v) + ε)`, with t the optimizer's count of steps.
    """

    def _make_slots(self, table: LazyTable, add_slot: AddSlot) -> tuple[keras.Variable, ...]:
        return tuple(add_slot(table, name, tuple(table.shape), 0.0) for name in ("momentum", "velocity"))

    def _step(self, slots: Any, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        adam, dtype = self._optimizer, gradient.dtype
        momentum, velocity = (_read(slot, rows, dtype) for slot in slots)
        momentum += (gradient - momentum) * (1.0 - adam.beta_1)
        velocity += (tf.square(gradient) - velocity) * (1.0 - adam.beta_2)
        _write(slots[0], rows, momentum)
        _write(slots[1], rows, velocity)
        time = tf.cast(count + 1, dtype)
        powers = [tf.pow(tf.constant(beta, dtype), time) for beta in (adam.beta_1, adam.beta_2)]
        return rate * tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0]) * momentum / (tf.sqrt(velocity) + adam.epsilon)


def rule_of(optimizer: Any, rowwise: bool) -> Rule:
    """The row-wise form of an optimizer.

    Raises
    ------
    ValueError
        If there is none that keeps what `fastreg.LazyRegularization` promises.
    """
    rules: dict[Any, Callable[[Any], Rule]] = {
        keras.optimizers.SGD: Sgd,
        keras.optimizers.Adagrad: Adagrad,
        keras.optimizers.Adam: LazyAdam,
    }
    rule = rules.get(type(optimizer))
    name = type(optimizer).__name__
    if rule is None:
        raise ValueError(
            "Invalid value for argument optimizer: expected SGD, Adagrad or Adam, which have row-wise updates. "
            f"Received: {name}"
        )
    if rowwise and rule is not Adagrad:
        raise ValueError(f"Invalid value for argument rowwise: expected False except with Adagrad. Received: {name}")
    for option in ("momentum", "amsgrad", "weight_decay", "use_ema", "gradient_accumulation_steps"):
        value = getattr(optimizer, option, None)
        if value:
            raise ValueError(
                f"Invalid value for argument optimizer: expected no {option}, for it moves rows that a step does not "
                f"touch. Received: {name}({option}={value})"
            )
    return RowwiseAdagrad(optimizer) if rowwise else rule(optimizer)


def _read(slot: keras.Variable, rows: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(slot.value.sparse_read(rows), dtype)


def _write(slot: keras.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    variable = slot.value
    variable.scatter_update(tf.IndexedSlices(tf.cast(values, variable.dtype), rows))
