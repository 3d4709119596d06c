"""What cannot be trained lazily is refused, at the first step at the latest, and before a weight changes."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

L2 = 2**-6


def fit(model, x, y, **options):
    return model.fit(x, y, **{"batch_size": 8, "shuffle": False, "verbose": 0, **options})


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


@pytest.mark.parametrize("eager", [False, True])
def test_a_missing_wrapper_under_loss_scaling_is_an_error(lazy, eager):
    model = lazy.compiled(
        fastreg.L2(L2), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), run_eagerly=eager
    )
    before = model.get_weights()
    with pytest.raises(RuntimeError, match="LazyRegularization"):
        fit(model, *lazy.data())
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_a_wrapper_in_a_wrapper_and_a_scaler_in_a_scaler_are_errors(lazy):
    scaled = keras.optimizers.LossScaleOptimizer
    for inner in (fastreg.LazyRegularization("sgd"), scaled(fastreg.LazyRegularization("sgd"))):
        with pytest.raises(ValueError, match="wrapped already"):
            fastreg.LazyRegularization(inner)
    twice = scaled(fastreg.LazyRegularization(scaled(keras.optimizers.SGD())))
    model = lazy.compiled(fastreg.L2(L2), twice)
    with pytest.raises(ValueError, match="does not scale the loss"):
        fit(model, *lazy.data())


@pytest.mark.parametrize(
    ("optimizer", "rowwise", "message"),
    [
        (keras.optimizers.Lion, False, "expected SGD, Adagrad, Adam, AdamW, RMSprop or Ftrl"),
        (keras.optimizers.Adafactor, False, "expected SGD, Adagrad, Adam, AdamW, RMSprop or Ftrl"),
        (lambda: keras.optimizers.RMSprop(momentum=0.9), False, "momentum"),
        (lambda: keras.optimizers.Ftrl(learning_rate_power=-0.25), False, "learning_rate_power=-0.5"),
        (lambda: keras.optimizers.Ftrl(weight_decay=0.1), False, "weight_decay=None"),
        (keras.optimizers.RMSprop, True, "rowwise"),
        (lambda: keras.optimizers.SGD(momentum=0.9), False, "momentum"),
        (lambda: keras.optimizers.Adam(amsgrad=True), False, "amsgrad"),
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


class GroupLasso(fastreg.L2):
    def __call__(self, x):
        return self.l2 * keras.ops.sum(keras.ops.norm(x, axis=1))


class Centred(fastreg.L1L2):
    def _penalty(self, x, l1, l2):
        return super()._penalty(x - 1.0, l1, l2)


class Counting(fastreg.L2):
    """Its factor is another number each time it is asked for."""

    asked = 0

    @property
    def l2(self):
        self.asked += 1
        return 0.1 * self.asked

    @l2.setter
    def l2(self, value):
        pass


class Named(fastreg.L2):
    """Changes nothing that counts."""

    def __init__(self, l2=0.25, name=""):
        super().__init__(l2)
        self.l1, self.name = 5.0, name

    def get_config(self):
        return {**super().get_config(), "name": self.name}


@pytest.mark.parametrize("penalty", [GroupLasso(0.1), Centred(0.1, 0.1), Counting()], ids=lambda p: type(p).__name__)
def test_regularizers_that_compute_something_else(lazy, penalty):
    """A table knows factors only: such a regularizer would be taken for the plain one."""
    with pytest.raises(ValueError, match=r"embeddings_regularizer.*with its own .*Use keras.layers.Embedding"):
        fastreg.Embedding(5, 3, embeddings_regularizer=penalty)
    layer = lazy.plan(1).layer(fastreg.L2(0.5))
    for owner, name in ((layer, "embeddings_regularizer"), (layer.embeddings, "regularizer")):
        with pytest.raises(ValueError, match=rf"attribute {name}.*with its own"):
            setattr(owner, name, penalty)
    assert layer.embeddings_regularizer.get_config() == {"l2": 0.5}


def test_regularizers_that_change_nothing_that_counts(lazy, float64):
    plan = lazy.plan(5)
    weights = plan.train(plan.layer(Named(name="decay")), lazy.optimizer("sgd"))
    assert lazy.error(weights, lazy.oracle(plan, "sgd", [0.25] * 5, l2=0.25)) < 1e-12


def test_lora_and_quantization_are_refused(lazy):
    layer = lazy.plan(1).layer(fastreg.L2())
    with pytest.raises(NotImplementedError, match="enable_lora"):
        layer.enable_lora(2)
    with pytest.raises(NotImplementedError, match="quantize"):
        layer.quantize("int8")


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantization_without_a_regularizer(mode):
    """By the model, as with Keras's layer; one with a regularizer is left as it is."""
    found = []
    for embedding, penalty in ((fastreg.Embedding, "l2"), (fastreg.Embedding, None), (keras.layers.Embedding, None)):
        layer = embedding(6, 4, embeddings_initializer=keras.initializers.RandomUniform(seed=1))
        lazy_one = fastreg.Embedding(6, 4, embeddings_regularizer=penalty)
        model = keras.Sequential([keras.Input((3,), dtype="int32"), lazy_one if penalty else layer])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the layer that stays
            model.quantize(mode)
        assert model.layers[0].quantization_mode == (None if penalty else mode)
        found.append(model(tf.constant([[1, 0, 5]])))
    np.testing.assert_array_equal(found[1], found[2])


@pytest.mark.parametrize(
    ("ids", "dtype"),
    [([23], "int32"), ([-1], "int32"), ([0, 1, 1000], "int64"), ([1, 2**32 + 1], "int64")]
    + [([2**32 + 1], dtype) for dtype in ("uint64", "float64", "float32")]
    + [([2**31 + 1], "uint32"), ([200], "uint8"), ([-2], "int16"), ([float("nan")], "float32")],
)
@pytest.mark.parametrize("penalty", [None, fastreg.L2()])
@pytest.mark.parametrize("graph", [False, True])
def test_ids_out_of_range(lazy, ids, dtype, penalty, graph):
    """They are reported as what they are; none becomes the id of a row."""
    layer = fastreg.Embedding(23, 5, embeddings_regularizer=penalty)
    layer.build()
    call = tf.function(layer.__call__) if graph else layer
    given = np.array(ids, dtype)
    number = "-[0-9]+" if np.isnan(given[-1]) else str(int(given[-1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"= {number} is not in \[0, 23\)") as caught:
        call(tf.constant(given))
    if penalty is not None and layer.embeddings.value.is_native():
        assert f"for the table {layer.embeddings.path}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "int64", "uint64", "float16", "float64"])
@pytest.mark.parametrize("penalty", [None, fastreg.L2()])
def test_ids_of_any_dtype(lazy, dtype, penalty):
    layer = fastreg.Embedding(23, 5, embeddings_regularizer=penalty)
    np.testing.assert_array_equal(layer(tf.constant([3, 22, 3], dtype)), layer(tf.constant([3, 22, 3])))


def test_a_learning_rate_that_would_turn_weights_around(lazy, float64):
    plan = lazy.plan(1)
    layer = plan.layer(fastreg.L2(1.0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="learning_rate \\* l2"):
        plan.train(layer, lazy.optimizer("sgd", 0.5))


def test_an_unknown_table(lazy):
    first, second = (lazy.plan(1).layer(fastreg.L2(), dtype="float32") for _ in range(2))
    optimizer = fastreg.LazyRegularization("adagrad")
    optimizer.build(first.trainable_weights)
    with pytest.raises(ValueError, match="Unknown table"):
        optimizer.apply([lazy.gradient(second)], second.trainable_weights)


@pytest.mark.parametrize("devices", [["CPU:0"], None])
def test_mirrored_variables(lazy, devices):
    """Also of one replica, whose variable has no memory of its own to update rows in."""
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope(), pytest.raises(ValueError, match=r"one device.*Received: MirroredStrategy"):
        lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd"))
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        fit(lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd")), *lazy.data())


@pytest.mark.parametrize("how", ["fit in the scope", "model in the scope", "a loop", "fit, central storage"])
def test_tables_made_outside_of_a_strategy(lazy, how):
    """Each replica would update the one table. Nothing is changed; without the strategy it trains on."""
    kind = tf.distribute.experimental.CentralStorageStrategy if "central" in how else tf.distribute.MirroredStrategy
    strategy = kind(["CPU:0", "CPU:1"])
    model = lazy.compiled(fastreg.L2(L2), fastreg.LazyRegularization("sgd"))
    before = model.get_weights()

    def train():
        if how == "a loop":
            layer = model.layers[1]
            gradient = lazy.gradient(layer)
            strategy.run(lambda: model.optimizer.apply([gradient], [layer.embeddings]))
            return
        with strategy.scope():
            again = model
            if how == "model in the scope":
                again = keras.Model(model.inputs, model.outputs)
                again.compile(fastreg.LazyRegularization("sgd"), "mse")
            fit(again, *lazy.data())

    with pytest.raises(ValueError, match=r"one device.*Received: (Mirrored|CentralStorage)Strategy"):
        train()
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sequential_models_do_not_hide_the_error():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = keras.Sequential([fastreg.Embedding(5, 2, embeddings_regularizer="l2"), keras.layers.Dense(1)])
        with pytest.raises(ValueError, match="one device"):
            model.build((None, 3))
