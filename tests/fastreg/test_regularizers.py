"""The three classes as Keras objects: configurations, copies, spellings, and how Keras calls them."""

import copy
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

REGULARIZERS = [("L1", {"l1": 0.25}), ("L2", {"l2": 0.125}), ("L1L2", {"l1": 0.25, "l2": 0.125})]
EACH = pytest.mark.parametrize(("name", "factors"), REGULARIZERS)


def both(name, factors):
    return getattr(fastreg, name)(**factors), getattr(keras.regularizers, name)(**factors)


@EACH
def test_identity(name, factors):
    ours, theirs = both(name, factors)
    assert isinstance(ours, type(theirs))  # for what looks for regularizers, and their strengths, by class
    assert type(ours).__name__ == type(theirs).__name__ == name
    assert type(ours) is not type(theirs)
    assert ours.get_config() == theirs.get_config() == factors
    assert type(ours).from_config(factors).get_config() == factors
    assert repr(ours) == f"fastreg.{name}({', '.join(f'{key}={value}' for key, value in factors.items())})"


@pytest.mark.parametrize("name", ["L1", "L2", "L1L2"])
def test_defaults(name):
    ours, theirs = getattr(fastreg, name), getattr(keras.regularizers, name)
    keys = theirs().get_config().keys()
    assert ours().get_config() == pytest.approx(theirs().get_config())
    assert ours(**dict.fromkeys(keys)).get_config() == ours().get_config()  # None means the default
    assert ours().get_config() == dict.fromkeys(keys, 0.0 if name == "L1L2" else 0.01)


def test_positional_arguments():
    assert fastreg.L1(0.5).get_config() == {"l1": 0.5}
    assert fastreg.L2(0.5).get_config() == {"l2": 0.5}
    assert fastreg.L1L2(0.5, 0.25).get_config() == {"l1": 0.5, "l2": 0.25}
    with pytest.raises(TypeError):
        fastreg.L1(0.5, 0.5)
    with pytest.raises(TypeError):
        fastreg.L2(l1=0.5)


def test_classic_spellings():
    for made, cls, config in (
        (fastreg.l1(), fastreg.L1, {"l1": 0.01}),
        (fastreg.l1(l=0.5), fastreg.L1, {"l1": 0.5}),
        (fastreg.l1(l1=0.5), fastreg.L1, {"l1": 0.5}),
        (fastreg.l1(0.5), fastreg.L1, {"l1": 0.5}),
        (fastreg.l2(), fastreg.L2, {"l2": 0.01}),
        (fastreg.l2(l=0.5), fastreg.L2, {"l2": 0.5}),
        (fastreg.l2(l2=0.5), fastreg.L2, {"l2": 0.5}),
        (fastreg.l2(0.5), fastreg.L2, {"l2": 0.5}),
        (fastreg.l1_l2(), fastreg.L1L2, {"l1": 0.01, "l2": 0.01}),
        (fastreg.l1_l2(l1=0.5), fastreg.L1L2, {"l1": 0.5, "l2": 0.01}),
        (fastreg.l1_l2(0.5, 0.25), fastreg.L1L2, {"l1": 0.5, "l2": 0.25}),
    ):
        assert type(made) is cls
        assert made.get_config() == config
    for name in ("l1", "l2"):
        with pytest.raises(ValueError, match=f"argument l: expected none together with {name}.*l=0.5, {name}=0.25"):
            getattr(fastreg, name)(0.25, l=0.5)


@EACH
def test_serialization_round_trips(name, factors):
    ours, theirs = both(name, factors)
    serialized = keras.regularizers.serialize(ours)
    assert serialized["class_name"] == name
    assert serialized["registered_name"] == f"fastreg>{name}"
    assert serialized["config"] == keras.regularizers.serialize(theirs)["config"] == factors
    for restored in (
        keras.regularizers.deserialize(serialized),
        keras.regularizers.get(serialized),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(ours)),
        keras.saving.get_registered_object(f"fastreg>{name}")(**factors),
    ):
        assert type(restored) is type(ours)
        assert restored.get_config() == factors
    assert keras.saving.get_registered_name(type(ours)) == f"fastreg>{name}"


@EACH
def test_get_returns_the_object_itself(name, factors):
    ours, _ = both(name, factors)
    assert keras.regularizers.get(ours) is ours
    assert type(keras.regularizers.get(type(ours))) is type(ours)
    assert keras.layers.Dense(2, kernel_regularizer=ours).kernel_regularizer is ours


def test_keras_names_stay_keras_own():
    for name in ("l1", "l2", "L1", "L2", "l1l2", "L1L2"):
        assert type(keras.regularizers.get(name)).__module__.startswith("keras.")


@EACH
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_copies(bridge, name, factors, copied):
    ours, _ = both(name, factors)
    x = tf.constant([1.0, -2.0])
    value = ours(x)  # so that copies of a regularizer that has been used are tested
    twin = copied(ours)
    assert type(twin) is type(ours)
    assert twin is not ours
    assert twin.get_config() == factors
    assert float(twin(x)) == float(value) > 0


@EACH
def test_a_call_leaves_no_trace_on_the_instance(bridge, gradient, name, factors):
    """Keras's own serialization test compares attributes before and after."""
    ours, _ = both(name, factors)
    before = dir(ours), copy.deepcopy(vars(ours))
    for function in (gradient, tf.function(gradient)):
        for _ in range(3):
            function(ours, tf.ones(3))
    assert (dir(ours), vars(ours)) == before


@EACH
def test_call_on_what_keras_hands_over(bridge, name, factors):
    """A Keras variable, of its own dtype even under a mixed policy, in every access of `losses`."""
    keras.config.set_dtype_policy("mixed_float16")
    ours, theirs = both(name, factors)
    layers = [keras.layers.Dense(3, kernel_regularizer=r, kernel_initializer="ones") for r in (ours, theirs)]
    for layer in layers:
        layer.build((None, 4))
    for _ in range(2):
        (mine,), (keras_own,) = (layer.losses for layer in layers)
        assert mine.dtype == keras_own.dtype == "float32"
        assert mine.shape == ()
        assert float(mine) == pytest.approx(float(keras_own), rel=1e-6)
    layers[0].trainable = False
    assert layers[0].losses == []
    layers[0].trainable = True
    assert len(layers[0].losses) == 1


@EACH
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_activity_penalties_are_of_the_outputs_dtype(bridge, name, factors, policy):
    ours, theirs = (
        keras.layers.Activation("linear", activity_regularizer=r, dtype=policy) for r in both(name, factors)
    )
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    ours(x), theirs(x)
    assert ours.losses[0].dtype == theirs.losses[0].dtype == keras.DTypePolicy(policy).compute_dtype
    mine, keras_own = (float(tf.cast(layer.losses[0], tf.float64)) for layer in (ours, theirs))
    assert mine == pytest.approx(keras_own, rel=2e-2 if "16" in policy else 1e-6)


@EACH
@pytest.mark.parametrize("accelerated", [False, True])
def test_a_negative_factor_that_is_set_later(name, factors, accelerated):
    """One answer, whoever comes upon it first."""
    ours, theirs = both(name, factors)
    if accelerated:
        layer = keras.layers.Dense(2, kernel_regularizer=theirs)
        fastreg.accelerate(layer)
        ours = layer.kernel_regularizer
    table = fastreg.Embedding(3, 2, embeddings_regularizer=ours)
    table.build()
    last = list(factors)[-1]
    setattr(theirs if accelerated else ours, last, -1)
    x = tf.ones(3)
    for use in (
        lambda: ours(x),
        lambda: tf.function(lambda: ours(x), autograph=False)(),
        lambda: tf.function(lambda: ours(x), autograph=False, jit_compile=True)(),
        lambda: ours(keras.KerasTensor((3,))),
        ours.get_config,
        lambda: table.losses,
        table.penalty,
        table.get_config,
        lambda: fastreg.Embedding(3, 2, embeddings_regularizer=ours).get_config(),
    ):
        with pytest.raises(ValueError, match=f"^Invalid value for argument {last}: expected a non-negative float"):
            use()


def test_a_model_without_penalties_has_no_losses():
    layer = keras.layers.Dense(3, kernel_regularizer=fastreg.L1L2())
    layer.build((None, 4))
    assert [float(loss) for loss in layer.losses] == [0.0]


@pytest.mark.parametrize("shared", [False, True])
def test_one_instance_may_serve_many_weights(bridge, shared):
    """Of several shapes, in one traced function."""
    make = lambda: fastreg.L2(0.5)  # noqa: E731
    one = make()
    weights = [tf.Variable(tf.fill((n,), float(n))) for n in (2, 3, 5)]

    @tf.function
    def slopes():
        with tf.GradientTape() as tape:
            total = tf.add_n([(one if shared else make())(weight) for weight in weights])
        return total, tape.gradient(total, weights)

    for _ in range(3):
        total, gradients = slopes()
        assert float(total) == 0.5 * sum(n**3 for n in (2, 3, 5))
        for n, slope in zip((2, 3, 5), gradients, strict=True):
            assert (slope.numpy() == n).all()
