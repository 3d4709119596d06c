"""Where the lazy layer meets Keras: each trap on the way of a gradient, against training with Keras's layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

L2 = 2**-6


def fit(model, x, y, **options):
    return model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options})


def table_of(model):
    return next(layer for layer in model.layers if isinstance(layer, fastreg.Embedding)).embeddings


def against_keras(
    lazy, optimizer, tolerance=1e-5, penalty=(fastreg.L2, keras.regularizers.L2), fit_with=fit, **options
):
    """Train both layers the same way, and compare every weight and loss."""
    x, y = lazy.data()
    results = []
    for layer, wrap, regularizer in (
        (fastreg.Embedding, fastreg.LazyRegularization, penalty[0]),
        (keras.layers.Embedding, lambda inner: inner, penalty[1]),
    ):
        model = lazy.compiled(regularizer(L2), wrap(optimizer()), layer, **options)
        losses = [fit_with(model, x, y).history["loss"] for _ in range(2)]
        results.append((model.get_weights(), losses))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert lazy.error(ours, theirs) < tolerance
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=10 * tolerance)


def sgd(**options):
    return lambda: keras.optimizers.SGD(0.1, **options)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_several_steps_per_execution(lazy, steps_per_execution):
    against_keras(lazy, sgd(), steps_per_execution=steps_per_execution)


def test_a_loss_scale_factor(lazy):
    against_keras(lazy, sgd(loss_scale_factor=512.0))


def test_train_on_batch_and_evaluate_in_the_middle(lazy):
    def on_batches(model, x, y):
        logs = []
        for start in range(0, len(x), 8):
            logs.append(model.train_on_batch(x[start : start + 8], y[start : start + 8], return_dict=True)["loss"])
            if start == 24:
                logs.append(model.evaluate(x, y, verbose=0))
                model.predict(x, verbose=0)
        return keras.callbacks.History(), logs

    def wrapped(model, x, y):
        history, logs = on_batches(model, x, y)
        history.history = {"loss": logs}
        return history

    against_keras(lazy, sgd(), fit_with=wrapped)


def test_callbacks_that_change_the_rate(lazy):
    def rate(epoch):
        return 0.1 / (epoch + 1)

    def scheduled(model, x, y):
        callbacks = [keras.callbacks.LearningRateScheduler(rate), keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1)]
        return fit(model, x, y, epochs=4, callbacks=callbacks)

    against_keras(lazy, sgd(), fit_with=scheduled)


def test_a_ragged_last_batch_and_an_unknown_batch_size(lazy):
    against_keras(lazy, sgd(), fit_with=lambda model, x, y: fit(model, x, y, batch_size=11))


def test_sample_weights_of_zero_and_nan_targets(lazy):
    """A NaN gradient makes the rows NaN that the step looked up, as in Keras, and no other."""
    x, y = lazy.data()
    y[3] = np.nan
    weights = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = lazy.compiled(penalty(L2), wrap(keras.optimizers.SGD(0.1)), layer)
        model.train_on_batch(x[:8], y[:8])
        weights.append(model.get_weights()[0])
    np.testing.assert_array_equal(np.isnan(weights[0]), np.isnan(weights[1]))
    assert 0 < np.isnan(weights[0]).any(axis=1).sum() < len(weights[0])


def two_tables(lazy, embedding, penalty):
    keras.utils.set_random_seed(11)
    ids, other = keras.Input((4,), dtype="int32"), keras.Input((4,), dtype="int32")
    shared = embedding(23, 5, embeddings_regularizer=penalty(L2))
    single = embedding(23, 5, embeddings_regularizer=penalty(2 * L2))
    parts = [shared(ids), shared(other), single(other)]
    merged = keras.layers.Concatenate()([keras.layers.Flatten()(part) for part in parts])
    return keras.Model([ids, other], keras.layers.Dense(1, kernel_regularizer=penalty(L2))(merged))


@pytest.mark.parametrize("clip", [{}, {"clipvalue": 0.05}])
def test_several_and_shared_tables(lazy, clip):
    """Two calls of one layer in a step, and a second table."""
    x, y = lazy.data()
    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = two_tables(lazy, embedding, penalty)
        model.compile(wrap(keras.optimizers.SGD(0.1)), "mse")
        history = fit(model, [x, x[::-1].copy()], y, epochs=3)
        results.append((model.get_weights(), history.history["loss"]))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert lazy.error(ours, theirs) < 1e-5
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


@pytest.mark.parametrize("clip", [{"clipnorm": 0.3}, {"clipvalue": 0.02}, {"global_clipnorm": 0.3}])
@pytest.mark.parametrize("eager", [False, True])
def test_clipping_is_keras_s_without_a_penalty(lazy, clip, eager):
    """Duplicate ids are summed before the clip, and `global_clipnorm` is joint with the dense variables."""
    zero = (lambda factor: fastreg.L2(0.0), lambda factor: keras.regularizers.L2(0.0))
    against_keras(lazy, sgd(**clip), penalty=zero, run_eagerly=eager)


def test_the_penalty_is_outside_the_clip(lazy, float64):
    plan = lazy.plan(40)
    layer = plan.layer(fastreg.L1L2(0.01, 0.1))
    weights = plan.train(layer, lazy.optimizer("sgd", clipvalue=0.125))
    for ids, gradient in zip(plan.ids, plan.gradients, strict=True):
        dense = np.zeros_like(plan.start)
        np.add.at(dense, ids, gradient)
        dense = dense.clip(-0.125, 0.125)
        for position, row in enumerate(ids):  # the oracle sums duplicates again
            gradient[position] = dense[row] / np.count_nonzero(ids == row)
    assert lazy.error(weights, lazy.oracle(plan, "sgd", [0.25] * 40, 0.01, 0.1)) < 1e-12


def test_a_model_of_tables_only_counts_its_steps(lazy, float64):
    """Keras's optimizers ignore a step without variables, which would freeze the schedule."""
    plan = lazy.plan(6)
    layer, rates = plan.layer(fastreg.L2(0.1)), [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    optimizer = lazy.optimizer("sgd", keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.5, 0.25, 0.125]))
    weights = plan.train(layer, optimizer)
    assert int(optimizer.iterations) == 6
    assert lazy.error(weights, lazy.oracle(plan, "sgd", rates, l2=0.1)) < 1e-12


@pytest.mark.parametrize("graph", [False, True])
def test_a_step_without_a_lookup_shrinks_and_a_frozen_table_stays(lazy, float64, graph):
    used, unused, frozen = (lazy.plan(1, seed=seed).layer(fastreg.L1L2(0.01, 0.125)) for seed in range(3))
    starts = [layer.embeddings.numpy() for layer in (used, unused, frozen)]
    optimizer = lazy.optimizer("sgd", 0.5)
    frozen.trainable = False

    def step():
        variables = [*used.trainable_weights, *unused.trainable_weights, *frozen.trainable_weights]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(used(tf.constant([2, 2, 3]))) + tf.reduce_sum(frozen(tf.constant([1])))
            loss += sum(used.losses + unused.losses + frozen.losses)
        optimizer.apply(tape.gradient(loss, variables), variables)

    step = tf.function(step) if graph else step
    for _ in range(2):
        step()
    for layer, start, rows in ((used, starts[0], {2: 2.0, 3: 1.0}), (unused, starts[1], {})):
        expected = start
        for _ in range(2):
            expected = lazy.shrink(expected, 1 - 2 * 0.5 * 0.125, 0.5 * 0.01)
            for row, gradient in rows.items():
                expected[row] -= 0.5 * gradient
        np.testing.assert_allclose(layer.embeddings.numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(frozen.embeddings.numpy(), starts[2])


def test_freezing_and_thawing(lazy):
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd"))
    fit(model, x, y)
    before = model.get_weights()
    model.layers[1].trainable = False
    model.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(model, x, y)
    np.testing.assert_array_equal(model.layers[1].embeddings.numpy(), before[0])
    assert len(model.losses) == 0
    model.layers[1].trainable = True
    model.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(model, x, y)
    assert (model.layers[1].embeddings.numpy() != before[0]).all()


def test_an_empty_batch(lazy, float64):
    plan = lazy.plan(3, batch=0)
    layer = plan.layer(fastreg.L2(0.125))
    assert layer(tf.zeros((0, 4), tf.int32)).shape == (0, 4, 5)
    weights = plan.train(layer, lazy.optimizer("sgd", 0.5))
    np.testing.assert_allclose(weights, plan.start * (1 - 0.125) ** 3, rtol=1e-12)


def test_mask_zero_in_a_model(lazy):
    x, y = lazy.data(fields=6)
    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        keras.utils.set_random_seed(2)
        embedded = embedding(23, 5, mask_zero=True, embeddings_regularizer=penalty(L2))
        model = keras.Sequential(
            [keras.Input((None,), dtype="int32"), embedded, keras.layers.LSTM(4), keras.layers.Dense(1)]
        )
        model.compile(wrap(keras.optimizers.SGD(0.1)), "mse")
        fit(model, x, y, epochs=2)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


def test_early_stopping_restores_the_best_weights(lazy):
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L1L2(1e-3, L2), fastreg.LazyRegularization(keras.optimizers.SGD(0.1)))
    seen = []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(model.get_weights()))
    stop = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True, mode="max")
    fit(model, x, y, epochs=9, callbacks=[record, stop])
    assert len(seen) == 3
    for weight, best in zip(model.get_weights(), seen[0], strict=True):
        np.testing.assert_array_equal(weight, best)
    ids = tf.range(23)
    np.testing.assert_array_equal(model.layers[1](ids), seen[0][0])


def test_deterministic_and_unread_in_training(lazy, cpu_reads):
    """The same bits twice, and no step reads the table as a whole."""
    x, y = lazy.data()
    weights = []
    for _ in range(2):
        model = lazy.compiled(fastreg.L1L2(1e-3, L2), fastreg.LazyRegularization("adagrad"))
        with cpu_reads(model.layers[1]) as reads:
            fit(model, x, y, epochs=3)
            model.evaluate(x, y, verbose=0)
            model.predict(x, verbose=0)
        assert not reads
        weights.append(model.get_weights())
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)
