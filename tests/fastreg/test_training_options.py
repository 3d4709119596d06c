"""What users vary in training: precision, optimizers, the shape of the loop, evaluation, distribution."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import regularizers

import fastreg


def accumulating():
    return keras.optimizers.SGD(0.02, momentum=0.9, gradient_accumulation_steps=4)


def clipped():
    return keras.optimizers.SGD(0.1, clipnorm=0.05)


def adam():
    return keras.optimizers.Adam(0.01, weight_decay=0.01)


def scaled():
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.02), initial_scale=2.0**20, dynamic_growth_steps=10
    )


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("activity", accumulating), ("sequential", clipped), ("sequential", adam), ("activity", scaled)],
    ids=["accumulating", "clipped", "adam", "scaled"],
)
def test_optimizers(bridge, trainer, assert_same_weights, name, optimizer):
    expected, losses = trainer.reference(name, optimizer=optimizer, jit_compile=False)
    model, history = trainer.fit(name, fastreg, optimizer=optimizer, jit_compile=False)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert_same_weights(model.get_weights(), expected)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["sequential", "embedding"])
def test_mixed_precision(bridge, trainer, assert_same_weights, name, policy):
    """Penalties of weights are float32 as ever, and their upstream gradient is the loss scale."""
    expected, losses = trainer.reference(name, policy=policy, jit_compile=False)
    model, history = trainer.fit(name, fastreg, policy=policy, jit_compile=False)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert_same_weights(model.get_weights(), expected)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


@pytest.mark.parametrize(("policy", "digits"), [("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)])
def test_penalties_of_half_precision_outputs(bridge, trainer, assert_same_weights, policy, digits):
    """In a loop of one's own, since Keras's cannot add losses of two dtypes. Here the two round differently."""
    x, y = trainer.data("activity")
    results = []
    for penalties in (fastreg, regularizers):
        model = trainer.build("activity", penalties, policy)
        optimizer = keras.optimizers.LossScaleOptimizer(trainer.optimizer(), initial_scale=1024.0)

        @tf.function
        def step(features, targets, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                error = tf.reduce_mean(tf.square(tf.cast(model(features, training=True), tf.float32) - targets))
                loss = error + tf.add_n([tf.cast(value, tf.float32) for value in model.losses])
                scaled_loss = optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled_loss, model.trainable_weights)
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
            return loss

        optimizer.build(model.trainable_weights)
        losses = [step(x[i % 48 : i % 48 + 8], y[i % 48 : i % 48 + 8]).numpy() for i in range(56)]
        model(x)
        assert {value.dtype.name for value in model.losses} == {policy.removeprefix("mixed_")}
        results.append((losses, model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=digits)
    assert_same_weights(results[0][1], results[1][1], tolerance=digits)


def test_several_steps_per_execution(bridge, trainer, assert_same_weights):
    expected, losses = trainer.reference("sequential", jit_compile=False)
    model, history = trainer.fit("sequential", fastreg, jit_compile=False, steps_per_execution=3)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert_same_weights(model.get_weights(), expected)


def test_batchwise_training_and_testing(bridge, trainer, assert_same_weights):
    x, y = trainer.data("sequential")
    results = []
    for penalties in (fastreg, regularizers):
        model = trainer.build("sequential", penalties)
        model.compile(trainer.optimizer(), "mse", jit_compile=False)
        losses = [
            [model.train_on_batch(x[i : i + 8], y[i : i + 8]), model.test_on_batch(x[:9], y[:9])] for i in range(50)
        ]
        results.append((losses, model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    assert_same_weights(results[0][1], results[1][1])


@pytest.mark.parametrize(
    ("name", "options"), [("activity", {"jit_compile": False}), ("sequential", {"run_eagerly": True})]
)
def test_evaluation_and_prediction(bridge, trainer, name, options):
    x, y = trainer.data(name)
    results = []
    for penalties in (fastreg, regularizers):
        model = trainer.build(name, penalties)
        model.compile(trainer.optimizer(), "mse", metrics=["mae"], **options)
        results.append([*model.evaluate(x, y, batch_size=8, verbose=0), model.predict(x, batch_size=8, verbose=0)])
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-6)
    np.testing.assert_array_equal(results[0][2], results[1][2])


@pytest.mark.parametrize(("name", "graph"), [("lora", True), ("subclassed", False)])
def test_loops_of_ones_own(bridge, trainer, assert_same_weights, name, graph):
    """The loop of the TensorFlow guides, with penalties that are scaled and a step that is traced or not."""
    x, y = trainer.data(name)
    results = []
    for penalties in (fastreg, regularizers):
        model, optimizer = trainer.build(name, penalties), trainer.optimizer()
        model(x[:1])

        def step(features, targets, strength, model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                error = tf.reduce_mean(tf.square(model(features, training=True) - targets))
                loss = error + strength * tf.add_n(model.losses)
            gradients = tape.gradient(loss, model.trainable_weights)
            optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
            return loss

        run = tf.function(step) if graph else step
        losses = [
            run(x[i % 48 : i % 48 + 8], y[i % 48 : i % 48 + 8], tf.constant(1.0 + i // 20)).numpy() for i in range(60)
        ]
        results.append((losses, model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    assert_same_weights(results[0][1], results[1][1])


def test_callbacks_and_validation(bridge, trainer, assert_same_weights):
    """A learning-rate schedule, early stopping and the best weights: decisions that hang on the penalised loss."""
    x, y = trainer.data("sequential")
    results = []
    for penalties in (fastreg, regularizers):
        model = trainer.build("sequential", penalties)
        model.compile(trainer.optimizer(), "mse", jit_compile=False)
        callbacks = [
            keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5),
            keras.callbacks.TerminateOnNaN(),
        ]
        data = {"validation_split": 0.3, "batch_size": 8, "epochs": 12, "verbose": 0}
        results.append((model.fit(x, y, callbacks=callbacks, **data).history, model.get_weights()))
    (ours, weights), (theirs, expected) = results
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_allclose(ours[key], values, rtol=1e-5)
    assert_same_weights(weights, expected)


def test_penalties_added_by_hand(bridge, trainer, assert_same_weights):
    """`add_loss` in a layer's call, on a function of its weights."""

    class Tied(keras.layers.Layer):
        def __init__(self, penalties):
            super().__init__()
            self.penalty = penalties.L1L2(0.001, 0.02)
            self.inner = keras.layers.Dense(12, use_bias=False)

        def call(self, x):
            outputs = self.inner(x)
            self.add_loss(self.penalty(self.inner.kernel - keras.ops.transpose(self.inner.kernel)))
            return outputs

    results = []
    for penalties in (fastreg, regularizers):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((12,)), Tied(penalties), keras.layers.Dense(1)])
        model.compile(trainer.optimizer(), "mse", jit_compile=False)
        results.append((trainer.more(model, "sequential"), model.get_weights()))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-5)
    assert_same_weights(results[0][1], results[1][1])


DISTRIBUTED = """
    import json, sys
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    import keras, numpy as np, fastreg
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(64, n)).astype("float32") for n in (12, 1))
    results = []
    for penalties, bridge in ((fastreg, "native"), (fastreg, "py_function"), (keras.regularizers, "auto")):
        fastreg.set_bridge(bridge)
        before = fastreg.info()["kernel_calls"]
        keras.utils.set_random_seed(1)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            hidden = keras.layers.Dense(16, "relu", kernel_regularizer=penalties.L1L2(1e-3, 0.02))
            head = keras.layers.Dense(1, kernel_regularizer=penalties.L2(0.02), activity_regularizer=penalties.L1(0.01))
            model = keras.Sequential([keras.Input((12,)), hidden, head])
            model.compile(keras.optimizers.SGD(0.02), "mse", jit_compile=False)
        history = model.fit(x, y, batch_size=16, epochs=4, verbose=0, shuffle=False).history["loss"]
        loss = model.evaluate(x, y, batch_size=16, verbose=0)
        weights = [np.asarray(weight).ravel().tolist() for weight in model.get_weights()]
        calls = fastreg.info()["kernel_calls"] - before
        results.append([history + [loss], weights, calls, strategy.num_replicas_in_sync])
    print("RESULTS" + json.dumps(results))
"""


def test_two_replicas(run_python):
    """A penalty is divided by the number of replicas; a mirrored variable reaches the kernels, on each bridge."""
    *both, theirs = json.loads(run_python(DISTRIBUTED).split("RESULTS")[1])
    assert len(both) == 2
    assert theirs[2] == 0
    for ours in both:
        assert ours[3] == theirs[3] == 2
        assert ours[2] >= 2 * 3 * 16  # two replicas, three penalties, 16 steps
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
        for weight, expected in zip(ours[1], theirs[1], strict=True):
            np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
