"""A `tf.Variable` whose rows are regularised when they are looked up, instead of all of them at every step.

Its memory holds each row as it was last written, and the stamps tell what shrink is to come (`fastreg._bridges.state`).
Nobody sees that: whatever reads the variable gets a copy of true weights, whatever writes it starts from these. Only
the ops of tables (`native`, `plain`) use its memory.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope
from tensorflow.python.ops.resource_variable_ops import ResourceVariable, variable_accessed

from fastreg._bridges import buffers, saving, state, support
from fastreg._bridges import native as bridge
from fastreg._bridges import plain as formulas
from fastreg._bridges.factors import Factors
from fastreg._bridges.settings import settings
from fastreg._tables import clusters, native, plain


class OwnVariable(ResourceVariable):  # type: ignore[misc]
    """A variable whose memory is nobody else's, so that native ops can write to it: reads and assignments copy.

    Parameters
    ----------
    initial_value : callable
        Returns the value, without arguments.
    dtype : tf.DType or str
    **options
        As of `tf.Variable`.
    """

    def __init__(self, initial_value: Callable[[], Any], *, dtype: Any, **options: Any) -> None:
        super().__init__(lambda: _copy(tf.cast(initial_value(), dtype)), dtype=dtype, **options)

    def stored(self) -> tf.Tensor:
        """A copy of the memory."""
        if support.in_xla():  # which knows neither copies nor their absence
            return ResourceVariable._read_variable_op(self)
        return _copy(ResourceVariable._read_variable_op(self, no_copy=True))

    def _read_variable_op(self, no_copy: bool = False) -> tf.Tensor:
        # Without a copy TensorFlow reads what it writes to a checkpoint, then and there.
        if no_copy or saving.is_saving() or in_stateless_scope():
            return super()._read_variable_op(no_copy)
        return self.stored()

    def assign(
        self, value: Any, use_locking: bool | None = None, name: str | None = None, read_value: bool = True
    ) -> Any:
        """As of `tf.Variable`."""
        value = tf.convert_to_tensor(value, self.dtype)
        result = super().assign(value if support.in_xla() else _copy(value), use_locking, name, read_value)
        return self if read_value and tf.executing_eagerly() else result


class TableVariable(OwnVariable):
    """A variable of shape (rows, width); parameters as above.

    It is where TensorFlow puts it: on the GPU, if there is one, unless `tf.device` says otherwise.

    Attributes
    ----------
    path : str
        What messages call it.
    stamps, history, numbers : tf.Variable
        The state, of shapes (rows,) in float32, (steps, 2) and (n,) in float64; see `fastreg._bridges.state`.
    clusters : dict
        Ops that XLA has compiled.
    """

    def __init__(self, initial_value: Callable[[], Any], *, path: str, dtype: Any, **options: Any) -> None:
        self.path, self._has_warned, self._may_have_faults = path, False, False
        self.clusters: dict[Any, Callable[..., Any]] = {}
        super().__init__(initial_value, dtype=dtype, **options)
        with support.beside(self):
            self.stamps = OwnVariable(self._initial_stamps, dtype=tf.float32, trainable=False)
            self.history = OwnVariable(_initial_history, dtype=tf.float64, trainable=False)
            self.numbers = OwnVariable(lambda: state.INITIAL, dtype=tf.float64, trainable=False)
        buffers.clear_after(self)

    # The ops of tables.

    def lookup(self, ids: tf.Tensor) -> tf.Tensor:
        """True rows of the ids, a vector; with the gradient of a lookup, `tf.IndexedSlices`.

        Raises
        ------
        tf.errors.InvalidArgumentError
            At run time, if an id is negative or not below the number of rows.
        """
        variable_accessed(self)  # so that tapes watch it
        if self._is_for_a_file():
            return tf.raw_ops.ResourceGather(resource=self.handle, indices=ids, dtype=self.dtype)
        with self._in_use():
            return self._way().lookup(self, ids)

    def sum_bags(self, ids: tf.Tensor, splits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor | None:
        """Sums of the true rows of bags of ids, times their weights, in one pass, or None where that cannot be had.

        Parameters
        ----------
        ids, splits, weights
            See `slices.Bags`; the weights are in the dtype of the arithmetic, which is that of the sums.

        Raises
        ------
        tf.errors.InvalidArgumentError
            As for `lookup`.
        """
        variable_accessed(self)
        if saving.is_saving() or self._way() is not native:
            return None
        with self._in_use():
            return native.sum_bags(self, ids, splits, weights)

    def update(self, gradient: Any, step: Any, factors: tf.Tensor) -> None:
        """Shrink all rows by one step's penalty, and update some by an optimizer's rule.

        Parameters
        ----------
        gradient : gradients.TableGradient
            Of the rows to update; those that occur several times have the sum of their gradients.
        step : rules.Step
            What the optimizer does in this step.
        factors : tf.Tensor of shape (2,), float64
            l1 and l2, by which rows shrink.

        Raises
        ------
        tf.errors.InvalidArgumentError
            At run time, if `1 - 2 * learning_rate * l2` is not positive, which would turn weights around.
        """
        way = self._way(step.rule)
        self._may_have_faults |= way is clusters or support.in_xla()
        with self._in_use():
            way.update(self, gradient, step, factors)

    def write_rows(self, ids: tf.Tensor, values: tf.Tensor) -> None:
        """Make these the true weights of some rows, whatever shrink they had to come; the sums are not known then.

        Parameters
        ----------
        ids : tf.Tensor
            A vector, each id once and that of a row.
        values : tf.Tensor of shape (len(ids), width)
            In the dtype of the table.
        """
        with self._in_use():
            is_native = self._way() is native and bridge.write_obstacle(self.dtype, ids.dtype) is None
            (native if is_native else plain).write_rows(self, ids, values)

    def flush(self) -> None:
        """Write the true weights of all rows; nothing to do if they are there already."""
        with self._in_use():
            self._way().flush(self)

    def penalty(self, factors: Factors, every: int) -> tf.Tensor:
        """The penalty of the true weights as a scalar of their dtype: exact if `every` is 0, else tracked, and measured
        anew where that may be off and is `every` steps old. Its gradient carries the weight that it has in the loss:
        see `fastreg._bridges.slices`.
        """
        variable_accessed(self)
        if self._is_for_a_file():
            return formulas.penalty(super()._read_variable_op(), factors)
        with self._in_use():
            return self._way().penalty(self, factors, every)

    def count_zeros(self) -> tf.Tensor:
        """How many true weights are exactly zero."""
        with self._in_use():
            return self._way().count_zeros(self)

    def sum_duplicates(self, values: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Sums of the rows of `values` that have the same id, and the ids, each once."""
        with self._in_use():
            sums: tuple[tf.Tensor, tf.Tensor] = self._way().sum_duplicates(self, values, ids)
        return sums

    def restart(self) -> None:
        """The rows are true as they are stored, and the sums are not known: after they were written."""
        self.stamps.assign(self._initial_stamps())
        self.numbers.assign(state.INITIAL)

    def is_native(self) -> bool:
        """Whether native ops serve it here and now."""
        return self._way() is native

    def _way(self, rule: int | None = None) -> Any:
        """Native ops where they can run, for updates by this rule, else TensorFlow's."""
        if support.in_xla() or (saving.is_saving() and not tf.executing_eagerly()):
            return plain
        if self._is_on_gpu():
            return clusters
        if settings.bridge not in ("auto", "native"):
            return plain
        return native if bridge.table_obstacle(self.dtype, rule) is None else plain

    def _is_on_gpu(self) -> bool:
        return "GPU" in self.device

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Have ops run beside the table, after what went wrong since it was last used was raised."""
        self.raise_fault()
        with support.beside(self):
            yield

    def raise_fault(self) -> None:
        """Raise what went wrong in a step that XLA compiled, which cannot raise it; nothing to do in a graph.

        Raises
        ------
        tf.errors.InvalidArgumentError
            The first time after the step.
        """
        if not self._may_have_faults or not tf.executing_eagerly():
            return
        fault, of = plain.take_fault(self)
        if fault == state.INVALID_ID:
            message = f"id {of:.0f} is not in [0, {self.shape[0]}) for the table {self.path}; its rows were NaN"
        elif fault == state.INVALID_SHRINK:
            message = (
                "the learning rate, the weight of the penalty in the loss, or their product with l2, in step "
                f"{of:.0f} for the table {self.path}: expected non-negative numbers, 2 * learning_rate * l2 < 1; its "
                "rows are NaN since. LazyRegularization(..., implicit=True) takes any l2"
            )
        else:
            return
        raise tf.errors.InvalidArgumentError(None, None, f"Invalid value in code that XLA compiled: {message}.")

    def _is_for_a_file(self) -> bool:
        """Whether what is being traced will be saved, with true weights, which are written now."""
        if not saving.is_saving():
            return False
        with tf.init_scope():
            self.flush()
        return True

    def _initial_stamps(self) -> tf.Tensor:
        return tf.zeros(self.shape[0])

    # What TensorFlow asks a variable for: reading.

    def _read_variable_op(self, no_copy: bool = False) -> tf.Tensor:
        if no_copy or in_stateless_scope() or self._is_for_a_file():
            return super()._read_variable_op(no_copy)
        if support.tape_is_active() and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"A training step reads all of the table {self.path!r}, as tied output weights do. It then writes out "
                "and trains all rows at every step, and keras.layers.Embedding is as fast. To look rows up, call the "
                "layer, or its method lookup(ids).",
                UserWarning,
                stacklevel=2,
            )
        variable_accessed(self)
        with self._in_use():
            return self._way().weights(self)

    def sparse_read(self, indices: Any, name: str | None = None) -> tf.Tensor:
        """`lookup` of ids of any shape."""
        with tf.name_scope(name or "Gather"):
            ids = tf.convert_to_tensor(indices)
            rows = self.lookup(tf.reshape(ids, [-1]))
            return tf.reshape(rows, tf.concat([tf.shape(ids), [self.shape[1]]], 0))

    def gather_nd(self, indices: Any, name: str | None = None) -> tf.Tensor:
        """`tf.gather_nd` of the true weights."""
        return tf.gather_nd(self.value(), indices, name=name)

    def _serialize_to_tensors(self) -> Any:
        self.flush()  # before any variable of the checkpoint is read
        return super()._serialize_to_tensors()

    # Writing.

    def assign(
        self, value: Any, use_locking: bool | None = None, name: str | None = None, read_value: bool = True
    ) -> Any:
        """As of `tf.Variable`."""
        result = super().assign(value, use_locking, name, read_value)
        self.restart()
        return result

    def _restore_from_tensors(self, restored_tensors: Any) -> Any:
        restored = super()._restore_from_tensors(restored_tensors)
        self.restart()
        return restored


def _initial_history() -> tf.Tensor:
    """As of step 0; what is behind the present step is nobody's."""
    return tf.tile(tf.constant([state.FRESH], tf.float64), [state.STEPS, 1])


def _copy(x: tf.Tensor) -> tf.Tensor:
    """The same values in memory of their own."""
    return tf.raw_ops.DeepCopy(x=x)


def _writing(name: str) -> Callable[..., Any]:
    """A method of `tf.Variable` that changes elements, on true weights."""

    def method(self: TableVariable, *arguments: Any, **options: Any) -> Any:
        self.flush()
        result = getattr(super(TableVariable, self), name)(*arguments, **options)
        self.restart()
        return self if tf.executing_eagerly() else result

    method.__name__, method.__doc__ = name, "As of `tf.Variable`."
    return method


for _name in (
    *("assign_add", "assign_sub", "batch_scatter_update", "_strided_slice_assign"),
    *(f"scatter_{how}" for how in ("add", "sub", "max", "min", "mul", "div", "update")),
    *(f"scatter_nd_{how}" for how in ("add", "sub", "max", "min", "update")),
):
    setattr(TableVariable, _name, _writing(_name))
