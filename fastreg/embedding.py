"""An embedding layer whose regularisation costs what a batch looks up, not what the table holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fastreg_kernels
import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.variables import AutocastScope

from fastreg import _rows, _scopes
from fastreg._bridges import saving
from fastreg._tables.table import LazyTable, check_one_device, not_converted
from fastreg.regularizers import _Penalty, lazy_penalty

saving.trace_exports_for_files()


@keras.saving.register_keras_serializable(package="fastreg")
class Embedding(keras.layers.Embedding):  # type: ignore[misc]
    """Drop-in for `keras.layers.Embedding` with exact, lazy L1 and L2 regularisation.

    With an `embeddings_regularizer` the model must be compiled with `fastreg.LazyRegularization`. Each training step
    with learning rate η then does to every weight of the table

        w ← sign(w) · max(0, (1 − 2·η·l2)·|w| − η·l1)

    and to the rows that the step looked up, after that, the optimizer's update. But only the rows looked up are
    touched: for the others the shrink is kept in mind and applied when they are looked up, read or saved. Whatever
    reads the table sees true weights.

    That is the penalty of the whole table. With `scope="batch"` or `"occurrences"` a call of the layer adds the penalty
    of the rows that it looks up to its losses instead. The table is a variable of Keras's then, which trains with any
    optimizer and no wrapper; value and gradient of the penalty are exact, and the gradient is one of these rows.

    Without a regularizer it is Keras's layer, but for how it reads the table: rows are gathered from the variable,
    where Keras reads all of it, which TensorFlow makes a copy of at every step once there was a sparse update.

    Parameters
    ----------
    input_dim, output_dim, embeddings_initializer, mask_zero, weights
        As in `keras.layers.Embedding`.
    embeddings_regularizer : fastreg.L1, L2 or L1L2, Keras's own three, or their names; optional
        Factors of zero give row-wise optimizer steps without a penalty.
    embeddings_constraint, lora_rank
        As in `keras.layers.Embedding`; not together with a regularizer of the whole table. With another scope the rows
        that LoRA adapts are penalised as they are adapted, and quantized ones, which are not trained, not at all.
    penalty_every : int, optional
        In training the value of the penalty is tracked as rows are updated: exact up to rounding, but for weights that
        have stopped at zero since it was last computed by a pass over the table. Such a pass comes before these make a
        difference of about 1e-4, but at most every so many steps; by default as seldom as keeps passes below some 5%
        of a step. In `evaluate` the value is exact. The weights do not depend on it. Only with `scope="table"`.
    scope : {"table", "batch", "occurrences"}, default "table"
        What the penalty is of: of all rows; of the distinct rows that a call looks up, each once; or of each row as
        often as its id occurs in the call, which is a penalty weighted by frequency. The latter two are sums, not
        divided by the size of the batch, of rows in the dtype of the variable, in training and in `evaluate`. A layer
        that is called twice in a step adds two. Ids of padding count as any other; frozen weights have no penalty.
    **kwargs
        As in `keras.layers.Layer`.

    Raises
    ------
    ValueError
        If an argument has an invalid value, or one that cannot be combined with the scope.

    Notes
    -----
    With L2 and SGD the weights are those of Keras's dense training. With L1 they are until a weight would cross zero:
    Keras's subgradient then oscillates around zero, this rule stops there, at zero exactly. Ids that are negative or
    not below `input_dim` are an error; Keras counts negative ones from the end.

    A table takes, beside its weights, 4 bytes per row, and 64 KiB.

    Examples
    --------
    >>> layer = fastreg.Embedding(1_000_000, 64, embeddings_regularizer=fastreg.L2(1e-6))
    >>> model = keras.Sequential([layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    >>> model.compile(fastreg.LazyRegularization("sgd"), "mse")
    """

    built: bool

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        weights: Any = None,
        lora_rank: int | None = None,
        *,
        penalty_every: int | None = None,
        scope: str = "table",
        **kwargs: Any,
    ) -> None:
        if scope not in _scopes.SCOPES:
            raise ValueError(
                f"Invalid value for argument scope: expected one of {_scopes.SCOPES}. Received: scope={scope!r}"
            )
        is_valid = isinstance(penalty_every, int) and not isinstance(penalty_every, bool) and penalty_every >= 1
        if penalty_every is not None and not is_valid:
            raise ValueError(
                "Invalid value for argument penalty_every: expected a positive integer or None. "
                f"Received: penalty_every={penalty_every!r}"
            )
        if penalty_every is not None and scope != "table":
            raise ValueError(
                "Invalid value for argument penalty_every: expected None, for a penalty of the rows that are looked up "
                f"is computed in each call. Received: penalty_every={penalty_every!r}, scope={scope!r}"
            )
        penalty = lazy_penalty(embeddings_regularizer, "argument embeddings_regularizer")
        if penalty is not None and scope == "table":
            self._refuse_dense_only(
                embeddings_constraint=embeddings_constraint,
                lora_rank=lora_rank,
                quantization_config=kwargs.get("quantization_config"),
            )
        self.penalty_every, self.scope = penalty_every, scope
        super().__init__(
            input_dim,
            output_dim,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=penalty,
            embeddings_constraint=embeddings_constraint,
            mask_zero=mask_zero,
            weights=weights,
            lora_rank=lora_rank,
            **kwargs,
        )

    @property
    def embeddings_regularizer(self) -> _Penalty | None:
        """The penalty, which can be set at any time: on a layer that is built, compile the model again to trace it.

        None switches the penalty off. That of a lazily regularised table becomes `fastreg.L2(0.0)`, for the table stays
        one, with its slots.
        """
        table = vars(self).get("_embeddings")
        return table.penalised_by if isinstance(table, LazyTable) else vars(self).get("embeddings_regularizer")

    @embeddings_regularizer.setter
    def embeddings_regularizer(self, regularizer: Any) -> None:
        penalty = lazy_penalty(regularizer, "attribute embeddings_regularizer")
        table = vars(self).get("_embeddings")
        if isinstance(table, LazyTable):
            table.regularizer = penalty
            return
        if penalty is not None and self.built and self.scope == "table":
            raise ValueError(
                "Invalid value for attribute embeddings_regularizer: expected None, for the layer "
                f"{self.name!r} was built without a regularizer. Received: {penalty!r}. Set it before the layer is "
                "built, or make another: fastreg.Embedding(..., embeddings_regularizer=..., "
                "weights=layer.get_weights())."
            )
        self.__dict__["embeddings_regularizer"] = penalty

    @property
    def is_penalised_by_rows(self) -> bool:
        """Whether a call adds a penalty of its rows: of weights that are trained, as Keras does of whole ones."""
        is_of_rows = self.scope != "table" and self.embeddings_regularizer is not None
        return is_of_rows and bool(self.trainable_weights)

    def add_weight(self, *arguments: Any, regularizer: Any = None, **options: Any) -> Any:
        """As Keras's layer; the embeddings with a regularizer are a table, or are penalised by the rows looked up."""
        if self.scope != "table" and regularizer is self.embeddings_regularizer:
            regularizer = None
        if regularizer is None or regularizer is not self.embeddings_regularizer or options.get("name") != "embeddings":
            return super().add_weight(*arguments, regularizer=regularizer, **options)
        self._refuse_dense_only(embeddings_constraint=self.embeddings_constraint, lora_rank=self.lora_rank)
        if self.variable_dtype not in fastreg_kernels.DTYPES:
            expected = " or ".join(fastreg_kernels.DTYPES)
            raise ValueError(
                f"Invalid value for argument dtype: expected weights of {expected}. Received: {self.variable_dtype}"
            )
        check_one_device()
        with keras.name_scope(self.name, caller=self):
            table = LazyTable(
                self.embeddings_initializer,
                (self.input_dim, self.output_dim),
                self.variable_dtype,
                self.embeddings_regularizer,
                self.penalty_every,
                name="embeddings",
            )
        self._track_variable(table)
        return table

    @not_converted
    def call(self, inputs: Any) -> Any:
        """Rows of the ids: a tensor, dense or ragged, of shape `(*inputs.shape, output_dim)` in the compute dtype.

        Raises
        ------
        tf.errors.InvalidArgumentError
            At run time, if an id is negative or not below `input_dim`. XLA cannot raise it: of a lazily regularised
            table the row is NaN there, and a training step raises it when the table is next used outside.
        """
        if self.is_penalised_by_rows:
            return self._mapped(inputs, self._penalised_rows)
        if self.lora_enabled or self.quantization_mode is not None:
            return super().call(inputs)
        return self.lookup(inputs)

    @not_converted
    def lookup(self, ids: Any) -> Any:
        """The same for a use of the table outside of the layer's own call, such as a sampled softmax: only these rows
        are read, and the gradient is one of these rows, where `layer.embeddings` is the whole table. No penalty is
        added.

        Parameters
        ----------
        ids : tensor, array or list
            Of any shape; dense, ragged or sparse.

        Raises
        ------
        tf.errors.InvalidArgumentError
            As the layer.
        """
        return self._mapped(ids, self._rows)

    def add_penalty(self, ids: tf.Tensor) -> tf.Tensor:
        """Add the penalty of rows to the layer's losses, as the scope says; for calls of subclasses.

        Parameters
        ----------
        ids : tensor
            A vector of int32 or int64.

        Returns
        -------
        tf.Tensor
            The rows, duplicates included, of shape `(len(ids), output_dim)` in the dtype of the variable: what is
            looked up already need not be looked up again. There is nothing to add for `scope="table"`, which Keras
            collects from the variable, without a regularizer, where no weight is trained, and to a file.
        """
        penalty_of = self.embeddings_regularizer
        if penalty_of is None or not self.is_penalised_by_rows or saving.is_saving():
            return self._gather(ids)
        rows, penalty = _scopes.look_up(ids, self._gather, penalty_of, self.scope)
        self.add_loss(penalty)
        return rows

    def _mapped(self, ids: Any, rows_of: Callable[[tf.Tensor], tf.Tensor]) -> Any:
        """Rows of ids of every kind, by a function of a dense tensor of integers."""
        if isinstance(ids, tf.SparseTensor):
            ids = tf.sparse.to_dense(ids)  # what is missing has id 0, as in Keras's layer
        elif not isinstance(ids, tf.RaggedTensor):
            ids = keras.ops.convert_to_tensor(ids)
        if ids.dtype not in ("int32", "int64"):
            # Wide enough that no id becomes another one.
            ids = keras.ops.cast(ids, "int32" if tf.as_dtype(ids.dtype).size < 4 else "int64")
        if isinstance(ids, tf.RaggedTensor):
            return ids.with_flat_values(rows_of(ids.flat_values))
        return rows_of(ids)

    def flush(self) -> None:
        """Write the true weights of all rows. Reading and saving do it by themselves."""
        table = self._table()
        if table is not None:
            table.flush()

    def penalty(self) -> tf.Tensor:
        """The exact penalty of the true weights now: a scalar in their dtype, zero without a regularizer.

        Raises
        ------
        ValueError
            If the penalty is that of the rows that a call looks up.
        """
        table = self._table()
        if table is None:
            if self.embeddings_regularizer is not None:
                raise ValueError(
                    f"The layer {self.name!r} has no penalty of its table, for it has scope={self.scope!r}: each call "
                    "adds the penalty of the rows that it looks up to layer.losses."
                )
            return tf.zeros((), self.variable_dtype)
        return table.exact_penalty()

    def sparsity(self) -> float:
        """The share of weights that are exactly zero."""
        table = self._table()
        if table is None:
            return 1.0 - float(np.count_nonzero(self._embeddings.numpy()) / (self.input_dim * self.output_dim))
        return table.sparsity()

    @not_converted
    def read_rows(self, ids: Any) -> tf.Tensor:
        """True weights of some rows, at any moment; only these are read.

        Parameters
        ----------
        ids : tensor, array or list of int
            Of any shape, from 0 to `input_dim - 1`.

        Returns
        -------
        tf.Tensor of shape `(*ids.shape, output_dim)`
            In the dtype of the variable, without a gradient; `lookup` has one.

        Raises
        ------
        TypeError
            If the ids are no integers.
        ValueError
            If one is none of the rows; in a graph `tf.errors.InvalidArgumentError`, when it runs. If the layer is
            quantized or adapted by LoRA.
        """
        self._table()
        return _rows.read(self, ids)

    @not_converted
    def write_rows(self, ids: Any, values: Any) -> None:
        """Set some rows to these weights, whatever shrink they had to come; only these are written.

        Slots of the optimizer stay as they are. The penalty is measured anew in the next step.

        Parameters
        ----------
        ids : tensor, array or list of int
            Of any shape, from 0 to `input_dim - 1`. Of an id that occurs several times the last value stays.
        values : tensor, array, list or number
            What can be broadcast to `(*ids.shape, output_dim)`: 0 empties the rows.

        Raises
        ------
        TypeError, ValueError
            As `read_rows`, also if the values have another shape or are no numbers. Nothing is written then.
        RuntimeError
            In code that XLA compiles.
        """
        self._table()
        _rows.write(self, ids, values)

    def empty_rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The ids, ascending, of rows whose weights are all exactly zero, as L1 makes them: what can be pruned."""
        self._table()
        return _rows.empty(self)

    def resize(self, rows: int, initializer: Any = None) -> None:
        """Have the table end at so many rows.

        Rows that there were keep their weights, and their slots in a `LazyRegularization`; new ones are made by the
        initializer, and their slots begin as all do; what is beyond the end is gone. The layer, its variable and the
        optimizer stay the same objects, and Keras's functions of models with the layer are traced anew; functions
        of your own have to be made anew. All is done, or nothing.

        Parameters
        ----------
        rows : int
            `input_dim` from then on.
        initializer : optional
            Of the new rows, called with the shape of the whole table; by default `embeddings_initializer`.

        Raises
        ------
        ValueError
            If an argument has an invalid value; if the layer is quantized or adapted by LoRA; without a lazily
            regularised table also if an optimizer of Keras's keeps numbers for its weights, or under a distribution
            strategy.
        RuntimeError
            In a function that is traced.
        """
        _rows.resize(self, rows, initializer)

    def enable_lora(self, rank: int, **kwargs: Any) -> None:
        """As Keras's layer, without a regularizer of the whole table only."""
        self._refuse_if_lazy("enable_lora")
        self._refuse_adapted_quantized("enable_lora", self.quantization_mode is not None)
        super().enable_lora(rank, **kwargs)

    def quantize(self, mode: Any = None, type_check: bool = True, **options: Any) -> Any:
        """As Keras's layer, without a regularizer of the whole table only; `Model.quantize` leaves such a one alone."""
        self._refuse_if_lazy("quantize")
        self._refuse_adapted_quantized("quantize", self.lora_enabled)
        # Keras's layer takes this class, which adds nothing to its weights, for one that it does not know.
        return super().quantize(mode, type_check=type_check and type(self) is not Embedding, **options)

    def revert(self, regularizer: Any) -> None:
        """Make the layer one of Keras's where it stands, with its true weights and this regularizer."""
        table = vars(self).get("_embeddings")
        if isinstance(table, LazyTable):
            table.revert(regularizer)
        del self.penalty_every, self.scope
        self.__class__ = keras.layers.Embedding
        self.embeddings_regularizer = regularizer

    def save_own_variables(self, store: Any) -> None:
        """As Keras's layer; a run that goes on after saving then has the bits of one that loads the file."""
        if self.built:
            self.flush()
        super().save_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "penalty_every": self.penalty_every, "scope": self.scope}

    def _rows(self, ids: tf.Tensor) -> tf.Tensor:
        table = self._table()
        if table is not None:
            return table.lookup(ids, self.compute_dtype)
        return tf.cast(self._gather(ids), self.compute_dtype)

    def _penalised_rows(self, ids: tf.Tensor) -> tf.Tensor:
        rows = self.add_penalty(tf.reshape(ids, [-1]))
        return tf.cast(tf.reshape(rows, tf.concat([tf.shape(ids), [self.output_dim]], 0)), self.compute_dtype)

    def _gather(self, ids: tf.Tensor) -> tf.Tensor:
        """Rows of a variable of Keras's, in its dtype, and as LoRA adapts them."""
        with AutocastScope(None):  # which would cast, and so read, the whole table
            # From the variable itself: of a tensor, `tf.gather` would read, and after a sparse update copy, all of it.
            rows = tf.gather(self._embeddings.value, ids)
            if self.lora_enabled:
                delta = tf.matmul(tf.gather(self.lora_embeddings_a.value, ids), self.lora_embeddings_b.value)
                rows += tf.cast(self.lora_alpha / self.lora_rank * delta, rows.dtype)
        return rows

    def _table(self) -> LazyTable | None:
        if not self.built:
            raise AttributeError("You must build the layer before using its table.")
        return self._embeddings if isinstance(self._embeddings, LazyTable) else None

    @staticmethod
    def _refuse_dense_only(**options: Any) -> None:
        for name, value in options.items():
            if value is not None:
                raise ValueError(
                    f"Invalid value for argument {name}: expected None together with embeddings_regularizer, which is "
                    f"applied lazily. Received: {name}={value!r}. Use keras.layers.Embedding for both."
                )

    def _refuse_if_lazy(self, method: str) -> None:
        if self.scope == "table" and self.embeddings_regularizer is not None:
            raise NotImplementedError(f"{method} is not supported together with a lazy embeddings_regularizer.")

    def _refuse_adapted_quantized(self, method: str, is_other: bool) -> None:
        """Keras has no exact rows of a quantized table with LoRA, of which there could be a penalty."""
        if is_other and self.scope != "table" and self.embeddings_regularizer is not None:
            raise NotImplementedError(
                f"{method} is not supported with scope={self.scope!r} and a regularizer: a table cannot be both "
                "quantized and adapted by LoRA then. Set layer.embeddings_regularizer = None first."
            )
