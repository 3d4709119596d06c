"""The Keras variable around a lazily regularised table."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope

from fastreg import _validation
from fastreg._bridges import support
from fastreg._bridges.factors import Factors
from fastreg._changes import Changes
from fastreg._tables.variable import TableVariable
from fastreg.regularizers import L2, _Penalty, lazy_penalty

not_converted = tf.autograph.experimental.do_not_convert  # to graph code, of which nothing here is


_MEASURED_PER_STEP = 1 << 15
"""Elements that passes for the penalty go over in a training step, on average: a hundredth of its time, or less."""


def check_one_device() -> None:
    """See that no strategy of several devices is around: it would have copies of a table, or update one several times.

    Raises
    ------
    ValueError
        If there is one. (A `NotImplementedError` Keras's Sequential takes for a layer that cannot be built yet.)
    """
    name = support.distribution()
    if name is not None:
        raise ValueError(
            "Lazily regularised tables can only be made and trained on one device, outside of distribution strategies "
            f"and their scopes. Received: {name}. Use keras.layers.Embedding with it."
        )


class LazyTable(keras.Variable):  # type: ignore[misc]
    """A Keras variable of shape (rows, width) that is regularised lazily; see `fastreg.Embedding`.

    Parameters
    ----------
    initializer : callable or array
    shape : tuple of int
    dtype : str
        A floating dtype that has kernels.
    penalty : fastreg.L1, fastreg.L2 or fastreg.L1L2
        Its factors are read whenever a training step is traced; variables among them, in every step.
    penalty_every : int or None
        See `fastreg.Embedding`.
    name : str
    """

    def __init__(
        self,
        initializer: Any,
        shape: tuple[int, int],
        dtype: str,
        penalty: _Penalty,
        penalty_every: int | None,
        name: str,
    ) -> None:
        self._penalty, self._penalty_every, self._has_warned = penalty, penalty_every, False
        super().__init__(initializer, shape=shape, dtype=dtype, trainable=True, name=name)

    def _initialize(self, value: Any) -> None:
        with tf.init_scope():
            self._value = TableVariable(
                value if callable(value) else lambda: value,
                path=self.path,
                dtype=self._dtype,
                trainable=self.trainable,
                name=self.name,
            )

    @classmethod
    def convert(cls, variable: keras.Variable, penalty: _Penalty, changes: Changes) -> None:
        """Make a variable of Keras's a table with its value: whoever holds the variable then holds the table."""
        value = TableVariable(
            lambda: variable.value,
            path=variable.path,
            dtype=variable.dtype,
            trainable=variable.trainable,
            name=variable.name,
        )
        own = {"_penalty": penalty, "_penalty_every": None, "_has_warned": False}
        exchange(variable, value, changes, cls, _regularizer=None, **own)

    def revert(self, regularizer: Any) -> None:
        """Make it a variable of Keras's again, with its true weights and this regularizer."""
        weights = tf.convert_to_tensor(self.value)
        self.__class__ = keras.Variable
        for name in ("_penalty", "_penalty_every", "_has_warned"):
            delattr(self, name)
        self._initialize(weights)
        self.regularizer = regularizer

    def resize(self, rows: int, initializer: Any, changes: Changes) -> None:
        """Have the table end at so many rows; the initializer makes new ones, which are true as those that were there.

        Slots are not the table's: see `rules.of_table`.
        """
        old = self._value
        old.flush()
        with support.beside(old):
            resized = with_rows(old.stored(), rows, lambda shape: initializer(shape, dtype=self._dtype))
            value = TableVariable(
                lambda: resized, path=self.path, dtype=self._dtype, trainable=self.trainable, name=self.name
            )
        exchange(self, value, changes)

    @property
    def penalised_by(self) -> _Penalty:
        """The regularizer that was given."""
        return self._penalty

    # What Keras asks a variable for.

    @property
    def handle(self) -> tf.Tensor:
        """The resource, which gradients are taken with respect to."""
        return self._value.handle

    @property
    def regularizer(self) -> Any:
        """What Keras adds to the loss: the tracked value of the penalty, whatever it is called with."""
        return _TrackedPenalty(self)

    @regularizer.setter
    def regularizer(self, regularizer: Any) -> None:
        self._penalty = lazy_penalty(regularizer, "attribute regularizer") or L2(0.0)

    @property
    def overwrite_with_gradient(self) -> bool:
        """Asked for by each of Keras's optimizers before it updates a variable: how a missing wrapper is noticed."""
        raise RuntimeError(
            f"The table {self.path!r} is regularised lazily and can only be updated by fastreg.LazyRegularization. "
            "Wrap the optimizer, as in model.compile(fastreg.LazyRegularization(optimizer), ...), or use "
            "keras.layers.Embedding."
        )

    # What a lazily regularised layer and its optimizer do.

    @not_converted
    def factors(self) -> Factors:
        """l1 and l2, here and now."""
        penalty = self._penalty
        return Factors(
            **{"l1": 0.0, "l2": 0.0}
            | {name: _validation.current_factor(getattr(penalty, name), name) for name in penalty.factors}
        )

    @not_converted
    def flush(self) -> None:
        """Write the true weights of all rows; nothing to do if they are there already."""
        self._value.flush()

    @not_converted
    def lookup(self, ids: tf.Tensor, dtype: Any) -> tf.Tensor:
        """True rows, of shape `(*ids.shape, width)`, in this dtype. The gradient is that of the true rows.

        Raises
        ------
        tf.errors.InvalidArgumentError
            At run time, if an id is negative or not below the number of rows.
        """
        if self._value is None or in_stateless_scope():  # shapes only
            return tf.cast(tf.gather(super().value, ids), dtype)
        rows = self._value.lookup(ids if ids.shape.rank == 1 else tf.reshape(ids, [-1]))
        if ids.shape.rank != 1:
            rows = tf.reshape(rows, tf.concat([tf.shape(ids), [self._shape[1]]], 0))
        if rows.shape.rank is None:
            rows = tf.ensure_shape(rows, ids.shape.concatenate([self._shape[1]]))
        else:
            rows.set_shape(ids.shape.concatenate([self._shape[1]]))
        return tf.cast(rows, dtype)

    @not_converted
    def write_rows(self, ids: tf.Tensor, values: tf.Tensor) -> None:
        """See `TableVariable.write_rows`."""
        self._value.write_rows(ids, values)

    def sum_bags(self, ids: tf.Tensor, splits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor | None:
        """See `TableVariable.sum_bags`."""
        if self._value is None or in_stateless_scope():
            return None
        return self._value.sum_bags(ids, splits, weights)

    @not_converted
    def update(self, gradient: Any, step: Any) -> None:
        """One training step: see `TableVariable.update`. It shrinks by as much as the loss weights the penalty.

        Parameters
        ----------
        gradient : gradients.TableGradient
        step : rules.Step
        """
        weight = gradient.weight
        factors = tf.zeros(2, tf.float64) if weight is None else self.factors().vector() * weight
        if step.decay:  # as of an l2 of half of it
            factors += tf.constant([0.0, step.decay / 2.0], tf.float64)
        self._value.update(gradient, step, factors)

    def warn_of_missing_penalty(self) -> None:
        """Say that the loss does not contain the penalty, and what follows; the first time, if there is one."""
        if self._has_warned or self.factors().are_zero:
            return
        self._has_warned = True
        warnings.warn(
            f"The loss does not contain the penalty of the table {self.path!r}, which therefore is not regularised in "
            "this step. In a training loop of your own, add sum(model.losses) to the loss.",
            stacklevel=2,
        )

    def served_by(self, xla: bool) -> str:
        """What its ops are, here and now or under XLA: native ones, or TensorFlow's."""
        if xla:
            return "TensorFlow's ops, compiled by XLA"
        return "native ops" if self._value.is_native() else "TensorFlow's ops"

    def raise_fault(self) -> None:
        """Raise what went wrong in a step that XLA compiled: see `TableVariable.raise_fault`."""
        self._value.raise_fault()

    def sum_duplicates(self, values: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Sums of the rows of `values` that have the same id, in the order of the ids, and the ids, each once."""
        return self._value.sum_duplicates(values, ids)

    @not_converted
    def penalty(self) -> tf.Tensor:
        """The penalty of the true weights as a scalar of their dtype: tracked in a training step, in which a tape
        records, and exact elsewhere.
        """
        every = self._penalty_every or -(-math.prod(self._shape) // _MEASURED_PER_STEP)
        return self._value.penalty(self.factors(), every if support.tape_is_active() else 0)

    @not_converted
    def exact_penalty(self) -> tf.Tensor:
        """The same, of the true weights now."""
        return self._value.penalty(self.factors(), 0)

    def sparsity(self) -> float:
        """The share of weights that are exactly zero."""
        return int(self._value.count_zeros()) / float(np.prod(self._shape))


def with_rows(stored: tf.Tensor, rows: int, initializer: Callable[[tuple[int, ...]], tf.Tensor]) -> tf.Tensor:
    """The first rows of a tensor, and behind them, if these are fewer, those that an initializer makes at their place.

    The initializer makes all rows: with a seed, it would make of the shape of the missing ones alone the first again.

    Raises
    ------
    ValueError
        If the initializer makes something of another shape.
    """
    if rows <= stored.shape[0]:
        return stored[:rows]
    shape = (rows, *stored.shape[1:])
    made = tf.convert_to_tensor(initializer(shape))
    if tuple(made.shape) != shape:
        raise ValueError(
            f"Invalid value for argument initializer: expected one that makes the shape {shape}. "
            f"Received: {tuple(made.shape)}"
        )
    return tf.concat([stored, tf.cast(made[stored.shape[0] :], stored.dtype)], 0)


def exchange(
    variable: keras.Variable, value: tf.Variable, changes: Changes, cls: type | None = None, **attributes: Any
) -> None:
    """Give a variable of Keras's another memory, and its shape; perhaps another class, with these attributes."""
    value._unique_id = variable._value._unique_id  # by which optimizers find what they keep of it
    changes.afterwards(functools.partial(_empty, variable._value))
    changes.become(variable, cls or type(variable), _value=value, _shape=tuple(value.shape), **attributes)


def _empty(variable: tf.Variable) -> None:
    """Give back the memory of a variable that a table stands for now.

    A function that was traced with it then fails, where it would have gone on to train what nobody reads.
    """
    nothing = tf.zeros((0, *variable.shape[1:]), variable.dtype)
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=nothing, validate_shape=False)


class _TrackedPenalty:
    """Stands where Keras keeps the regularizer of a variable."""

    def __init__(self, table: LazyTable) -> None:
        self._table = table

    def __call__(self, x: Any) -> tf.Tensor:  # noqa: ARG002 - the table, which is not read
        return self._table.penalty()

    def get_config(self) -> Any:
        return self._table.penalised_by.get_config()
