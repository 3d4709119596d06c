"""Pooled lookups against NumPy in float64 and `keras_rs.layers.EmbedReduce`, in every kind of input and of training."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg.optimizers import LazyRegularization

COMBINERS = ("mean", "sum", "sqrtn")
KINDS = ("dense", "ragged", "sparse")
ROWS, WIDTH = 19, 5
TOLERANCES = {"float64": 1e-13, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}


@pytest.fixture(autouse=True)
def usual_floatx():
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def bags(kind, weighted, seed=0, dtype="float32"):
    """Bags of ids: what a layer takes, and lists of ids and weights. Ragged and sparse ones may be empty."""
    generator = np.random.default_rng(seed)
    lengths = [4] * 6 if kind == "dense" else [3, 0, 1, 7, 0, 2]
    ids = [generator.integers(0, ROWS, length) for length in lengths]
    weights = [generator.uniform(0.5, 2.0, length) if weighted else np.ones(length) for length in lengths]

    def made(parts, of):
        if kind == "dense":
            return tf.constant(np.stack(parts), of)
        ragged = tf.RaggedTensor.from_row_lengths(tf.constant(np.concatenate(parts), of), lengths)
        return ragged.to_sparse() if kind == "sparse" else ragged

    return made(ids, tf.int32), made(weights, dtype) if weighted else None, ids, weights


def reduced(table, ids, weights, combiner):
    result = np.zeros((len(ids), table.shape[1]))
    for bag, (rows, w) in enumerate(zip(ids, weights, strict=True)):
        if not len(rows):
            continue
        divisor = {"sum": 1.0, "mean": w.sum(), "sqrtn": np.sqrt(np.square(w).sum())}[combiner]
        result[bag] = (w[:, None] * table[rows]).sum(axis=0) / divisor
    return result


@pytest.mark.parametrize("penalty", [None, fastreg.L2(0.125)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_values_and_gradients(dtype, combiner, kind, weighted, penalty):
    layer = fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=penalty, combiner=combiner, dtype=dtype)
    inputs, weights, ids, w = bags(kind, weighted, dtype=dtype)
    layer.build(None)
    table = layer.embeddings.numpy().astype(np.float64)
    with tf.GradientTape() as tape:
        out = layer(inputs, weights)
        loss = tf.reduce_sum(tf.cast(out, tf.float64) ** 2)
    gradient = tf.convert_to_tensor(tape.gradient(loss, layer.embeddings._value))
    expected = reduced(table, ids, w, combiner)
    assert out.dtype == dtype
    assert out.shape == (6, WIDTH)
    np.testing.assert_allclose(tf.cast(out, tf.float64), expected, rtol=0, atol=TOLERANCES[dtype])
    of_rows = np.zeros_like(table)
    step = 1e-6
    for row in np.unique(np.concatenate(ids)):
        moved = [table + sign * step * (np.arange(ROWS) == row)[:, None] for sign in (1, -1)]
        values = [np.square(reduced(each, ids, w, combiner)) for each in moved]
        of_rows[row] = (values[0] - values[1]).sum(axis=0) / (2 * step)
    np.testing.assert_allclose(tf.cast(gradient, tf.float64), of_rows, rtol=0, atol=max(1e-8, 8 * TOLERANCES[dtype]))


@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_weights(kind, combiner):
    keras.config.set_floatx("float64")
    layer = fastreg.EmbedReduce(ROWS, WIDTH, combiner=combiner, dtype="float64")
    inputs, weights, ids, w = bags(kind, True, dtype="float64")
    flat = {"dense": lambda: weights, "ragged": lambda: weights.flat_values, "sparse": lambda: weights.values}[kind]()
    with tf.GradientTape() as tape:
        tape.watch(flat)
        again = {
            "dense": lambda: flat,
            "ragged": lambda: weights.with_flat_values(flat),
            "sparse": lambda: tf.SparseTensor(weights.indices, flat, weights.dense_shape),
        }[kind]()
        loss = tf.reduce_sum(layer(inputs, again) ** 2)
    found = tf.reshape(tape.gradient(loss, flat), [-1]).numpy()
    table, number = layer.embeddings.numpy(), 0
    for bag in range(len(ids)):
        for place in range(len(ids[bag])):
            values = []
            for sign in (1, -1):
                moved = [each.copy() for each in w]
                moved[bag][place] += sign * 1e-6
                values.append(np.square(reduced(table, ids, moved, combiner)).sum())
            np.testing.assert_allclose(found[number], (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-7)
            number += 1


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("combiner", COMBINERS)
@pytest.mark.parametrize("kind", [*KINDS, "one dimension"])
def test_what_keras_rs_does(kind, combiner, weighted):
    layers = pytest.importorskip("keras_rs", reason="keras-rs is not installed").layers
    if kind == "one dimension":
        inputs = tf.constant([3, 0, 3])
        weights = tf.constant([0.5, 2.0, 0.0]) if weighted else None
    else:
        inputs, weights, _, _ = bags(kind, weighted)
    ours = fastreg.EmbedReduce(ROWS, WIDTH, combiner=combiner)
    theirs = layers.EmbedReduce(ROWS, WIDTH, combiner=combiner)
    for layer in (ours, theirs):
        layer.build(None)
    theirs.set_weights(ours.get_weights())
    arguments = (inputs,) if weights is None else (inputs, weights)
    found, expected = ours(*arguments), theirs(*arguments)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert ours.compute_output_shape(inputs.shape) == theirs.compute_output_shape(inputs.shape)
    assert ours.get_config().keys() >= theirs.get_config().keys()


def model_of(layer, kind="dense"):
    ids = keras.Input((None,), dtype="int32", ragged=kind == "ragged", sparse=kind == "sparse")
    return keras.Model(ids, keras.layers.Dense(1)(layer(ids)))


MODES = [
    *((mode, scope) for mode in ("graph", "eager", "xla") for scope in ("table", "batch", "occurrences")),
    *((mode, "table") for mode in ("clipped", "scaled", "called twice", "mixed_bfloat16")),
]


@pytest.mark.parametrize(("mode", "scope"), MODES)
def test_training_against_the_plain_layer(mode, scope):
    """An embedding whose rows are reduced by Keras's ops, of the same regularisation."""
    if mode == "mixed_bfloat16":
        keras.config.set_dtype_policy(mode)
    generator = np.random.default_rng(2)
    x, y = generator.integers(0, ROWS - 1, (48, 6)), generator.normal(size=(48, 1)).astype("float32")
    found = []
    for reduces in (True, False):
        keras.utils.set_random_seed(3)
        cls = fastreg.EmbedReduce if reduces else fastreg.Embedding
        layer = cls(ROWS, WIDTH, embeddings_regularizer=fastreg.L1L2(1e-3, 0.01), scope=scope)
        ids = keras.Input((6,), dtype="int32")
        mean = layer if reduces else lambda ids, layer=layer: keras.layers.GlobalAveragePooling1D()(layer(ids))
        pooled = mean(ids) + mean(ids + 1) if mode == "called twice" else mean(ids)
        model = keras.Model(ids, keras.layers.Dense(1)(pooled))
        inner = keras.optimizers.Adagrad(0.1, global_clipnorm=0.1 if mode == "clipped" else None)
        inner = keras.optimizers.LossScaleOptimizer(inner) if mode == "scaled" else inner
        optimizer = LazyRegularization(inner) if scope == "table" else "sgd"
        model.compile(optimizer, "mse", run_eagerly=mode == "eager", jit_compile=mode == "xla")
        losses = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
        found.append([*model.get_weights(), np.array(losses), np.array(model.evaluate(x, y, verbose=0))])
    for ours, theirs in zip(*found, strict=True):
        tolerance = 0.02 if mode == "mixed_bfloat16" else 3e-6
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_rows_of_bags_are_nowhere_in_a_step():
    """The lookup gives one row for each bag, and the update takes one for each."""
    layer = fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=fastreg.L2(0.01), combiner="sqrtn")
    model, optimizer = model_of(layer), LazyRegularization("sgd")

    @tf.function
    def step(x, weights):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, weights)) + sum(model.losses)
        optimizer.apply(tape.gradient(loss, [layer.embeddings]), [layer.embeddings])

    graph = step.get_concrete_function(tf.TensorSpec((7, 3), tf.int32), tf.TensorSpec((7, 3))).graph
    ops = {op.type: op for op in graph.get_operations()}
    assert "FastregLookup" not in ops
    update = ops["FastregUpdate"]
    gradient = dict(zip((arg.name for arg in update.op_def.input_arg), update.inputs, strict=True))["gradient"]
    assert gradient.shape == ops["FastregSumBags"].outputs[0].shape == (7, WIDTH)
    assert all("Repeat" not in source.op.type for source in gradient.op.inputs)


def test_splits_that_are_none():
    """As of a ragged tensor that was not validated."""
    layer = fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=fastreg.L2(0.01))
    for splits in ([0, 3, 1, 2], [1, 2], [0, 5]):
        ids = tf.RaggedTensor.from_row_splits(tf.constant([1, 2]), tf.constant(splits, tf.int64), validate=False)
        with pytest.raises(tf.errors.InvalidArgumentError, match="Invalid splits of bags"):
            layer(ids)


@pytest.mark.parametrize("kind", ["ragged", "sparse"])
def test_fit_on_ragged_and_sparse_bags(kind):
    inputs, _, _, _ = bags(kind, False)
    layer = fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=fastreg.L2(0.01), combiner="sum")
    model = model_of(layer, kind)
    model.compile(LazyRegularization("sgd"), "mse")
    before = layer.embeddings.numpy() if layer.built else None
    data = tf.data.Dataset.from_tensors((inputs, tf.ones((6, 1)))).repeat(3)
    model.fit(data, verbose=0)
    assert before is None or np.abs(layer.embeddings.numpy() - before).max() > 0
    assert np.isfinite(layer.embeddings.numpy()).all()


def test_what_a_sparse_tensor_leaves_out_is_no_row():
    """Densified, it would be id 0."""
    layer = fastreg.EmbedReduce(
        ROWS, WIDTH, embeddings_regularizer=fastreg.L2(1.0), combiner="sum", scope="occurrences"
    )
    layer(tf.sparse.from_dense([[0, 3, 0], [0, 0, 5]]))
    table = layer.embeddings.numpy()
    np.testing.assert_allclose(layer.losses[0], np.square(table[[3, 5]]).sum(), rtol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    layer = fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=fastreg.L2(0.01), dtype=policy)
    out = layer(tf.constant([[1, 2, 2]]))
    assert out.dtype == policy.removeprefix("mixed_")
    rows = layer.embeddings.numpy()[[1, 2, 2]].mean(axis=0)
    np.testing.assert_allclose(tf.cast(out[0], tf.float32), rows, atol=1e-3)


def test_bags_of_bags_and_no_bags():
    layer = fastreg.EmbedReduce(ROWS, WIDTH, combiner="sum")
    ids = np.arange(12).reshape(2, 2, 3)
    table_of = layer(ids)
    np.testing.assert_allclose(table_of, layer.embeddings.numpy()[ids].sum(axis=2), rtol=1e-6)
    assert layer(np.zeros((0, 3), int)).shape == (0, WIDTH)
    np.testing.assert_array_equal(layer(np.zeros((2, 0), int)), np.zeros((2, WIDTH)))
    sparse = layer(tf.sparse.from_dense(ids))
    np.testing.assert_allclose(
        sparse, np.where(ids[..., None], layer.embeddings.numpy()[ids], 0).sum(axis=2), rtol=1e-6
    )


def test_saving(tmp_path):
    model = model_of(fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=fastreg.L2(0.01), combiner="sqrtn"))
    model.compile(LazyRegularization("sgd"), "mse")
    x = np.arange(12).reshape(4, 3)
    model.fit(x, np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].combiner == "sqrtn"
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    again = exported.serve(tf.constant(x, tf.int32))
    np.testing.assert_allclose(again, model.predict(x, verbose=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        ([[1, 2]], [[1.0]], "shape of the inputs"),
        ([[1, 2]], [1.0], "shape of the inputs"),
        ([1, 2], [[1.0], [2.0]], "shape of the inputs"),
        ([[1, 2]], tf.ragged.constant([[1.0, 2.0]]), "kind of the inputs"),
        (tf.ragged.constant([[1, 2]]), tf.constant([[1.0, 2.0]]), "kind of the inputs"),
        (tf.sparse.from_dense([[1, 2]]), tf.constant([[1.0, 2.0]]), "kind of the inputs"),
        (tf.ragged.constant([[[1, 2]]]), None, "two dimensions"),
        (tf.ragged.constant([[1, 2], [3]]), tf.ragged.constant([[1.0], [2.0, 3.0]]), "at the same place"),
        (tf.ragged.constant([[1, 2], [3]]), tf.ragged.constant([[1.0], [2.0]]), "one for each id"),
    ],
)
def test_weights_that_do_not_fit(inputs, weights, message):
    layer = fastreg.EmbedReduce(ROWS, WIDTH)
    layer.build(None)
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
        layer.call(inputs, weights)


def test_an_invalid_combiner():
    with pytest.raises(ValueError, match=r"argument combiner: expected one of \('mean', 'sum', 'sqrtn'\)"):
        fastreg.EmbedReduce(ROWS, WIDTH, combiner="max")


@pytest.mark.parametrize("id_", [-1, ROWS])
def test_ids_that_are_no_rows(id_):
    layer = fastreg.EmbedReduce(ROWS, WIDTH, embeddings_regularizer=fastreg.L2(0.01))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{id_} is not in"):
        layer(tf.constant([[1, id_]]))
