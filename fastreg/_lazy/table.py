"""A variable whose rows are regularised when they are looked up, instead of all of them at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope
from tensorflow.python.saved_model import save_context

from fastreg import _bridge, _buffers
from fastreg._lazy import formulas, memory
from fastreg._lazy.gradients import UNIQUE_IDS
from fastreg._lazy.graph import straight_through, when
from fastreg.regularizers import _Penalty

_UNKNOWN = 1 << 62
"""Steps since the sums were known, where they never were."""

_UNTRACKED = -1.0
"""Stands for sum(|w|) while only sum(w²) is tracked."""


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
                self._clock = tf.Variable(fresh[0], trainable=False)
                self._sums = tf.Variable(tf.zeros(2, tf.float64), trainable=False)
                self._age = tf.Variable(_UNKNOWN, dtype=tf.int64, trainable=False)
        _buffers.pool.clear_after(self)

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
            self._clock.assign(fresh[0])
            self._age.assign(_UNKNOWN)

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
        self.flush_if(tf.reduce_any(self._clock.read_value() != tf.constant(formulas.FRESH, tf.float64)))

    def flush_if(self, condition: tf.Tensor) -> None:
        """`flush` where the condition, a scalar, holds."""
        handles, dtype = self._handles(), self._value.dtype

        def flush(*handles: tf.Tensor) -> tuple[tf.Tensor]:
            memory.flush(dtype, *handles)
            return (tf.constant(True),)

        def start_afresh() -> None:
            _bridge.call(flush, handles, [()], [tf.bool])
            # The sums too: a run that goes on after saving then has the losses of one that loads, to the last bit.
            self._age.assign(_UNKNOWN)

        when(condition, start_afresh)

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
        if _bridge.in_xla():  # where no callback runs
            stored, stamps = self._value.sparse_read(ids), self._stamps.sparse_read(ids)
            wide = tf.cast(stored, formulas.arithmetic_dtype(stored.dtype))
            shrunk = formulas.shrink(wide, *formulas.factors(self._clock.read_value(), stamps))
            return straight_through(stored, tf.cast(shrunk, stored.dtype), tf.range(tf.size(ids)), dtype)
        table, width = self._value.dtype, self._shape[1]

        def lookup(*inputs: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return memory.lookup(table, *inputs)

        shapes, dtypes = [(None, width), (None,), ids.shape], [table, ids.dtype, tf.int32]
        rows, unique, positions = _bridge.call(lookup, [*self._handles(), ids], shapes, dtypes)
        # Read for their gradient alone, which TensorFlow makes sparse: that of the rows that are stored.
        stored = self._value.sparse_read(tf.identity(unique, name=UNIQUE_IDS))
        return straight_through(stored, rows, positions, dtype)

    def penalty(self) -> tf.Tensor:
        """The penalty of the true weights as a scalar of their dtype.

        With L1 it is up to `penalty_every` steps old in a training step, in which a tape records, and exact elsewhere.
        """
        l1, l2 = self.factors
        oldest = self._penalty_every if l1 != 0.0 and _bridge.tape_is_active() else 1
        self.refresh_if_older(oldest)
        sums = self._sums.read_value()
        terms = [factor * sums[index] for index, factor in enumerate((l1, l2)) if factor != 0.0]
        return tf.cast(sum(terms, tf.zeros((), tf.float64)), self._value.dtype)

    def refresh_if_older(self, steps: int) -> None:
        """Compute the sums by a pass over the table if they were last known at least so many steps ago."""
        handles, dtype = self._handles(), self._value.dtype
        old = self._age.read_value() >= steps
        if self.factors[0] != 0.0:
            old |= self._sums.read_value()[0] < 0.0  # untracked

        def sums(*handles: tf.Tensor) -> tuple[tf.Tensor]:
            return (tf.constant(memory.true_sums(dtype, *handles)),)

        def refresh() -> None:
            self._sums.assign(_bridge.call(sums, handles, [(2,)], [tf.float64])[0])
            self._age.assign(0)

        when(old, refresh)

    def sparsity(self) -> float:
        """The share of weights that are exactly zero."""
        self.flush()
        return memory.zeros(self._value.dtype, self._value.handle) / float(np.prod(self._shape))

    def _handles(self) -> list[tf.Tensor]:
        return [self._value.handle, self._stamps.handle, self._clock.handle]

    def update(self, unique: tf.Tensor | None, step: Callable[[], tf.Tensor] | None, learning_rate: tf.Tensor) -> None:
        """Shrink all rows by one step's penalty, and subtract a step of the optimizer's from some.

        Parameters
        ----------
        unique : tf.Tensor of shape (n,) or None
            Rows to subtract from, each once; None if there are none.
        step : callable
            Returns what to subtract, of shape (n, width), in the arithmetic dtype.
        learning_rate : tf.Tensor
            Scalar, float64, of this step.
        """
        l1, l2 = self.factors
        tracked = l1 == 0.0 and l2 != 0.0  # then no weight is clipped, and sum(w²) follows from the rows touched
        before = self._clock.read_value()
        clock = formulas.advance(before, learning_rate, l1, l2)
        change = tf.zeros((), tf.float64)
        if unique is not None and step is not None:
            handles, dtype = [self._value.handle, self._stamps.handle], self._value.dtype

            def update(*inputs: tf.Tensor) -> tuple[tf.Tensor]:
                return (tf.constant(memory.update(dtype, tracked, *inputs), tf.float64),)

            (change,) = _bridge.call(update, [*handles, clock, unique, step()], [()], [tf.float64])
        self._clock.assign(clock)
        if tracked:
            squares = self._sums.read_value()[1] * tf.square(clock[0] / before[0]) + change
            self._sums.assign(tf.stack([tf.constant(_UNTRACKED, tf.float64), tf.maximum(squares, 0.0)]))
        else:
            self._age.assign_add(1)
        self.flush_if((clock[0] < formulas.SMALLEST_PRODUCT) | (clock[0] * clock[1] > formulas.LARGEST_THRESHOLD))


class _TrackedPenalty:
    """Stands where Keras keeps the regularizer of a variable."""

    def __init__(self, table: LazyTable) -> None:
        self._table = table

    def __call__(self, x: Any) -> tf.Tensor:  # noqa: ARG002 - the table, which is not read
        return self._table.penalty()

    def get_config(self) -> Any:
        return self._table.penalised_by.get_config()
