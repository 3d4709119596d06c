"""Whole models: `accelerate` replaces what Keras has, and `inspect` says what serves it."""

import keras
import numpy as np
import pytest
from keras import layers, regularizers

import fastreg

KERAS = (regularizers.L1, regularizers.L2, regularizers.L1L2)
FASTREG = (fastreg.L1, fastreg.L2, fastreg.L1L2)


def found(model):
    """Every regularizer that Keras will call, of weights and of outputs."""
    ours = [getattr(layer, "activity_regularizer", None) for layer in model._flatten_layers()]
    ours += [getattr(variable, "regularizer", None) for variable in model.weights]
    return [regularizer for regularizer in ours if regularizer is not None]


def build(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    assert found(model)
    return model


LAYERS = {
    "bidirectional": lambda: build(
        layers.Bidirectional(
            layers.LSTM(3, kernel_regularizer="l2", recurrent_regularizer="l1", bias_regularizer="l1l2")
        ),
        (4, 2),
    ),
    "time distributed": lambda: build(
        layers.TimeDistributed(layers.Dense(3, kernel_regularizer="l2", activity_regularizer="l1")), (4, 2)
    ),
    "stacked cells": lambda: build(
        layers.RNN([layers.GRUCell(3, kernel_regularizer="l2"), layers.SimpleRNNCell(2, recurrent_regularizer="l1")]),
        (4, 2),
    ),
    "einsum": lambda: build(layers.EinsumDense("abc,cd->abd", (None, 3), kernel_regularizer="l2"), (4, 2)),
    "separable": lambda: build(
        layers.SeparableConv2D(3, 2, depthwise_regularizer="l1", pointwise_regularizer="l2"), (5, 5, 2)
    ),
    "normalization": lambda: build(layers.BatchNormalization(gamma_regularizer="l2", beta_regularizer="l1"), (4,)),
    "activity": lambda: build(layers.ActivityRegularization(0.1, 0.2), (4,)),
    "prelu": lambda: build(layers.PReLU(alpha_regularizer=regularizers.L1L2(0.1, 0.2)), (4,)),
}


def attention():
    x = keras.Input((4, 6))
    options = {
        "kernel_regularizer": "l2",
        "bias_regularizer": "l1",
        "activity_regularizer": regularizers.L1L2(0.1, 0.2),
    }
    return keras.Model(x, layers.MultiHeadAttention(2, 3, **options)(x, x))


def nested():
    x = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_regularizer="l2")])
    middle = keras.Sequential([inner, layers.Dense(3, activity_regularizer="l1")])
    return keras.Model(x, layers.Dense(2, bias_regularizer="l1l2")(middle(x)))


LAYERS |= {"attention": attention, "nested": nested}


@pytest.mark.parametrize("kind", LAYERS)
def test_nothing_of_keras_is_left(bridge, kind):
    keras.utils.set_random_seed(1)
    model = LAYERS[kind]()
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    model(x)
    before, losses = found(model), [float(loss) for loss in model.losses]
    assert fastreg.accelerate(model) is model
    after = found(model)
    assert [type(r).__name__ for r in after] == [type(r).__name__ for r in before]
    assert [r.get_config() for r in after] == [r.get_config() for r in before]
    assert all(isinstance(r, FASTREG) for r in after)
    assert not any(isinstance(value, KERAS) for layer in model._flatten_layers() for value in vars(layer).values())
    model(x)
    np.testing.assert_allclose([float(loss) for loss in model.losses], losses, rtol=1e-5)
    twice = found(fastreg.accelerate(model))
    assert all(one is other for one, other in zip(after, twice, strict=True))


class Half(regularizers.L2):
    def __call__(self, x):
        return 0.5 * super().__call__(x)


def test_other_regularizers_are_left_alone():
    half, orthogonal = Half(0.1), regularizers.OrthogonalRegularizer()
    function = lambda x: 0.0 * keras.ops.sum(x)  # noqa: E731
    own = fastreg.L2(0.3)
    stack = [layers.Dense(3, kernel_regularizer=r) for r in (half, orthogonal, function, own)]
    model = fastreg.accelerate(keras.Sequential([keras.Input((3,)), *stack]))
    for layer, regularizer in zip(stack, (half, orthogonal, function, own), strict=True):
        assert layer.kernel_regularizer is layer.kernel.regularizer is regularizer
    assert [row.bridge for row in fastreg.inspect(model)][:3] == ["keras"] * 3


def test_shared_instances_stay_shared():
    one, other = regularizers.L2(0.1), regularizers.L2(0.1)
    stack = [layers.Dense(3, kernel_regularizer=r, bias_regularizer=r) for r in (one, one, other)]
    fastreg.accelerate(keras.Sequential([keras.Input((3,)), *stack]))
    first, second, third = (layer.kernel_regularizer for layer in stack)
    assert first is second is stack[0].bias_regularizer is stack[1].bias.regularizer
    assert third is not first
    assert third is stack[2].kernel.regularizer


def test_unbuilt_models(bridge):
    model = keras.Sequential([layers.Dense(3, kernel_regularizer="l2"), layers.Dense(2, activity_regularizer="l1")])
    fastreg.accelerate(model)
    assert [row.kind for row in fastreg.inspect(model)] == ["activity"]
    model.build((None, 4))
    assert all(isinstance(r, FASTREG) for r in found(model))
    assert len(found(model)) == 2
    assert float(sum(model.losses)) > 0


def test_layers_are_accepted_too(bridge):
    layer = layers.Dense(3, kernel_regularizer="l2")
    layer.build((None, 4))
    assert fastreg.accelerate(layer) is layer
    assert type(layer.kernel.regularizer) is fastreg.L2
    assert [row.path for row in fastreg.inspect(layer)] == [layer.kernel.path]
    assert float(layer.losses[0]) > 0


def test_nothing_is_printed(capfd):
    model = nested()
    fastreg.accelerate(model)
    fastreg.inspect(model)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("function", [fastreg.accelerate, fastreg.inspect])
@pytest.mark.parametrize("wrong", [None, 1, "model", [], keras.Model, lambda x: x, fastreg.L2()])
def test_what_is_no_model(function, wrong):
    with pytest.raises(TypeError, match="Invalid type for argument model"):
        function(wrong)


@pytest.mark.parametrize(("name", "compiled"), [("custom", False), ("shared", True), ("activity", True)])
def test_training_starts_as_with_keras(bridge, trainer, assert_same_weights, name, compiled):
    expected, losses = trainer.reference(name, jit_compile=False)
    model = trainer.build(name, regularizers)
    if not compiled:
        fastreg.accelerate(model)
    model.compile(trainer.optimizer(), "mse", jit_compile=False)
    if compiled:
        fastreg.accelerate(model)
    np.testing.assert_allclose(trainer.more(model, name), losses, rtol=1e-5)
    assert_same_weights(model.get_weights(), expected)


@pytest.mark.parametrize("name", ["sequential", "activity", "subclassed"])
def test_training_goes_on_as_with_keras(bridge, trainer, assert_same_weights, name):
    """Optimizer state included: iterations and momenta are kept, and 56 more steps lead to the same weights."""
    (reference, _), (model, _) = (trainer.fit(name, regularizers, jit_compile=False) for _ in range(2))
    state = [variable.numpy() for variable in model.optimizer.variables]
    assert bridge.kernel_calls() == 0
    fastreg.accelerate(model)
    for kept, variable in zip(state, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(kept, variable.numpy())
    expected, losses = trainer.more(reference, name), trainer.more(model, name)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert_same_weights(model.get_weights(), reference.get_weights())
    assert int(model.optimizer.iterations) == int(reference.optimizer.iterations) == 112
    momenta = [[variable.numpy() for variable in m.optimizer.variables[2:]] for m in (model, reference)]
    assert_same_weights(*momenta, tolerance=1e-3)
    if bridge.forced:
        assert bridge.kernel_calls() >= 56


def test_evaluation_is_traced_anew_as_well(forced, trainer):
    model = trainer.build("activity", regularizers)
    model.compile(trainer.optimizer(), "mse", jit_compile=False)
    x, y = trainer.data("activity")
    before = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    calls = forced.kernel_calls()
    fastreg.accelerate(model)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(before[0], rel=1e-5)
    assert forced.kernel_calls() > calls
    np.testing.assert_array_equal(model.predict(x, verbose=0), before[1])
