"""The penalty in the logs of `fit` and `evaluate`."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg import metrics

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
    """Before each step, by NumPy."""
    model = dense()
    model.layers[0].activity_regularizer = None
    model.layers[1].call = lambda x: x
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=[fastreg.PenaltyMetric("of_weights", dtype="float64")])
    for _ in range(3):
        first, last = (layer.kernel.numpy().astype(np.float64) for layer in (model.layers[0], model.layers[2]))
        penalty = 0.1 * np.abs(first).sum() + 0.2 * np.square(first).sum() + 0.3 * np.square(last).sum()
        logs = model.train_on_batch(X, Y, return_dict=True)
        assert logs["of_weights"] == pytest.approx(penalty, rel=1e-6)


def test_nothing_more_runs():
    """The penalty's ops are in the step as often as without the metric."""
    counts = []
    for asked in ([], [fastreg.PenaltyMetric()]):
        model = tables()
        model.compile(fastreg.LazyRegularization("sgd"), "mse", metrics=asked)
        model.fit(IDS, Y, batch_size=20, verbose=0)
        step = tf.function(lambda x, y, model=model: model.train_step((x, y))["loss"])
        graph = step.get_concrete_function(tf.constant(IDS), tf.constant(Y)).graph
        counts.append([op.type for op in graph.get_operations() if op.type.startswith("Fastreg")])
    assert counts[0] == counts[1] != []


REPLICAS = """
    import json
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras, numpy as np, fastreg
    x, y = (np.random.default_rng(0).normal(size=(16, n)).astype("float32") for n in (3, 1))
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        dense = keras.layers.Dense(1, kernel_regularizer=fastreg.L2(0.5), activity_regularizer=fastreg.L1(0.1))
        model = keras.Sequential([keras.Input((3,)), dense])
        model.compile("sgd", "mse", metrics=[fastreg.PenaltyMetric(), "mse"])
    history = model.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    print("RESULT" + json.dumps(history))
"""


def test_replicas(run_python):
    """The mean over the batches of all replicas."""
    history = json.loads(run_python(REPLICAS).split("RESULT")[1])
    assert min(history["penalty"]) > 0.1
    np.testing.assert_allclose(np.add(history["mse"], history["penalty"]), history["loss"], rtol=1e-5)


def test_mixed_precision_does_not_scale_it():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_regularizer=fastreg.L2(0.5))])
    finally:
        keras.config.set_dtype_policy("float32")
    model.compile("sgd", "mse", metrics=[fastreg.PenaltyMetric(), "mse"], auto_scale_loss=True)
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
            model(X)
            sum(model.losses)
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


@pytest.mark.parametrize("eager", [False, True])
def test_nothing_is_kept(eager):
    """Tensors of a step would keep its graph."""
    model = dense(run_eagerly=eager)
    model.fit(X, Y, verbose=0)
    step = (lambda run: run) if eager else tf.function
    steps = step(lambda: (model.train_step((X, Y)), metrics._steps())[1])
    assert steps() == {}
