"""`accelerate(model, lazy=True)`: a clone that trains as the model would, but lazily."""

import keras
import numpy as np
import pytest

import fastreg
from fastreg._tables.table import LazyTable


def build(penalty=None, optimizer=None, **options):
    keras.utils.set_random_seed(4)
    ids = keras.Input((4,), dtype="int32")
    inner = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(23, 5, embeddings_regularizer=penalty or keras.regularizers.L2(2**-6)),
            keras.layers.Flatten(),
        ]
    )
    plain = keras.layers.Embedding(23, 2)(ids)
    constrained = keras.layers.Embedding(23, 2, embeddings_regularizer="l2", embeddings_constraint="non_neg")(ids)
    parts = [inner(ids), keras.layers.Flatten()(plain), keras.layers.Flatten()(constrained)]
    merged = keras.layers.Concatenate()(parts)
    model = keras.Model(ids, keras.layers.Dense(1, kernel_regularizer="l2")(merged))
    if optimizer is not None:
        model.compile(optimizer, "mse", metrics=["mae"], **options)
    return model


def layers_of(model, kind):
    return [layer for layer in model._flatten_layers() if type(layer) is kind]


def test_the_clone_trains_as_the_model(lazy, recwarn):
    x, y = lazy.data()
    model = build(
        optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9), clipvalue=1.0)
    )
    clone = fastreg.accelerate(model, lazy=True)
    assert not [warning for warning in recwarn if "differ" in str(warning.message)]
    assert clone is not model
    assert [type(layer.embeddings) for layer in layers_of(clone, fastreg.Embedding)] == [LazyTable]
    assert len(layers_of(clone, keras.layers.Embedding)) == 2
    assert layers_of(model, fastreg.Embedding) == []
    assert isinstance(clone.optimizer, fastreg.LazyRegularization)
    assert clone.optimizer.inner_optimizer.clipvalue == 1
    for ours, theirs in zip(clone.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    histories = [each.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0).history for each in (clone, model)]
    for name in ("loss", "mae"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)
    for ours, theirs in zip(clone.get_weights(), model.get_weights(), strict=True):
        assert lazy.error(ours, theirs) < 1e-4
    rows = {row.path: row for row in fastreg.inspect(clone)}
    assert [row.bridge for row in rows.values()].count("lazy") == 1
    assert all(row.bridge != "keras" for row in rows.values())


def test_whose_numbers_differ_is_told(lazy):
    with pytest.warns(UserWarning, match="decoupled"):
        clone = fastreg.accelerate(build(optimizer="adagrad"), lazy=True)
    clone.fit(*lazy.data(), verbose=0)
    with pytest.warns(UserWarning, match="oscillates"):
        clone = fastreg.accelerate(build(keras.regularizers.L1L2(0.1, 0.1), "sgd"), lazy=True)
    assert layers_of(clone, fastreg.Embedding)[0].embeddings_regularizer.get_config() == {"l1": 0.1, "l2": 0.1}


SCALED = {
    "by the policy": (lambda: keras.optimizers.SGD(0.1), {}),
    "not": (lambda: keras.optimizers.SGD(0.1), {"auto_scale_loss": False}),
    "by a fixed factor": (lambda: keras.optimizers.SGD(0.1, loss_scale_factor=16.0), {"auto_scale_loss": False}),
    "explicitly": (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), 64.0, 7), {}),
    "already lazily": (lambda: keras.optimizers.LossScaleOptimizer(fastreg.LazyRegularization("sgd"), 64.0, 7), {}),
    "lazily inside": (
        lambda: fastreg.LazyRegularization(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(), 64.0, 7)),
        {},
    ),
}


@pytest.mark.parametrize("how", SCALED)
def test_the_loss_is_scaled_as_before(lazy, how):
    keras.config.set_dtype_policy("mixed_float16")
    make, options = SCALED[how]
    model = build(optimizer=make(), **options)
    clone = fastreg.accelerate(model, lazy=True)
    assert float(clone.optimizer.scale_loss(1.0)) == float(model.optimizer.scale_loss(1.0))
    kind = keras.optimizers.LossScaleOptimizer
    assert isinstance(clone.optimizer, kind) == isinstance(model.optimizer, kind)
    if isinstance(model.optimizer, kind):
        assert clone.optimizer.dynamic_growth_steps == model.optimizer.dynamic_growth_steps
    if how != "by a fixed factor":  # by which Keras cannot divide the sparse gradient of its own embedding
        clone.fit(*lazy.data(), verbose=0)


def test_not_compiled_and_frozen():
    model = build()
    next(layer for layer in model.layers if isinstance(layer, keras.Sequential)).layers[0].trainable = False
    clone = fastreg.accelerate(model, lazy=True)
    assert not clone.compiled
    assert not layers_of(clone, fastreg.Embedding)[0].trainable
    assert fastreg.accelerate(clone) is clone


def test_what_cannot_be_cloned():
    with pytest.raises(ValueError, match="SGD, Adagrad or Adam"):
        fastreg.accelerate(build(optimizer="rmsprop"), lazy=True)
    with pytest.raises(TypeError, match="Keras model"):
        fastreg.accelerate(keras.layers.Embedding(3, 2), lazy=True)

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="clone"):
        fastreg.accelerate(Subclassed(), lazy=True)
