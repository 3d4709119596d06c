"""A variable whose rows are regularised when they are looked up, instead of all of them at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope
from tensorflow.python.saved_model import save_context

from fastreg._bridges import buffers, support
from fastreg._bridges.callback import exchange
from fastreg._lazy import formulas, memory
from fastreg._lazy.gradients import UNIQUE_IDS
from fastreg._lazy.graph import when, with_gradient
from fastreg.regularizers import _Penalty


class LazyTable(keras.Variable):  # type: ignore[misc]
    """A Keras variable of shape (rows, width) that is regularised lazily; see `fastreg.Embedding`.

    Its memory holds each row as it was last written, and two numbers per row that tell what shrink is to come
    (`formulas`). Lookups apply that to the rows they return. Whoever reads the whole variable, as `numpy()`, saving and
    `Model.get_weights` do, has it flushed first, so that he sees true weights; `assign` starts it afresh.

    It lives in the host's memory, also where there is a GPU.

    Parameters
    ----------
    initializer : callable or array
    shape : tuple of int
    dtype : str
        A floating dtype that has kernels.
    penalty : fastreg.L1, fastreg.L2 or fastreg.L1L2
        Its factors are read whenever a training step is traced.
    penalty_every : int
        Steps after which the value of a penalty with L1 is computed anew.
    name : str
    """

    def __init__(
        self,
        initializer: Any,
        shape: tuple[int, int],
        dtype: str,
        penalty: _Penalty,
        penalty_every: int,
        name: str,
    ) -> None:
        self._penalty, self._penalty_every = penalty, penalty_every
        super().__init__(initializer, shape=shape, dtype=dtype, trainable=True, name=name)

    def _initialize(self, value: Any) -> None:
        with tf.device("CPU:0"):
            super()._initialize(value)
            with tf.init_scope():
                fresh, rows = tf.constant([formulas.FRESH], tf.float64), self._value.shape[0]
                self._stamps = tf.Variable(lambda: tf.tile(fresh, [rows, 1]), trainable=False)
                self._state = tf.Variable(tf.constant(memory.State(), tf.float64), trainable=False)
        buffers.clear_after(self)

    @property
    def factors(self) -> tuple[float, float]:
        """l1 and l2."""
        return getattr(self._penalty, "l1", 0.0), getattr(self._penalty, "l2", 0.0)

    @property
    def penalised_by(self) -> _Penalty:
        """The regularizer that was given."""
        return self._penalty

    # What Keras asks a variable for.

    @property
    def handle(self) -> tf.Tensor:
        """The resource, without a flush: what a gradient is taken with respect to."""
        return self._value.handle

    @property
    def value(self) -> Any:
        """The variable with true weights: flushed here and now, or where a graph that is traced runs."""
        if self._value is not None and not in_stateless_scope() and not save_context.in_save_context():
            self.flush()
        return super().value

    def __repr__(self) -> str:
        if self._value is not None and tf.executing_eagerly():
            self.flush()  # Keras shows what is stored
        return str(super().__repr__())

    def _direct_assign(self, value: Any) -> None:
        super()._direct_assign(value)
        self._start_afresh()

    def _start_afresh(self) -> None:
        with tf.device("CPU:0"):
            fresh = tf.constant([formulas.FRESH], tf.float64)
            self._stamps.assign(tf.tile(fresh, [self._shape[0], 1]))
            self._state.assign(tf.constant(memory.State(), tf.float64))

    @property
    def regularizer(self) -> Any:
        """What Keras adds to the loss: the tracked value of the penalty, whatever it is called with."""
        return _TrackedPenalty(self)

    @regularizer.setter
    def regularizer(self, penalty: Any) -> None:
        if not isinstance(penalty, _Penalty):
            raise ValueError(
                "Invalid value for attribute regularizer: expected fastreg.L1, L2 or L1L2 (with factors of zero to "
                f"switch it off). Received: regularizer={penalty!r}"
            )
        self._penalty = penalty

    @property
    def overwrite_with_gradient(self) -> bool:
        """Asked for by each of Keras's optimizers before it updates a variable: how a missing wrapper is noticed."""
        raise RuntimeError(
            f"The table {self.path!r} is regularised lazily and can only be updated by fastreg.LazyRegularization, the "
            "outermost optimizer. Wrap the optimizer: "
            "model.compile(fastreg.LazyRegularization(optimizer), ...). Or use keras.layers.Embedding."
        )

    def _serialize_to_tensors(self) -> Any:
        self.flush()  # before any variable of the checkpoint is read
        return self._value._serialize_to_tensors()

    def _restore_from_tensors(self, restored_tensors: Any) -> Any:
        restored = self._value._restore_from_tensors(restored_tensors)
        self._start_afresh()
        return restored

    # What a lazily regularised layer and its optimizer do.

    def flush(self) -> None:
        """Write the true weights of all rows; nothing to do if they are there already."""
        self._flush_if(tf.reduce_any(self._state.read_value()[:2] != tf.constant(formulas.FRESH, tf.float64)))

    def _flush_if(self, condition: tf.Tensor) -> None:
        when(condition, lambda: self._run(memory.flush))

    def _run(self, action: Callable[..., None]) -> None:
        """A pass of `memory` over the whole table."""
        dtype = self._value.dtype

        def run(*handles: tf.Tensor) -> tuple[tf.Tensor]:
            action(dtype, *handles)
            return (tf.constant(True),)

        exchange.call(run, self._handles(), [()], [tf.bool])

    def lookup(self, ids: tf.Tensor, dtype: Any) -> tf.Tensor:
        """True rows, of shape `(*ids.shape, width)`, in this dtype. The gradient is that of the true rows.

        Raises
        ------
        tf.errors.InvalidArgumentError
            At run time, if an id is negative or not below the number of rows.
        """
        if self._value is None or in_stateless_scope():  # shapes only
            return tf.cast(tf.gather(super().value, ids), dtype)
        if save_context.in_save_context():  # the file holds true weights
            return tf.cast(tf.gather(self._value, ids), dtype)
        with tf.device("CPU:0"):
            rows = self._true_rows(tf.reshape(ids, [-1]), dtype)
        shape = tf.concat([tf.shape(ids), [self._shape[1]]], 0)
        return tf.ensure_shape(tf.reshape(rows, shape), ids.shape.concatenate([self._shape[1]]))

    def _true_rows(self, ids: tf.Tensor, dtype: Any) -> tf.Tensor:
        if support.in_xla():  # where no callback runs
            rows, stamps = tf.gather(self._value, ids), tf.gather(self._stamps, ids)
            wide = tf.cast(rows, formulas.arithmetic_dtype(rows.dtype))
            shrunk = formulas.shrink(wide, *formulas.factors(self._state.read_value(), stamps))
            rows = tf.stop_gradient(tf.cast(shrunk, rows.dtype))
            return with_gradient(self._value, rows, ids, None, dtype)

        stored = self._value.dtype

        def lookup(*inputs: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return memory.lookup(stored, *inputs)

        shapes, dtypes = [(None, self._shape[1]), (None,), ids.shape], [stored, ids.dtype, tf.int32]
        rows, unique, positions = exchange.call(lookup, [*self._handles(), ids], shapes, dtypes)
        unique = tf.identity(unique, name=UNIQUE_IDS)
        return with_gradient(self._value, rows, unique, positions, dtype)

    def penalty(self) -> tf.Tensor:
        """The penalty of the true weights as a scalar of their dtype.

        With L1 it is up to `penalty_every` steps old in a training step, in which a tape records, and exact elsewhere.
        """
        l1, l2 = self.factors
        oldest = self._penalty_every if l1 != 0.0 and support.tape_is_active() else 1
        self.refresh_if_older(oldest)
        sums = self._state.read_value()[2:]
        terms = [factor * sums[index] for index, factor in enumerate((l1, l2)) if factor != 0.0]
        return tf.cast(sum(terms, tf.zeros((), tf.float64)), self._value.dtype)

    def refresh_if_older(self, steps: int) -> None:
        """Compute the sums by a pass over the table if they were last known at least so many steps ago."""
        if self.factors == (0.0, 0.0):
            return  # nobody asks for them
        state = self._state.read_value()
        old = state[4] >= steps
        if self.factors[0] != 0.0:
            old |= state[2] == memory.UNTRACKED
        when(old, lambda: self._run(memory.refresh))

    def sparsity(self) -> float:
        """The share of weights that are exactly zero."""
        self.flush()
        return memory.zeros(self._value.dtype, self._value.handle) / float(np.prod(self._shape))

    def _handles(self) -> list[tf.Tensor]:
        return [self._value.handle, self._stamps.handle, self._state.handle]

    def update(self, rows: tf.Tensor, step: tf.Tensor, learning_rate: tf.Tensor) -> None:
        """Shrink all rows by one step's penalty, and subtract a step of the optimizer's from some.

        Parameters
        ----------
        rows : tf.Tensor of shape (n,)
            Rows to subtract from, each once.
        step : tf.Tensor of shape (n, width)
            What to subtract, in the arithmetic dtype.
        learning_rate : tf.Tensor
            Scalar, float64, of this step.

        Raises
        ------
        tf.errors.InvalidArgumentError
            At run time, if `1 - 2 * learning_rate * l2` is not positive, which would turn weights around.
        """
        (l1, l2), dtype = self.factors, self._value.dtype

        def update(*inputs: tf.Tensor) -> tuple[tf.Tensor]:
            return (tf.constant(memory.update(dtype, l1, l2, *inputs)),)

        (due,) = exchange.call(update, [*self._handles(), learning_rate, rows, step], [()], [tf.bool])
        self._flush_if(due)


class _TrackedPenalty:
    """Stands where Keras keeps the regularizer of a variable."""

    def __init__(self, table: LazyTable) -> None:
        self._table = table

    def __call__(self, x: Any) -> tf.Tensor:  # noqa: ARG002 - the table, which is not read
        return self._table.penalty()

    def get_config(self) -> Any:
        return self._table.penalised_by.get_config()
