"""`to_keras`: a copy that is a model of Keras's own, here and where nobody heard of fastreg."""

import json
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fastreg

ROWS = 23
_generator = np.random.default_rng(5)
X = _generator.integers(0, ROWS - 4, (32, 4)).astype("int32")  # the last rows are never looked up
Y = _generator.normal(size=(32, 1)).astype("float32")


class Subclassed(keras.Model):
    """Makes its layers in code: fastreg's, or Keras's."""

    def __init__(self, package="fastreg", **options):
        super().__init__(**options)
        self.package = package
        penalties, embedding = PACKAGES[package]
        self.tables = [embedding(ROWS, 5, embeddings_regularizer=penalties.L2(2**-6))]
        self.flatten, self.head = layers.Flatten(), layers.Dense(1, kernel_regularizer=penalties.L2(2**-6))

    def call(self, ids):
        return self.head(self.flatten(self.tables[0](ids)))


class Inside(layers.Layer):
    """A layer of the user's that was given one."""

    def __init__(self, layer, **options):
        super().__init__(**options)
        self.layer = layer

    def call(self, ids):
        return self.layer(ids)

    def get_config(self):
        return {**super().get_config(), "layer": keras.saving.serialize_keras_object(self.layer)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


class Late(layers.Layer):
    """Makes what it has when it is built."""

    def build(self, shape):
        self.head = layers.Dense(1, kernel_regularizer=fastreg.L2(0.5))
        self.head.build(shape)

    def call(self, x):
        return self.head(x)


PACKAGES = {"fastreg": (fastreg, fastreg.Embedding), "keras": (keras.regularizers, layers.Embedding)}


def functional(package):
    """Nested, shared and wrapped layers, penalties of every kind."""
    penalties, embedding = PACKAGES[package]
    ids = keras.Input((4,), dtype="int32")

    def table(**options):
        return embedding(ROWS, 5, embeddings_regularizer=penalties.L2(2**-6), **options)

    shared, timed = table(), layers.TimeDistributed(table())
    tower = keras.Sequential([keras.Input((4,), dtype="int32"), Inside(shared), layers.Flatten()])
    parts = [tower(ids), layers.Flatten()(timed(layers.Reshape((2, 2))(ids))), layers.Flatten()(shared(ids))]
    options = {"bias_regularizer": penalties.L1(2**-7), "activity_regularizer": penalties.L1(2**-5)}
    hidden = layers.Dense(6, "tanh", kernel_regularizer=penalties.L1L2(2**-8, 2**-6), **options)
    return keras.Model(ids, layers.Dense(1)(hidden(layers.Concatenate()(parts))))


MODELS = {"functional": functional, "subclassed": Subclassed}


def squared(y, prediction):
    """A loss that nobody registered."""
    return keras.ops.mean(keras.ops.square(y - prediction))


def sgd():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.125, 5, 0.75), clipvalue=1.0)


def build(name, package="fastreg", optimizer=sgd, **options):
    keras.utils.set_random_seed(4)
    model = MODELS[name](package)
    wrapped = fastreg.LazyRegularization(optimizer()) if package == "fastreg" else optimizer()
    model.compile(wrapped, squared, metrics=["mae"], **options)
    return model


def fit(model, **options):
    return model.fit(X, Y, batch_size=8, shuffle=False, verbose=0, **options).history["loss"]


def state(model):
    return [*model.get_weights(), *(np.array(variable) for variable in model.optimizer.variables)]


def quiet(model):
    """A copy that is told to go on as the model would."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return fastreg.to_keras(model)


def assert_close(first, second, tolerance=1e-5):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1e-3, np.abs(other).max()))


def classes(model):
    """Of layers, regularizers, variables and optimizers, with their settings."""
    found = []
    for layer in model._flatten_layers():
        held = [value for value in vars(layer).values() if isinstance(value, keras.regularizers.Regularizer)]
        held += [variable.regularizer for variable in layer.weights if variable.regularizer is not None]
        found += [type(layer), *((type(each), each.get_config()) for each in held)]
        found += [(type(variable), hasattr(variable.value, "stamps"), variable.trainable) for variable in layer.weights]
        found.append(getattr(layer, "supports_jit", None))
    return [*found, type(model.optimizer)]


@pytest.mark.parametrize(
    ("name", "way"),
    [("functional", "auto"), ("subclassed", "auto"), ("subclassed", "tensorflow")],
)
def test_the_copy_is_the_model_made_with_keras(name, way):
    """Classes, weights, losses and state of the optimizer; both go on as if there were only one of them."""
    fastreg.set_bridge(way)
    model, never, theirs = build(name), build(name), build(name, "keras")
    for each in (model, never, theirs):
        fit(each)
    before = state(model)
    copy = quiet(model)
    assert classes(copy) == classes(theirs)
    assert not re.findall('"fastreg[.>]', copy.to_json() + json.dumps(copy.get_compile_config()))
    for ours, others in zip(state(copy), before, strict=True):
        np.testing.assert_array_equal(ours, others)
    assert_close(copy.evaluate(X, Y, verbose=0), theirs.evaluate(X, Y, verbose=0))
    assert_close(copy.predict(X, verbose=0), model.predict(X, verbose=0), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # none of a table that is read as a whole
        losses = fit(copy)
    assert_close(losses, fit(theirs))
    assert_close(state(copy), state(theirs))
    assert_close(state(model), before, 1e-6)  # copying has flushed it
    fit(model)
    fit(never)
    assert_close(state(model), state(never), 1e-6)
    assert all(isinstance(layer, fastreg.Embedding) for layer in model._flatten_layers() if "embedding" in layer.name)


ELSEWHERE = """
    import sys
    import keras, numpy as np
    folder = sys.argv[1]
    class Inside(keras.layers.Layer):
        def __init__(self, layer, **options):
            super().__init__(**options)
            self.layer = layer
        def call(self, ids):
            return self.layer(ids)
        @classmethod
        def from_config(cls, config):
            return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)
    def squared(y, prediction):
        return keras.ops.mean(keras.ops.square(y - prediction))
    data = np.load(folder + "/data.npz")
    for name in sys.argv[2:]:
        model = keras.models.load_model(f"{folder}/{name}.keras", custom_objects={"Inside": Inside, "squared": squared})
        losses = model.fit(data["x"], data["y"], batch_size=8, shuffle=False, verbose=0).history["loss"]
        values = [*model.get_weights(), *(np.array(variable) for variable in model.optimizer.variables)]
        np.savez(f"{folder}/{name}.npz", *values, losses=losses)
    assert "fastreg" not in sys.modules and "fastreg_kernels" not in sys.modules
"""

OPTIMIZERS = {
    "adagrad": lambda: fastreg.LazyRegularization(keras.optimizers.Adagrad(0.1), rowwise=True),
    "scaled inside": lambda: fastreg.LazyRegularization(
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), 8.0, dynamic_growth_steps=3)
    ),
    "scaled outside": lambda: keras.optimizers.LossScaleOptimizer(fastreg.LazyRegularization("sgd"), 8.0, 3),
    "several": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.SGD(0.1, momentum=0.5), {".*embeddings": fastreg.LazyRegularization("adagrad")}
        )
    ),
}

SAID = {
    "adagrad": "with Adagrad the penalty .* is part of the gradient.*are followed for each weight",
    "scaled inside": "with Adam the penalty",
    "scaled outside": None,
    "several": "with Adagrad the penalty",
}


def tiny(optimizer, penalty=None, **options):
    keras.utils.set_random_seed(4)
    table = fastreg.Embedding(ROWS, 3, embeddings_regularizer=penalty or fastreg.L2(2**-6), **options)
    model = keras.Sequential([keras.Input((4,), dtype="int32"), table, layers.Flatten(), layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


def test_files_load_where_fastreg_is_not_imported(tmp_path, run_python):
    """And go on training as the copies here, which have the optimizers' state, row by row of row-wise slots."""
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    copies = {}
    for name, optimizer in OPTIMIZERS.items():
        model = tiny(optimizer())
        fit(model)
        if SAID[name] is None:
            copies[name] = quiet(model)
        else:
            with pytest.warns(UserWarning, match=SAID[name]):
                copies[name] = fastreg.to_keras(model)
        ours, theirs = copies[name].optimizer.variables, model.optimizer.variables
        assert int(copies[name].optimizer.iterations) == 4
        for one, other in zip(ours, theirs, strict=True):
            assert name == "adagrad" or one.shape == other.shape
            np.testing.assert_array_equal(one, np.broadcast_to(other, one.shape))
    copies["functional"] = quiet(build("functional"))
    for name, copy in copies.items():
        copy.save(tmp_path / f"{name}.keras")
    run_python(ELSEWHERE, tmp_path, *copies)
    for name, copy in copies.items():
        losses = fit(copy)
        with np.load(tmp_path / f"{name}.npz") as result:
            values = [result[f"arr_{index}"] for index in range(len(result.files) - 1)]
            assert_close(values, state(copy), 1e-6)
            assert_close(result["losses"], losses, 1e-6)


def test_models_within_a_model_keep_their_optimizers():
    inner = tiny(OPTIMIZERS["adagrad"]())
    fit(inner)
    outer = keras.Sequential([keras.Input((4,), dtype="int32"), inner])
    with pytest.warns(UserWarning, match="with Adagrad"):
        copy = fastreg.to_keras(outer)
    assert not copy.compiled
    assert type(copy.layers[0].optimizer) is keras.optimizers.Adagrad
    for one, other in zip(copy.layers[0].optimizer.variables, inner.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, np.broadcast_to(other, one.shape))
    fit(copy.layers[0])


def test_what_cannot_be_the_same_is_told():
    strength = keras.Variable(0.25)
    model = tiny(fastreg.LazyRegularization("sgd", implicit=True), fastreg.L1L2(strength, 0.5))
    model.add(layers.Dense(1, kernel_regularizer=fastreg.L2(lambda: 0.125)))
    with pytest.warns(UserWarning, match="Trained on, the copy's numbers will differ") as warned:
        copy = fastreg.to_keras(model)
    (said,) = [str(warning.message) for warning in warned if warning.category is UserWarning]
    for difference in ("not implicit", "oscillates at zero", "l1 of L1L2 is 0.25", "l2 of L2 is 0.125"):
        assert difference in said
    strength.assign(0.5)
    assert copy.layers[0].embeddings_regularizer.get_config() == {"l1": 0.25, "l2": 0.5}
    assert copy.layers[-1].kernel_regularizer.get_config() == {"l2": 0.125}
    assert copy.layers[-1].kernel.regularizer is copy.layers[-1].kernel_regularizer


def test_models_that_are_not_built_or_not_compiled():
    model = keras.Sequential([fastreg.Embedding(ROWS, 3, embeddings_regularizer="l2"), layers.Flatten(), Late()])
    with pytest.warns(UserWarning, match="not yet been built"):  # Keras's own
        copy = fastreg.to_keras(model)
    assert not copy.compiled
    copy.compile("sgd", "mse")
    fit(copy)
    assert type(copy.layers[0]) is layers.Embedding
    assert type(copy.layers[0].embeddings.regularizer) is keras.regularizers.L2
    assert type(copy.layers[2].head.kernel.regularizer) is keras.regularizers.L2
    compiled = tiny(fastreg.LazyRegularization("sgd"))
    assert int(quiet(compiled).optimizer.iterations) == 0


def test_what_is_kept():
    """Dtypes, frozen layers, layers without a regularizer, a rate that was set, a lambda, shared regularizers."""
    keras.config.set_dtype_policy("float16")
    ids, penalty = keras.Input((4,), dtype="int32"), fastreg.L2(0.5)
    table, plain = fastreg.Embedding(ROWS, 3, embeddings_regularizer="l2"), fastreg.Embedding(ROWS, 1)
    plain.trainable = False
    head = layers.Dense(1, kernel_regularizer=penalty, bias_regularizer=penalty)
    model = keras.Model(ids, head(layers.Concatenate()([table(ids), plain(ids)])))
    optimizer = fastreg.LazyRegularization(keras.optimizers.Adagrad(0.1))
    model.compile(optimizer, lambda y, prediction: keras.ops.mean(keras.ops.square(y - prediction)))
    optimizer.build(model.trainable_variables)
    for variable in optimizer.variables:
        variable.assign(np.random.default_rng(0).uniform(1, 9, variable.shape))
    model.optimizer.learning_rate = 0.25
    with pytest.warns(UserWarning, match="with Adagrad"):
        copy = fastreg.to_keras(model)
    for one, other in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert_close(copy.optimizer.variables, model.optimizer.variables, 1e-3)  # slots of tables were of float32
    assert float(copy.optimizer.learning_rate) == 0.25
    assert [(v.dtype, v.trainable) for v in copy.weights] == [(v.dtype, v.trainable) for v in model.weights]
    assert [type(copy.get_layer(layer.name)) for layer in (table, plain)] == [layers.Embedding] * 2
    assert copy.layers[-1].kernel.regularizer is copy.layers[-1].kernel_regularizer
    np.testing.assert_array_equal(copy(X), model(X))


class Half(fastreg.L2):
    def __call__(self, x):
        return 0.5 * super().__call__(x)


class Table(fastreg.Embedding):
    pass


class Wrapper(fastreg.LazyRegularization):
    pass


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: keras.Sequential([layers.Dense(1, kernel_regularizer=Half(0.5))]), "Half, a subclass of fastreg.L2"),
        (lambda: keras.Sequential([Table(3, 2)]), "Table, a subclass of fastreg.Embedding"),
        (lambda: tiny(Wrapper("sgd")), "Wrapper, a subclass of fastreg.LazyRegularization"),
    ],
)
def test_subclasses_are_refused(make, what):
    with pytest.raises(ValueError, match=rf"argument model: expected fastreg's own classes.*{what}"):
        fastreg.to_keras(make())


@pytest.mark.parametrize("wrong", [None, "model", layers.Dense(1), keras.Model, tf.keras.Model])
def test_what_is_no_model(wrong):
    with pytest.raises(TypeError, match="Invalid type for argument model: expected a Keras model"):
        fastreg.to_keras(wrong)
