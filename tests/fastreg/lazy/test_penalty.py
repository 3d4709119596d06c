"""The penalty in the reported loss, and what the layer tells about its table."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg._bridges import native


def exact(weights, l1, l2):
    wide = np.asarray(weights, np.float64)
    return l1 * np.abs(wide).sum() + l2 * np.square(wide).sum()


class Recorder(keras.callbacks.Callback):
    """The exact penalty before each batch, by reading a copy of the model's weights without a flush."""

    def __init__(self, l1, l2):
        super().__init__()
        self.factors, self.penalties, self.losses = (l1, l2), [], []

    def on_train_batch_begin(self, batch, logs=None):
        rows = self.model.layers[1](tf.range(23))  # a lookup of all rows: true weights
        self.penalties.append(exact(rows, *self.factors))
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])


def losses(lazy, l1, l2, **options):
    """Of each step: the reported loss without its data part, and the exact penalty."""
    x, y = lazy.data()
    keras.utils.set_random_seed(11)
    layer = fastreg.Embedding(23, 5, embeddings_regularizer=fastreg.L1L2(l1, l2), **options)
    ids = keras.Input((4,), dtype="int32")
    zero = keras.layers.Dense(1, kernel_initializer="zeros", trainable=False)
    model = keras.Model(ids, zero(keras.layers.Flatten()(layer(ids))))
    model.compile(fastreg.LazyRegularization(keras.optimizers.SGD(0.125)), "mse")
    recorder = Recorder(l1, l2)
    model.fit(x, np.zeros_like(y), batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[recorder])
    return np.array(recorder.losses), np.array(recorder.penalties), model, (x, np.zeros_like(y))


def test_with_l2_it_is_exact_at_every_step(lazy):
    reported, expected, *_ = losses(lazy, 0.0, 0.125)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(reported, expected, rtol=1e-6)


def test_with_l1_it_is_exact_where_weights_stop_at_zero_all_the_time(lazy):
    """Each step here takes a twentieth of the mean of |w|, and so measures."""
    reported, expected, model, data = losses(lazy, 0.01, 0.125)
    assert 0.3 < model.layers[1].sparsity() < 1.0
    np.testing.assert_allclose(reported, expected, rtol=1e-6)
    now = exact(model.layers[1](tf.range(23)), 0.01, 0.125)
    np.testing.assert_allclose(model.evaluate(*data, verbose=0), now, rtol=1e-6)
    np.testing.assert_allclose(model.layers[1].penalty(), now, rtol=1e-6)


@pytest.mark.parametrize("every", [None, 10**6])
def test_with_l1_it_is_tracked_in_between(lazy, every):
    """Without a pass over the table, rows that are looked up and rows that are not."""
    reported, expected, model, data = losses(lazy, 1e-5, 0.125, penalty_every=every)
    assert expected[-1] < 0.9 * expected[0]
    np.testing.assert_allclose(reported, expected, rtol=1e-6)
    now = exact(model.layers[1](tf.range(23)), 1e-5, 0.125)
    np.testing.assert_allclose(model.evaluate(*data, verbose=0), now, rtol=1e-6)


def tracked(lazy, regularizer, gradients, rate=0.1, dtype="float32", **options):
    """Of each step on row 3, and before them: the penalty of a training step, and the exact one of NumPy."""
    layer = fastreg.Embedding(12, 3, embeddings_regularizer=regularizer, dtype=dtype, **options)
    layer.build()
    layer.embeddings.assign(np.random.default_rng(0).normal(size=(12, 3)) * 0.25)
    optimizer = fastreg.LazyRegularization(keras.optimizers.SGD(rate))
    optimizer.build(layer.trainable_variables)
    found, expected = [], []
    for gradient in [None, *gradients]:
        if gradient is not None:
            step(layer, optimizer, tf.constant([3]), lambda rows, by=gradient: tf.reduce_sum(rows) * by)
        with tf.GradientTape():
            found.append(float(tf.add_n(layer.losses)))
        l1, l2 = (getattr(regularizer, name, 0.0) for name in ("l1", "l2"))
        expected.append(exact(layer(tf.range(12)), l1, l2))
    return np.array(found), np.array(expected)


def step(layer, optimizer, ids, loss):
    with tf.GradientTape() as tape:
        value = loss(layer(ids)) + tf.add_n(layer.losses)
    optimizer.apply(tape.gradient(value, layer.trainable_variables))


@pytest.mark.parametrize("regularizer", [fastreg.L2(0.05), fastreg.L1(1e-4), fastreg.L1L2(1e-4, 0.05)], ids=repr)
@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("float64", 1e-8)])
def test_gradients_that_are_huge_for_a_moment_leave_nothing_behind(lazy, regularizer, dtype, rtol):
    found, expected = tracked(lazy, regularizer, [1e11, -1e11, 0.0, 0.0], dtype=dtype)
    np.testing.assert_allclose(found, expected, rtol=rtol)


def test_passes_come_no_more_often_than_asked_for_and_in_time(lazy):
    """Of a table whose weights stop at zero quickly: what is reported in between is what was measured, gone on with."""
    regularizer = fastreg.L1(0.1)
    found, expected = tracked(lazy, regularizer, [0.0] * 20, penalty_every=5)
    off = np.abs(found / expected - 1.0)
    assert off[0] < 1e-6
    assert (off[5::5] < 1e-6).all()
    assert off.max() > 1e-3


def test_tracking_does_not_drift(lazy):
    """The sum of squares follows 300 steps of a table of float32, then a fresh pass finds the same."""
    plan = lazy.plan(300)
    layer = plan.layer(fastreg.L2(0.0625), dtype="float32")
    plan.train(layer, fastreg.LazyRegularization(keras.optimizers.SGD(0.25)))
    tracked = float(layer.penalty())
    np.testing.assert_allclose(tracked, exact(layer.embeddings.numpy(), 0.0, 0.0625), rtol=1e-6)
    layer.embeddings.assign(layer.embeddings.numpy())
    np.testing.assert_allclose(layer.penalty(), tracked, rtol=1e-6)


def test_the_penalty_counts_once_however_often_the_layer_is_called(lazy):
    layer = fastreg.Embedding(23, 5, embeddings_regularizer=fastreg.L2(0.5))
    for _ in range(3):
        layer(tf.constant([1, 2]))
    assert len(layer.losses) == 1
    np.testing.assert_allclose(layer.losses[0], exact(layer.embeddings.numpy(), 0, 0.5), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes_and_chunks(lazy, dtype):
    """Tables longer than a chunk are flushed, summed and counted to the end."""
    plan = lazy.plan(5, rows=5001, width=7)
    layer = plan.layer(fastreg.L1L2(0.25, 0.0625), dtype)
    plan.train(layer, fastreg.LazyRegularization(keras.optimizers.SGD(0.25)))
    weights = layer.embeddings.numpy()
    assert layer.penalty().dtype == dtype
    rtol = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(float(layer.penalty()), exact(weights, 0.25, 0.0625), rtol=rtol)
    share = (weights.astype(np.float64) == 0).mean()
    assert 0 < share < 1
    assert layer.sparsity() == share


@pytest.mark.parametrize("way", ["auto"], indirect=True)
@pytest.mark.parametrize(("l2", "passes"), [(0.0, 0), (0.125, 1)])
def test_what_is_tracked_or_not_needed_takes_no_passes(lazy, way, l2, passes):
    """With L2 one pass in the first step, and one in `evaluate`; with factors of zero, which stand for row-wise steps
    alone, none."""
    if native.obstacle() is not None:
        pytest.skip(native.obstacle())
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L2(l2), fastreg.LazyRegularization("adagrad"))
    calls = fastreg.info()["kernel_calls"]
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert fastreg.info()["kernel_calls"] == calls + 2 * 2 * 8 + passes  # a lookup and an update in each step
    calls = fastreg.info()["kernel_calls"]
    model.evaluate(x, y, batch_size=8, verbose=0)
    assert fastreg.info()["kernel_calls"] == calls + 8 + passes
    model.layers[1].embeddings_regularizer.l2 = 0.5
    np.testing.assert_allclose(model.layers[1].penalty(), exact(model.layers[1](tf.range(23)), 0, 0.5), rtol=1e-6)


def test_flush_keeps_what_is_looked_up(lazy):
    plan = lazy.plan(9)
    layer, optimizer = plan.layer(fastreg.L1L2(0.01, 0.125), "float32"), lazy.optimizer("sgd")
    for step in range(9):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant(plan.ids[step]))) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
    before = layer(tf.range(23)).numpy()
    assert not np.array_equal(before, layer.embeddings._value.stored().numpy())
    layer.flush()
    np.testing.assert_array_equal(layer.embeddings._value.stored().numpy(), before)
    np.testing.assert_array_equal(layer(tf.range(23)), before)
    layer.flush()
    np.testing.assert_array_equal(layer.embeddings._value.stored().numpy(), before)


@pytest.mark.parametrize("graph", [False, True])
def test_what_others_hold_is_never_written_to(lazy, graph):
    """Tensors that were read from a table or a slot, or assigned to it, and the array that it began with."""
    plan = lazy.plan(4)
    given = tf.constant(plan.start, tf.float32)
    array = given.numpy()
    layer = fastreg.Embedding(*array.shape, weights=[array], embeddings_regularizer=fastreg.L1L2(0.01, 0.25))
    layer.build()
    optimizer = lazy.optimizer("adagrad")
    optimizer.build(layer.trainable_weights)
    (slot,) = (v for v in optimizer.variables if v.shape == layer.embeddings.shape and v is not layer.embeddings)
    layer.embeddings.assign(given)
    of_slot = tf.ones(slot.shape)
    slot.assign(of_slot)
    held = [given, of_slot, array, *map(tf.convert_to_tensor, (layer.embeddings, layer.embeddings.value, slot))]
    held += [layer.embeddings.value.read_value(), slot.value.read_value(), layer(tf.range(23)), np.asarray(slot)]
    copies = [np.array(kept) for kept in held]
    plan.train(layer, optimizer, graph=graph)
    assert not np.array_equal(slot, of_slot)
    layer.flush()
    for kept, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(kept, copy)


def test_before_and_after_building(lazy):
    layer = fastreg.Embedding(23, 5)
    for method in (layer.flush, layer.penalty, layer.sparsity):
        with pytest.raises(AttributeError, match="build"):
            method()
    layer.build()
    layer.flush()
    assert float(layer.penalty()) == 0
    assert layer.sparsity() == 0
