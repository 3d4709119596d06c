"""Loss scaling and mixed precision, which Keras would set up by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg


def step(layer, optimizer, factor, graph):
    """One step with a data gradient of `factor` for rows 1 (twice) and 2."""

    def run():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1, 1, 2]))) * tf.constant(factor, layer.compute_dtype)
            scaled = optimizer.scale_loss(tf.cast(loss, tf.float32))
        optimizer.apply(tape.gradient(scaled, layer.trainable_weights), layer.trainable_weights)

    (tf.function(run) if graph else run)()


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "rowwise"])
def test_a_step_that_is_skipped_shrinks_nothing(lazy, kind, graph):
    layer = lazy.plan(1).layer(fastreg.L1L2(0.01, 0.125), dtype="float32")
    inner = {"sgd": keras.optimizers.SGD, "rowwise": keras.optimizers.Adagrad}[kind](0.5)
    scaler = keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0, dynamic_growth_steps=2)
    optimizer = fastreg.LazyRegularization(scaler, rowwise=kind == "rowwise")
    start = layer.embeddings.numpy()
    scales, iterations = [], []
    for factor in (np.inf, 1.0, np.nan, 1.0, 1.0, 1.0):
        before = layer.embeddings.numpy()
        step(layer, optimizer, factor, graph)
        if not np.isfinite(factor):
            np.testing.assert_array_equal(layer.embeddings.numpy(), before)
        scales.append(float(optimizer.dynamic_scale))
        iterations.append(int(optimizer.iterations))
    assert scales == [4, 4, 2, 2, 4, 4]
    assert iterations == [0, 1, 1, 2, 3, 4]
    expected, accumulator = start.astype(np.float64), np.full((23, 1), 0.1)
    for _ in range(4):
        expected = lazy.shrink(expected, 1 - 2 * 0.5 * 0.125, 0.5 * 0.01)
        for row, gradient in ((1, 2.0), (2, 1.0)):
            accumulator[row] += gradient**2
            scale = 1.0 if kind == "sgd" else 1 / np.sqrt(accumulator[row] + 1e-7)
            expected[row] -= 0.5 * gradient * scale
    assert lazy.error(layer.embeddings.numpy(), expected) < 1e-6


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("eager", [False, True])
def test_fit(lazy, policy, eager):
    keras.config.set_dtype_policy(policy)
    x, y = lazy.data()
    results = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = lazy.compiled(penalty(2**-6), wrap(keras.optimizers.SGD(0.1)), layer, run_eagerly=eager)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) or policy == "mixed_bfloat16"
        history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        assert model.layers[1](x).dtype == policy.removeprefix("mixed_")
        results.append((model.get_weights(), history.history["loss"]))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert ours.dtype == "float32"
        assert lazy.error(ours, theirs) < 0.02
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0.02)


def test_what_turns_scaling_on(lazy):
    assert fastreg.LazyRegularization("sgd").initial_scale is None
    keras.config.set_dtype_policy("mixed_float16")
    assert fastreg.LazyRegularization("sgd").initial_scale == 2**15
    fixed = fastreg.LazyRegularization(keras.optimizers.SGD(0.1, loss_scale_factor=4.0))
    assert fixed.initial_scale is None
    assert float(fixed.scale_loss(tf.constant(3.0))) == 12
    again = keras.optimizers.deserialize(
        keras.optimizers.serialize(fastreg.LazyRegularization("sgd", initial_scale=64.0))
    )
    keras.config.set_dtype_policy("float32")
    assert again.initial_scale == 64
    model = lazy.compiled(fastreg.L2(), again)
    assert model.optimizer is again
