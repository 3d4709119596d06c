"""What each optimizer does to the rows that a step touched, and the slots it keeps for them; idle rows keep theirs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from fastreg_kernels.cpu import updates
from keras.src.utils.tracking import DotNotTrackScope

from fastreg._bridges.support import arithmetic_dtype
from fastreg._changes import Changes
from fastreg._tables.table import LazyTable
from fastreg._tables.variable import OwnVariable

Slots = Sequence[keras.Variable]

_UNSUPPORTED = ("momentum", "amsgrad", "weight_decay", "use_ema", "gradient_accumulation_steps")

OPTIONS = (
    *_UNSUPPORTED,
    *("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "ema_momentum", "ema_overwrite_frequency"),
    *("nesterov", "initial_accumulator_value", "epsilon", "beta_1", "beta_2"),
)
"""Attributes of Keras's optimizers that say what a step does."""


class Step(NamedTuple):
    """What an optimizer does to one table in one step.

    Attributes
    ----------
    rule : int
        Of `fastreg_kernels.cpu.updates`, where the formulas stand.
    slots : tuple of keras.Variable
    settings : tuple of float
        Hyper-parameters, in the order that the kernel takes them in; at the end 1 if the shrink is implicit, else 0.
    rate, scale : tf.Tensor
        Scalars of float64: the learning rate, and what the gradient is multiplied by first.
    number : tf.Tensor
        Steps before this one, int64.
    """

    rule: int
    slots: tuple[keras.Variable, ...]
    settings: tuple[float, ...]
    rate: tf.Tensor
    scale: tf.Tensor
    number: tf.Tensor

    @property
    def is_implicit(self) -> bool:
        """Whether the penalty's step is the proximal one."""
        return bool(self.settings[-1])

    def plain(self, rows: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """The same rule in TensorFlow's ops: updates the slots, and returns what to subtract from these rows."""
        return _PLAIN[self.rule](self, rows, gradient, tf.cast(self.rate, gradient.dtype))


class Rule:
    """A row-wise form of one of Keras's optimizers, with that optimizer's hyper-parameters.

    Parameters
    ----------
    number : int
        Of `fastreg_kernels.cpu.updates`.
    optimizer : keras.optimizers.Optimizer
        Read when a step is traced.
    implicit : bool
        Whether the shrink is implicit.
    """

    def __init__(self, number: int, optimizer: Any, implicit: bool) -> None:
        self._number, self._optimizer, self._implicit = number, optimizer, implicit
        self._slots: dict[int, tuple[keras.Variable, ...]] = {}

    def check(self) -> None:
        """See that the optimizer's options, which may have been set since, have a row-wise form.

        Raises
        ------
        ValueError
            If there is one that has not.
        """
        for option in _UNSUPPORTED:
            value = getattr(self._optimizer, option, None)
            if value:
                name = type(self._optimizer).__name__
                raise ValueError(
                    f"Invalid value for argument optimizer: expected no {option}, for it moves rows that a step does "
                    f"not touch. Received: {name}({option}={value})"
                )

    @property
    def slots(self) -> list[keras.Variable]:
        """Those of all tables."""
        return [slot for slots in self._slots.values() for slot in slots]

    def build(self, table: LazyTable, add_slot: Callable[..., keras.Variable], changes: Changes) -> None:
        """Make the slots of a table, in the dtype of the arithmetic."""
        changes.keep(self._slots)
        per_weight, dtype = tuple(table.shape), arithmetic_dtype(table.dtype).name
        shapes: dict[str, tuple[int, ...]] = {
            updates.SGD: {},
            updates.ADAGRAD: {"accumulator": per_weight},
            updates.ROWWISE_ADAGRAD: {"row_accumulator": (per_weight[0], 1)},
            updates.ADAM: {"momentum": per_weight, "velocity": per_weight},
        }[self._number]
        self._slots[id(table)] = tuple(
            add_slot(table, name, shape, self._start(table, name), dtype) for name, shape in shapes.items()
        )

    def _start(self, table: LazyTable, name: str) -> Any:
        """What initializes a slot: what the optimizer has in its own, if it was built with the table."""
        position = next((i for i, v in enumerate(self._optimizer._trainable_variables) if v is table), None)
        if position is None:
            return keras.initializers.Constant(getattr(self._optimizer, "initial_accumulator_value", 0.0))
        with tf.init_scope():
            value = tf.convert_to_tensor(getattr(self._optimizer, _OF_KERAS[name])[position])
            if self._number == updates.ROWWISE_ADAGRAD:
                value = tf.reduce_mean(value, axis=1, keepdims=True)
        return lambda shape, dtype: tf.cast(value, dtype)  # noqa: ARG005

    def release(self, tables: Sequence[LazyTable], changes: Changes) -> None:
        """Make the optimizer one that was built without these tables; it keeps everything else."""
        optimizer = self._optimizer
        positions = [i for i, v in enumerate(optimizer._trainable_variables) if all(v is not t for t in tables)]
        released: set[int] = set()
        for name in _NAMES:
            if slots := getattr(optimizer, name, None):
                kept = [slots[i] for i in positions]
                released |= {id(slot) for slot in slots} - {id(slot) for slot in kept}
                changes.set(optimizer, name, kept)
        variables = optimizer._trainable_variables
        changes.callback(set_list, optimizer, "_trainable_variables", variables)
        set_list(optimizer, "_trainable_variables", [variables[i] for i in positions])
        indices = {optimizer._var_key(v): i for i, v in enumerate(optimizer._trainable_variables)}
        changes.set(optimizer, "_trainable_variables_indices", indices)
        changes.callback(set_variables, optimizer, optimizer.variables)
        set_variables(optimizer, [v for v in optimizer.variables if id(v) not in released])

    def in_order(self, variables: Sequence[Any]) -> list[keras.Variable]:
        """What the optimizer has and the slots of tables, in the order in which it would have all for these itself."""
        optimizer, slots = self._optimizer, []
        indices = {id(variable): index for index, variable in enumerate(optimizer._trainable_variables)}
        for variable in variables:
            if id(variable) in indices:
                lists = [getattr(optimizer, name, None) for name in _NAMES]
                slots += [each[indices[id(variable)]] for each in lists if each]
            else:
                slots += self._slots.get(id(variable), ())
        known = {id(slot) for slot in slots}
        return [variable for variable in optimizer.variables if id(variable) not in known] + slots

    def warn_of_decoupling(self, tables: Sequence[LazyTable]) -> None:
        """Say that strengths mean something else than in Keras's training; once for each optimizer, if they do."""
        name = type(self._optimizer).__name__
        if self._number == updates.SGD or name in explained or all(table.factors().are_zero for table in tables):
            return
        explained.add(name)
        warnings.warn(
            f"With {name}, a lazily regularised table shrinks by the learning rate times the penalty's gradient. In "
            f"Keras's training that gradient goes through what {name} divides by, and acts far more strongly where "
            'gradients are small: the same l1 and l2 regularise less here. "Strengths" in docs/lazy-and-keras.md says '
            "how they translate.",
            stacklevel=2,
        )

    def knows(self, table: LazyTable) -> bool:
        """Whether slots were made for this table."""
        return id(table) in self._slots

    def step(self, table: LazyTable, rate: tf.Tensor, scale: tf.Tensor, number: tf.Tensor) -> Step:
        """What the optimizer does to a table in this step."""
        names = ("beta_1", "beta_2", "epsilon") if self._number == updates.ADAM else ("epsilon",)
        settings = tuple(float(getattr(self._optimizer, name, 0.0)) for name in names)
        settings += (float(self._implicit),)
        return Step(self._number, self._slots[id(table)], settings, rate, scale, number)


explained: set[str] = set()
"""Optimizers of which it was said that the penalty is decoupled from their gradients."""

_OF_KERAS = {
    "accumulator": "_accumulators",
    "row_accumulator": "_accumulators",
    "momentum": "_momentums",
    "velocity": "_velocities",
}
"""Attributes in which Keras's optimizers keep what is a slot here, a list for their variables."""

_NAMES = tuple(dict.fromkeys(_OF_KERAS.values()))


def set_variables(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Set what a built optimizer of Keras's has: steps, learning rate, slots."""
    # A new list: checkpoints refuse one that was changed in place.
    set_list(optimizer, "_variables", variables)
    tracker = optimizer._tracker
    tracker.config["variables"] = (tracker.config["variables"][0], optimizer._variables)
    tracker.stored_ids["variables"] = {id(variable) for variable in variables}


def set_list(optimizer: Any, name: str, items: Sequence[Any]) -> None:
    """Set an attribute of a built optimizer of Keras's as Keras does: its tracker does not look into the list."""
    with DotNotTrackScope():
        setattr(optimizer, name, list(items))


class Slot(keras.Variable):  # type: ignore[misc]
    """An optimizer's variable that native ops write to."""

    def _initialize(self, value: Any) -> None:
        self._value = OwnVariable(value if callable(value) else lambda: value, dtype=self._dtype, trainable=False)


def _sgd(step: Step, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    return rate * gradient


def _adagrad(step: Step, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    squares = tf.square(gradient)
    if step.rule == updates.ROWWISE_ADAGRAD:
        squares = tf.reduce_mean(squares, axis=1, keepdims=True)
    (accumulator,) = _advance(step.slots, rows, lambda old: [old[0] + squares])
    return rate * gradient / tf.sqrt(accumulator + tf.constant(step.settings[0], gradient.dtype))


def _adam(step: Step, rows: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    beta_1, beta_2, epsilon, _ = step.settings

    def moments(old: list[tf.Tensor]) -> list[tf.Tensor]:
        momentum, velocity = old
        momentum += (gradient - momentum) * tf.constant(1.0 - beta_1, gradient.dtype)
        return [momentum, velocity + (tf.square(gradient) - velocity) * tf.constant(1.0 - beta_2, gradient.dtype)]

    momentum, velocity = _advance(step.slots, rows, moments)
    time = tf.cast(step.number + 1, tf.float64)
    powers = [tf.pow(tf.constant(beta, tf.float64), time) for beta in (beta_1, beta_2)]
    alpha = rate * tf.cast(tf.sqrt(1.0 - powers[1]) / (1.0 - powers[0]), gradient.dtype)
    return alpha * momentum / (tf.sqrt(velocity) + tf.constant(epsilon, gradient.dtype))


_PLAIN = {updates.SGD: _sgd, updates.ADAGRAD: _adagrad, updates.ROWWISE_ADAGRAD: _adagrad, updates.ADAM: _adam}


def _advance(slots: Slots, rows: tf.Tensor, change: Callable[[list[tf.Tensor]], list[tf.Tensor]]) -> list[tf.Tensor]:
    """New values of these rows of slots, written and returned. Only the rows are read."""
    old = [tf.raw_ops.ResourceGather(resource=s.value.handle, indices=rows, dtype=s.value.dtype) for s in slots]
    new = change(old)
    for slot, values in zip(slots, new, strict=True):
        tf.raw_ops.ResourceScatterUpdate(resource=slot.value.handle, indices=rows, updates=values)
    return new


def rule_of(optimizer: Any, rowwise: bool, implicit: bool) -> Rule:
    """The row-wise form of an optimizer.

    Raises
    ------
    ValueError
        If there is none that keeps what `fastreg.LazyRegularization` promises.
    """
    rules: dict[Any, int] = {
        keras.optimizers.SGD: updates.SGD,
        keras.optimizers.Adagrad: updates.ADAGRAD,
        keras.optimizers.Adam: updates.ADAM,
    }
    rule = rules.get(type(optimizer))
    name = type(optimizer).__name__
    if rule is None and name == "MultiOptimizer":
        raise ValueError(
            "Invalid value for argument optimizer: expected one optimizer. Received: MultiOptimizer. Put the wrapper "
            "inside, around the optimizers that tables are assigned to: "
            "MultiOptimizer(OptimizerMap(default, {'.*embeddings': LazyRegularization(optimizer)}))."
        )
    if rule is None:
        raise ValueError(
            "Invalid value for argument optimizer: expected SGD, Adagrad or Adam, which have row-wise updates. "
            f"Received: {name}"
        )
    if rowwise and rule != updates.ADAGRAD:
        raise ValueError(f"Invalid value for argument rowwise: expected False except with Adagrad. Received: {name}")
    found = Rule(updates.ROWWISE_ADAGRAD if rowwise else rule, optimizer, implicit)
    found.check()
    return found
