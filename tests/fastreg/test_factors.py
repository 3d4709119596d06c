"""Factors that are no numbers: variables, scalar tensors and callables, read in every step and differentiated."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
DIRECTION = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")

SOURCES = {
    "Keras variable": keras.Variable,
    "TensorFlow variable": tf.Variable,
    "double variable": lambda value: tf.Variable(value, dtype="float64"),
    "half variable": lambda value: keras.Variable(value, dtype="float16"),
    "tensor": tf.constant,
    "callable of a number": lambda value: lambda: value,
    "callable of a tensor": lambda value: lambda: tf.constant(value),
    "callable of a variable": lambda value: (lambda variable: lambda: variable)(tf.Variable(value)),
}


def formula(x, l1, l2):
    """With TensorFlow's own derivatives."""
    l1, l2 = (tf.cast(tf.convert_to_tensor(factor), x.dtype) for factor in (l1, l2))
    return l1 * tf.reduce_sum(tf.abs(x)) + l2 * tf.reduce_sum(x * x)


def constructed(l1, l2):
    return fastreg.L1L2(l1, l2)


def set_later(l1, l2):
    regularizer = fastreg.L1L2(0.75, 0.125)
    regularizer.l1, regularizer.l2 = l1, l2
    return regularizer


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("make", [constructed, set_later], ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", SOURCES)
def test_values_and_gradients(bridge, gradient, kind, make, graph):
    regularizer = make(SOURCES[kind](0.5), SOURCES[kind](0.25))
    function = tf.function(gradient) if graph else gradient
    for step in range(3):  # the third gradient is computed ahead
        x = tf.constant(X + step)
        value, slope = function(regularizer, x)
        np.testing.assert_allclose(value, formula(x, 0.5, 0.25), rtol=1e-6)
        np.testing.assert_allclose(slope, 0.5 * np.sign(x) + 0.5 * x.numpy(), rtol=1e-6)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize(("cls", "name"), [(fastreg.L1, "l1"), (fastreg.L2, "l2")])
def test_each_class(bridge, kind, cls, name):
    expected = formula(tf.constant(X), *((0.5, 0.0) if name == "l1" else (0.0, 0.5)))
    for regularizer in (cls(SOURCES[kind](0.5)), getattr(fastreg, name)(SOURCES[kind](0.5))):
        np.testing.assert_allclose(regularizer(X), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_whole_numbers(bridge, dtype):
    np.testing.assert_allclose(fastreg.L2(tf.Variable(2, dtype=dtype))(X), 2 * np.square(X).sum(), rtol=1e-6)


def test_doubles_are_not_rounded_to_float32(bridge, gradient):
    x, factor = tf.constant([1.0, -3.0], tf.float64), tf.Variable(0.1, dtype="float64")
    value, slope = gradient(fastreg.L2(factor), x)
    np.testing.assert_allclose(value, 1.0, rtol=2e-15)
    np.testing.assert_allclose(slope, [0.2, -0.6], rtol=2e-15)


@pytest.mark.parametrize("kind", ["Keras variable", "TensorFlow variable", "callable of a variable"])
def test_a_traced_function_sees_every_change(bridge, gradient, kind):
    source = SOURCES[kind](0.5)
    variable = source() if callable(source) and not isinstance(source, tf.Variable) and "callable" in kind else source
    step = tf.function(lambda x: gradient(fastreg.L1L2(source, 0.25), x))
    for factor in (0.5, 0.5, 0.5, 2.0, 0.0, 2.0, 1e-3, 1e-3):
        variable.assign(factor)
        value, slope = step(tf.constant(X))
        np.testing.assert_allclose(value, formula(tf.constant(X), factor, 0.25), rtol=1e-6)
        np.testing.assert_allclose(slope, factor * np.sign(X) + 0.5 * X, rtol=1e-6)
    assert step.experimental_get_tracing_count() == 1


def test_a_tensor_that_a_traced_function_takes(bridge, gradient):
    step = tf.function(lambda x, l2: gradient(lambda v: fastreg.l1_l2_penalty(v, 0.5, l2), x))
    for factor in (0.25, 0.25, 1.0):
        value, slope = step(tf.constant(X), tf.constant(factor))
        np.testing.assert_allclose(value, formula(tf.constant(X), 0.5, factor), rtol=1e-6)
        np.testing.assert_allclose(slope, 0.5 * np.sign(X) + 2 * factor * X, rtol=1e-6)
    assert step.experimental_get_tracing_count() == 1


def test_a_number_is_seen_at_the_next_trace(bridge):
    regularizer = fastreg.L2(0.5)
    function = tf.function(regularizer)
    assert float(function(tf.ones(4))) == 2.0
    regularizer.l2 = 1.0
    assert float(function(tf.ones(4))) == 2.0
    assert float(function(tf.ones(5))) == 5.0
    assert float(regularizer(tf.ones(4))) == 4.0
    regularizer.l2 = -1.0
    for call in (regularizer, lambda x: function(tf.ones(6))):
        with pytest.raises(ValueError, match="Invalid value for argument l2: expected a non-negative float"):
            call(tf.ones(4))


class Warmup(keras.callbacks.Callback):
    """Changes the strength of a penalty while a model is fitted."""

    def __init__(self, variable):
        super().__init__()
        self.variable = variable

    def on_train_batch_end(self, batch, logs=None):
        self.variable.assign(0.9 * self.variable + 0.002)


def warmed_up(trainer, penalties, kind, graph):
    """Losses, weights and the last strength of a model whose strength a callback changes in each step."""
    x, y = trainer.data("sequential")
    variable = SOURCES[kind](0.05)
    weights, outputs = penalties.L2(0.1), penalties.L1(0.1)
    weights.l2, outputs.l1 = variable, variable  # Keras's constructors take numbers only
    keras.utils.set_random_seed(7)
    hidden = keras.layers.Dense(16, "relu", kernel_regularizer=weights, activity_regularizer=outputs)
    model = keras.Sequential([keras.Input((12,)), hidden, keras.layers.Dense(1)])
    model.compile(trainer.optimizer(), "mse", **({"jit_compile": False} if graph else {"run_eagerly": True}))
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0, "callbacks": [Warmup(variable)]}
    losses = model.fit(x[:56], y[:56], **fit).history["loss"]
    traced = sum(entry["count"] for entry in fastreg.info()["choices"])
    losses += model.fit(x[:56], y[:56], epochs=6 if graph else 2, **fit).history["loss"]
    if graph:
        assert sum(entry["count"] for entry in fastreg.info()["choices"]) == traced
    return losses, model.get_weights(), float(variable)


@functools.cache
def warmed_up_with_keras(trainer, kind, graph):
    return warmed_up(trainer, keras.regularizers, kind, graph)


@pytest.mark.parametrize("graph", [True, False], ids=["graph", "eager"])
@pytest.mark.parametrize("kind", ["Keras variable", "TensorFlow variable"])
def test_a_callback_changes_the_strength_during_fit(bridge, trainer, assert_same_weights, kind, graph):
    """In the next step, in one trace, and the weights follow Keras's formula."""
    losses, weights, strength = warmed_up(trainer, fastreg, kind, graph)
    expected_losses, expected, expected_strength = warmed_up_with_keras(trainer, kind, graph)
    assert strength == expected_strength != 0.05
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_same_weights(weights, expected)


def first_order(penalty, x, *factors):
    with tf.GradientTape() as tape:
        tape.watch([x, *factors])
        value = penalty(x, *factors) ** 2
    return tape.gradient(value, [x, *factors])


def second_order(penalty, x, *factors):
    """Of a number that depends on every first derivative, so that each mixed second one counts."""
    with tf.GradientTape() as tape:
        tape.watch([x, *factors])
        slope, *of_factors = first_order(penalty, x, *factors)
        number = tf.reduce_sum(slope * DIRECTION) + sum(
            tf.cast(weight * derivative, tf.float32) for weight, derivative in zip((2.0, 3.0), of_factors, strict=True)
        )
    return tape.gradient(number, [x, *factors])


def in_a_loop(penalty, x, *factors):
    with tf.GradientTape() as tape:
        tape.watch([x, *factors])
        value = tf.while_loop(
            lambda turn, *_: turn < 3,
            lambda turn, total, v: [turn + 1, total + penalty(v, *factors) * tf.cast(turn, tf.float32), 0.5 * v],
            [tf.constant(0), tf.constant(0.0), x],
            maximum_iterations=5,
        )[1]
    return tape.gradient(value, [x, *factors])


@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float64", "float32")], ids=str)
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("case", [first_order, second_order, in_a_loop], ids=lambda case: case.__name__)
def test_derivatives_with_respect_to_factors(bridge, case, graph, dtypes):
    function = tf.function(case) if graph else case
    for step in range(3):
        x, l1, l2 = tf.constant(X + 0.1 * step), tf.constant(0.5, dtypes[0]), tf.constant(0.25, dtypes[1])
        for actual, expected in zip(function(fastreg.l1_l2_penalty, x, l1, l2), case(formula, x, l1, l2), strict=True):
            assert actual.dtype == expected.dtype
            assert np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("kind", ["Keras variable", "TensorFlow variable"])
def test_derivatives_with_respect_to_variables(bridge, kind, graph):
    """One of two factors is trained, the tape watches by itself."""
    strength = SOURCES[kind](0.5)
    regularizer = fastreg.L1L2(0.125, strength)

    def slope():
        with tf.GradientTape() as tape:
            value = regularizer(tf.constant(X))
        return value, tape.gradient(value, strength.value if kind == "Keras variable" else strength)

    value, derivative = (tf.function(slope) if graph else slope)()
    np.testing.assert_allclose(value, formula(tf.constant(X), 0.125, 0.5), rtol=1e-6)
    np.testing.assert_allclose(derivative, np.square(X).sum(), rtol=1e-6)


def test_under_xla(bridge):
    variable = tf.Variable(0.5)
    with bridge.falls_back("XLA"):
        compiled = tf.function(lambda x, l2: first_order(fastreg.l1_l2_penalty, x, variable, l2), jit_compile=True)
        for factor in (0.5, 2.0):
            variable.assign(factor)
            with tf.GradientTape() as tape:
                value = formula(tf.constant(X), variable, 0.25) ** 2
            np.testing.assert_allclose(compiled(X, tf.constant(0.25))[1], tape.gradient(value, variable), rtol=1e-5)


@pytest.mark.parametrize("kind", SOURCES)
def test_configurations_have_the_value_of_the_moment(bridge, kind):
    source = SOURCES[kind](0.5)
    regularizer = fastreg.L1L2(source, 0.25)
    assert regularizer.get_config() == {"l1": 0.5, "l2": 0.25}
    assert {type(value) for value in regularizer.get_config().values()} == {float}
    if hasattr(source, "assign"):
        source.assign(2.0)
        assert regularizer.get_config() == {"l1": 2.0, "l2": 0.25}
    config = json.loads(json.dumps(keras.regularizers.serialize(regularizer)))
    loaded = keras.regularizers.deserialize(config)
    assert type(loaded) is fastreg.L1L2
    assert type(loaded.l1) is float
    np.testing.assert_allclose(loaded(X), regularizer(X), rtol=1e-6)


def test_configurations_while_a_graph_is_traced():
    variable, found = tf.Variable(0.5), []

    @tf.function
    def function(tensor):
        found.append(fastreg.L2(variable).get_config())
        with pytest.raises(ValueError, match="Invalid value for argument l2: a graph gives it when it runs"):
            fastreg.L2(tensor).get_config()

    function(tf.constant(0.25))
    assert found == [{"l2": 0.5}]


def test_models_are_saved_with_the_value_of_the_moment(bridge, tmp_path):
    variable = keras.Variable(0.5)
    layer = keras.layers.Dense(3, kernel_regularizer=fastreg.L2(variable))
    model = keras.Sequential([keras.Input((4,)), layer])
    variable.assign(0.125)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].kernel_regularizer.l2 == 0.125
    np.testing.assert_allclose(loaded.losses, model.losses, rtol=1e-6)


@pytest.mark.parametrize("kind", SOURCES)
def test_repr(kind):
    source = SOURCES[kind](0.5)
    assert repr(fastreg.L1L2(source, 0.25)) == f"fastreg.L1L2(l1={source!r}, l2=0.25)"
    assert repr(fastreg.L2(0.25)) == "fastreg.L2(l2=0.25)"


@pytest.mark.parametrize("kind", ["Keras variable", "TensorFlow variable", "callable of a number"])
def test_accelerate_keeps_sources(bridge, kind):
    """Which Keras's regularizers can have been given as attributes only."""
    source, regularizer = SOURCES[kind](0.5), keras.regularizers.L1L2(0.25, 0.125)
    regularizer.l2 = source
    layer = keras.layers.Dense(3, kernel_regularizer=regularizer)
    model = fastreg.accelerate(keras.Sequential([keras.Input((4,)), layer]))
    assert type(layer.kernel.regularizer) is fastreg.L1L2
    assert layer.kernel.regularizer.l1 == 0.25
    assert layer.kernel.regularizer.l2 is source
    if hasattr(source, "assign"):
        source.assign(2.0)
    factor = 2.0 if hasattr(source, "assign") else 0.5
    np.testing.assert_allclose(model.losses[0], formula(layer.kernel.value, 0.25, factor), rtol=1e-6)


@pytest.mark.parametrize("kind", SOURCES)
def test_symbolic_inputs(bridge, kind):
    """The symbols of a functional model read a variable whenever the model runs."""
    source = SOURCES[kind](0.5)
    x = keras.Input((4,))
    symbol = fastreg.L1L2(source, 0.25)(x)
    assert isinstance(symbol, keras.KerasTensor)
    assert (symbol.shape, symbol.dtype) == ((), "float32")
    model = keras.Model(x, symbol)
    factors = (0.5, 2.0) if hasattr(source, "assign") else (0.5,)
    for factor in factors:
        if hasattr(source, "assign"):
            source.assign(factor)
        np.testing.assert_allclose(model(X), formula(tf.constant(X), factor, 0.25), rtol=1e-6)
        np.testing.assert_allclose(fastreg.L1L2(source, 0.25)(X), model(X), rtol=1e-6)


INVALID = {
    "vector variable": lambda: tf.Variable([0.1, 0.2]),
    "vector Keras variable": lambda: keras.Variable([0.1]),
    "vector tensor": lambda: tf.constant([0.1]),
    "string tensor": lambda: tf.constant("0.1"),
    "bool tensor": lambda: tf.constant(True),
    "complex tensor": lambda: tf.constant(1j),
    "string": lambda: "0.1",
    "negative number": lambda: -0.1,
}


@pytest.mark.parametrize("kind", INVALID)
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_what_is_no_factor(kind, name):
    value = INVALID[kind]()
    message = rf"Invalid value for argument {name}: expected a (real scalar|non-negative float)\. Received: {name}="
    with pytest.raises(ValueError, match=message):
        fastreg.L1L2(**{name: value})
    regularizer = fastreg.L1L2()
    setattr(regularizer, name, value)
    returning = fastreg.L1L2(**{name: lambda: value})
    for call in (
        lambda: regularizer(X),
        lambda: returning(X),
        lambda: tf.function(returning)(X),
        lambda: fastreg.l1_l2_penalty(X, **{name: value}),
        lambda: regularizer(keras.Input((4,))),
        regularizer.get_config,
        returning.get_config,
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_callable_that_returns_none_or_a_callable():
    for wrong in (lambda: None, lambda: lambda: 0.1):
        with pytest.raises(ValueError, match="Invalid value for argument l2: expected a non-negative float"):
            fastreg.L2(wrong)(X)


def test_a_factor_that_turns_out_to_be_no_scalar(bridge):
    """Its shape is known when the graph runs; no bridge may read beyond it."""
    function = tf.function(
        lambda factor: fastreg.l1_l2_penalty(tf.constant(X), factor, 0.25), input_signature=[tf.TensorSpec(None)]
    )
    np.testing.assert_allclose(function(0.5), formula(tf.constant(X), 0.5, 0.25), rtol=1e-6)
    for wrong in ([], [0.5, 0.5, 0.5]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            function(tf.constant(wrong, tf.float32))
