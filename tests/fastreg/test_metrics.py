"""The penalty in the logs of `fit` and `evaluate`."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

X = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 30, (20, 2))
Y = np.random.default_rng(2).normal(size=(20, 1)).astype(np.float32)
MODES = {"graph": {}, "eager": {"run_eagerly": True}, "xla": {"jit_compile": True}, "steps": {"steps_per_execution": 2}}


class WithLoss(keras.layers.Layer):
    """Adds a loss that is no regularizer's."""

    def call(self, x):
        self.add_loss(0.25 * keras.ops.mean(keras.ops.square(x)))
        return x


def dense(**options):
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, kernel_regularizer=fastreg.L1L2(0.1, 0.2), activity_regularizer=fastreg.L2(0.01)),
            WithLoss(),
            layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.3)),
        ]
    )
    model.compile("sgd", "mse", metrics=[fastreg.PenaltyMetric(), "mse"], **options)
    return model


def tables(**options):
    keras.utils.set_random_seed(1)
    ids = keras.Input((2,), dtype="int32")
    lazy = fastreg.Embedding(30, 3, embeddings_regularizer=fastreg.L1L2(1e-3, 0.5))(ids)
    scoped = fastreg.Embedding(30, 3, embeddings_regularizer=fastreg.L2(0.25), scope="batch")(ids)
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(lazy + scoped)))
    model.compile(fastreg.LazyRegularization("sgd"), "mse", metrics=[fastreg.PenaltyMetric(), "mse"], **options)
    return model


@pytest.mark.parametrize("make", [dense, tables])
@pytest.mark.parametrize("mode", MODES)
def test_loss_is_the_sum_of_both(make, mode):
    """Of the data loss and the penalty, step by step, over batches of several sizes, and in `evaluate`."""
    model, x = make(**MODES[mode]), X if make is dense else IDS
    history = model.fit(x, Y, batch_size=8, epochs=2, verbose=0).history
    found = model.evaluate(x, Y, batch_size=8, verbose=0, return_dict=True)
    assert min(history["penalty"]) > 0.01
    np.testing.assert_allclose(np.add(history["mse"], history["penalty"]), history["loss"], rtol=1e-5)
    np.testing.assert_allclose(found["mse"] + found["penalty"], found["loss"], rtol=1e-5)


def test_the_penalty_of_the_weights():
    """Before each step, by NumPy; the mean is weighted by the batches' sizes, and starts anew."""
    model = dense()
    model.layers[0].activity_regularizer = None
    model.layers[1].call = lambda x: x
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[fastreg.PenaltyMetric("of_weights", dtype="float64")])
    for _ in range(2):
        expected = 0.0
        for x, y in ((X[:3], Y[:3]), (X[3:], Y[3:])):
            first, last = (layer.kernel.numpy().astype(np.float64) for layer in (model.layers[0], model.layers[2]))
            penalty = 0.1 * np.abs(first).sum() + 0.2 * np.square(first).sum() + 0.3 * np.square(last).sum()
            logs = model.train_on_batch(x, y, return_dict=True)
            expected += penalty * len(x) / len(X)
        assert logs["of_weights"] == pytest.approx(expected, rel=1e-6)
        model.reset_metrics()


def test_nothing_more_runs():
    """The penalty's ops are in the step as often as without the metric."""
    counts = []
    for metrics in ([], [fastreg.PenaltyMetric()]):
        model = tables()
        model.compile(fastreg.LazyRegularization("sgd"), "mse", metrics=metrics)
        model.fit(IDS, Y, batch_size=20, verbose=0)
        step = tf.function(lambda x, y, model=model: model.train_step((x, y))["loss"])
        graph = step.get_concrete_function(tf.constant(IDS), tf.constant(Y)).graph
        counts.append([op.type for op in graph.get_operations() if op.type.startswith("Fastreg")])
    assert counts[0] == counts[1] != []


def test_replicas():
    """The mean over the batches of all replicas."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = dense()
    history = model.fit(X, Y, batch_size=20, verbose=0).history
    np.testing.assert_allclose(history["mse"][0] + history["penalty"][0], history["loss"][0], rtol=1e-5)


def test_mixed_precision_does_not_scale_it():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = dense()
    finally:
        keras.config.set_dtype_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    history = model.fit(X, Y, batch_size=20, verbose=0).history
    np.testing.assert_allclose(history["mse"][0] + history["penalty"][0], history["loss"][0], rtol=1e-3)


def test_without_a_penalty():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[fastreg.PenaltyMetric()])
    assert model.fit(X, Y, verbose=0).history["penalty"] == [0.0]


def test_several_metrics_and_models():
    """Each takes the penalty of its own model's step, whatever was computed in between."""
    models = [dense(run_eagerly=eager) for eager in (False, True)]
    for model in models:
        model.compile("sgd", "mse", metrics=[fastreg.PenaltyMetric("one"), fastreg.PenaltyMetric("two"), "mse"])
    for _ in range(2):
        for model in models:
            sum(model.losses)
            model(X)
            logs = model.train_on_batch(X, Y, return_dict=True)
            assert logs["one"] == logs["two"] == pytest.approx(logs["loss"] - logs["mse"], rel=1e-5)


class OwnStep(keras.Sequential):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x) - y)) + sum(self.losses)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return self.compute_metrics(x, y, self(x))


@pytest.mark.parametrize("eager", [False, True])
def test_steps_that_compute_their_loss_themselves(eager):
    other = dense(run_eagerly=eager)
    model = OwnStep([keras.Input((3,)), keras.layers.Dense(1, kernel_regularizer=fastreg.L2(0.1))])
    model.compile("sgd", "mse", metrics=[fastreg.PenaltyMetric()], run_eagerly=eager)
    other.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="'penalty' has no penalty to take"):
        model.fit(X, Y, verbose=0)


def test_saved_loaded_and_copied(tmp_path):
    config = fastreg.PenaltyMetric("p", dtype="float64").get_config()
    again = keras.metrics.deserialize(keras.metrics.serialize(fastreg.PenaltyMetric("p", dtype="float64")))
    assert type(again) is fastreg.PenaltyMetric
    assert again.get_config() == config
    model = tables()
    model.fit(IDS, Y, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    logs, expected = (each.fit(IDS, Y, shuffle=False, verbose=0).history for each in (loaded, model))
    assert logs["penalty"] == pytest.approx(expected["penalty"], rel=1e-6)
    with pytest.warns(UserWarning, match="numbers will differ"):
        copy = fastreg.to_keras(model)
    assert sorted(copy.fit(IDS, Y, verbose=0).history) == ["loss", "mse"]


def test_graphs_are_given_back():
    model = dense()
    model.fit(X, Y, verbose=0)
    step = tf.function(lambda x, y: model.train_step((x, y))["loss"])
    graph = weakref.ref(step.get_concrete_function(tf.constant(X), tf.constant(Y)).graph)
    del step
    gc.collect()
    assert graph() is None
