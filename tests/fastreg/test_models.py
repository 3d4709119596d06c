"""Whole models: `accelerate` replaces what Keras has, and `inspect` says what serves it."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, regularizers

import fastreg
from fastreg import models

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
    assert not any(type(value) in KERAS for layer in model._flatten_layers() for value in vars(layer).values())
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


def dense_pair(first, second):
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, kernel_regularizer=first, activity_regularizer="l1"),
            layers.Dense(1, kernel_regularizer=second),
        ]
    )


def test_nothing_is_changed_if_anything_fails():
    wrong = regularizers.L2(0.5)
    model = dense_pair("l2", wrong)
    model.add(layers.Dense(1, bias_regularizer="l1"))
    model.compile("sgd", "mse")
    data = np.ones((4, 3)), np.ones((4, 1))
    model.fit(*data, verbose=0)
    wrong.l2 = -1
    regularized, function = found(model), model.train_function
    with pytest.raises(ValueError, match="argument l2: expected a non-negative float"):
        fastreg.accelerate(model)
    assert all(one is other for one, other in zip(found(model), regularized, strict=True))
    assert not [r for layer in model.layers for r in vars(layer).values() if isinstance(r, FASTREG)]
    assert model.train_function is function
    wrong.l2 = 0.5
    assert all(isinstance(r, FASTREG) for r in found(fastreg.accelerate(model)))


@pytest.mark.parametrize("name", ["L1", "L2", "L1L2"])
def test_the_regularizer_that_the_user_holds_still_counts(bridge, name):
    """Also for layers that share it, and the other way round; until something is traced, as with Keras's."""
    factor = "l1" if name == "L1" else "l2"
    held = [getattr(regularizers, name)(**{factor: 0.0}) for _ in range(2)]
    models = [dense_pair(penalty, penalty) for penalty in held]
    models[1].set_weights(models[0].get_weights())
    fastreg.accelerate(models[0])
    for value in (0.5, 0.125):
        for model, penalty in zip(models, held, strict=True):
            setattr(penalty, factor, value)
            model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
            model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
        for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert models[0].layers[0].get_config()["kernel_regularizer"]["config"][factor] == value
    setattr(models[0].layers[0].kernel.regularizer, factor, 0.25)
    assert getattr(held[0], factor) == 0.25


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


class FromNumber(layers.Layer):
    """Regularizers that there are only when the layer is built: from a number, by name, and in a layer of its own."""

    def build(self, shape):
        self.penalty = regularizers.L2(0.5)
        self.kernel = self.add_weight(shape=(shape[-1], 4), regularizer=self.penalty)
        self.bias = self.add_weight(shape=(4,), initializer="ones", regularizer="l2")
        self.inner = layers.Dense(4, kernel_regularizer=regularizers.L1L2(0.1, 0.1), bias_regularizer="l2")
        self.last = keras.Sequential([layers.Dense(2, kernel_regularizer="l2", activity_regularizer="l2")])
        self.inner.build((*shape[:-1], 4))

    def call(self, x):
        return self.last(self.inner(keras.ops.matmul(x, self.kernel) + self.bias))


class AtFirstCall(keras.Model):
    def __init__(self):
        super().__init__()
        self.head = layers.Dense(2)

    def call(self, x):
        if not hasattr(self, "made"):
            self.made = FromNumber()
        return self.head(self.made(x))


@pytest.mark.parametrize("make", [lambda: keras.Sequential([FromNumber()]), AtFirstCall])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("trained", [False, True])
def test_what_layers_make_when_they_are_built(make, times, trained):
    results = []
    for accelerated in (False, True):
        keras.utils.set_random_seed(3)
        model = make()
        model.compile("sgd", "mse", jit_compile=False)
        for _ in range(times if accelerated else 0):
            fastreg.accelerate(model)
        if trained:
            model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        else:
            model(np.ones((4, 3)))
        if accelerated:
            assert all(isinstance(r, FASTREG) for r in found(model))
            assert not [r for layer in model._flatten_layers() for r in vars(layer).values() if type(r) in KERAS]
            assert not [layer for layer in model._flatten_layers() if layer.build.__name__ == "build_and_act"]
        results.append((len(found(model)), model.get_weights()))
    assert results[0][0] == results[1][0] == 6
    for ours, theirs in zip(*(weights for _, weights in results), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


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


def test_models_of_keras_2_are_told():
    from tensorflow.python.keras import Sequential

    for function in (fastreg.accelerate, fastreg.inspect):
        with pytest.raises(TypeError, match=r"expected a Keras model.*: Sequential of Keras 2"):
            function(Sequential())


class TopTwo(layers.Layer):
    """Values and where they stand, which are integers."""

    def call(self, x):
        return keras.ops.top_k(x, 2)


@pytest.mark.parametrize("name", ["L1", "L2", "L1L2"])
def test_outputs_that_are_integers_are_left_to_keras(bridge, name):
    results = []
    for accelerated in (False, True):
        keras.utils.set_random_seed(1)
        x = keras.Input((5,))
        values, places = TopTwo(activity_regularizer=getattr(regularizers, name)(0.25))(layers.Dense(4)(x))
        model = keras.Model(x, keras.ops.sum(values * keras.ops.cast(places, "float32"), 1))
        if accelerated:
            fastreg.accelerate(model)
        model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
        data = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
        losses = model.fit(data, np.ones(8), epochs=2, verbose=0).history["loss"]
        model(data)
        results.append([*losses, *(float(loss) for loss in model.losses), *model.get_weights()])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


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


@functools.cache
def trained_twice(trainer, name):
    """Losses of 56 steps with Keras after 56 others, and then weights, momenta and the number of steps."""
    model, _ = trainer.fit(name, regularizers, jit_compile=False)
    return trainer.more(model, name), *state_of(model)


def state_of(model):
    momenta = [variable.numpy() for variable in model.optimizer.variables[2:]]
    return model.get_weights(), momenta, int(model.optimizer.iterations)


@pytest.mark.parametrize("name", ["sequential", "activity", "subclassed"])
def test_training_goes_on_as_with_keras(bridge, trainer, assert_same_weights, name):
    """Optimizer state included: iterations and momenta are kept, and 56 more steps lead to the same weights."""
    model, _ = trainer.fit(name, regularizers, jit_compile=False)
    state = [variable.numpy() for variable in model.optimizer.variables]
    assert bridge.kernel_calls() == 0
    fastreg.accelerate(model)
    for kept, variable in zip(state, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(kept, variable.numpy())
    losses = trainer.more(model, name)
    if bridge.forced:
        assert bridge.kernel_calls() >= 56
    expected, *reference = trained_twice(trainer, name)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    (weights, momenta, steps), (their_weights, their_momenta, their_steps) = state_of(model), reference
    assert_same_weights(weights, their_weights)
    assert steps == their_steps == 112
    assert_same_weights(momenta, their_momenta, tolerance=1e-3)


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


def test_what_was_replaced_stays_as_long_as_its_replacement_is_known():
    """Another regularizer in its memory would be taken for it."""
    replacement = models.one_for_one((keras.regularizers.L2,), lambda value: fastreg.L2(float(value.l2)))
    found = [(float(replacement(keras.regularizers.L2(l2)).l2), l2) for l2 in (0.5, 0.25, 0.125)]
    assert all(ours == given for ours, given in found)
    shared = keras.regularizers.L2(0.5)
    assert replacement(shared) is replacement(shared)
