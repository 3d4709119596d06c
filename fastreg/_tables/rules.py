"""What each optimizer does to the rows that a step touched, and the slots it keeps for them; idle rows keep theirs."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from fastreg_kernels.cpu import updates
from keras.src.utils.tracking import DotNotTrackScope

from fastreg._bridges import support
from fastreg._changes import Changes
from fastreg._tables import formulas
from fastreg._tables.table import LazyTable, exchange, with_rows
from fastreg._tables.variable import OwnVariable

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
        rate = tf.cast(self.rate, gradient.dtype)
        return formulas.STEPS[self.rule](self, rows, weights, gradient, rate)


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
        self._slots: dict[int, tuple[Slot, ...]] = {}
        _all.add(self)

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

    def build(self, table: LazyTable, add_slot: Callable[..., Slot], changes: Changes) -> None:
        """Make the slots of a table, in the dtype of the arithmetic."""
        changes.keep(self._slots)
        per_weight, dtype = tuple(table.shape), support.arithmetic_dtype(table.dtype).name
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
            return keras.initializers.Constant(self._first(name))
        with tf.init_scope():
            value = tf.convert_to_tensor(getattr(self._optimizer, _OF_KERAS[name])[position])
            if name.startswith("row_"):
                value = tf.reduce_mean(value, axis=1, keepdims=True)
        return lambda shape, dtype: tf.cast(value, dtype)  # noqa: ARG005

    def _first(self, name: str) -> float:
        """What a slot begins with."""
        is_accumulator = _OF_KERAS[name] == "_accumulators"
        return float(self._optimizer.initial_accumulator_value) if is_accumulator else 0.0

    def resize(self, table: LazyTable, rows: int, changes: Changes) -> None:
        """Have the slots of a table end at so many rows; new ones begin as all began."""
        for name, slot in zip(_SLOTS[self._number], self._slots[id(table)], strict=True):
            slot.resize(rows, self._first(name), changes)

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


_all: weakref.WeakSet[Rule] = weakref.WeakSet()


def of_table(table: LazyTable) -> list[Rule]:
    """The rules that have slots for a table."""
    return [rule for rule in _all if rule.knows(table)]


class Slot(keras.Variable):  # type: ignore[misc]
    """An optimizer's variable that native ops write to."""

    def resize(self, rows: int, first: float, changes: Changes) -> None:
        """See `Rule.resize`."""
        old = self._value
        with support.beside(old):
            resized = with_rows(old.stored(), rows, lambda shape: tf.fill(shape, tf.constant(first, old.dtype)))
            value = OwnVariable(lambda: resized, dtype=old.dtype, trainable=False)
        exchange(self, value, changes)

    def _initialize(self, value: Any) -> None:
        self._value = OwnVariable(value if callable(value) else lambda: value, dtype=self._dtype, trainable=False)


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
