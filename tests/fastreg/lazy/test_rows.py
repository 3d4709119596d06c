"""Rows of tables that are read, written, pruned and added, beside a training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

L1, L2 = 2**-9, 2**-8
RATE = 0.25


def layer_of(kind, plan=None, **options):
    """A table, a variable of Keras's, or one that is penalised by the rows looked up; built."""
    options |= {"embeddings_regularizer": None if kind == "plain" else fastreg.L1L2(L1, L2)}
    options |= {"scope": "batch"} if kind == "batch" else {}
    start = plan.start if plan else np.random.default_rng(3).normal(size=(23, 5))
    layer = fastreg.Embedding(*start.shape, **options)
    layer.build()
    layer.embeddings.assign(start)
    return layer


def test_rows_in_a_training(lazy, float64):
    """Rows read between steps are true, and rows written shrink from then on only."""
    plan = lazy.plan(30)
    layer, optimizer = layer_of("lazy", plan), lazy.optimizer("adagrad")
    generator = np.random.default_rng(0)
    expected, state = plan.start.copy(), {}
    for first in range(0, 30, 5):
        steps = range(first, first + 5)
        plan.train(layer, optimizer, steps)
        expected = lazy.oracle(plan, "adagrad", [RATE] * 30, L1, L2, steps, expected, state=state)
        ids = generator.choice(23, (2, 3), replace=False)
        assert lazy.error(layer.read_rows(ids), expected[ids]) < 1e-12
        expected[ids] = generator.normal(size=(2, 3, 5))
        layer.write_rows(ids, expected[ids])
        penalty = L1 * np.abs(expected).sum() + L2 * np.square(expected).sum()
        assert float(layer.penalty()) == pytest.approx(penalty, rel=1e-12)
    assert lazy.error(layer.embeddings.numpy(), expected) < 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["lazy", "plain", "batch"])
def test_what_is_read_is_what_was_written(kind, dtype):
    layer = layer_of(kind, dtype=dtype)
    before = np.array(tf.cast(layer.embeddings, tf.float32))
    layer.write_rows([4, 2, 4], np.arange(15.0).reshape(3, 5))
    layer.write_rows(np.array([[7], [0]], np.uint8), 0)
    layer.write_rows([], np.zeros((0, 5)))
    before[[2, 4, 7, 0]] = [range(5, 10), range(10, 15), [0] * 5, [0] * 5]
    np.testing.assert_array_equal(tf.cast(layer.embeddings, tf.float32), before)
    rows = layer.read_rows([[4, 2], [22, 4]])
    assert rows.shape == (2, 2, 5)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(tf.cast(rows, tf.float32), before[[[4, 2], [22, 4]]])
    np.testing.assert_array_equal(layer.empty_rows(), [0, 7])
    assert layer.empty_rows().dtype == np.int64
    layer.write_rows([3], np.nan)
    np.testing.assert_array_equal(layer.empty_rows(), [0, 7])


@pytest.mark.parametrize("kind", ["lazy", "plain"])
def test_in_a_graph(kind):
    layer = layer_of(kind)

    @tf.function
    def swap(one, other):
        rows = layer.read_rows([one, other])
        layer.write_rows([other, one], rows)
        return layer.read_rows([one, other]) - tf.reverse(rows, [0])

    before = layer.embeddings.numpy()
    np.testing.assert_array_equal(swap(3, 9), np.zeros((2, 5)))
    np.testing.assert_array_equal(layer.embeddings.numpy()[[9, 3]], before[[3, 9]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="argument ids: expected 0 to 22"):
        swap(tf.constant(3), tf.constant(23))
    with pytest.raises(RuntimeError, match="XLA"):
        tf.function(lambda: layer.write_rows([1], 0.0), jit_compile=True)()


@pytest.mark.parametrize("kind", ["lazy", "plain"])
def test_what_is_wrong_is_named(kind):
    layer = layer_of(kind)
    before = layer.embeddings.numpy()
    for ids in ([0, 23], [-1]):
        for call in (layer.read_rows, lambda ids: layer.write_rows(ids, 0)):
            with pytest.raises(ValueError, match=f"argument ids: expected 0 to 22.*{ids[-1]}"):
                call(ids)
    with pytest.raises(TypeError, match="argument ids: expected integers"):
        layer.read_rows([0.5])
    with pytest.raises(ValueError, match=r"argument values.*\(2, 5\).*\(2, 4\)"):
        layer.write_rows([0, 1], np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"argument values"):
        layer.write_rows([0, 1], np.zeros((3, 5)))
    with pytest.raises(TypeError, match="argument values: expected real numbers"):
        layer.write_rows([0], "a")
    for rows in (0, 2.5, True, None):
        with pytest.raises(ValueError, match="argument rows: expected a positive integer"):
            layer.resize(rows)
    with pytest.raises(RuntimeError, match="between steps"):
        tf.function(lambda: layer.resize(30))()
    np.testing.assert_array_equal(layer.embeddings.numpy(), before)
    unbuilt = fastreg.Embedding(23, 5, embeddings_regularizer=fastreg.L2(0.1))
    for call in (unbuilt.read_rows, unbuilt.empty_rows, lambda ids: unbuilt.write_rows(ids, 0)):
        with pytest.raises(AttributeError, match="build the layer"):
            call(*() if call == unbuilt.empty_rows else ([0],))


@pytest.mark.parametrize("kind", ["sgd", "rowwise", "adam", "centered rmsprop", "ftrl"])
def test_a_table_that_grows_in_a_training(lazy, float64, kind):
    """Is one that had its rows from the beginning, but for the shrink of those."""
    plan, penalty = lazy.plan(20, rows=27), fastreg.L1L2(L1, L2) if kind in lazy.penalised else fastreg.L2(0.0)
    for number in range(10):
        plan.ids[number] %= 19
    layer, optimizer = fastreg.Embedding(23, 5, embeddings_regularizer=penalty), lazy.optimizer(kind)
    layer.build()
    layer.embeddings.assign(plan.start[:23])
    plan.train(layer, optimizer, range(10))
    table, slots = layer.embeddings, optimizer.variables
    layer.resize(27, keras.initializers.Constant(0.5))
    assert layer.embeddings is table
    assert layer.input_dim == 27
    assert all(one is other for one, other in zip(optimizer.variables, slots, strict=True))
    assert {slot.shape[0] for slot in slots if len(slot.shape) == 2} <= {27}
    state, rates = {}, [RATE] * 20
    factors = (L1, L2) if kind in lazy.penalised else (0.0, 0.0)
    expected = lazy.oracle(plan, kind, rates, *factors, range(10), state=state)
    expected[23:] = 0.5
    expected = lazy.oracle(plan, kind, rates, *factors, range(10, 20), expected, state=state)
    assert lazy.error(plan.train(layer, optimizer, range(10, 20)), expected) < 1e-9


@pytest.mark.parametrize("kind", ["lazy", "plain", "batch"])
def test_models_go_on(lazy, kind, tmp_path):
    """Functions are traced anew; files of the grown model load; what is cut off is gone."""
    layer = layer_of(kind)
    model = lazy.model(layer)
    model.compile(fastreg.LazyRegularization("adam") if kind == "lazy" else "sgd", "mse")
    x, y = lazy.data()
    model.fit(x, y, verbose=0)
    model.predict(x, verbose=0)
    before = layer.embeddings.numpy()
    layer.resize(40)
    np.testing.assert_array_equal(layer.embeddings.numpy()[:23], before)
    x, y = lazy.data(40)
    assert x.max() >= 23
    model.fit(x, y, verbose=0)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-6)
    loaded.fit(x, y, verbose=0)
    tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
    before = layer.embeddings.numpy()
    layer.resize(7)
    np.testing.assert_array_equal(layer.embeddings.numpy(), before[:7])
    model.fit(x % 7, y, verbose=0)


@pytest.mark.parametrize("kind", ["lazy", "plain"])
def test_new_rows_are_new(kind):
    """An initializer has a seed, and makes the same of the same shape."""
    layer = layer_of(kind)
    layer.embeddings.assign(layer.embeddings_initializer((23, 5)))
    for rows in (30, 41):
        layer.resize(rows)
    weights = layer.embeddings.numpy()
    assert np.unique(weights).size == weights.size
    assert np.abs(weights).max() <= 0.05


def test_optimizers_know_a_table_that_has_grown(lazy, float64):
    """Inside a `MultiOptimizer`, and where weight decay leaves it out."""
    layer = lazy.plan(1).layer(fastreg.L2(0.0))
    optimizer = fastreg.LazyRegularization(keras.optimizers.AdamW(0.1, weight_decay=0.5))
    optimizer.exclude_from_weight_decay(var_list=[layer.embeddings])
    before = layer.embeddings.numpy()
    for rows in (23, 27):
        layer.resize(rows, "zeros")
        lazy.plan(1).train(layer, optimizer)
    np.testing.assert_array_equal(layer.embeddings.numpy()[19:23], before[19:])
    layer = layer_of("lazy")
    model = lazy.model(layer)
    maps = keras.optimizers.OptimizerMap(keras.optimizers.SGD(), {".*embeddings": fastreg.LazyRegularization("adam")})
    model.compile(keras.optimizers.MultiOptimizer(maps), "mse")
    for rows in (23, 40):
        layer.resize(rows)
        model.fit(*lazy.data(rows), verbose=0)


def test_nothing_is_changed_if_growing_fails(lazy):
    layer, optimizer = lazy.plan(3).layer(fastreg.L2(L2), "float32"), lazy.optimizer("adam")
    lazy.plan(3).train(layer, optimizer)
    table, before = layer.embeddings, layer.embeddings.numpy()
    values = [variable.numpy() for variable in optimizer.variables]

    def fails(shape, dtype):
        raise MemoryError("no more")

    with pytest.raises(MemoryError, match="no more"):
        layer.resize(50, fails)
    with pytest.raises(ValueError, match=r"argument initializer.*\(50, 5\).*\(1, 5\)"):
        layer.resize(50, lambda shape, dtype: tf.ones((1, 5), dtype))
    assert (layer.input_dim, table.shape) == (23, (23, 5))
    for one, other in zip(optimizer.variables, values, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(table.numpy(), before)
    lazy.plan(3).train(layer, optimizer)


def test_optimizers_that_have_numbers_for_each_weight(lazy):
    layer = layer_of("plain")
    model = lazy.model(layer)
    model.compile("adam", "mse")
    x, y = lazy.data()
    model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="Compile the model with a new optimizer first"):
        layer.resize(40)
    assert layer.input_dim == 23
    model.compile("adam", "mse")
    layer.resize(40)
    model.fit(*lazy.data(40), verbose=0)


def test_layers_that_are_not_built_or_adapted():
    layer = fastreg.Embedding(23, 5, embeddings_regularizer=fastreg.L2(L2))
    with pytest.raises(ValueError, match="argument initializer: expected None"):
        layer.resize(40, "ones")
    layer.resize(40)
    assert layer(tf.constant([39])).shape == (1, 5)
    adapted = fastreg.Embedding(23, 5, lora_rank=2)
    adapted.build()
    for refused in (lambda: adapted.resize(40), lambda: adapted.read_rows([1]), lambda: adapted.write_rows([1], 0.0)):
        with pytest.raises(ValueError, match="LoRA"):
            refused()
    with pytest.raises(RuntimeError, match="between steps"):
        tf.function(lambda: layer.empty_rows())()


def test_bags_of_a_table_that_grows():
    layer = fastreg.EmbedReduce(5, 2, embeddings_regularizer=fastreg.L2(0.1), combiner="sum")
    layer(tf.constant([[0, 1]]))
    layer.resize(9, "ones")
    np.testing.assert_array_equal(layer(tf.constant([[8, 8]])), [[2.0, 2.0]])
