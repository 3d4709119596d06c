"""The shrink follows the loss: what weight it gives the penalty, and which tables have a gradient, as in Keras."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

RATE, L2 = 0.25, 0.125

LOSSES = {
    "weighted": lambda data, penalty, weight: data + 0.1 * penalty,
    "by a variable": lambda data, penalty, weight: data + weight * penalty,
    "masked": lambda data, penalty, weight: data + penalty * tf.cast(weight < 0, penalty.dtype),
    "counted twice": lambda data, penalty, weight: data + penalty + penalty,
    "with what is scaled": lambda data, penalty, weight: 3.0 * (data + 0.5 * penalty),
    "left out": lambda data, penalty, weight: data,
    "alone": lambda data, penalty, weight: penalty,
    "in a branch": lambda data, penalty, weight: data + tf.cond(weight > 0.3, lambda: penalty, lambda: 2.0 * penalty),
}


def layers(lazy, number=1, penalty=L2, **options):
    """Pairs of a lazy layer and Keras's, each pair with equal weights."""
    for seed in range(number):
        ours = lazy.plan(1, seed=seed).layer(fastreg.L2(penalty), **options)
        theirs = keras.layers.Embedding(23, 5, embeddings_regularizer=keras.regularizers.L2(penalty), dtype="float64")
        theirs.build()
        theirs.embeddings.assign(ours.embeddings.numpy())
        yield ours, theirs


def sides(lazy, number=1, optimizer=keras.optimizers.SGD, rate=RATE, **options):
    """The layers of both sides, and for each an optimizer."""
    ours, theirs = zip(*layers(lazy, number, **options), strict=True)
    return (ours, fastreg.LazyRegularization(optimizer(rate))), (theirs, optimizer(rate))


def assert_as_keras_s(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.embeddings.numpy(), other.embeddings.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_the_penalty(lazy, float64, loss, graph):
    """Also of one that changes between the steps of one trace."""
    both = sides(lazy)
    for (layer,), optimizer in both:
        weight = tf.Variable(0.0, dtype=tf.float64)

        def step(ids, layer=layer, optimizer=optimizer, weight=weight):
            with tf.GradientTape() as tape:
                data = tf.reduce_sum(layer(ids) * 0.5) + tf.reduce_sum(layer(ids[:1]))
                total = LOSSES[loss](data, layer.losses[0], weight)
            optimizer.apply(tape.gradient(total, layer.trainable_weights), layer.trainable_weights)

        run = tf.function(step) if graph else step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the penalty that is left out
            for number in range(4):
                weight.assign(0.25 * number)
                run(tf.constant([number, 2, 2, 20]))
    assert_as_keras_s(both[0][0], both[1][0])


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["adagrad", "rowwise", "adam"])
def test_half_a_penalty_is_one_of_half_the_strength(lazy, float64, kind, graph):
    plan = lazy.plan(20)
    trained = []
    for factor, weight in ((1.0, 0.5), (0.5, 1.0)):
        layer, optimizer = plan.layer(fastreg.L1L2(0.02 * factor, L2 * factor)), lazy.optimizer(kind)

        def step(ids, gradient, layer=layer, optimizer=optimizer, weight=weight):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(ids) * gradient) + weight * layer.losses[0]
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

        run = tf.function(step) if graph else step
        for ids, gradient in zip(plan.ids, plan.gradients, strict=True):
            run(tf.constant(ids), tf.constant(gradient))
        trained.append(layer.embeddings.numpy())
    assert lazy.error(*trained) < 1e-13


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("filtered", [False, True])
def test_tables_in_turns(lazy, float64, filtered, graph):
    """A table that a step does not look up has a gradient all the same, which no filter of None drops."""
    both = sides(lazy, 2)
    for pair, optimizer in both:
        weights = [layer.embeddings for layer in pair]

        def step(turn, pair=pair, optimizer=optimizer, weights=weights):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(pair[turn](tf.constant([1, 2]))) + sum(layer.losses[0] for layer in pair)
            gradients = zip(tape.gradient(loss, weights), weights, strict=True)
            optimizer.apply_gradients([(g, v) for g, v in gradients if not filtered or g is not None])

        run = [tf.function(lambda turn=turn, step=step: step(turn)) for turn in range(2)]
        for number in range(6):
            optimizer.build(weights)
            run[number % 2]() if graph else step(number % 2)
    assert_as_keras_s(both[0][0], both[1][0])


@pytest.mark.parametrize("graph", [False, True])
def test_a_table_without_a_gradient_is_left_alone(lazy, float64, graph):
    """Where the penalty of one table is not in the loss, and nobody looks it up; Keras warns too."""
    both = sides(lazy, 2)
    for pair, optimizer in both:
        optimizer.build([layer.embeddings for layer in pair])

        def step(pair=pair, optimizer=optimizer):
            weights = [layer.embeddings for layer in pair]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(pair[0](tf.constant([1, 2]))) + pair[0].losses[0]
            optimizer.apply(tape.gradient(loss, weights), weights)

        with pytest.warns(UserWarning, match=f"Gradients do not exist.*{pair[1].embeddings.path}"):
            (tf.function(step) if graph else step)()
    assert_as_keras_s(both[0][0], both[1][0])


def test_no_gradient_at_all(lazy, float64):
    for (layer,), optimizer in sides(lazy):
        before = layer.embeddings.numpy()
        with pytest.raises(ValueError, match="No gradients provided for any variable"):
            optimizer.apply([None], layer.trainable_weights)
        np.testing.assert_array_equal(layer.embeddings.numpy(), before)
        assert int(optimizer.iterations) == 0


def test_frozen_and_thawed_in_a_loop(lazy, float64):
    """Frozen, it has no penalty, but what it is given as a gradient counts; thawed, the same optimizer goes on."""
    both = sides(lazy, 2)
    for pair, optimizer in both:
        weights = [layer.embeddings for layer in pair]
        for trainable in (True, False, False, True):
            pair[1].trainable = trainable
            with tf.GradientTape() as tape:
                loss = sum(tf.reduce_sum(layer(tf.constant([1, 2]))) + sum(layer.losses) for layer in pair)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                optimizer.apply(tape.gradient(loss, weights), weights)
    assert_as_keras_s(both[0][0], both[1][0])


@pytest.mark.parametrize("graph", [False, True])
def test_a_penalty_that_is_left_out_is_told_once(lazy, float64, graph):
    (layer,), optimizer = sides(lazy)[0]

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1])))
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    with pytest.warns(UserWarning, match=rf"penalty of the table '{layer.embeddings.path}'.*sum\(model.losses\)"):
        (tf.function(step) if graph else step)()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tf.function(step) if graph else step)()
        strong, layer.embeddings_regularizer.l2 = layer.embeddings_regularizer.l2, 0.0
        assert strong
        (tf.function(step) if graph else step)()


def test_without_a_penalty_nothing_is_told(lazy, float64):
    (layer,), optimizer = sides(lazy, penalty=0.0)[0]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([1])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_no_strength(lazy, float64, weight, graph):
    (layer,), optimizer = sides(lazy)[0]
    before = layer.embeddings.numpy()

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1]))) + weight * layer.losses[0]
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    with pytest.raises(
        tf.errors.InvalidArgumentError, match=f"weight of a penalty.*{layer.embeddings.path}.*{weight:g}"
    ):
        (tf.function(step) if graph else step)()
    np.testing.assert_array_equal(layer.embeddings.numpy(), before)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("rate", [-0.1, np.nan])
def test_a_learning_rate_that_is_none(lazy, float64, rate, graph):
    """An error in its step, that names what was wrong, not in one that comes to these rows later."""
    (layer,), optimizer = sides(lazy)[0]
    before = layer.embeddings.numpy()
    optimizer.learning_rate = rate

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1]))) + layer.losses[0]
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    with pytest.raises(
        tf.errors.InvalidArgumentError, match=f"learning rate.*{layer.embeddings.path}.*in this step.*{rate:g}"
    ):
        (tf.function(step) if graph else step)()
    np.testing.assert_array_equal(layer.embeddings.numpy(), before)


BY_HAND = {
    "summed": lambda gradients, others: [_concatenated(g, h) for g, h in zip(gradients, others, strict=True)],
    "averaged": lambda gradients, others: [
        _scaled(_concatenated(g, h), 0.5) for g, h in zip(gradients, others, strict=True)
    ],
    "clipped by values": lambda gradients, others: [
        tf.IndexedSlices(tf.clip_by_value(g.values, -0.5, 0.5), g.indices, g.dense_shape) for g in gradients
    ],
}


def _concatenated(first, second):
    return tf.IndexedSlices(
        tf.concat([first.values, second.values], 0), tf.concat([first.indices, second.indices], 0), first.dense_shape
    )


def _scaled(gradient, factor):
    return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize(
    ("how", "weight", "data"), [("summed", 2, 2), ("averaged", 1, 1), ("clipped by values", 1, 0.5)]
)
def test_gradients_handled_by_the_user(lazy, float64, how, weight, data, graph):
    """What adds up and scales gradients does it to the weight of the penalty; bounds do not see it."""
    (layer,), optimizer = sides(lazy)[0]
    expected = layer.embeddings.numpy() * (1 - 2 * RATE * L2 * weight)
    expected[[1, 4]] -= RATE * data

    def step():
        gradients = []
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(tf.constant([1, 4]))) + layer.losses[0]
            gradients.append(tape.gradient(loss, layer.trainable_weights))
        optimizer.apply(BY_HAND[how](*gradients), layer.trainable_weights)

    (tf.function(step) if graph else step)()
    np.testing.assert_allclose(layer.embeddings.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("graph", [False, True])
def test_clipped_by_the_user_s_global_norm(lazy, float64, graph):
    """The norm is that of the data gradients; what they are scaled by scales the weight of the penalty too."""
    (layer,), optimizer = sides(lazy)[0]
    scale = 0.5 / np.sqrt(2 * 5)
    expected = layer.embeddings.numpy() * (1 - 2 * RATE * L2 * scale)
    expected[[1, 4]] -= RATE * scale

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1, 4]))) + layer.losses[0]
        clipped, _ = tf.clip_by_global_norm(tape.gradient(loss, layer.trainable_weights), 0.5)
        optimizer.apply(clipped, layer.trainable_weights)

    (tf.function(step) if graph else step)()
    np.testing.assert_allclose(layer.embeddings.numpy(), expected, rtol=1e-12)


def test_as_a_dense_tensor_the_gradient_of_the_penalty_is_zero(lazy, float64):
    (layer,), _ = sides(lazy)[0]
    np.testing.assert_array_equal(tf.convert_to_tensor(lazy.gradient(layer, 0.5)), np.zeros((23, 5)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("graph", [False, True])
def test_tables_of_other_dtypes(lazy, dtype, graph):
    layer = lazy.plan(1).layer(fastreg.L2(L2), dtype)
    optimizer, before = fastreg.LazyRegularization(keras.optimizers.SGD(0.5)), layer.embeddings.numpy()

    def step():
        optimizer.apply([lazy.gradient(layer, 0.5)], layer.trainable_weights)

    (tf.function(step) if graph else step)()
    expected = before.astype(np.float64) * (1 - 2 * 0.5 * L2 * 0.5)
    assert lazy.error(layer.embeddings.numpy(), expected) < {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-6}[dtype]


def test_ids_of_two_dtypes(lazy, float64):
    """TensorFlow casts the indices of one gradient to concatenate them with another's."""
    both = sides(lazy)
    for (layer,), optimizer in both:

        @tf.function
        def step(layer=layer, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(tf.constant([1, 4], tf.int64))) + 0.5 * layer.losses[0]
                loss += tf.reduce_sum(layer(tf.constant([4, 5])))
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

        step()
    assert_as_keras_s(both[0][0], both[1][0])


@pytest.mark.parametrize("eager", [False, True])
def test_a_training_step_of_the_user_s_model(lazy, eager):
    """`compute_loss` of a subclass that weights what the layers add."""
    x, y = lazy.data()

    class Weighted(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.square(y - y_pred)) + 0.3 * sum(self.losses)

    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        keras.utils.set_random_seed(11)
        inner = lazy.model(embedding(23, 5, embeddings_regularizer=penalty(L2)))
        model = Weighted(inner.inputs, inner.outputs)
        model.compile(wrap(keras.optimizers.SGD(0.1)), run_eagerly=eager)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


@pytest.mark.parametrize("name", ["fastreg_unique_ids", "FastregUpdate", "rows_fastreg"])
def test_names_of_operations_mean_nothing(lazy, name):
    layer = fastreg.Embedding(5, 2, embeddings_regularizer=fastreg.L2(0.25), embeddings_initializer="ones")
    layer.build()
    optimizer = fastreg.LazyRegularization(keras.optimizers.SGD(0.5))
    optimizer.build(layer.trainable_weights)

    @tf.function
    def step():
        with tf.name_scope(name):
            ids = tf.identity(tf.constant([1, 1, 3]), name=name)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids)) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    step()
    expected = 0.75 - 0.5 * np.array([0.0, 2.0, 0.0, 1.0, 0.0])[:, None]
    np.testing.assert_allclose(layer.embeddings, np.tile(expected, 2), rtol=1e-6)
