"""The wrapper as one of Keras's optimizers: its state, its files, its options, and what it is nested with."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

L2 = 2**-6


def fit(model, data, **options):
    x, y = data
    return model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options}).history["loss"]


def scaled(inner):
    return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)


def compiled(lazy, kind, scaling=False, **options):
    inner = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam}.get(kind, keras.optimizers.Adagrad)(0.05)
    optimizer = fastreg.LazyRegularization(scaled(inner) if scaling else inner, rowwise=kind == "rowwise")
    return lazy.compiled(fastreg.L2(L2), optimizer, **options)


SLOTS = {"sgd": 0, "adagrad": 1, "rowwise": 1, "adam": 2}


each = pytest.mark.parametrize(("kind", "scaling"), [*((kind, False) for kind in SLOTS), ("adam", True)])


@each
def test_the_state_is_slots_counters_and_scale(lazy, kind, scaling, tmp_path):
    """And nothing of the model; files hold every slot of a table once."""
    model = compiled(lazy, kind, scaling)
    fit(model, lazy.data())
    state = model.optimizer.variables
    assert not {id(variable) for variable in state} & {id(weight) for weight in model.weights}
    assert len(state) == len({id(variable) for variable in state})
    assert not any(variable.trainable or variable.value.trainable for variable in state)
    # A scaling optimizer has a counter and a rate too, as with Keras's, which do not count.
    names = sorted(variable.name for variable in state if variable.shape == ())
    one = ["iteration", "learning_rate"]
    assert names == sorted([*one * 2, "step_counter", "dynamic_scale"] if scaling else one)
    assert sum(variable.shape != () for variable in state) == SLOTS[kind] * len(model.trainable_weights)

    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as file:
        weights = h5py.File(io.BytesIO(file.read("model.weights.h5")))
    found = []
    weights.visititems(lambda name, item: found.append(name) if getattr(item, "shape", None) == (23, 5) else None)
    assert len(found) == 1 + (SLOTS[kind] if kind != "rowwise" else 0)
    again = keras.models.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert fit(again, lazy.data()) == fit(model, lazy.data())


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_weights_of_the_optimizer(lazy, kind):
    model, other = (compiled(lazy, kind) for _ in range(2))
    fit(model, lazy.data())
    other.optimizer.build(other.trainable_weights)
    other.optimizer.set_weights([np.array(variable) for variable in model.optimizer.variables])
    other.set_weights(model.get_weights())
    assert fit(other, lazy.data()) == fit(model, lazy.data())
    with pytest.raises(ValueError, match=r"expected .* arrays"):
        other.optimizer.set_weights([1.0])


@pytest.mark.parametrize("kind", ["sgd", "adagrad"])
def test_lora_on_a_dense_layer(lazy, kind, tmp_path):
    """Keras folds the factors into the kernel when it saves: an optimizer that kept the kernel would undo it."""
    model = compiled(lazy, kind)
    model.layers[-1].enable_lora(2)
    model.compile(model.optimizer.from_config(model.optimizer.get_config()), "mse")
    fit(model, lazy.data(), epochs=3)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x, y = lazy.data()
    assert again.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-6)


def former(model, scaling):
    """The arrays that versions which counted the model's variables in stored for this model's optimizer."""
    optimizer = model.optimizer
    inner = optimizer.inner_optimizer.inner_optimizer if scaling else optimizer.inner_optimizer
    scale = [optimizer.step_counter, optimizer.dynamic_scale] if scaling else []
    kept = [*scale, *model.trainable_weights, *optimizer._rule.slots, *inner.variables]
    return [np.array(0), np.array(0.0), *(np.array(variable) for variable in kept)], inner


@each
def test_files_that_hold_the_model_twice(lazy, kind, scaling, tmp_path):
    """As versions before the first release wrote them, with a configuration that had the scale in it."""
    model = compiled(lazy, kind, scaling)
    fit(model, lazy.data())
    arrays, inner = former(model, scaling)
    model.save(tmp_path / "now.keras")
    with zipfile.ZipFile(tmp_path / "now.keras") as file:
        parts = {name: file.read(name) for name in file.namelist()}
    config = keras.saving.serialize_keras_object(model.optimizer)
    settings = {"initial_scale": 8.0 if scaling else None, "dynamic_growth_steps": 2000}
    rewritten = {
        **config,
        "class_name": "LazyRegularization",
        "registered_name": "fastreg>LazyRegularization",
        "config": {**config["config"], "optimizer": keras.saving.serialize_keras_object(inner), **settings},
    }
    whole = json.loads(parts["config.json"])
    whole["compile_config"]["optimizer"] = rewritten
    parts["config.json"] = json.dumps(whole)
    weights = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(weights, "a") as file:
        del file["optimizer"]
        for path, values in (("optimizer/vars", arrays), ("optimizer/inner_optimizer/vars", inner.variables)):
            for index, value in enumerate(values):
                file[f"{path}/{index}"] = np.array(value)
    parts["model.weights.h5"] = weights.getvalue()
    with zipfile.ZipFile(tmp_path / "former.keras", "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    again = keras.models.load_model(tmp_path / "former.keras")
    assert type(again.optimizer) is type(model.optimizer)
    for ours, theirs in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert fit(again, lazy.data(), epochs=2) == fit(model, lazy.data(), epochs=2)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize("option", ["momentum", "use_ema", "gradient_accumulation_steps"])
def test_options_set_on_the_wrapped_optimizer_later(lazy, option, built, graph):
    """Without a row-wise form they are refused when they would take effect, before the first step and after."""
    layer, optimizer = lazy.plan(1).layer(fastreg.L2(L2), "float32"), fastreg.LazyRegularization("sgd")
    step = (tf.function if graph else lambda run: run)(
        lambda: optimizer.apply([lazy.gradient(layer)], layer.trainable_weights)
    )
    if built:
        optimizer.build(layer.trainable_weights)
    setattr(optimizer.inner_optimizer, option, 2)
    before = layer.get_weights()[0]
    with pytest.raises(ValueError, match=f"expected no {option}"):
        step()
    np.testing.assert_array_equal(layer.get_weights()[0], before)


@pytest.mark.parametrize(
    ("option", "scaling"),
    [("clipnorm", False), ("clipvalue", True), ("global_clipnorm", False), ("learning_rate", False)],
)
def test_options_set_on_the_wrapper(lazy, option, scaling):
    """They are the wrapped optimizer's."""
    x, y = lazy.data()
    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda inner: inner, keras.regularizers.L2),
    ):
        inner = keras.optimizers.SGD(0.1)
        optimizer = wrap(scaled(inner) if scaling else inner)
        model = lazy.compiled(penalty(0.0), optimizer, embedding)
        setattr(model.optimizer if embedding is fastreg.Embedding else inner, option, 0.05)
        assert float(getattr(inner, option)) == pytest.approx(0.05)
        assert float(getattr(model.optimizer if embedding is fastreg.Embedding else inner, option)) == pytest.approx(
            0.05
        )
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


@pytest.mark.parametrize("option", ["momentum", "use_ema", "gradient_accumulation_steps"])
def test_options_that_the_wrapper_refuses(option):
    optimizer = fastreg.LazyRegularization("sgd")
    before = getattr(optimizer.inner_optimizer, option)
    with pytest.raises(ValueError, match=f"expected no {option}"):
        setattr(optimizer, option, 2)
    assert getattr(optimizer.inner_optimizer, option) == getattr(optimizer, option) == before
    with pytest.raises(AttributeError, match="beta_1"):
        optimizer.beta_1 = 0.5


def test_hyper_parameters_of_the_rule(lazy, float64):
    """Set on the wrapper before a step is traced, they take effect in it, for tables too."""
    plan = lazy.plan(5)
    trained = []
    for late in (False, True):
        optimizer = lazy.optimizer("adam", **({} if late else {"beta_1": 0.5, "epsilon": 1e-3}))
        if late:
            optimizer.beta_1, optimizer.epsilon = 0.5, 1e-3
        trained.append(plan.train(plan.layer(fastreg.L2(0.01)), optimizer))
    np.testing.assert_array_equal(*trained)


def test_gradients_and_variables_that_do_not_match(lazy):
    layer = lazy.plan(1).layer(fastreg.L2(L2), "float32")
    gradient = lazy.gradient(layer)
    optimizer = fastreg.LazyRegularization("sgd")
    with pytest.raises(ValueError, match="not built"):
        optimizer.apply([gradient])
    with pytest.raises(ValueError, match=r"one for each of 1 variables\. Received: 2"):
        optimizer.apply([gradient, gradient], layer.trainable_weights)
    optimizer.build([layer.embeddings, keras.Variable(1.0)])
    with pytest.raises(ValueError, match=r"one for each of 2 variables\. Received: 1"):
        optimizer.apply([gradient])
    optimizer.apply([], [])
    assert int(optimizer.iterations) == 0


def test_stateless_apply(lazy):
    """Keras's own error, for its optimizers cannot do it either."""
    layer = lazy.plan(1).layer(fastreg.L2(L2), "float32")
    for inner in (keras.optimizers.SGD(), scaled(keras.optimizers.SGD())):
        optimizer = fastreg.LazyRegularization(inner)
        optimizer.build(layer.trainable_weights)
        with pytest.raises(ValueError, match="stateless_apply is not supported with the TensorFlow backend"):
            optimizer.stateless_apply(optimizer.variables, [lazy.gradient(layer)], layer.trainable_weights)


@pytest.mark.parametrize(("policy", "eager"), [("float32", False), ("mixed_float16", False), ("mixed_float16", True)])
def test_in_keras_s_multi_optimizer(lazy, policy, eager):
    """Of one optimizer for tables, and another for the rest; `mixed_float16` scales the loss around both."""
    keras.config.set_dtype_policy(policy)
    results = []
    for embedding, wrap, penalty in (
        (fastreg.Embedding, fastreg.LazyRegularization, fastreg.L2),
        (keras.layers.Embedding, lambda inner: inner, keras.regularizers.L2),
    ):
        of_tables = wrap(keras.optimizers.SGD(0.1))
        chosen = keras.optimizers.OptimizerMap(keras.optimizers.Adam(0.01), {".*embeddings": of_tables})
        model = lazy.compiled(penalty(L2), keras.optimizers.MultiOptimizer(chosen), embedding, run_eagerly=eager)
        losses = fit(model, lazy.data(), epochs=2)
        assert int(of_tables.iterations) == 16
        results.append((model.get_weights(), losses))
    for ours, theirs in zip(results[0][0], results[1][0], strict=True):
        assert lazy.error(ours, theirs) < (1e-5 if policy == "float32" else 0.02)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5 if policy == "float32" else 0.02)


def test_around_keras_s_multi_optimizer():
    chosen = keras.optimizers.OptimizerMap(keras.optimizers.SGD())
    with pytest.raises(ValueError, match="inside, around the optimizers"):
        fastreg.LazyRegularization(keras.optimizers.MultiOptimizer(chosen))


def test_a_model_without_tables(lazy):
    """Is the wrapped optimizer's alone, whatever it is nested with."""
    x, y = lazy.data()
    results = []
    for wrap in (fastreg.LazyRegularization, lambda inner: inner):
        for nest in (lambda inner: inner, scaled):
            model = lazy.compiled(None, wrap(nest(keras.optimizers.SGD(0.1))), keras.layers.Embedding)
            model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
            results.append(model.get_weights())
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            assert lazy.error(ours, theirs) < 1e-6
