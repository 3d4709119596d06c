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

_UNSUPPORTED = ("momentum", "amsgrad", "use_ema", "gradient_accumulation_steps")

_UNSUPPORTED_BESIDE = ("use_ema", "gradient_accumulation_steps")

OPTIONS = (
    *_UNSUPPORTED,
    *("clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor", "ema_momentum", "ema_overwrite_frequency"),
    *("nesterov", "initial_accumulator_value", "epsilon", "beta_1", "beta_2", "rho", "centered", "weight_decay"),
    *("l1_regularization_strength", "l2_regularization_strength", "l2_shrinkage_regularization_strength"),
    *("learning_rate_power", "beta"),
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
    decay : float
        The weight decay: the learning rate times it is the share that every weight loses, whatever the loss contains.
    """

    rule: int
    slots: tuple[keras.Variable, ...]
    settings: tuple[float, ...]
    rate: tf.Tensor
    scale: tf.Tensor
    number: tf.Tensor
    decay: float

    @property
    def is_implicit(self) -> bool:
        """Whether the penalty's step is the proximal one."""
        return bool(self.settings[-1])

    def plain(self, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """The same rule in TensorFlow's ops: updates the slots, and returns what to subtract from these rows, whose
        shrunk weights are given.
        """
        return _PLAIN[self.rule](self, rows, weights, gradient, tf.cast(self.rate, gradient.dtype))


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
    beside : keras.optimizers.Optimizer
        What trains the other variables; may be the same.
    """

    def __init__(self, number: int, optimizer: Any, implicit: bool, beside: Any) -> None:
        self._number, self._optimizer, self._implicit, self._beside = number, optimizer, implicit, beside
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
        for option in _UNSUPPORTED_BESIDE:
            if value := getattr(self._beside, option):
                raise ValueError(
                    f"Invalid value for argument optimizer: expected no {option} beside lazily regularised tables, "
                    f"which have none. Received: {type(self._beside).__name__}({option}={value})"
                )
        for option, expected in _EXPECTED.get(self._number, {}).items():
            if (value := getattr(self._optimizer, option)) != expected:
                name = type(self._optimizer).__name__
                raise ValueError(
                    f"Invalid value for argument optimizer: expected {option}={expected} for lazily regularised "
                    f"tables. Received: {name}({option}={value})"
                )

    @property
    def slots(self) -> list[keras.Variable]:
        """Those of all tables."""
        return [slot for slots in self._slots.values() for slot in slots]

    def build(self, table: LazyTable, add_slot: Callable[..., keras.Variable], changes: Changes) -> None:
        """Make the slots of a table, in the dtype of the arithmetic."""
        changes.keep(self._slots)
        per_weight, dtype = tuple(table.shape), arithmetic_dtype(table.dtype).name
        shapes = {name: (per_weight[0], 1) if name.startswith("row_") else per_weight for name in _SLOTS[self._number]}
        self._slots[id(table)] = tuple(
            add_slot(table, name, shape, self._start(table, name), dtype) for name, shape in shapes.items()
        )

    @property
    def optimizer(self) -> Any:
        """The one whose rule it is."""
        return self._optimizer

    def _start(self, table: LazyTable, name: str) -> Any:
        """What initializes a slot: what the optimizer has in its own, if it was built with the table."""
        position = next((i for i, v in enumerate(self._optimizer._trainable_variables) if v is table), None)
        if position is None:
            is_accumulator = _OF_KERAS[name] == "_accumulators"
            return keras.initializers.Constant(self._optimizer.initial_accumulator_value if is_accumulator else 0.0)
        with tf.init_scope():
            value = tf.convert_to_tensor(getattr(self._optimizer, _OF_KERAS[name])[position])
            if name.startswith("row_"):
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
        is_coupled = self._number in (updates.SGD, updates.FTRL)
        if is_coupled or name in explained or all(table.factors().are_zero for table in tables):
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
        optimizer = self._optimizer
        if self._number == updates.FTRL and not table.factors().are_zero:
            raise ValueError(
                f"Invalid regularizer of the table {table.path!r}: expected none but that of Ftrl, which has l1 and l2 "
                f"of its own. Received: {table.penalised_by!r}. fastreg.L2(0.0) makes a table without a penalty, which "
                "Ftrl(l1_regularization_strength=..., l2_regularization_strength=...) then regularises."
            )
        settings = tuple(float(getattr(optimizer, name)) for name in _SETTINGS[self._number])
        settings += (float(self._implicit),)
        decay = float(optimizer.weight_decay or 0.0) if optimizer._use_weight_decay(table) else 0.0
        return Step(self._number, self._slots[id(table)], settings, rate, scale, number, decay)


_SLOTS = {
    updates.SGD: (),
    updates.ADAGRAD: ("accumulator",),
    updates.ROWWISE_ADAGRAD: ("row_accumulator",),
    updates.ADAM: ("momentum", "velocity"),
    updates.ROWWISE_ADAM: ("momentum", "row_velocity"),
    updates.RMSPROP: ("velocity",),
    updates.CENTERED_RMSPROP: ("velocity", "average_gradient"),
    updates.FTRL: ("accumulator", "linear"),
}
"""Slots of each rule, in the order that the kernel takes them in; `row_`: one number per row."""

_ADAGRAD, _ADAM, _RMSPROP = ("epsilon",), ("beta_1", "beta_2", "epsilon"), ("rho", "epsilon")
_SETTINGS = {
    updates.SGD: (),
    updates.ADAGRAD: _ADAGRAD,
    updates.ROWWISE_ADAGRAD: _ADAGRAD,
    updates.ADAM: _ADAM,
    updates.ROWWISE_ADAM: _ADAM,
    updates.RMSPROP: _RMSPROP,
    updates.CENTERED_RMSPROP: _RMSPROP,
    updates.FTRL: (
        "l1_regularization_strength",
        "l2_regularization_strength",
        "l2_shrinkage_regularization_strength",
        "beta",
    ),
}
"""Hyper-parameters of each rule, by their names in Keras's optimizers, in the same way."""

explained: set[str] = set()
"""Optimizers of which it was said that the penalty is decoupled from their gradients."""

_EXPECTED: dict[int, dict[str, Any]] = {
    updates.RMSPROP: {"centered": False},
    updates.CENTERED_RMSPROP: {"centered": True},
    updates.FTRL: {"learning_rate_power": -0.5, "weight_decay": None},
}
"""Options that have to be what they are, or were when the rule was made."""

_OF_KERAS = {
    "accumulator": "_accumulators",
    "row_accumulator": "_accumulators",
    "momentum": "_momentums",
    "velocity": "_velocities",
    "row_velocity": "_velocities",
    "average_gradient": "_average_gradients",
    "linear": "_linears",
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


def _sgd(step: Step, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    return rate * gradient


def _adagrad(step: Step, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
    squares = _squares(gradient, step.slots[0])
    (accumulator,) = _advance(step.slots, rows, lambda old: [old[0] + squares])
    return rate * gradient / tf.sqrt(accumulator + tf.constant(step.settings[0], gradient.dtype))


def _adam(step: Step, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
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


def _rmsprop(step: Step, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:  # noqa: ARG001
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


def _ftrl(step: Step, rows: tf.Tensor, weights: tf.Tensor, gradient: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
    l1, l2, pull, beta = (tf.constant(number, gradient.dtype) for number in step.settings[:4])

    def state(old: list[tf.Tensor]) -> list[tf.Tensor]:
        accumulator, linear = old
        grown = accumulator + tf.square(gradient)
        growth = (tf.sqrt(grown) - tf.sqrt(accumulator)) / rate
        return [grown, linear + gradient + 2.0 * pull * weights - growth * weights]

    accumulator, linear = _advance(step.slots, rows, state)
    beyond = linear - tf.clip_by_value(linear, -l1, l1)
    return weights + beyond / ((tf.sqrt(accumulator) + beta) / rate + 2.0 * l2)


_PLAIN = {
    updates.SGD: _sgd,
    updates.ADAGRAD: _adagrad,
    updates.ROWWISE_ADAGRAD: _adagrad,
    updates.ADAM: _adam,
    updates.ROWWISE_ADAM: _adam,
    updates.RMSPROP: _rmsprop,
    updates.CENTERED_RMSPROP: _rmsprop,
    updates.FTRL: _ftrl,
}


def _squares(gradient: tf.Tensor, slot: keras.Variable) -> tf.Tensor:
    """What a slot is told of the squares of a gradient: all of them, or their means if it has one number per row."""
    squares = tf.square(gradient)
    return tf.reduce_mean(squares, axis=1, keepdims=True) if slot.shape[1] != gradient.shape[1] else squares


def _advance(slots: Slots, rows: tf.Tensor, change: Callable[[list[tf.Tensor]], list[tf.Tensor]]) -> list[tf.Tensor]:
    """New values of these rows of slots, written and returned. Only the rows are read."""
    old = [tf.raw_ops.ResourceGather(resource=s.value.handle, indices=rows, dtype=s.value.dtype) for s in slots]
    new = change(old)
    for slot, values in zip(slots, new, strict=True):
        tf.raw_ops.ResourceScatterUpdate(resource=slot.value.handle, indices=rows, updates=values)
    return new


def rule_of(optimizer: Any, rowwise: bool, implicit: bool, beside: Any) -> Rule:
    """The row-wise form of an optimizer; `beside` trains the other variables, and may be the same.

    Raises
    ------
    ValueError
        If there is none that keeps what `fastreg.LazyRegularization` promises.
    """
    rules: dict[Any, int] = {
        keras.optimizers.SGD: updates.SGD,
        keras.optimizers.Adagrad: updates.ADAGRAD,
        keras.optimizers.Adam: updates.ADAM,
        keras.optimizers.AdamW: updates.ADAM,
        keras.optimizers.RMSprop: updates.RMSPROP,
        keras.optimizers.Ftrl: updates.FTRL,
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
            "Invalid value for argument optimizer: expected SGD, Adagrad, Adam, AdamW, RMSprop or Ftrl, which have "
            f"row-wise updates. Received: {name}"
        )
    if rowwise and rule not in _ROWWISE:
        raise ValueError(
            "Invalid value for argument rowwise: expected False except with Adagrad, Adam and AdamW. "
            f"Received: rowwise=True with {name}"
        )
    if rule == updates.RMSPROP and optimizer.centered:
        rule = updates.CENTERED_RMSPROP
    found = Rule(_ROWWISE[rule] if rowwise else rule, optimizer, implicit, beside)
    found.check()
    return found


_ROWWISE = {updates.ADAGRAD: updates.ROWWISE_ADAGRAD, updates.ADAM: updates.ROWWISE_ADAM}
"""Rules that have a form with one number per row for the squares."""
