"""Penalties of the rows that a batch looks up, against TensorFlow's ops: `tf.unique`, `tf.gather`, `reduce_sum`."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops.handle_data_util import get_resource_handle_data

import fastreg
from fastreg import _scopes
from fastreg._tables.table import LazyTable

ROWS, WIDTH, FIELDS = 10_007, 3, 4  # numbers that nothing else in a graph has

PENALTIES = {
    "l1": (fastreg.L1(0.02), 0.02, 0.0),
    "l2": (fastreg.L2(0.25), 0.0, 0.25),
    "l1_l2": (fastreg.L1L2(0.02, 0.25), 0.02, 0.25),
}
MODES = {"eager": None, "graph": False, "xla": True}

IDS = np.array([[3, 3, 7, 10_006], [0, 3, 7, 5]], "int32")

each_scope = pytest.mark.parametrize("scope", ["batch", "occurrences"])


@pytest.fixture(autouse=True)
def restored_floatx():
    yield
    keras.config.set_floatx("float32")


def formula(table, ids, l1, l2, scope):
    ids = tf.reshape(ids, [-1])
    rows = tf.gather(table, tf.unique(ids).y if scope == "batch" else ids)
    return l1 * tf.reduce_sum(tf.abs(rows)) + l2 * tf.reduce_sum(tf.square(rows))


class Formula(keras.layers.Embedding):
    """The same in TensorFlow's ops, with a dense gradient: Keras's Adam and Adagrad square slices one by one."""

    def __init__(self, *arguments, penalty, scope, **options):
        super().__init__(*arguments, **options)
        self.penalty, self.scope = penalty, scope

    def call(self, ids):
        table = 1.0 * self._embeddings._value
        self.add_loss(formula(table, ids, *self.penalty, self.scope))
        return tf.cast(tf.gather(table, ids), self.compute_dtype)


def built(scope, penalty="l1_l2", rows=ROWS, **options):
    layer = fastreg.Embedding(rows, WIDTH, embeddings_regularizer=PENALTIES[penalty][0], scope=scope, **options)
    layer.build()
    return layer


def weights(layer):
    return layer.embeddings.numpy().astype("float64")


def value_of(layer, ids, l1=0.02, l2=0.25):
    """In float64, whatever the layer's dtype is."""
    return formula(weights(layer), ids, l1, l2, layer.scope)


def called(layer, ids, mode):
    """Rows, penalty, and the penalty's gradient with respect to the table."""

    def run(ids):
        with tf.GradientTape() as tape:
            rows = layer(ids)
            (penalty,) = layer.losses
        gradient = tape.gradient(penalty, layer.embeddings.value)
        assert isinstance(gradient, tf.IndexedSlices)
        return rows, penalty, gradient.values, gradient.indices

    if MODES[mode] is not None:
        run = tf.function(run, jit_compile=MODES[mode])
    rows, penalty, values, indices = run(tf.constant(ids))
    dense = np.zeros(layer.embeddings.shape, "float64")
    np.add.at(dense, np.asarray(indices), np.asarray(values, "float64"))
    return rows, penalty, dense


def assert_few_ulp(actual, expected, dtype="float32"):
    expected = np.asarray(expected, "float64")
    np.testing.assert_allclose(np.asarray(actual, "float64"), expected, rtol=4 * np.finfo(dtype).eps, atol=0)


@each_scope
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("mode", MODES)
def test_value_and_gradient(scope, penalty, mode):
    layer, (_, l1, l2) = built(scope, penalty), PENALTIES[penalty]
    rows, value, gradient = called(layer, IDS, mode)
    np.testing.assert_array_equal(rows, weights(layer)[IDS].astype("float32"))
    assert_few_ulp(value, value_of(layer, IDS, l1, l2))
    counts = np.bincount(IDS.ravel(), minlength=ROWS)[:, None]
    if scope == "batch":
        counts = np.minimum(counts, 1)
    w = weights(layer)
    assert_few_ulp(gradient, counts * (l1 * np.sign(w) + 2 * l2 * w))


@each_scope
@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_the_rows_are_penalised_in_the_dtype_of_the_variable(scope, mode, policy):
    layer = built(scope, dtype=policy)
    rows, value, _ = called(layer, IDS, mode)
    assert rows.dtype == layer.compute_dtype
    assert value.dtype == layer.variable_dtype == layer.embeddings.dtype
    assert_few_ulp(value, value_of(layer, IDS), layer.variable_dtype)


@each_scope
def test_inputs_of_every_kind(scope):
    layer = built(scope, rows=9)
    plain = keras.layers.Embedding(9, WIDTH, weights=layer.get_weights())
    dense = np.array([[0, 2, 8], [1, 0, 2]])
    ragged = tf.ragged.constant([[1, 2, 2], [], [8]], dtype=tf.int64)
    kinds = [dense.astype(dtype) for dtype in ("uint8", "float32", "int32", "int64")]
    for ids in (*kinds, dense[:, :, None], dense[0], dense[0, 0], dense[:0], dense[:, :0]):
        np.testing.assert_array_equal(layer(ids), plain(ids))
        assert_few_ulp(layer.losses[0], value_of(layer, ids.astype("int64")))
    assert layer(ragged).to_list() == plain(ragged).to_list()
    assert_few_ulp(layer.losses[0], value_of(layer, ragged.flat_values))
    np.testing.assert_array_equal(layer(tf.sparse.from_dense(dense)), plain(dense))
    assert_few_ulp(layer.losses[0], value_of(layer, dense))  # what is missing is looked up as id 0
    assert layer(keras.Input((5,), dtype="int32")).shape == (None, 5, WIDTH)


@each_scope
@pytest.mark.parametrize("mode", MODES)
def test_no_ids_have_no_penalty(scope, mode):
    rows, value, gradient = called(built(scope), IDS[:0], mode)
    assert rows.shape == (0, FIELDS, WIDTH)
    assert float(value) == 0.0
    assert not gradient.any()


@each_scope
def test_the_shape_is_known_as_far_as_that_of_the_ids(scope):
    layer = built(scope)
    function = tf.function(lambda ids: layer(ids))
    for shape, expected in (((None, 4), [None, 4, WIDTH]), ((2, None), [2, None, WIDTH])):
        traced = function.get_concrete_function(tf.TensorSpec(shape, tf.int32))
        assert traced.output_shapes.as_list() == expected


@each_scope
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("wrong", [-1, ROWS])
def test_ids_that_are_no_row_are_an_error(scope, graph, wrong):
    layer = built(scope)
    call = tf.function(lambda ids: layer(ids)) if graph else layer
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"{wrong} is not in \[0, {ROWS}\)"):
        call(tf.constant([[1, wrong, 1]]))


@pytest.mark.parametrize("jit", [False, True])
def test_first_occurrences(jit):
    generator = np.random.default_rng(0)
    find = tf.function(_scopes.first_occurrences, jit_compile=jit)
    for ids in (
        generator.zipf(1.2, 3000) % 10_000_000,
        np.arange(20, dtype="int64") % 7 << 32,  # which no hash of 32 bits tells apart
        np.array([-1, 5, -1, 2**31 - 1, -(2**31), 5], "int32"),
        np.zeros(0, "int32"),
    ):
        _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
        np.testing.assert_array_equal(find(tf.constant(ids)), first[inverse])


# Training


def model_of(*layers):
    """A regression from the ids that each of these layers is called with."""
    inputs = [keras.Input((FIELDS,), dtype="int32") for _ in layers]
    rows = [keras.layers.Flatten()(layer(ids)) for layer, ids in zip(layers, inputs, strict=True)]
    joined = keras.layers.Concatenate()(rows) if len(rows) > 1 else rows[0]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], keras.layers.Dense(1)(joined))


def data(rows=60, n=24, inputs=1):
    generator = np.random.default_rng(5)
    x = [((generator.zipf(1.4, (n, FIELDS)) - 1) % rows).astype("int32") for _ in range(inputs)]
    return x if inputs > 1 else x[0], generator.normal(size=(n, 1)).astype(keras.config.floatx())


def trained(make, optimizer, **options):
    """Losses of two epochs, the loss afterwards, and the weights."""
    keras.utils.set_random_seed(11)
    model = model_of(make())
    model.compile(keras.optimizers.get(optimizer), "mse", **options)
    x, y = data()
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
    return [*history, model.evaluate(x, y, batch_size=8, verbose=0)], model.get_weights()


def ours(scope):
    return fastreg.Embedding(60, WIDTH, embeddings_regularizer=fastreg.L1L2(0.002, 0.02), scope=scope)


@functools.cache
def expected_of(scope, optimizer, policy):
    assert keras.config.dtype_policy().name == policy
    return trained(lambda: Formula(60, WIDTH, penalty=(0.002, 0.02), scope=scope), optimizer)


CASES = {
    "sgd": {},
    "adam": {"optimizer": "adam"},
    "adagrad": {"optimizer": "adagrad"},
    "eager": {"run_eagerly": True},
    "xla": {"jit_compile": True, "optimizer": "adam"},
    "mixed_float16": {"policy": "mixed_float16"},
    "mixed_bfloat16": {"policy": "mixed_bfloat16"},
    "float64": {"policy": "float64"},
}


@each_scope
@pytest.mark.parametrize("name", CASES)
def test_training(scope, name, assert_same_weights):
    options = dict(CASES[name])
    policy = options.pop("policy", "float32")
    keras.config.set_floatx("float64" if policy == "float64" else "float32")
    keras.config.set_dtype_policy(policy)
    optimizer = options.pop("optimizer", "sgd")
    losses, found = trained(lambda: ours(scope), optimizer, **options)
    expected_losses, expected = expected_of(scope, optimizer, policy)
    tolerance = 1e-12 if policy == "float64" else 2e-6
    # Where outputs are of few bits, one that is rounded the other way moves what follows.
    tolerance = {"mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}.get(policy, tolerance)
    np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)
    assert_same_weights(found, expected, tolerance)


@each_scope
def test_the_loss_contains_the_penalty_in_training_and_evaluation(scope):
    keras.utils.set_random_seed(11)
    model, (x, y) = model_of(layer := ours(scope)), data(n=8)
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=["mse"])
    penalty = value_of(layer, x, 0.002, 0.02)
    error = np.square(model.predict(x, verbose=0) - y).mean()
    for report in (model.evaluate(x, y, verbose=0), model.train_on_batch(x, y)):
        np.testing.assert_allclose(report, [error + penalty, error], rtol=1e-6)


@each_scope
def test_each_call_of_a_shared_layer_adds_its_penalty(scope):
    layer = ours(scope)
    model, (x, y) = model_of(layer, layer), data(n=8, inputs=2)
    model.compile("sgd", "mse", metrics=["mse"])
    model([tf.constant(ids) for ids in x])
    expected = [float(value_of(layer, ids, 0.002, 0.02)) for ids in x]
    np.testing.assert_allclose(sorted(map(float, model.losses)), sorted(expected), rtol=1e-6)  # in some order
    loss, error = model.evaluate(x, y, verbose=0)
    assert loss - error == pytest.approx(sum(expected), rel=1e-5)
    model(x)  # anew, not in addition
    assert len(model.losses) == 2


@each_scope
def test_a_penalty_weighted_by_a_variable(scope):
    strength = keras.Variable(0.5)
    layer = fastreg.Embedding(9, WIDTH, embeddings_regularizer=fastreg.L2(strength), scope=scope)
    for value in (0.5, 0.25):
        strength.assign(value)
        layer(IDS % 9)
        assert_few_ulp(layer.losses[0], value_of(layer, IDS % 9, 0.0, value))


def test_occurrences_are_weights_by_frequency():
    layer = built("occurrences", "l2")
    layer(IDS)
    rows, counts = np.unique(IDS, return_counts=True)
    assert_few_ulp(layer.losses[0], 0.25 * np.sum(counts * np.square(weights(layer)[rows]).sum(axis=1)))


def test_tables_of_all_scopes_train_under_one_wrapper(assert_same_weights):
    """With SGD and L2, a lazily regularised table has the weights of Keras's own training."""
    results = []
    for kinds, wrap in (
        (
            [
                lambda scope=scope: fastreg.Embedding(60, WIDTH, embeddings_regularizer=fastreg.L2(0.02), scope=scope)
                for scope in ("table", "batch", "occurrences")
            ],
            fastreg.LazyRegularization,
        ),
        (
            [
                lambda: keras.layers.Embedding(60, WIDTH, embeddings_regularizer=keras.regularizers.L2(0.02)),
                lambda: Formula(60, WIDTH, penalty=(0.0, 0.02), scope="batch"),
                lambda: Formula(60, WIDTH, penalty=(0.0, 0.02), scope="occurrences"),
            ],
            lambda optimizer: optimizer,
        ),
    ):
        keras.utils.set_random_seed(3)
        model = model_of(*(kind() for kind in kinds))
        model.compile(wrap(keras.optimizers.SGD(0.1)), "mse")
        x, y = data(inputs=3)
        history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0).history["loss"]
        results.append((history, model.get_weights()))
    (losses, found), (expected_losses, expected) = results
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_same_weights(found, expected)


# What is computed


def table_operations(function):
    """Operations that have the table, or a tensor with a row for each of its rows."""
    found = set()
    for operation in function.graph.get_operations():
        assert "PartitionedCall" not in operation.type  # in which there could be more
        tensors = [*operation.inputs, *operation.outputs]
        table_sized = any(ROWS in (t.shape.as_list() if t.shape.rank is not None else []) for t in tensors)
        resources = [t for t in operation.inputs if t.dtype == tf.resource and of_the_table(t)]
        if table_sized or resources:
            found.add(operation.type)
    return found


def of_the_table(resource):
    return any(d.size == ROWS for each in get_resource_handle_data(resource).shape_and_type for d in each.shape.dim)


def train_step(layer, jit):
    model = model_of(layer)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    step = tf.function(lambda x, y: model.train_step((x, y)), jit_compile=jit)
    specs = tf.TensorSpec((None, FIELDS), tf.int32), tf.TensorSpec((None, 1), tf.float32)
    return step.get_concrete_function(*specs)


@each_scope
@pytest.mark.parametrize("jit", [False, True])
def test_a_step_moves_rows_only(scope, jit):
    step = train_step(built(scope), jit)
    assert table_operations(step) == {"ResourceGather", "ResourceScatterSub"}
    used = [operation.type for operation in step.graph.get_operations()]
    assert used.count("ResourceGather") == 1
    assert used.count("Unique") == (not jit)


def test_the_test_can_fail():
    layer = keras.layers.Embedding(ROWS, WIDTH, embeddings_regularizer=keras.regularizers.L2(0.1))
    assert not table_operations(train_step(layer, False)) <= {"ResourceGather", "ResourceScatterSub"}


@pytest.mark.parametrize("regularizer", [None, "l2"])
def test_mixed_precision_casts_rows_only(regularizer):
    layer = fastreg.Embedding(ROWS, WIDTH, embeddings_regularizer=regularizer, scope="batch", dtype="mixed_float16")
    layer.build()
    call = tf.function(lambda ids: layer(ids)).get_concrete_function(tf.TensorSpec((None,), tf.int32))
    assert table_operations(call) == {"ResourceGather"}


# The layer


@each_scope
def test_the_weight_has_no_penalty_of_keras_s(scope):
    layer = built(scope)
    assert layer.embeddings.regularizer is None
    assert not isinstance(layer.embeddings, LazyTable)
    assert layer.embeddings_regularizer is PENALTIES["l1_l2"][0]
    assert layer.losses == []
    layer.lookup(IDS)
    assert layer.losses == []
    assert layer.sparsity() == 0.0
    layer.flush()
    with pytest.raises(ValueError, match=rf"no penalty of its table.*scope='{scope}'.*layer\.losses"):
        layer.penalty()


@each_scope
def test_saved_models_train_on(scope, tmp_path):
    keras.utils.set_random_seed(11)
    model, (x, y) = model_of(ours(scope)), data()
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.layers[1].get_config() == model.layers[1].get_config()
    assert again.layers[1].scope == scope
    for each in (model, again):
        each.fit(x, y, shuffle=False, verbose=0)
    assert again.evaluate(x, y, verbose=0) == model.evaluate(x, y, verbose=0)
    for found, expected in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_exports_look_up_rows_and_nothing_else(tmp_path, operations):
    model = model_of(ours("batch"))
    model.export(tmp_path / "model", verbose=False)
    serve = tf.saved_model.load(tmp_path / "model").signatures["serving_default"]
    assert not {"Unique", "FastregForward", "Abs", "Square", "L2Loss"} & operations(serve.graph)


def test_invalid_arguments():
    with pytest.raises(ValueError, match=r"Invalid value for argument scope: expected one of .*Received: scope='rows'"):
        fastreg.Embedding(5, 2, scope="rows")
    with pytest.raises(ValueError, match=r"argument penalty_every: expected None.*scope='batch'"):
        fastreg.Embedding(5, 2, embeddings_regularizer="l2", scope="batch", penalty_every=3)
    with pytest.raises(ValueError, match=r"expected fastreg\.L1, L2 or L1L2"):
        fastreg.Embedding(5, 2, embeddings_regularizer=keras.regularizers.OrthogonalRegularizer(), scope="batch")


@each_scope
def test_the_regularizer_can_be_none_and_be_set(scope):
    layer = fastreg.Embedding(9, WIDTH, scope=scope)
    ids = IDS % 9
    layer(ids)
    assert layer.losses == []
    assert float(layer.penalty()) == 0.0
    layer.embeddings_regularizer = keras.regularizers.L2(0.5)
    layer(ids)
    assert_few_ulp(layer.losses[0], value_of(layer, ids, 0.0, 0.5))
    layer.embeddings_regularizer = None
    layer(ids)
    assert layer.losses == []


@each_scope
def test_frozen_rows_have_no_penalty(scope):
    layer = built(scope)
    layer.trainable = False
    layer(IDS)
    assert layer.losses == []


def test_constraints_hold():
    layer = fastreg.Embedding(
        60, WIDTH, embeddings_regularizer="l2", embeddings_constraint=keras.constraints.NonNeg(), scope="batch"
    )
    model = model_of(layer)
    model.compile("sgd", "mse")
    model.fit(*data(), verbose=0)
    assert weights(layer).min() == 0.0


@each_scope
def test_rows_are_penalised_as_lora_adapts_them(scope):
    layer = built(scope, rows=9)
    layer.enable_lora(2, b_initializer="ones")
    ids = IDS % 9
    with tf.GradientTape() as tape:
        rows = layer(ids)
        (penalty,) = layer.losses
    adapted = np.asarray(layer.embeddings, "float64")
    np.testing.assert_allclose(rows, adapted[ids], rtol=1e-6)
    np.testing.assert_allclose(layer.lookup(ids), adapted[ids], rtol=1e-6)
    np.testing.assert_allclose(penalty, formula(adapted, ids, 0.02, 0.25, scope), rtol=1e-6)
    of_a, of_b = tape.gradient(penalty, [weight.value for weight in layer.trainable_weights])
    assert isinstance(of_a, tf.IndexedSlices)
    assert np.abs(of_b).min() > 0
    with pytest.raises(NotImplementedError, match="both quantized and adapted"):
        layer.quantize("int8")


def test_quantized_rows_are_not_trained_and_have_no_penalty():
    layer = built("batch", rows=9)
    before = layer(IDS % 9)
    layer.quantize("int8")
    np.testing.assert_allclose(layer(IDS % 9), before, atol=1e-3)
    assert layer.losses == []
    with pytest.raises(NotImplementedError, match="both quantized and adapted"):
        layer.enable_lora(2)


# Models


def test_inspection():
    layers = [built("batch"), built("occurrences"), built("table"), fastreg.Embedding(9, WIDTH, scope="batch")]
    rows = fastreg.inspect(model_of(*layers))
    assert [(row.path, row.kind, row.size) for row in rows] == [
        (layers[2].embeddings.path, "weight", ROWS * WIDTH),
        (layers[0].embeddings.path, "rows", None),
        (layers[1].embeddings.path, "rows", None),
    ]
    assert [row.regularizer for row in rows] == [PENALTIES["l1_l2"][0]] * 3
    assert "looks up, each once" in rows[1].reason
    assert "looks up, as often as they occur" in rows[2].reason
    assert {row.bridge for row in rows[1:]} == {"native"}


def test_accelerate_leaves_it_alone():
    model = model_of(layer := ours("batch"))
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="Nothing became lazy"):
        fastreg.accelerate(model, lazy=True)
    assert type(model.optimizer) is keras.optimizers.SGD
    assert layer.scope == "batch"
    plain = keras.layers.Embedding(60, WIDTH, embeddings_regularizer=keras.regularizers.L2(0.1))
    model = model_of(layer, plain)
    model.compile("sgd", "mse")
    fastreg.accelerate(model, lazy=True)
    assert isinstance(plain.embeddings, LazyTable)
    assert plain.get_config()["scope"] == "table"
    assert not isinstance(layer.embeddings, LazyTable)
    model.fit(*data(inputs=2), verbose=0)


@each_scope
def test_copies_of_keras_s_classes_say_what_they_have_not(scope):
    model, (x, y) = model_of(ours(scope)), data()
    model.compile("adam", "mse")
    model.fit(x, y, verbose=0)
    with pytest.warns(UserWarning, match=rf"no penalty of the rows that a batch looks up.*scope='{scope}'"):
        copy = fastreg.to_keras(model)
    assert type(copy.layers[1]) is keras.layers.Embedding
    assert copy.layers[1].embeddings_regularizer is copy.layers[1].embeddings.regularizer is None
    assert "scope" not in copy.layers[1].get_config()
    np.testing.assert_array_equal(copy.predict(x, verbose=0), model.predict(x, verbose=0))
    copy.fit(x, y, verbose=0)
