"""Loss scaling and mixed precision, which Keras would set up by itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg


def stepper(layer, optimizer, graph):
    """A step with a data gradient of its argument for rows 1 (twice) and 2."""
    optimizer.build(layer.trainable_weights)  # else Keras's scaler would trace with the scale that it begins with

    def step(factor):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([1, 1, 2]))) * factor
            scaled = optimizer.scale_loss(loss + sum(layer.losses))
        optimizer.apply(tape.gradient(scaled, layer.trainable_weights), layer.trainable_weights)

    return tf.function(step) if graph else step


def inside(inner, rowwise, **settings):
    """A scaler in the wrapper."""
    return fastreg.LazyRegularization(keras.optimizers.LossScaleOptimizer(inner, **settings), rowwise=rowwise)


def outside(inner, rowwise, **settings):
    """A scaler around the wrapper, as Keras's `compile` puts it there."""
    return keras.optimizers.LossScaleOptimizer(fastreg.LazyRegularization(inner, rowwise=rowwise), **settings)


@pytest.mark.parametrize("nested", [inside, outside])
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "rowwise"])
def test_a_step_that_is_skipped_shrinks_nothing(lazy, kind, graph, nested):
    layer = lazy.plan(1).layer(fastreg.L1L2(0.01, 0.125), dtype="float32")
    inner = {"sgd": keras.optimizers.SGD, "rowwise": keras.optimizers.Adagrad}[kind](0.5)
    optimizer = nested(inner, kind == "rowwise", initial_scale=8.0, dynamic_growth_steps=2)
    start = layer.embeddings.numpy()
    step, scales, iterations = stepper(layer, optimizer, graph), [], []
    for factor in (np.inf, 1.0, np.nan, 1.0, 1.0, 1.0):
        before = layer.embeddings.numpy()
        step(tf.constant(factor))
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
    """`compile` puts a scaler around the wrapper where it would put one around the optimizer."""
    keras.config.set_dtype_policy(policy)
    x, y = lazy.data()
    results = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = lazy.compiled(penalty(2**-6), wrap(keras.optimizers.SGD(0.1)), layer, run_eagerly=eager)
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
        history = model.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0)
        assert model.layers[1](x).dtype == policy.removeprefix("mixed_")
        results.append((model.get_weights(), history.history["loss"]))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert ours.dtype == "float32"
        assert lazy.error(ours, theirs) < 0.02
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0.02)


def test_the_policy_of_the_model_counts(lazy):
    """Not that of the moment in which the wrapper was made; and `compile` can be told to leave the loss alone."""
    made_before = fastreg.LazyRegularization("sgd")
    keras.config.set_dtype_policy("mixed_float16")
    made_under = fastreg.LazyRegularization("sgd")
    model = lazy.compiled(fastreg.L2(), made_before)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert model.optimizer.inner_optimizer is made_before
    assert float(model.optimizer.scale_loss(1.0)) == 2**15
    alone = lazy.compiled(fastreg.L2(), fastreg.LazyRegularization("sgd"), auto_scale_loss=False)
    assert float(alone.optimizer.scale_loss(1.0)) == 1
    keras.config.set_dtype_policy("float32")
    model = lazy.compiled(fastreg.L2(), made_under)
    assert model.optimizer is made_under
    assert float(made_under.scale_loss(1.0)) == 1


@pytest.mark.parametrize("eager", [False, True])
def test_gradients_of_float16_do_not_underflow(lazy, eager):
    """Those of this loss are less than float16 holds, unless the loss is scaled."""
    keras.config.set_dtype_policy("mixed_float16")
    x, y = lazy.data()
    results = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = lazy.compiled(penalty(0.0), wrap(keras.optimizers.SGD(1e5)), layer)
        model.compile(model.optimizer, lambda y, output: 1e-8 * keras.ops.sum(output), run_eagerly=eager)
        before = model.get_weights()[0]
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        results.append(model.get_weights())
    assert np.abs(results[0][0] - before).max() > 1e-4
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 0.01


def test_settings_of_a_scaler_in_the_wrapper_count(lazy):
    """Keras's `compile` adds none to it, and it is read, set and saved like Keras's."""
    keras.config.set_dtype_policy("mixed_float16")
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=64.0, dynamic_growth_steps=9)
    optimizer = fastreg.LazyRegularization(scaler)
    model = lazy.compiled(fastreg.L2(2**-6), optimizer)
    assert model.optimizer is optimizer
    assert isinstance(optimizer, fastreg.LazyRegularization)
    assert (optimizer.initial_scale, optimizer.dynamic_growth_steps) == (64, 9)
    assert float(optimizer.scale_loss(1.0)) == 64
    optimizer.dynamic_growth_steps = 4
    assert scaler.dynamic_growth_steps == 4
    x, y = lazy.data()
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    assert float(optimizer.dynamic_scale) == float(scaler.dynamic_scale) == 64 * 4
    assert int(optimizer.step_counter) == 0
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert (again.initial_scale, again.dynamic_growth_steps) == (64, 4)
    spelled_out = fastreg.LazyRegularization(keras.optimizers.serialize(scaler))
    assert type(spelled_out) is type(optimizer)


@pytest.mark.parametrize("nested", [inside, outside])
@pytest.mark.parametrize("graph", [False, True])
def test_no_gradient_at_all(lazy, nested, graph):
    layer = lazy.plan(1).layer(fastreg.L2(0.125), dtype="float32")
    optimizer, before = nested(keras.optimizers.SGD(0.5), False), layer.embeddings.numpy()
    optimizer.build(layer.trainable_weights)
    step = (tf.function if graph else lambda run: run)(lambda: optimizer.apply([None], layer.trainable_weights))
    with pytest.raises(ValueError, match="No gradients provided for any variable"):
        step()
    np.testing.assert_array_equal(layer.embeddings.numpy(), before)


def test_a_fixed_scale(lazy):
    fixed = fastreg.LazyRegularization(keras.optimizers.SGD(0.1, loss_scale_factor=4.0))
    assert float(fixed.scale_loss(tf.constant(3.0))) == 12
    fixed.loss_scale_factor = 8.0
    assert fixed.inner_optimizer.loss_scale_factor == 8
    assert float(fixed.scale_loss(tf.constant(3.0))) == 24
    dynamic = inside(keras.optimizers.SGD(0.1), False)
    assert dynamic.loss_scale_factor is None
    with pytest.raises(ValueError, match="loss_scale_factor: expected None"):
        dynamic.loss_scale_factor = 4.0


@pytest.mark.parametrize("nested", [inside, outside])
@pytest.mark.parametrize("clip", [{"clipnorm": 0.3}, {"clipvalue": 0.02}, {"global_clipnorm": 0.3}])
def test_clipping_sees_unscaled_gradients(lazy, nested, clip):
    x, y = lazy.data()
    results = []
    for layer, optimizer in (
        (fastreg.Embedding, nested(keras.optimizers.SGD(0.1, **clip), False)),
        (keras.layers.Embedding, keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, **clip))),
    ):
        penalty = (fastreg if layer is fastreg.Embedding else keras.regularizers).L2(0.0)
        model = lazy.compiled(penalty, optimizer, layer)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5
