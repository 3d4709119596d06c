"""An embedding layer that reduces what it looks up: sums, means and the like of the rows of each bag of ids."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from fastreg._bridges import support
from fastreg._tables.table import not_converted
from fastreg.embedding import Embedding

COMBINERS = ("mean", "sum", "sqrtn")


class _Bags(NamedTuple):
    """Ids in bags, flat.

    Attributes
    ----------
    ids : tf.Tensor of shape (n,)
        In the order of the bags.
    splits : tf.Tensor of shape (bags + 1,), int64
        Bag b has the ids from `splits[b]` to before `splits[b + 1]`.
    weights : tf.Tensor of shape (n,) or None
    shape : tf.Tensor
        Of the bags: what is left of the shape of the inputs.
    static_shape : tf.TensorShape
        The same, as far as it is known when this is traced.
    """

    ids: tf.Tensor
    splits: tf.Tensor
    weights: tf.Tensor | None
    shape: tf.Tensor
    static_shape: tf.TensorShape


@keras.saving.register_keras_serializable(package="fastreg")
class EmbedReduce(Embedding):
    """Embeds bags of ids and reduces each to one vector, with exact, lazy L1 and L2 regularisation.

    With w the weights of the ids of a bag, or ones, and x their rows, a bag becomes

        sum     Σ w·x
        mean    Σ w·x / Σ w
        sqrtn   Σ w·x / sqrt(Σ w²)

    and zero where the divisor is. Half types are summed in float32. Arguments, inputs and outputs are those of
    `keras_rs.layers.EmbedReduce`, regularisation, `scope` and the rest those of `fastreg.Embedding`.

    Parameters
    ----------
    input_dim, output_dim, embeddings_initializer, embeddings_regularizer, embeddings_constraint, mask_zero, weights
        As in `fastreg.Embedding`.
    combiner : {"mean", "sum", "sqrtn"}, default "mean"
    **kwargs
        As in `fastreg.Embedding`: `penalty_every`, `scope`, and what `keras.layers.Layer` takes.

    Raises
    ------
    ValueError
        If an argument has an invalid value, or one that cannot be combined with the scope.

    Notes
    -----
    Only ids that are there are looked up: what a sparse tensor leaves out is no row, and is not regularised either.

    Examples
    --------
    >>> layer = fastreg.EmbedReduce(1_000_000, 16, embeddings_regularizer=fastreg.L2(1e-6), combiner="sum")
    >>> layer(tf.ragged.constant([[1, 2, 3], [4]])).shape
    TensorShape([2, 16])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        weights: Any = None,
        combiner: str = "mean",
        **kwargs: Any,
    ) -> None:
        if combiner not in COMBINERS:
            raise ValueError(
                f"Invalid value for argument combiner: expected one of {COMBINERS}. Received: combiner={combiner!r}"
            )
        super().__init__(
            input_dim,
            output_dim,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            embeddings_constraint=embeddings_constraint,
            mask_zero=mask_zero,
            weights=weights,
            **kwargs,
        )
        self.combiner = combiner

    @not_converted
    def call(self, inputs: Any, weights: Any = None) -> tf.Tensor:
        """One vector for each bag.

        Parameters
        ----------
        inputs : tensor, array or list of int
            Dense, ragged or sparse. The last dimension is that of the bags; ids of one dimension are bags of one each.
        weights : tensor, array or list, optional
            Of the ids, of the shape and kind of the inputs. Of bags of one, only "sum" heeds them. They may be
            differentiated.

        Returns
        -------
        tf.Tensor of shape `(*inputs.shape[:-1], output_dim)`, or `(*inputs.shape, output_dim)` for one dimension
            Dense, in the compute dtype, or that which the weights promote it to.

        Raises
        ------
        ValueError
            If the weights are not of the shape or kind of the inputs.
        tf.errors.InvalidArgumentError
            At run time, if an id is negative or not below `input_dim`; see `fastreg.Embedding`.
        """
        if not isinstance(inputs, (tf.SparseTensor, tf.RaggedTensor)):
            inputs = keras.ops.convert_to_tensor(inputs)
        if inputs.shape.rank == 1 and not isinstance(inputs, tf.SparseTensor):
            if weights is not None:
                weights = keras.ops.convert_to_tensor(weights)
                _check_shapes(inputs, weights)
            rows = super().call(inputs)
            if weights is None or self.combiner != "sum":
                return rows
            dtype = keras.backend.result_type(rows.dtype.name, weights.dtype.name)
            return tf.cast(rows, dtype) * tf.cast(weights, dtype)[:, None]
        bags = _flattened(inputs, weights)
        dtype = self.compute_dtype
        if bags.weights is not None:
            dtype = keras.backend.result_type(dtype, bags.weights.dtype.name)
        sums = self._sums_of_table(bags)
        if sums is None:
            rows = tf.cast(super().call(bags.ids), support.arithmetic_dtype(tf.as_dtype(dtype)))
            sums = _summed(rows, bags)
        divided = _divided(sums, bags, self.combiner)
        shape = bags.static_shape.concatenate([self.output_dim])
        reduced = tf.reshape(divided, tf.concat([bags.shape, [self.output_dim]], 0))
        return tf.cast(tf.ensure_shape(reduced, shape), dtype)

    def _sums_of_table(self, bags: _Bags) -> tf.Tensor | None:
        """The weighted sums of bags in one pass over the ids, if the layer has a table that can do that."""
        table = self._table()
        if table is None:
            return None
        weights = tf.zeros(0) if bags.weights is None else bags.weights
        ids = bags.ids if bags.ids.dtype in (tf.int32, tf.int64) else tf.cast(bags.ids, tf.int64)
        return table.sum_bags(ids, bags.splits, tf.cast(weights, support.arithmetic_dtype(table.dtype)))

    def compute_output_shape(self, input_shape: Any, weights_shape: Any = None) -> tuple[Any, ...]:  # noqa: ARG002
        """As of `keras_rs.layers.EmbedReduce`."""
        return (*input_shape[: max(1, len(input_shape) - 1)], self.output_dim)

    def compute_output_spec(self, inputs: Any, weights: Any = None) -> keras.KerasTensor:
        """The same, with the dtype."""
        dtype = self.compute_dtype if weights is None else keras.backend.result_type(self.compute_dtype, weights.dtype)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=dtype)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {**super().get_config(), "combiner": self.combiner}


def _flattened(inputs: Any, weights: Any) -> _Bags:
    """Ids in bags, and their weights, of inputs of any kind.

    Raises
    ------
    ValueError
        If the weights do not fit.
    """
    if isinstance(inputs, tf.RaggedTensor):
        if inputs.ragged_rank != 1 or inputs.shape.rank != 2:
            raise ValueError(
                "Invalid value for argument inputs: expected a ragged tensor of two dimensions. "
                f"Received: inputs.shape={inputs.shape}, inputs.ragged_rank={inputs.ragged_rank}"
            )
        if weights is not None:
            if not isinstance(weights, tf.RaggedTensor):
                raise _other_kind(inputs, weights)
            weights = _matching(weights.flat_values, inputs.flat_values, weights.row_splits, inputs.row_splits)
        splits = tf.cast(inputs.row_splits, tf.int64)
        return _Bags(inputs.flat_values, splits, weights, tf.reshape(inputs.nrows(), [1]), inputs.shape[:1])
    if isinstance(inputs, tf.SparseTensor):
        if weights is not None:
            if not isinstance(weights, tf.SparseTensor):
                raise _other_kind(inputs, weights)
            _check_shapes(inputs, weights)
            weights = _matching(weights.values, inputs.values, weights.indices, inputs.indices)
        shape = inputs.dense_shape[:-1]
        strides = tf.math.cumprod(shape, exclusive=True, reverse=True)
        numbers = tf.reduce_sum(inputs.indices[:, :-1] * strides, axis=1)
        splits = tf.searchsorted(numbers, tf.range(tf.reduce_prod(shape) + 1), out_type=tf.int64)
        return _Bags(inputs.values, splits, weights, shape, inputs.shape[:-1])
    if weights is not None:
        if isinstance(weights, (tf.RaggedTensor, tf.SparseTensor)):
            raise _other_kind(inputs, weights)
        weights = keras.ops.convert_to_tensor(weights)
        _check_shapes(inputs, weights)
        weights = tf.reshape(weights, [-1])
    shape = tf.shape(inputs, tf.int64)
    splits = tf.range(tf.reduce_prod(shape[:-1]) + 1) * shape[-1]
    return _Bags(tf.reshape(inputs, [-1]), splits, weights, shape[:-1], inputs.shape[:-1])


def _summed(rows: tf.Tensor, bags: _Bags) -> tf.Tensor:
    """Sums of the rows of bags, times their weights."""
    if bags.weights is not None:
        rows *= tf.cast(bags.weights, rows.dtype)[:, None]
    return tf.math.unsorted_segment_sum(rows, _numbers(bags), tf.size(bags.splits) - 1)


def _divided(sums: tf.Tensor, bags: _Bags, combiner: str) -> tf.Tensor:
    """The sums of bags as the combiner reduces these."""
    if combiner == "sum":
        return sums
    if bags.weights is None:
        divisor = tf.cast(bags.splits[1:] - bags.splits[:-1], sums.dtype)
    else:
        weights = tf.cast(bags.weights, sums.dtype)
        terms = tf.square(weights) if combiner == "sqrtn" else weights
        divisor = tf.math.unsorted_segment_sum(terms, _numbers(bags), tf.size(bags.splits) - 1)
    if combiner == "sqrtn":
        divisor = tf.sqrt(divisor)
    return tf.math.divide_no_nan(sums, divisor[:, None])


def _numbers(bags: _Bags) -> tf.Tensor:
    """The number of each id's bag: by search, since XLA cannot repeat by numbers that are known at run time only."""
    return tf.searchsorted(bags.splits[1:], tf.range(tf.size(bags.ids, tf.int64)), side="right")


def _matching(weights: tf.Tensor, ids: tf.Tensor, of_weights: tf.Tensor, of_ids: tf.Tensor) -> tf.Tensor:
    """Weights that lie where the ids do, which is checked when this runs."""
    message = "Invalid value for argument weights: expected one for each id of the inputs, at the same place."
    same_size = tf.debugging.assert_equal(tf.size(weights), tf.size(ids), message)
    with tf.control_dependencies([same_size] if same_size is not None else []):
        same_place = tf.debugging.assert_equal(tf.cast(of_weights, tf.int64), tf.cast(of_ids, tf.int64), message)
    with tf.control_dependencies([same_place] if same_place is not None else []):
        return tf.identity(weights)


def _check_shapes(inputs: Any, weights: Any) -> None:
    if not inputs.shape.is_compatible_with(weights.shape):
        raise ValueError(
            "Invalid value for argument weights: expected the shape of the inputs. "
            f"Received: weights.shape={weights.shape}, inputs.shape={inputs.shape}"
        )


def _other_kind(inputs: Any, weights: Any) -> ValueError:
    return ValueError(
        "Invalid value for argument weights: expected weights of the kind of the inputs. "
        f"Received: {type(weights).__name__} with {type(inputs).__name__}"
    )
