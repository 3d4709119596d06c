"""Penalties of the rows of a table that a batch looks up: of each row once, or as often as it occurs."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from fastreg._bridges import support

SCOPES = ("table", "batch", "occurrences")
"""What an embedding's penalty can be of."""

_GOLDEN = 2654435769
"""2³² over the golden ratio: products with it, modulo 2³², spread ids that are near each other."""


def look_up(
    ids: tf.Tensor,
    gather: Callable[[tf.Tensor], tf.Tensor],
    penalty: Callable[[tf.Tensor], tf.Tensor],
    scope: str,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows of a table, and their penalty.

    The table's gradient has the sum of each row once, or beside zeros: Keras's optimizers square slices one by one, so
    that Adam and Adagrad would take another step if the gradients of a row came apart.

    Parameters
    ----------
    ids : tensor
        A vector of integers.
    gather : callable
        Rows of a vector of ids, with a gradient of these rows only.
    penalty : callable
        Of a matrix; a sum over its elements, of which zeros add nothing.
    scope : {"batch", "occurrences"}
        Whether a row counts once, or as often as its id occurs.

    Returns
    -------
    rows : tensor
        Of all ids, duplicates included.
    penalty : tensor
        A scalar of their dtype.
    """
    if support.in_xla():  # which has no shape for as many rows as there are distinct ids: others are zeros
        positions = first_occurrences(ids)
        is_first = positions == tf.range(tf.size(ids))
        rows = gather(ids)
        rows = tf.where(is_first[:, None], rows, tf.zeros((), rows.dtype))
    else:
        distinct, positions = tf.unique(ids)
        rows = gather(distinct)
    each = tf.gather(rows, positions)
    return each, penalty(rows if scope == "batch" else each)


def first_occurrences(ids: tf.Tensor) -> tf.Tensor:
    """Where each element of a vector of integers occurs first: positions, of int32.

    By hashing, for XLA takes ten times as long to sort 40,000 ids on a processor. In each round every id that is left
    goes to one of four times as many buckets, whose first element is the first of its id; what has this id is done
    with, what only met it in the bucket tries the next round, with another hash. Rounds end, since each bucket in use
    settles an id.
    """
    size = tf.size(ids)
    buckets = 4 * size + 1
    positions = tf.range(size)

    def settle(first: tf.Tensor, left: tf.Tensor, factor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mixed = tf.cast(ids, tf.uint32) * factor
        mixed = tf.bitwise.bitwise_xor(mixed, tf.bitwise.right_shift(mixed, tf.constant(15, tf.uint32)))
        bucket = tf.cast(mixed % tf.cast(buckets, tf.uint32), tf.int32)
        bucket = tf.where(left, bucket, buckets)  # one more, for what is done with
        least = tf.tensor_scatter_nd_min(tf.fill([buckets + 1], size), bucket[:, None], positions)
        winner = tf.gather(least, bucket)
        settled = left & (tf.gather(ids, winner) == ids)
        # Another odd number, or ids would meet in the same buckets again.
        return tf.where(settled, winner, first), left & ~settled, factor * tf.constant(_GOLDEN, tf.uint32)

    first, _, _ = tf.while_loop(
        lambda first, left, factor: tf.reduce_any(left),  # noqa: ARG005
        settle,
        (positions, tf.ones_like(ids, tf.bool), tf.constant(_GOLDEN, tf.uint32)),
    )
    return first
