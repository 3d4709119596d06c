"""The layer apart from its training: inputs, whole reads, weights, configuration, changes of the factors."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg._tables import rules
from fastreg._tables.table import LazyTable

L2 = 2**-6


def fit(model, x, y, **options):
    return model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options})


@pytest.mark.parametrize("penalty", [None, fastreg.L1(0.1)])
def test_inputs_of_every_kind(penalty):
    theirs = keras.layers.Embedding(9, 3, mask_zero=True)
    theirs.build()
    ours = fastreg.Embedding(9, 3, embeddings_regularizer=penalty, mask_zero=True, weights=theirs.get_weights())
    dense = np.array([[0, 2, 8], [1, 0, 2]])
    ragged = tf.ragged.constant([[1, 2, 3], [], [8]], dtype=tf.int64)
    sparse = tf.SparseTensor([[0, 1], [1, 0]], [5, 3], [2, 3])
    for ids in (
        dense,
        dense.astype("uint8"),
        dense.astype("float32"),
        dense.astype("int64"),
        dense[:, :, None],
        dense[0, 0],
    ):
        np.testing.assert_array_equal(ours(ids), theirs(ids))
    assert ours(ragged).to_list() == theirs(ragged).to_list()
    np.testing.assert_array_equal(_unmasked(ours, penalty)(sparse), _unmasked(theirs, None)(sparse))
    np.testing.assert_array_equal(ours.compute_mask(dense), theirs.compute_mask(dense))
    assert ours.compute_output_spec(keras.KerasTensor((None, 3), "int32")).shape == (None, 3, 3)


def _unmasked(layer, penalty):
    """Masks cannot be computed from sparse ids, by Keras's layer neither."""
    options = {} if penalty is None else {"embeddings_regularizer": penalty}
    return type(layer)(9, 3, weights=layer.get_weights(), **options)


def test_whole_reads_see_true_weights(lazy, float64):
    plan = lazy.plan(5)
    expected = lazy.oracle(plan, "sgd", [0.25] * 5, 0.01, 0.1)
    for read in (
        lambda table: table.numpy(),
        lambda table: np.asarray(table),
        lambda table: keras.ops.convert_to_numpy(table),
        lambda table: tf.convert_to_tensor(table).numpy(),
        lambda table: (table + 0.0).numpy(),
        lambda table: table[:].numpy(),
        lambda table: table.value.numpy(),
        lambda table: tf.function(lambda: tf.identity(tf.convert_to_tensor(table)))().numpy(),
    ):
        layer = plan.layer(fastreg.L1L2(0.01, 0.1))
        optimizer = lazy.optimizer("sgd")
        for step in range(5):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(tf.constant(plan.ids[step])) * plan.gradients[step]) + sum(layer.losses)
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
        assert lazy.error(layer.embeddings._value.stored(), expected) > 1e-6  # stored, not true
        before = layer(tf.range(23)).numpy()
        assert lazy.error(before, expected) < 1e-12
        assert lazy.error(read(layer.embeddings), expected) < 1e-12
        np.testing.assert_array_equal(layer(tf.range(23)), before)


def test_what_is_shown_is_true(lazy):
    layer, optimizer = lazy.plan(1).layer(fastreg.L2(0.25), "float32"), fastreg.LazyRegularization("sgd")
    optimizer.build(layer.trainable_weights)
    layer.embeddings.assign(tf.fill((23, 5), 0.5))
    optimizer.learning_rate = 1.0
    optimizer.apply([lazy.gradient(layer)], layer.trainable_weights)
    assert "0.25" in repr(layer.embeddings)
    assert "0.5 " not in repr(layer.embeddings)


def test_changing_the_factors_between_fits(lazy, float64):
    """Exact through all changes, each of which takes a new trace, as with Keras's regularizers."""
    plan = lazy.plan(40)
    layer, optimizer = plan.layer(fastreg.L1L2(0.0, 0.125)), lazy.optimizer("sgd")
    expected = plan.start
    for number, (l1, l2) in enumerate([(0.0, 0.125), (0.02, 0.0), (0.0, 0.0), (0.01, 0.0625), (0.0, 0.25)]):
        layer.embeddings_regularizer.l1, layer.embeddings_regularizer.l2 = l1, l2
        if number == 4:
            layer.embeddings.regularizer = fastreg.L2(l2)
        steps = range(8 * number, 8 * number + 8)
        plan.train(layer, optimizer, steps, graph=number % 2 == 0)
        expected = lazy.oracle(plan, "sgd", [0.25] * 40, l1, l2, steps, expected)
        penalty = l1 * np.abs(expected).sum() + l2 * np.square(expected).sum()
        np.testing.assert_allclose(layer.penalty(), penalty, rtol=1e-11)
        np.testing.assert_allclose(layer.losses, [penalty], rtol=1e-11)
    assert lazy.error(layer.embeddings.numpy(), expected) < 1e-12


def test_setting_the_regularizer(lazy, float64):
    """On the layer or on its table, built or not: what is trained is what the configuration says."""
    plan = lazy.plan(24)
    layer, optimizer, expected = plan.layer(fastreg.L1(0.5)), lazy.optimizer("adagrad"), plan.start
    state = {}
    for number, (penalty, l1, l2) in enumerate(
        [
            (keras.regularizers.L2(0.125), 0.0, 0.125),
            ("l1", 0.01, 0.0),
            (None, 0.0, 0.0),
            (fastreg.L1L2(0.02, 0.25), 0.02, 0.25),
        ]
    ):
        for owner, name in ((layer, "embeddings_regularizer"), (layer.embeddings, "regularizer")):
            setattr(owner, name, penalty)
            config = layer.get_config()["embeddings_regularizer"]["config"]
            assert config == pytest.approx({k: v for k, v in (("l1", l1), ("l2", l2)) if k in config})
            assert layer.embeddings.regularizer.get_config() == config
        steps = range(6 * number, 6 * number + 6)
        plan.train(layer, optimizer, steps)
        expected = lazy.oracle(plan, "adagrad", [0.25] * 24, l1, l2, steps, expected, state=state)
        assert lazy.error(layer.embeddings.numpy(), expected) < 1e-7
        value = l1 * np.abs(expected).sum() + l2 * np.square(expected).sum()
        np.testing.assert_allclose(layer.losses, [value], rtol=1e-7)
    assert isinstance(layer.embeddings_regularizer, fastreg.L1L2)


def test_setting_the_regularizer_before_the_layer_is_built():
    layer = fastreg.Embedding(5, 3)
    layer.embeddings_regularizer = "l2"
    assert layer.supports_jit
    layer.build()
    assert isinstance(layer.embeddings, LazyTable)
    other = fastreg.Embedding(5, 3, embeddings_regularizer="l2")
    other.embeddings_regularizer = None
    other.build()
    assert not isinstance(other.embeddings, LazyTable)
    assert other.embeddings_regularizer is other.get_config()["embeddings_regularizer"] is None
    with pytest.raises(ValueError, match=r"attribute embeddings_regularizer.*was built without.*weights="):
        other.embeddings_regularizer = fastreg.L2()
    constrained = fastreg.Embedding(5, 3, embeddings_constraint="non_neg")
    constrained.embeddings_regularizer = "l2"
    with pytest.raises(ValueError, match="argument embeddings_constraint: expected None"):
        constrained.build()


def test_weights_are_interchangeable_with_keras_s_layer(lazy):
    x, y = lazy.data()
    ours = lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd"))
    theirs = lazy.compiled(None, "sgd", keras.layers.Embedding)
    assert [w.path.split("/")[-1] for w in ours.weights] == [w.path.split("/")[-1] for w in theirs.weights]
    fit(ours, x, y)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(theirs.predict(x, verbose=0), ours.predict(x, verbose=0), rtol=1e-6)
    theirs.set_weights([w + 1 for w in theirs.get_weights()])
    ours.set_weights(theirs.get_weights())
    np.testing.assert_allclose(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), rtol=1e-6)
    assert ours.count_params() == theirs.count_params()


def test_the_config_round_trips():
    layer = fastreg.Embedding(9, 3, embeddings_regularizer="l2", mask_zero=True, penalty_every=7, name="table")
    assert isinstance(layer.embeddings_regularizer, fastreg.L2)
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(again) is fastreg.Embedding
    assert again.get_config() == layer.get_config()
    optimizer = fastreg.LazyRegularization(keras.optimizers.Adagrad(0.5), rowwise=True, name="wrapped")
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is fastreg.LazyRegularization
    assert again.get_config() == optimizer.get_config()


def test_a_layer_without_a_regularizer_is_keras_s(lazy):
    x, y = lazy.data()
    results = []
    for embedding in (fastreg.Embedding, keras.layers.Embedding):
        model = lazy.compiled(None, keras.optimizers.SGD(0.1), embedding)
        fit(model, x, y, epochs=2)
        results.append(model.get_weights())
        assert not isinstance(model.layers[1].embeddings, LazyTable)
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    model.layers[1].enable_lora(2)
    assert float(fastreg.Embedding(3, 2, weights=np.array([[0.0, 1], [0, 0], [2, 0]])).sparsity()) == pytest.approx(
        4 / 6
    )


@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_lookup_outside_of_a_call(lazy, regularizer):
    """Some rows of the table for a use of one's own, as those of a sampled softmax are."""
    layer = fastreg.Embedding(5, 2, embeddings_regularizer=regularizer)
    layer.build(())
    table = np.array(layer.embeddings)
    ids = tf.ragged.constant([[1, 2], [4]])
    np.testing.assert_array_equal(layer.lookup(ids).flat_values, table[[1, 2, 4]])
    np.testing.assert_array_equal(layer.lookup(tf.sparse.from_dense([[0, 3]])), table[[[0, 3]]])
    for ids in ([[1, 3], [3, 0]], np.array(2, np.uint8), tf.zeros((0, 3), tf.int64)):
        with tf.GradientTape() as tape:
            rows = layer.lookup(ids)
        np.testing.assert_array_equal(rows, table[np.asarray(ids, np.int64)])
        gradient = tape.gradient(rows, layer.embeddings.value)
        assert isinstance(gradient, tf.IndexedSlices)
        assert len(gradient.indices) == np.size(ids)


def test_a_sampled_softmax_reads_only_its_rows(lazy, cpu_reads):
    layer = fastreg.Embedding(1000, 4, embeddings_regularizer=fastreg.L2(0.1))
    layer.build(())
    optimizer, before = fastreg.LazyRegularization(keras.optimizers.SGD(0.5)), np.array(layer.embeddings, np.float64)
    labels = tf.constant([3, 5])

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer.lookup(labels) * layer.lookup([7, 3])) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    with cpu_reads(layer) as reads:
        step()
    assert not reads
    expected = 0.9 * before
    for one, other in ((3, 7), (5, 3), (7, 3), (3, 5)):
        expected[one] -= 0.5 * before[other]
    np.testing.assert_allclose(layer.embeddings, expected, rtol=1e-6)


@pytest.mark.parametrize("l2", [0.0, 0.1])
@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad"])
def test_strengths_of_decoupled_penalties_are_explained_once(lazy, name, l2):
    rules.explained.clear()
    for expected in (name != "sgd" and l2 != 0.0, False):
        layer = fastreg.Embedding(5, 2, embeddings_regularizer=fastreg.L2(l2))
        layer.build(())
        optimizer = fastreg.LazyRegularization(name)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer.lookup([1])) + sum(layer.losses)
        gradients = tape.gradient(loss, layer.trainable_weights)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            optimizer.apply(gradients, layer.trainable_weights)
        assert ["the same l1 and l2 regularise less" in str(warning.message) for warning in warned] == [True] * expected
