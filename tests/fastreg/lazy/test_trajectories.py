"""Long trainings against dense ones: Keras's own where the rules are the same, float64 oracles elsewhere."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastreg
from fastreg._bridges import state

STEPS = 500
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
PENALTIES = {
    "l1": (2**-9, 0.0),
    "l2": (0.0, 2**-8),
    "elastic net": (2**-10, 2**-9),
    "none": (0.0, 0.0),
}


BOUNDARIES, RATES = [100, 250, 400], [0.25, 0.125, 0.0625, 0.03125]


def schedule():
    """Of rates that are exact in float32, in which Keras computes schedules."""
    return keras.optimizers.schedules.PiecewiseConstantDecay(BOUNDARIES, RATES)


def rates(number):
    return [RATES[int(np.searchsorted(BOUNDARIES, step))] for step in range(number)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("eager", [False, True])
def test_l2_and_sgd_are_keras_s_dense_training(lazy, dtype, eager):
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    x, y = lazy.data(n=80 if eager else 800)
    results = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2(2**-6)),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2(2**-6)),
    ):
        optimizer = wrap(keras.optimizers.SGD(schedule()))
        model = lazy.compiled(penalty, optimizer, layer, run_eagerly=eager)
        history = model.fit(x, y, batch_size=8, epochs=5, shuffle=False, verbose=0)
        assert int(optimizer.iterations) == 5 * len(x) // 8
        results.append((model.get_weights(), history.history["loss"]))
    (weights, losses), (expected, expected_losses) = results
    for ours, theirs in zip(weights, expected, strict=True):
        assert lazy.error(ours, theirs) < TOLERANCES[dtype]
    np.testing.assert_allclose(losses, expected_losses, rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise", "adam", "rowwise adam", "rmsprop", "centered rmsprop"])
def test_the_dense_rule(lazy, float64, kind, penalty):
    l1, l2 = PENALTIES[penalty]
    plan = lazy.plan(STEPS)
    layer = plan.layer(fastreg.L1L2(l1, l2))
    weights = plan.train(layer, lazy.optimizer(kind, schedule()))
    expected = lazy.oracle(plan, kind, rates(STEPS), l1, l2)
    assert lazy.error(weights, expected) < TOLERANCES["float64"]
    np.testing.assert_array_equal(weights == 0, expected == 0)
    if penalty == "l1":
        assert (weights == 0).any()


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise", "adam"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 0.02), ("bfloat16", 0.1)])
def test_other_dtypes(lazy, kind, dtype, tolerance):
    plan = lazy.plan(STEPS if dtype == "float32" else 60)
    l1, l2 = PENALTIES["elastic net"]
    options = {"epsilon": 1e-3} if dtype != "float32" and kind != "sgd" else {}
    weights = plan.train(plan.layer(fastreg.L1L2(l1, l2), dtype), lazy.optimizer(kind, 0.125, **options))
    assert weights.dtype.name == dtype
    expected = lazy.oracle(plan, kind, [0.125] * len(plan), l1, l2, epsilon=options.get("epsilon", 1e-7))
    assert lazy.error(weights, expected) < tolerance


def test_keras_s_l1_until_a_weight_crosses_zero(lazy, float64):
    """The subgradient then oscillates; the rule stops, and its weights are true zeros."""
    x, y = lazy.data(n=600)
    start = np.where(np.arange(115).reshape(23, 5) % 2 == 0, 0.125, -0.125)

    def train(layer, penalty, steps):
        optimizer = keras.optimizers.SGD(2**-7)
        wrapped = fastreg.LazyRegularization(optimizer) if layer is fastreg.Embedding else optimizer
        model = lazy.compiled(penalty(2**-4), wrapped, layer)
        model.layers[1].embeddings.assign(start)
        model.fit(x[:steps], y[:steps], batch_size=1, shuffle=False, verbose=0)
        return model.layers[1].embeddings.numpy()

    pairs = ((fastreg.Embedding, fastreg.L1), (keras.layers.Embedding, keras.regularizers.L1))
    ours, theirs = (train(*pair, steps=20) for pair in pairs)
    assert lazy.error(ours, theirs) < 1e-12
    ours, theirs = (train(*pair, steps=600) for pair in pairs)
    assert (ours == 0).sum() > 5
    assert np.abs(theirs[ours == 0]).max() > 1e-5


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_schedule_ids_factors_and_stops(lazy, float64, data):
    """Reading, saving and restarting at any moment changes nothing."""
    number = data.draw(st.integers(1, 12), label="steps")
    plan = lazy.plan(number, batch=data.draw(st.integers(0, 9), label="batch"), seed=data.draw(st.integers(0, 99)))
    l1 = data.draw(st.sampled_from([0.0, 1e-4, 0.03]), label="l1")
    l2 = data.draw(st.sampled_from([0.0, 1e-5, 0.02, 0.9]), label="l2")
    rate = st.sampled_from([0.0, 2**-10, 2**-3, 0.5])
    rates = data.draw(st.lists(rate, min_size=number, max_size=number), label="rates")
    kind = data.draw(st.sampled_from(lazy.penalised), label="optimizer")
    stops = data.draw(st.sets(st.integers(0, number)), label="stops")
    layer, optimizer = plan.layer(fastreg.L1L2(l1, l2)), lazy.optimizer(kind, 0.5)

    def before(step):
        optimizer.learning_rate = rates[step]
        if step in stops:
            store = {}
            layer.save_own_variables(store)
            layer.load_own_variables({"0": np.array(store["0"])})

    weights = plan.train(layer, optimizer, graph=data.draw(st.booleans(), label="graph"), before=before)
    expected = lazy.oracle(plan, kind, rates, l1, l2)
    assert lazy.error(weights, expected) < 1e-12
    np.testing.assert_allclose(
        layer.penalty(), l1 * np.abs(expected).sum() + l2 * np.square(expected).sum(), rtol=1e-11
    )


def test_the_product_restarts_before_it_underflows(lazy, float64):
    """Each step halves the weights: 2^-600 is below the restart, 1e-150, and far below the weights' steps."""
    plan = lazy.plan(600)
    layer = plan.layer(fastreg.L2(0.5))
    weights = plan.train(layer, lazy.optimizer("sgd", 0.5))
    expected = lazy.oracle(plan, "sgd", [0.5] * 600, l2=0.5)
    assert lazy.error(weights, expected) < 1e-12


def test_the_threshold_restarts_before_it_loses_digits(lazy, float64):
    plan = lazy.plan(300)
    layer = plan.layer(fastreg.L1(2.0))
    layer.embeddings.assign(plan.start * 1000)
    weights = plan.train(layer, lazy.optimizer("sgd", 0.5))
    expected = lazy.oracle(plan, "sgd", [0.5] * 300, l1=2.0, start=plan.start * 1000)
    assert lazy.error(weights, expected) < 1e-12
    assert np.prod(layer.embeddings._value.numbers.numpy()[[state.PRODUCT, state.TOTAL]]) < 64


@pytest.mark.parametrize("jit", [False, True])
def test_a_history_that_is_full(lazy, float64, monkeypatch, jit):
    """The table is flushed, and goes on; steps that shrink nothing take no place in the history."""
    table = lazy.plan(1).layer(fastreg.L1L2(1e-6, 1e-4))
    variable = table.embeddings._value
    expected = variable.numpy()
    optimizer = lazy.optimizer("sgd", 0.5)
    step = tf.function(functools.partial(_penalised_step, table, optimizer), jit_compile=jit)
    weight = tf.Variable(1.0, dtype=tf.float64)
    for number in range(state.STEPS + 10):
        penalised, rows = float(number % 1000 != 7), [2, 5] if number % 500 == 0 else [0]
        weight.assign(penalised)
        step(weight, tf.constant(rows))
        expected = np.sign(expected) * np.maximum(0, np.abs(expected) * (1 - penalised * 1e-4) - penalised * 5e-7)
        expected[rows] -= 0.5
    assert variable.numbers.numpy()[state.STEP] == 6
    assert lazy.error(variable.numpy(), expected) < 1e-10


def _penalised_step(table, optimizer, weight, ids):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(table(ids)) + weight * table.losses[0]
    optimizer.apply(tape.gradient(loss, table.trainable_weights), table.trainable_weights)


@pytest.mark.parametrize("where", ["branch", "function", "neither"])
def test_lookups_and_penalties_in_a_branch_and_in_a_function_of_their_own(lazy, float64, where):
    layer, optimizer = lazy.plan(1).layer(fastreg.L2(0.125)), lazy.optimizer("sgd", 0.5)
    expected = layer.embeddings.numpy()
    loss_of = tf.function(lambda ids: tf.reduce_sum(layer(ids)) + sum(layer.losses))

    @tf.function
    def step(ids, flag):
        with tf.GradientTape() as tape:
            if where == "branch":
                doubled = tf.reduce_sum(layer(ids[:1])) * 2
                loss = tf.cond(flag, lambda: tf.reduce_sum(layer(ids)) + sum(layer.losses), lambda: doubled)
            else:
                loss = loss_of(ids) if where == "function" else tf.reduce_sum(layer(ids)) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    for flag, counts, weight in ((True, {1: 2, 2: 1}, 1.0), (False, {1: 2}, 0.0)):
        flag = flag if where == "branch" else True
        if where != "branch":
            counts, weight = {1: 2, 2: 1}, 1.0
        step(tf.constant([1, 1, 2]), tf.constant(flag))
        expected = expected * (1 - weight * 0.125)
        for row, count in counts.items():
            expected[row] -= 0.5 * count
        np.testing.assert_allclose(layer.embeddings.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise", "adam"])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 8.0), (0.25, 0.125), (0.0625, 40.0)])
def test_the_implicit_shrink(lazy, float64, kind, l1, l2):
    """The proximal step of the penalty, of any strength, with the penalty that is tracked for it."""
    plan = lazy.plan(9)
    optimizer = lazy.optimizer(kind, implicit=True)
    layer = plan.layer(fastreg.L1L2(l1, l2))
    weights = plan.train(layer, optimizer)
    expected = lazy.oracle(plan, kind, [0.25] * 9, l1=l1, l2=l2, implicit=True)
    assert lazy.error(weights, expected) < 1e-12
    exact = l1 * np.abs(expected).sum() + l2 * np.square(expected).sum()
    with tf.GradientTape():
        np.testing.assert_allclose(tf.add_n(layer.losses), exact, rtol=1e-9)
    again = fastreg.LazyRegularization.from_config(optimizer.get_config())
    assert again.implicit is True
    assert again.rowwise is ("rowwise" in kind)
