"""Optimizers of tables against Keras's own where these are the same, weight decay, and tables with one of their own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg.optimizers import LazyRegularization

TOLERANCES = {"float32": 2e-6, "float64": 1e-12}


def fitted(lazy, layer, optimizer, penalty, x, y, initializer="uniform", batch=8, **options):
    keras.utils.set_random_seed(3)
    inside = layer(23, 5, embeddings_regularizer=penalty, embeddings_initializer=initializer)
    model = lazy.model(inside, x.shape[1])
    model.compile(optimizer, "mse", **options)
    model.fit(x, y, batch_size=batch, epochs=3, shuffle=False, verbose=0)
    return model


EVERY_ROW = {
    "adam": keras.optimizers.Adam,
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.5),
    "rmsprop": keras.optimizers.RMSprop,
    "centered rmsprop": lambda rate: keras.optimizers.RMSprop(rate, centered=True),
    "rmsprop with decay": lambda rate: keras.optimizers.RMSprop(rate, weight_decay=0.5),
    "ftrl": lambda rate: keras.optimizers.Ftrl(
        rate, l1_regularization_strength=0.01, l2_regularization_strength=0.1, beta=0.5
    ),
    "ftrl with shrinkage": lambda rate: keras.optimizers.Ftrl(rate, l2_shrinkage_regularization_strength=0.25),
}


@pytest.mark.parametrize("kind", EVERY_ROW)
def test_keras_s_numbers_where_every_step_looks_up_every_row(lazy, float64, kind):
    """Its dense optimizers then do nothing to rows that are idle, for there are none. Once: the gradients of a row that
    occurs several times Keras squares one by one.
    """
    generator = np.random.default_rng(1)
    x = np.concatenate([generator.permutation(23) for _ in range(16)]).reshape(16, 23).astype("int32")
    y = generator.normal(size=(16, 1))
    schedule = keras.optimizers.schedules.ExponentialDecay(0.125, 2, 0.5)
    ours = fitted(
        lazy, fastreg.Embedding, LazyRegularization(EVERY_ROW[kind](schedule)), fastreg.L2(0.0), x, y, batch=1
    ).get_weights()
    theirs = fitted(lazy, keras.layers.Embedding, EVERY_ROW[kind](schedule), None, x, y, batch=1).get_weights()
    for one, other in zip(ours, theirs, strict=True):
        # Keras rounds the betas of Adam to float32.
        assert lazy.error(one, other) < (1e-5 if "adam" in kind else 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_ftrl_from_zero_is_keras_s(lazy, dtype):
    """A row that starts at zero, and is idle, stays there in Keras's too; what l1 empties is zero in both."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    generator = np.random.default_rng(1)
    x = np.stack([generator.choice(19, 4, replace=False) for _ in range(60)]).astype("int32")
    y = generator.normal(size=(60, 1)).astype(dtype)
    options = {"l1_regularization_strength": 0.25, "l2_regularization_strength": 0.125}
    found = [
        fitted(lazy, layer, wrap(keras.optimizers.Ftrl(0.25, **options)), penalty, x, y, "zeros", batch=1).get_weights()
        for layer, wrap, penalty in (
            (fastreg.Embedding, LazyRegularization, fastreg.L2(0.0)),
            (keras.layers.Embedding, lambda optimizer: optimizer, None),
        )
    ]
    for ours, theirs in zip(*found, strict=True):
        assert lazy.error(ours, theirs) < TOLERANCES[dtype]
    looked_up = found[0][0][np.unique(x)]
    assert 0 < (looked_up == 0).sum() < looked_up.size
    np.testing.assert_array_equal(found[0][0] == 0, found[1][0] == 0)


def test_ftrl_takes_no_other_penalty(lazy):
    x, y = lazy.data()
    model = lazy.compiled(fastreg.L2(0.1), LazyRegularization("ftrl"))
    with pytest.raises(ValueError, match=r"'embedding.*/embeddings': expected none but that of Ftrl"):
        model.fit(x, y, verbose=0)


@pytest.mark.parametrize("graph", [False, True, "xla"])
def test_ftrl_of_a_table_that_has_shrinks_to_come(lazy, float64, graph):
    """Of another optimizer's steps before."""
    plan, state = lazy.plan(20), {}
    layer = plan.layer(fastreg.L1L2(0.02, 0.1))
    plan.train(layer, lazy.optimizer("sgd"), steps=range(10))
    halfway = lazy.oracle(plan, "sgd", [0.25] * 20, 0.02, 0.1, steps=range(10))
    layer.embeddings_regularizer = None
    numbers = layer.embeddings._value.numbers.numpy()
    weights = plan.train(layer, lazy.optimizer("ftrl"), graph=graph, steps=range(10, 20))
    assert numbers[0] < 1.0
    expected = lazy.oracle(plan, "ftrl", [0.25] * 20, steps=range(10, 20), start=halfway, state=state)
    assert lazy.error(weights, expected) < 1e-12


@pytest.mark.parametrize("penalty", [0.0, 2**-6])
def test_weight_decay_and_l2_with_sgd_are_keras_s(lazy, float64, penalty):
    """Its decay is of the weights before the step, as the gradient of the penalty is."""
    x, y = lazy.data(n=400)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.125, 20, 0.8)
    ours, theirs = (
        fitted(lazy, layer, wrap(keras.optimizers.SGD(schedule, weight_decay=0.25)), regularizer(penalty), x, y)
        for layer, wrap, regularizer in (
            (fastreg.Embedding, LazyRegularization, fastreg.L2),
            (keras.layers.Embedding, lambda optimizer: optimizer, keras.regularizers.L2),
        )
    )
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert lazy.error(one, other) < 1e-12
    np.testing.assert_allclose(ours.evaluate(x, y, verbose=0), theirs.evaluate(x, y, verbose=0), rtol=1e-10)


@pytest.mark.parametrize("graph", [True, "xla"])
@pytest.mark.parametrize("kind", ["adagrad", "adam", "rmsprop"])
def test_decoupled_decay_is_of_every_row_at_every_step(lazy, float64, kind, graph):
    """Also of steps whose loss leaves the penalty out, which has nothing to do with it."""
    plan = lazy.plan(30)
    optimizer = lazy.optimizer(kind, weight_decay=0.5)
    weights = plan.train(plan.layer(fastreg.L1L2(0.02, 0.1)), optimizer, graph=graph)
    assert lazy.error(weights, lazy.oracle(plan, kind, [0.25] * 30, 0.02, 0.1, decay=0.5)) < 1e-7
    assert lazy.error(weights, lazy.oracle(plan, kind, [0.25] * 30, 0.02, 0.1)) > 1e-3


def test_what_is_excluded_from_weight_decay(lazy, float64):
    x, y = lazy.data()
    found = []
    for layer, wrap, penalty in (
        (fastreg.Embedding, LazyRegularization, fastreg.L2(0.0)),
        (keras.layers.Embedding, lambda optimizer: optimizer, None),
    ):
        optimizer = wrap(keras.optimizers.SGD(0.125, weight_decay=0.5))
        optimizer.exclude_from_weight_decay(var_names=["embeddings"])
        found.append(fitted(lazy, layer, optimizer, penalty, x, y).get_weights())
    for ours, theirs in zip(*found, strict=True):
        assert lazy.error(ours, theirs) < 1e-12


@pytest.mark.parametrize("jit", [False, True])
def test_an_optimizer_of_the_tables_own(lazy, float64, jit):
    """With its own schedule and clipping; the other variables are as if it was not there."""
    x, y = lazy.data(n=160)

    def optimizers():
        return (
            keras.optimizers.Adam(
                keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5), amsgrad=True, clipnorm=0.5
            ),
            keras.optimizers.Adagrad(keras.optimizers.schedules.ExponentialDecay(0.25, 7, 0.5), clipvalue=0.01),
        )

    rest, tables = optimizers()
    ours = fitted(
        lazy, fastreg.Embedding, LazyRegularization(rest, tables=tables), fastreg.L2(0.01), x, y, jit_compile=jit
    )
    rest, tables = optimizers()
    mapped = keras.optimizers.OptimizerMap(rest, {".*embeddings": LazyRegularization(tables)})
    theirs = fitted(
        lazy, fastreg.Embedding, keras.optimizers.MultiOptimizer(mapped), fastreg.L2(0.01), x, y, jit_compile=jit
    )
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        assert lazy.error(one, other) < 1e-12
    optimizer = ours.optimizer
    assert int(optimizer.iterations) == int(optimizer.tables_optimizer.iterations) == 60


def test_a_model_with_two_optimizers_goes_on_from_its_file(lazy, tmp_path):
    x, y = lazy.data(n=160)
    model = fitted(
        lazy, fastreg.Embedding, LazyRegularization("lion", True, tables="adagrad"), fastreg.L1L2(1e-3, 0.01), x, y
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer.tables_optimizer) is keras.optimizers.Adagrad
    for each in (model, loaded):
        each.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(loaded.optimizer.tables_optimizer.iterations) == 80
    with pytest.warns(UserWarning, match="Lion trains the tables too, which Adagrad did"):
        copy = fastreg.to_keras(model)
    assert type(copy.optimizer) is keras.optimizers.Lion


def test_loss_scaling_with_an_optimizer_of_the_tables_own(lazy):
    x, y = lazy.data(n=160)
    found = []
    for wrap in (keras.optimizers.LossScaleOptimizer, lambda optimizer: optimizer):
        optimizer = wrap(LazyRegularization(keras.optimizers.Adam(), tables=keras.optimizers.Adagrad(0.25)))
        found.append(fitted(lazy, fastreg.Embedding, optimizer, fastreg.L2(0.01), x, y).get_weights())
    for one, other in zip(*found, strict=True):
        assert lazy.error(one, other) < 1e-5


@pytest.mark.parametrize(
    ("optimizer", "tables", "message"),
    [
        ("adam", "lion", "expected SGD, Adagrad"),
        ("adam", lambda: keras.optimizers.SGD(momentum=0.5), "momentum"),
        ("adam", lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "argument tables"),
        ("adam", lambda: keras.optimizers.SGD(loss_scale_factor=2.0), "argument tables"),
        ("adam", lambda: LazyRegularization("sgd"), "argument tables"),
        (lambda: keras.optimizers.Adam(use_ema=True), "sgd", "use_ema"),
        (lambda: keras.optimizers.Adam(gradient_accumulation_steps=2), "sgd", "gradient_accumulation_steps"),
    ],
)
def test_what_cannot_train_tables_beside_another(optimizer, tables, message):
    optimizer, tables = (made() if callable(made) else made for made in (optimizer, tables))
    with pytest.raises(ValueError, match=message):
        LazyRegularization(optimizer, tables=tables)


def test_one_optimizer_is_not_both(lazy):
    optimizer = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="apart from the other"):
        LazyRegularization(optimizer, tables=optimizer)
    optimizer.build([keras.Variable(tf.zeros(3))])
    with pytest.raises(ValueError, match="not used before"):
        LazyRegularization("adam", tables=optimizer)


def test_a_rule_stays_what_it_was_made_as(lazy):
    optimizer = LazyRegularization(keras.optimizers.RMSprop())
    with pytest.raises(ValueError, match="centered=False"):
        optimizer.centered = True
    assert optimizer.centered is False
