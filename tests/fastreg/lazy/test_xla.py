"""Tables where XLA compiles: the numbers of every rule, in place, and what went wrong raised after the step."""

import re

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg._bridges import state
from fastreg._tables.variable import TableVariable

KINDS = ("sgd", "adagrad", "rowwise", "adam", "rowwise adam", "rmsprop", "centered rmsprop", "ftrl")


@pytest.fixture(autouse=True)
def way(fresh_state):
    """XLA decides which way tables go."""


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_of_every_row(lazy, float64, kind, implicit):
    plan = lazy.plan(30)
    optimizer = lazy.optimizer(kind, keras.optimizers.schedules.ExponentialDecay(0.25, 5, 0.8), implicit)
    rates = [0.25 * 0.8 ** (step / 5) for step in range(30)]
    factors = (0.0, 0.0) if kind == "ftrl" else (0.02, 0.1)
    weights = plan.train(plan.layer(fastreg.L1L2(*factors)), optimizer, graph="xla")
    assert lazy.error(weights, lazy.oracle(plan, kind, rates, *factors, implicit=implicit)) < 1e-7  # Keras's rates


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(lazy, dtype):
    """To the roundings of rows that are written at most 8 times."""
    plan = lazy.plan(8)
    weights = plan.train(plan.layer(fastreg.L1L2(0.02, 0.1), dtype), lazy.optimizer("adam"), graph="xla")
    expected = lazy.oracle(plan, "adam", [0.25] * 8, 0.02, 0.1)
    assert lazy.error(weights, expected) < 16 * float(ml_dtypes.finfo(dtype).eps)


OPTIONS = {
    "clipnorm": {"clipnorm": 0.05},
    "clipvalue": {"clipvalue": 0.01},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "loss_scale_factor": {"loss_scale_factor": 128.0},
}


def trained(lazy, jit, kind="adagrad", options=None, penalty=None, wrap=lambda optimizer: optimizer, **compiling):
    x, y = lazy.data()
    optimizer = wrap(lazy.optimizer(kind, 0.1, **(options or {})))
    model = lazy.compiled(penalty or fastreg.L1L2(1e-3, 0.01), optimizer, jit_compile=jit, **compiling)
    history = model.fit(x, y, batch_size=8, shuffle=False, verbose=0, epochs=3).history["loss"]
    return model, [np.array(history), np.array(model.evaluate(x, y, verbose=0)), *model.get_weights()]


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * max(1e-3, np.abs(other).max()))


@pytest.mark.parametrize("option", OPTIONS)
def test_options(lazy, option):
    assert_same(*(trained(lazy, jit, options=OPTIONS[option])[1] for jit in (True, False)))


def test_steps_per_execution_and_a_factor_that_is_a_variable(lazy):
    factors = [keras.Variable(0.01) for _ in range(2)]
    penalties = [fastreg.L1L2(1e-3, factor) for factor in factors]
    found = []
    for jit, penalty in zip((True, False), penalties, strict=True):
        model, _ = trained(lazy, jit, "adam", penalty=penalty, steps_per_execution=2)
        penalty.l2.assign(0.5)
        x, y = lazy.data()
        found.append([np.array(model.fit(x, y, verbose=0).history["loss"]), *model.get_weights()])
    assert_same(*found)


def test_loss_scaling_skips_steps_that_are_not_finite(lazy):
    found = []
    for jit in (True, False):
        model, _ = trained(lazy, jit, wrap=keras.optimizers.LossScaleOptimizer)
        x, y = lazy.data()
        y[20] = np.inf
        scale = float(model.optimizer.dynamic_scale)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        assert float(model.optimizer.dynamic_scale) == scale / 2
        found.append(model.get_weights())
    assert np.isfinite(found[0][0]).all()
    assert_same(*found)


def test_weights_of_penalties_and_layers_used_twice(lazy, float64):
    """Gradients of several lookups, and a penalty of which the loss has a part."""
    plan = lazy.plan(6)
    found = []
    for jit in (True, False):
        layer, optimizer = plan.layer(fastreg.L1L2(0.02, 0.1)), lazy.optimizer("adam")

        def step(ids, gradient, weight, layer=layer, optimizer=optimizer):
            with tf.GradientTape() as tape:
                rows = layer(ids) * layer(tf.roll(ids, 1, 0))
                loss = tf.reduce_sum(rows * gradient) + weight * sum(layer.losses)
            gradients = tape.gradient(loss, layer.trainable_weights)
            # Made anew, as by hand, so that nothing is known of them.
            gradients = [tf.IndexedSlices(g.values * 0.5, tf.identity(g.indices), g.dense_shape) for g in gradients]
            optimizer.apply(gradients, layer.trainable_weights)

        step = tf.function(step, jit_compile=jit)
        for ids, gradient, weight in zip(plan.ids, plan.gradients, np.linspace(0.0, 2.0, 6), strict=True):
            step(tf.constant(ids, tf.int32), tf.constant(gradient), tf.constant(weight))
        found.append([layer.embeddings.numpy(), layer.penalty()])
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-12)


def test_tables_are_written_out_in_time(lazy, float64, monkeypatch):
    monkeypatch.setattr(state, "SMALLEST_PRODUCT", 0.5)
    monkeypatch.setattr(state, "LARGEST_THRESHOLD", 0.05)
    plan = lazy.plan(30)
    layer = plan.layer(fastreg.L1L2(0.02, 0.1))
    plan.train(layer, lazy.optimizer("sgd"), graph="xla")
    product, total = layer.embeddings.value.numbers.numpy()[:2]
    assert product > 0.5
    assert product * total < 0.05
    assert lazy.error(layer.embeddings.numpy(), lazy.oracle(plan, "sgd", [0.25] * 30, 0.02, 0.1)) < 1e-7


def test_the_tracked_penalty_is_measured_anew(lazy):
    """Weights that stop at zero make it doubtful."""
    ours, theirs = (trained(lazy, jit, penalty=fastreg.L1(0.5))[1] for jit in (True, False))
    assert_same(ours, theirs)
    assert np.mean(theirs[2] == 0.0) > 0.4


def address(variable):
    tensor = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    return np.from_dlpack(tensor).ctypes.data


def test_a_model_goes_on_without_xla_where_it_is(lazy):
    """No copy at the change: the memory of the table, its stamps and slots stays where it was."""
    model, _ = trained(lazy, True, "adam")
    (table,) = [v.value for v in model.trainable_weights if isinstance(v.value, TableVariable)]
    slots = [v.value for v in model.optimizer.variables if v.shape == table.shape]
    memory = [table, table.stamps, *slots]
    assert len(memory) == 4
    x, y = lazy.data()
    model.predict(x, verbose=0)
    before = [address(variable) for variable in memory]
    for _ in range(2):
        model.fit(x, y, verbose=0)
        assert [address(variable) for variable in memory] == before
        expected = model(x)
        np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5)
        assert [address(variable) for variable in memory] == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_writes_in_place(lazy, kind):
    """Nothing of the size of the table is computed but what is written in place, in a loop or in a branch."""
    rows = 10_007
    optimizer = lazy.optimizer(kind, 0.1)
    penalty = fastreg.L1L2(1e-3, 0.01) if kind in lazy.penalised else fastreg.L2(0.0)
    model = lazy.compiled(penalty, optimizer, rows=rows, width=3, jit_compile=True)
    optimizer.build(model.trainable_variables)
    x, y = lazy.data(rows)
    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=True)
    hlo = step.experimental_get_compiler_ir(tf.constant(x), tf.constant(y))(stage="optimized_hlo")
    entry = hlo[hlo.index("\nENTRY") :]
    of_rows = re.compile(rf"= \(?[^=]*\[{rows}[,\d]*\][^=]* [\w-]+\(")
    large = [line.strip() for line in entry.splitlines() if of_rows.search(line)]
    kinds = {re.search(r"= (?:\([^=]*\)|[^ ]+) ([\w-]+)\(", line)[1] for line in large}
    assert kinds <= {"parameter", "fusion", "tuple", "while", "conditional", "get-tuple-element", "constant", "bitcast"}
    fusions = [line for line in large if re.search(r"\] fusion\(|\} fusion\(", line)]
    assert fusions
    assert all("scatter" in line for line in fusions)


FAULTS = {
    "an id that is too large": (23, {}, "id 23 is not in"),
    "a negative id": (-1, {}, "id -1 is not in"),
    "a negative rate": (0, {"learning_rate": -0.5}, "learning rate"),
    "a rate that turns weights around": (0, {"learning_rate": 60.0}, r"2 \* learning_rate \* l2 < 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_raised_after_the_step(lazy, fault):
    id_, options, message = FAULTS[fault]
    model = lazy.compiled(fastreg.L1L2(1e-3, 0.01), lazy.optimizer("sgd", 0.1), jit_compile=True)
    model.fit(*lazy.data(), verbose=0)
    x, y = lazy.data()
    x[5, 1] = id_
    for name, value in options.items():
        setattr(model.optimizer, name, value)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        model.fit(x, y, verbose=0)
    table = model.layers[1].embeddings
    assert np.isnan(table.numpy()).any()  # raised once
    table.assign(np.ones(table.shape))
    model.layers[-1].set_weights([np.ones(weight.shape) for weight in model.layers[-1].get_weights()])
    model.optimizer.learning_rate = 0.1
    assert np.isfinite(model.fit(*lazy.data(), verbose=0).history["loss"]).all()


def test_rows_of_invalid_ids(lazy):
    """Where no op can fail, and XLA would take the nearest row."""
    layer = lazy.plan(1).layer(fastreg.L2(), "float32")
    rows = tf.function(layer.__call__, jit_compile=True)(tf.constant([1, 23, -1, 2, 2**32 + 1], tf.int64))
    np.testing.assert_array_equal(np.isnan(rows).all(axis=1), [False, True, True, False, True])
    np.testing.assert_array_equal(tf.gather(rows, [0, 3]), layer(tf.constant([1, 2])))


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize(("kind", "options"), [("sgd", {}), ("rowwise", {"global_clipnorm": 0.1}), ("adam", {})])
def test_clusters_as_on_a_gpu(lazy, monkeypatch, kind, options, eager):
    """Code that XLA does not compile, with a table on a GPU, as which the host serves here."""
    found = []
    for is_on_gpu in (False, True):
        monkeypatch.setattr(TableVariable, "_is_on_gpu", lambda variable, is_on_gpu=is_on_gpu: is_on_gpu)
        model, results = trained(lazy, False, kind, options, run_eagerly=eager)
        layer = model.layers[1]
        found.append([*results, layer.penalty(), layer.sparsity(), model.predict(lazy.data()[0], verbose=0)])
        assert bool(layer.embeddings.value.clusters) == is_on_gpu
    assert_same(*found)
    with pytest.raises(tf.errors.InvalidArgumentError, match="id 99 is not in"):
        model.fit(np.full((8, 4), 99), np.ones((8, 1)), verbose=0)
