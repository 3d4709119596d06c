"""Where the lazy layer meets Keras: what it shares with Keras's layer, and each trap on the way of a gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg._lazy.table import LazyTable

L2 = 2**-6


def fit(model, x, y, **options):
    return model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options})


def table_of(model):
    return next(layer for layer in model.layers if isinstance(layer, fastreg.Embedding)).embeddings


def against_keras(
    lazy, optimizer, tolerance=1e-5, penalty=(fastreg.L2, keras.regularizers.L2), fit_with=fit, **options
):
    """Train both layers the same way, and compare every weight and loss."""
    x, y = lazy.data()
    results = []
    for layer, wrap, regularizer in (
        (fastreg.Embedding, fastreg.LazyRegularization, penalty[0]),
        (keras.layers.Embedding, lambda inner: inner, penalty[1]),
    ):
        model = lazy.compiled(regularizer(L2), wrap(optimizer()), layer, **options)
        losses = [fit_with(model, x, y).history["loss"] for _ in range(2)]
        results.append((model.get_weights(), losses))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert lazy.error(ours, theirs) < tolerance
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=10 * tolerance)


def sgd(**options):
    return lambda: keras.optimizers.SGD(0.1, **options)


@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_several_steps_per_execution(lazy, steps_per_execution):
    against_keras(lazy, sgd(), steps_per_execution=steps_per_execution)


def test_a_loss_scale_factor(lazy):
    against_keras(lazy, sgd(loss_scale_factor=512.0))


def test_train_on_batch_and_evaluate_in_the_middle(lazy):
    def on_batches(model, x, y):
        logs = []
        for start in range(0, len(x), 8):
            logs.append(model.train_on_batch(x[start : start + 8], y[start : start + 8], return_dict=True)["loss"])
            if start == 24:
                logs.append(model.evaluate(x, y, verbose=0))
                model.predict(x, verbose=0)
        return keras.callbacks.History(), logs

    def wrapped(model, x, y):
        history, logs = on_batches(model, x, y)
        history.history = {"loss": logs}
        return history

    against_keras(lazy, sgd(), fit_with=wrapped)


def test_callbacks_that_change_the_rate(lazy):
    def rate(epoch):
        return 0.1 / (epoch + 1)

    def scheduled(model, x, y):
        callbacks = [keras.callbacks.LearningRateScheduler(rate), keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1)]
        return fit(model, x, y, epochs=4, callbacks=callbacks)

    against_keras(lazy, sgd(), fit_with=scheduled)


def test_a_ragged_last_batch_and_an_unknown_batch_size(lazy):
    against_keras(lazy, sgd(), fit_with=lambda model, x, y: fit(model, x, y, batch_size=11))


def test_sample_weights_of_zero_and_nan_targets(lazy):
    """A NaN gradient makes the rows NaN that the step looked up, as in Keras, and no other."""
    x, y = lazy.data()
    y[3] = np.nan
    weights = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = lazy.compiled(penalty(L2), wrap(keras.optimizers.SGD(0.1)), layer)
        model.train_on_batch(x[:8], y[:8])
        weights.append(model.get_weights()[0])
    np.testing.assert_array_equal(np.isnan(weights[0]), np.isnan(weights[1]))
    assert 0 < np.isnan(weights[0]).any(axis=1).sum() < len(weights[0])


def two_tables(lazy, embedding, penalty):
    keras.utils.set_random_seed(11)
    ids, other = keras.Input((4,), dtype="int32"), keras.Input((4,), dtype="int32")
    shared = embedding(23, 5, embeddings_regularizer=penalty(L2))
    single = embedding(23, 5, embeddings_regularizer=penalty(2 * L2))
    parts = [shared(ids), shared(other), single(other)]
    merged = keras.layers.Concatenate()([keras.layers.Flatten()(part) for part in parts])
    return keras.Model([ids, other], keras.layers.Dense(1, kernel_regularizer=penalty(L2))(merged))


@pytest.mark.parametrize("clip", [{}, {"clipvalue": 0.05}])
def test_several_and_shared_tables(lazy, clip):
    """Two calls of one layer in a step, and a second table."""
    x, y = lazy.data()
    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        model = two_tables(lazy, embedding, penalty)
        model.compile(wrap(keras.optimizers.SGD(0.1)), "mse")
        history = fit(model, [x, x[::-1].copy()], y, epochs=3)
        results.append((model.get_weights(), history.history["loss"]))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert lazy.error(ours, theirs) < 1e-5
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


@pytest.mark.parametrize("clip", [{"clipnorm": 0.3}, {"clipvalue": 0.02}, {"global_clipnorm": 0.3}])
@pytest.mark.parametrize("eager", [False, True])
def test_clipping_is_keras_s_without_a_penalty(lazy, clip, eager):
    """Duplicate ids are summed before the clip, and `global_clipnorm` is joint with the dense variables."""
    zero = (lambda factor: fastreg.L2(0.0), lambda factor: keras.regularizers.L2(0.0))
    against_keras(lazy, sgd(**clip), penalty=zero, run_eagerly=eager)


def test_the_penalty_is_outside_the_clip(lazy, float64):
    plan = lazy.plan(40)
    layer = plan.layer(fastreg.L1L2(0.01, 0.1))
    weights = plan.train(layer, lazy.optimizer("sgd", clipvalue=0.125))
    for ids, gradient in zip(plan.ids, plan.gradients, strict=True):
        dense = np.zeros_like(plan.start)
        np.add.at(dense, ids, gradient)
        dense = dense.clip(-0.125, 0.125)
        for position, row in enumerate(ids):  # the oracle sums duplicates again
            gradient[position] = dense[row] / np.count_nonzero(ids == row)
    assert lazy.error(weights, lazy.oracle(plan, "sgd", [0.25] * 40, 0.01, 0.1)) < 1e-12


def test_a_model_of_tables_only_counts_its_steps(lazy, float64):
    """Keras's optimizers ignore a step without variables, which would freeze the schedule."""
    plan = lazy.plan(6)
    layer, rates = plan.layer(fastreg.L2(0.1)), [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    optimizer = lazy.optimizer("sgd", keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.5, 0.25, 0.125]))
    weights = plan.train(layer, optimizer)
    assert int(optimizer.iterations) == 6
    assert lazy.error(weights, lazy.oracle(plan, "sgd", rates, l2=0.1)) < 1e-12


@pytest.mark.parametrize("graph", [False, True])
def test_a_step_without_a_lookup_shrinks_and_a_frozen_table_stays(lazy, float64, graph):
    used, unused, frozen = (lazy.plan(1, seed=seed).layer(fastreg.L1L2(0.01, 0.125)) for seed in range(3))
    starts = [layer.embeddings.numpy() for layer in (used, unused, frozen)]
    optimizer = lazy.optimizer("sgd", 0.5)
    frozen.trainable = False

    def step():
        variables = [*used.trainable_weights, *unused.trainable_weights, *frozen.trainable_weights]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(used(tf.constant([2, 2, 3]))) + tf.reduce_sum(frozen(tf.constant([1])))
        optimizer.apply(tape.gradient(loss, variables), variables)

    step = tf.function(step) if graph else step
    for _ in range(2):
        step()
    for layer, start, rows in ((used, starts[0], {2: 2.0, 3: 1.0}), (unused, starts[1], {})):
        expected = start
        for _ in range(2):
            expected = lazy.shrink(expected, 1 - 2 * 0.5 * 0.125, 0.5 * 0.01)
            for row, gradient in rows.items():
                expected[row] -= 0.5 * gradient
        np.testing.assert_allclose(layer.embeddings.numpy(), expected, rtol=1e-12)
    np.testing.assert_array_equal(frozen.embeddings.numpy(), starts[2])


def test_freezing_and_thawing(lazy):
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd"))
    fit(model, x, y)
    before = model.get_weights()
    model.layers[1].trainable = False
    model.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(model, x, y)
    np.testing.assert_array_equal(model.layers[1].embeddings.numpy(), before[0])
    assert len(model.losses) == 0
    model.layers[1].trainable = True
    model.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(model, x, y)
    assert (model.layers[1].embeddings.numpy() != before[0]).all()


def test_an_empty_batch(lazy, float64):
    plan = lazy.plan(3, batch=0)
    layer = plan.layer(fastreg.L2(0.125))
    assert layer(tf.zeros((0, 4), tf.int32)).shape == (0, 4, 5)
    weights = plan.train(layer, lazy.optimizer("sgd", 0.5))
    np.testing.assert_allclose(weights, plan.start * (1 - 0.125) ** 3, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", keras.optimizers.SGD(0.1, momentum=0.9)])
@pytest.mark.parametrize("eager", [False, True])
def test_a_missing_wrapper_is_an_error_at_the_first_step(lazy, optimizer, eager):
    x, y = lazy.data()
    if not isinstance(optimizer, str):
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model = lazy.compiled(fastreg.L2(L2), optimizer, run_eagerly=eager)
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="LazyRegularization"):
        fit(model, x, y)
    for weight, start in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, start)


@pytest.mark.parametrize("eager", [False, True])
def test_compiling_again_without_the_wrapper_is_an_error(lazy, eager):
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd"), run_eagerly=eager)
    fit(model, x, y)
    before = model.get_weights()
    model.compile("sgd", "mse", run_eagerly=eager)
    with pytest.raises(RuntimeError, match="LazyRegularization"):
        fit(model, x, y)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_a_wrapper_inside_another_is_an_error(lazy):
    x, y = lazy.data()
    outer = keras.optimizers.LossScaleOptimizer(fastreg.LazyRegularization("sgd"))
    model = lazy.compiled(fastreg.L2(L2), outer)
    with pytest.raises(RuntimeError, match="outermost"):
        fit(model, x, y)
    with pytest.raises(ValueError, match="wrapped already"):
        fastreg.LazyRegularization(fastreg.LazyRegularization("sgd"))


@pytest.mark.parametrize(
    ("optimizer", "rowwise", "message"),
    [
        (keras.optimizers.RMSprop, False, "SGD, Adagrad or Adam"),
        (keras.optimizers.AdamW, False, "SGD, Adagrad or Adam"),
        (lambda: keras.optimizers.SGD(momentum=0.9), False, "momentum"),
        (lambda: keras.optimizers.Adam(amsgrad=True), False, "amsgrad"),
        (lambda: keras.optimizers.SGD(weight_decay=0.1), False, "weight_decay"),
        (lambda: keras.optimizers.SGD(use_ema=True), False, "use_ema"),
        (lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), False, "gradient_accumulation_steps"),
        (keras.optimizers.SGD, True, "rowwise"),
    ],
)
def test_optimizers_without_a_row_wise_form(optimizer, rowwise, message):
    with pytest.raises(ValueError, match=message):
        fastreg.LazyRegularization(optimizer(), rowwise=rowwise)


@pytest.mark.parametrize(
    "options",
    [
        {"embeddings_constraint": "non_neg"},
        {"lora_rank": 2},
        {"embeddings_regularizer": keras.regularizers.OrthogonalRegularizer()},
        {"penalty_every": 0},
        {"penalty_every": True},
        {"penalty_every": 1.5},
    ],
)
def test_arguments_that_cannot_be_lazy(options):
    with pytest.raises(ValueError, match="Invalid value for argument"):
        fastreg.Embedding(5, 3, **{"embeddings_regularizer": fastreg.L2(), **options})


def test_lora_and_quantization_are_refused(lazy):
    layer = lazy.plan(1).layer(fastreg.L2())
    with pytest.raises(NotImplementedError, match="enable_lora"):
        layer.enable_lora(2)
    with pytest.raises(NotImplementedError, match="quantize"):
        layer.quantize("int8")


def test_xla(lazy):
    """Keras leaves XLA off, also where it is asked for; elsewhere lookups compile, and training says the way out."""
    x, y = lazy.data()
    assert not lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd")).jit_compile
    optimizer = fastreg.LazyRegularization("sgd")
    with pytest.warns(UserWarning, match="Proceeding with `jit_compile=False`"):
        model = lazy.compiled(fastreg.L2(L2), optimizer, jit_compile=True)
    fit(model, x, y)
    layer, ids = model.layers[1], tf.constant([3, 1, 3])
    compiled = tf.function(layer.__call__, jit_compile=True)(ids)
    np.testing.assert_allclose(compiled, layer(ids), rtol=1e-6)

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    with pytest.raises(NotImplementedError, match="jit_compile=False"):
        step()


@pytest.mark.parametrize("ids", [[23], [-1], [0, 1, 1000]])
@pytest.mark.parametrize("penalty", [None, fastreg.L2()])
@pytest.mark.parametrize("graph", [False, True])
def test_ids_out_of_range(lazy, ids, penalty, graph):
    layer = fastreg.Embedding(23, 5, embeddings_regularizer=penalty)
    layer.build()
    call = tf.function(layer.__call__) if graph else layer
    with pytest.raises(tf.errors.InvalidArgumentError, match="is not in"):
        call(tf.constant(ids))


def test_a_learning_rate_that_would_turn_weights_around(lazy, float64):
    plan = lazy.plan(1)
    layer = plan.layer(fastreg.L2(1.0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning_rate \\* l2"):
        plan.train(layer, lazy.optimizer("sgd", 0.5))


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


def test_mask_zero_in_a_model(lazy):
    x, y = lazy.data(fields=6)
    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
    ):
        keras.utils.set_random_seed(2)
        embedded = embedding(23, 5, mask_zero=True, embeddings_regularizer=penalty(L2))
        model = keras.Sequential(
            [keras.Input((None,), dtype="int32"), embedded, keras.layers.LSTM(4), keras.layers.Dense(1)]
        )
        model.compile(wrap(keras.optimizers.SGD(0.1)), "mse")
        fit(model, x, y, epochs=2)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


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
                loss = tf.reduce_sum(layer(tf.constant(plan.ids[step])) * plan.gradients[step])
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
        assert lazy.error(layer.embeddings._value.numpy(), expected) > 1e-6  # stored, not true
        before = layer(tf.range(23)).numpy()
        assert lazy.error(before, expected) < 1e-12
        assert lazy.error(read(layer.embeddings), expected) < 1e-12
        np.testing.assert_array_equal(layer(tf.range(23)), before)


def test_a_step_that_reads_the_whole_table_is_refused(lazy):
    """Tied weights would train every row at every step."""
    layer = lazy.plan(1).layer(fastreg.L2(), dtype="float32")
    optimizer = fastreg.LazyRegularization("sgd")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([1]))) + tf.reduce_sum(tf.square(tf.convert_to_tensor(layer.embeddings)))
    with pytest.raises(ValueError, match="dense gradient"):
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)


def test_an_unknown_table(lazy):
    first, second = (lazy.plan(1).layer(fastreg.L2(), dtype="float32") for _ in range(2))
    optimizer = fastreg.LazyRegularization("adagrad")
    optimizer.build(first.trainable_weights)
    with pytest.raises(ValueError, match="Unknown table"):
        optimizer.apply([None], second.trainable_weights)


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
    with pytest.raises(ValueError, match="attribute regularizer"):
        layer.embeddings.regularizer = None


def test_early_stopping_restores_the_best_weights(lazy):
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L1L2(1e-3, L2), fastreg.LazyRegularization(keras.optimizers.SGD(0.1)))
    seen = []
    record = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(model.get_weights()))
    stop = keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True, mode="max")
    fit(model, x, y, epochs=9, callbacks=[record, stop])
    assert len(seen) == 3
    for weight, best in zip(model.get_weights(), seen[0], strict=True):
        np.testing.assert_array_equal(weight, best)
    ids = tf.range(23)
    np.testing.assert_array_equal(model.layers[1](ids), seen[0][0])


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


def test_deterministic_and_unread_in_training(lazy, cpu_reads):
    """The same bits twice, and no step reads the table as a whole."""
    x, y = lazy.data()
    weights = []
    for _ in range(2):
        model = lazy.compiled(fastreg.L1L2(1e-3, L2), fastreg.LazyRegularization("adagrad"))
        with cpu_reads(model.layers[1]) as reads:
            fit(model, x, y, epochs=3)
            model.evaluate(x, y, verbose=0)
            model.predict(x, verbose=0)
        assert not reads
        weights.append(model.get_weights())
    for first, second in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, second)
