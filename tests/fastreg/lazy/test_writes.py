"""Writes to a table from outside: through the `tf.Variable`, fetched anew or kept, and through Keras's variable."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

START = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
ROW = np.float32([4.0, -5.0, 6.0])


def _slices(row):
    return tf.IndexedSlices(tf.constant(row[None]), tf.constant([2]), tf.constant([6, 3]))


def _with_row(rows, row):
    rows = rows.copy()
    rows[2] = row
    return rows


WRITES = {
    "assign": (lambda v: v.assign(tf.ones((6, 3))), lambda w: np.ones_like(w)),
    "assign_add": (lambda v: v.assign_add(tf.ones((6, 3))), lambda w: w + 1),
    "assign_sub": (lambda v: v.assign_sub(tf.ones((6, 3))), lambda w: w - 1),
    "scatter_update": (lambda v: v.scatter_update(_slices(ROW)), lambda w: _with_row(w, ROW)),
    "scatter_add": (lambda v: v.scatter_add(_slices(ROW)), lambda w: _with_row(w, w[2] + ROW)),
    "scatter_mul": (lambda v: v.scatter_mul(_slices(ROW)), lambda w: _with_row(w, w[2] * ROW)),
    "scatter_nd_update": (lambda v: v.scatter_nd_update([[2]], ROW[None]), lambda w: _with_row(w, ROW)),
    "row": (lambda v: v[2].assign(ROW), lambda w: _with_row(w, ROW)),
    "rows": (lambda v: v[2:3].assign(ROW[None]), lambda w: _with_row(w, ROW)),
}


def exact(weights, l1, l2):
    wide = weights.astype(np.float64)
    return l1 * np.abs(wide).sum() + l2 * np.square(wide).sum()


def step(layer, optimizer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([1, 4]))) + sum(layer.losses)
    optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)


def stepped(weights, l1, l2, rate=0.25):
    shrunk = np.sign(weights) * np.maximum(0, (1 - 2 * rate * l2) * np.abs(weights) - rate * l1)
    shrunk[[1, 4]] -= rate
    return shrunk


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("pending", "kept"), [(0, True), (3, False), (3, True)])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.25), (0.125, 0.25)])
def test_through_the_tf_variable(lazy, write, pending, l1, l2, kept):
    """Rows are true before and after, whatever shrink was pending; later steps shrink from the write on."""
    layer = fastreg.Embedding(6, 3, embeddings_regularizer=fastreg.L1L2(l1, l2))
    layer.build()
    layer.embeddings.assign(START)
    optimizer = fastreg.LazyRegularization(keras.optimizers.SGD(0.25))
    optimizer.build(layer.trainable_weights)
    variable, expected = layer.embeddings.value, START.astype(np.float64)
    for _ in range(pending):
        step(layer, optimizer)
        expected = stepped(expected, l1, l2)
    assert float(layer.losses[0]) == pytest.approx(exact(expected, l1, l2), rel=1e-5)
    change, result = WRITES[write]
    read = variable.value() if kept else layer.embeddings.value.value()
    copy = read.numpy()
    change(variable if kept else layer.embeddings.value)
    expected = result(expected)
    np.testing.assert_array_equal(read, copy)
    for _ in range(3):
        for rows in (variable.numpy(), layer.embeddings.numpy(), layer(tf.range(6)).numpy()):
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
        assert float(layer.losses[0]) == pytest.approx(exact(expected, l1, l2), rel=1e-5)
        assert float(layer.penalty()) == pytest.approx(exact(expected, l1, l2), rel=1e-5)
        step(layer, optimizer)
        expected = stepped(expected, l1, l2)
