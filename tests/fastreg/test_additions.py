"""Penalties added to models that are there."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

X = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 1)).astype(np.float32)
L2 = 0.25
layers = keras.layers


def dense(penalty=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(5, kernel_regularizer=penalty, name="first"),
            layers.BatchNormalization(name="normal"),
            keras.Sequential([layers.Dense(4, kernel_regularizer=penalty, name="inner")], name="block"),
            layers.Dense(1, kernel_regularizer=penalty, name="last"),
        ],
        name="model",
    )


@pytest.mark.parametrize("when", ["before compile", "compiled", "trained"])
def test_trains_as_one_that_was_made_so(when, tmp_path):
    expected, model = dense(fastreg.L2(L2)), dense()
    if when != "before compile":
        model.compile("sgd", "mse")
    expected.compile("sgd", "mse")
    if when == "trained":
        model.fit(X, Y, verbose=0)
        expected.set_weights(model.get_weights())
    done = fastreg.regularize(model, fastreg.L2(L2))
    assert [each.path for each in done] == ["model/first/kernel", "model/block/inner/kernel", "model/last/kernel"]
    assert all(each.added and each.note == "" and isinstance(each.regularizer, fastreg.L2) for each in done)
    if when == "before compile":
        model.compile("sgd", "mse")
    for each in (model, expected):
        each.fit(X, Y, shuffle=False, verbose=0, epochs=2)
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(sum(loaded.losses), sum(model.losses), rtol=1e-6)
    assert len(loaded.losses) == 3


CRITERIA = {
    "a word": ("kernel", ("first",), ["block/inner/kernel", "last/kernel"]),
    "the name of a layer": ("last", None, ["last/kernel", "last/bias"]),
    "a pattern": ("block/*", "bias", ["block/inner/kernel"]),
    "a class": (layers.BatchNormalization, None, ["normal/gamma", "normal/beta"]),
    "a callable": (lambda layer, name: name == "kernel" and layer.name > "inner", None, ["last/kernel"]),
    "several": (["first", layers.BatchNormalization], ["beta", "bias"], ["first/kernel", "normal/gamma"]),
}


@pytest.mark.parametrize("case", CRITERIA)
def test_what_is_included(case):
    include, exclude, paths = CRITERIA[case]
    model = dense()
    done = fastreg.regularize(model, "l2", include, exclude)
    assert [each.path.removeprefix("model/") for each in done] == paths
    assert len(model.losses) == len(paths)
    assert all(isinstance(each.regularizer, fastreg.L2) for each in done)


def test_layers_that_are_built_later():
    model = keras.Sequential([layers.Embedding(9, 6), layers.Bidirectional(layers.LSTM(4)), layers.Dense(1)])
    done = fastreg.regularize(model, fastreg.L2(L2))
    assert not model.built
    assert {each.path.split("/")[-1] for each in done} == {"embeddings", "kernel", "recurrent_kernel"}
    model(tf.constant([[1, 2, 3]]))
    assert len(model.losses) == 6  # embeddings, twice two of an LSTM, and the last
    weights = [weight for weight in model.trainable_weights if "bias" not in weight.name]
    np.testing.assert_allclose(sum(model.losses), L2 * sum(np.square(weight).sum() for weight in weights), rtol=1e-6)


@pytest.mark.parametrize("built", [False, True])
def test_layers_in_layers_are_saved(built, tmp_path):
    inputs = keras.Input((3, 6))
    attention = layers.MultiHeadAttention(2, 3)
    if built:
        attention(inputs, inputs)
    done = fastreg.regularize(attention, fastreg.L2(L2))
    assert len(done) == (4 if built else 1)
    convolved = layers.SeparableConv1D(4, 2)(layers.DepthwiseConv1D(2)(attention(inputs, inputs)))
    model = keras.Model(inputs, convolved)
    done = fastreg.regularize(model, fastreg.L2(L2))
    assert [(each.path.split("/")[-1], each.added) for each in done if "conv" in each.path] == [
        ("kernel", True),
        ("depthwise_kernel", True),
        ("pointwise_kernel", True),
    ]
    assert len(model.losses) == 7
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(sum(loaded.losses), sum(model.losses), rtol=1e-6)
    assert len(loaded.losses) == 7


class Own(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return x * self.scale


def test_what_has_one_is_left_and_what_is_not_saved_is_said():
    theirs = keras.regularizers.L1(0.1)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, kernel_regularizer=theirs), Own()])
    first, second = fastreg.regularize(model, fastreg.L2(L2))
    assert (first.regularizer, first.added, first.note) == (theirs, False, "has a penalty")
    assert second.added
    assert "not saved" in second.note
    assert len(model.losses) == 2


def test_lazy_tables():
    ids = keras.Input((2,), dtype="int32")
    made = {
        "table": fastreg.Embedding(9, 3, embeddings_regularizer=fastreg.L1(0.1)),
        "plain": fastreg.Embedding(9, 3),
        "batch": fastreg.Embedding(9, 3, scope="batch"),
    }
    outputs = [layer(ids) for layer in made.values()]
    later = fastreg.Embedding(9, 3)
    model = keras.Model(ids, keras.layers.Add()(outputs))
    found = {layer: fastreg.regularize(layer, fastreg.L2(L2))[0] for layer in (*made.values(), later)}
    assert [each.added for each in found.values()] == [False, False, True, True]
    assert made["batch"].embeddings_regularizer.l2 == later.embeddings_regularizer.l2 == L2
    assert made["plain"].embeddings_regularizer is None
    later(tf.constant([1]))
    assert later.penalty() > 0
    model(tf.constant([[1, 1]]))
    assert len(model.losses) == 2


def test_what_is_wrong_is_named():
    model = dense()
    with pytest.raises(ValueError, match="argument regularizer"):
        fastreg.regularize(model, None)
    with pytest.raises(ValueError, match=r"argument include.*nothing"):
        fastreg.regularize(model, "l2", "nothing")
    with pytest.raises(TypeError, match=r"argument exclude.*3"):
        fastreg.regularize(model, "l2", exclude=["bias", 3])
    with pytest.raises(TypeError, match="argument model"):
        fastreg.regularize("model", "l2")
    with pytest.raises(ZeroDivisionError):
        fastreg.regularize(model, "l2", lambda layer, name: layer.name == "first" or 1 / 0)
    assert model.losses == []
    assert model.layers[0].kernel_regularizer is None
