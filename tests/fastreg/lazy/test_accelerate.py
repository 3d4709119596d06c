"""`accelerate(model, lazy=True)`: the same model, layers, variables and optimizer, trained as before, but lazily."""

import contextlib
import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg import models
from fastreg._tables.table import LazyTable

pytestmark = pytest.mark.parametrize("way", ["auto"], indirect=True)  # how a table is served changes nothing here

ROWS, FACTOR = 23, 2**-6

_generator = np.random.default_rng(5)
DATA = _generator.integers(0, ROWS, (64, 4)).astype("int32"), _generator.normal(size=(64, 1)).astype("float32")


def table(penalty="l2", **options):
    penalty = keras.regularizers.L2(FACTOR) if penalty == "l2" else penalty
    return keras.layers.Embedding(ROWS, 5, embeddings_regularizer=penalty, **options)


class Pooled(keras.layers.Layer):
    """A layer of the user's with a table in it, that a configuration knows nothing of."""

    def __init__(self, **options):
        super().__init__(**options)
        self.tables = [table(), table()]

    def call(self, ids):
        return keras.ops.mean(self.tables[0](ids) * self.tables[1](ids), 1)


class Subclassed(keras.Model):
    """Its own loss, and a layer inside a layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.pooled, self.head = Pooled(), keras.layers.Dense(1, kernel_regularizer="l2")

    def call(self, ids):
        return self.head(self.pooled(ids))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 3.0 * keras.ops.mean(keras.ops.square(y - y_pred)) + sum(self.losses)


class Stepping(keras.Sequential):
    """Its own step."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = 2.0 * tf.reduce_mean(tf.square(y - self(x, training=True))) + sum(self.losses)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


def functional():
    ids = keras.Input((4,), dtype="int32")
    tower = keras.Sequential([keras.Input((4,), dtype="int32"), table(), keras.layers.Flatten()])
    shared = keras.layers.TimeDistributed(table("l2"))
    parts = [tower(ids), keras.layers.Flatten()(shared(keras.layers.Reshape((2, 2))(ids)))]
    return keras.Model(ids, keras.layers.Dense(1, kernel_regularizer="l2")(keras.layers.Concatenate()(parts)))


def bidirectional():
    recurrent = keras.layers.Bidirectional(keras.layers.LSTM(3, kernel_regularizer="l2"))
    return keras.Sequential([table(mask_zero=True), recurrent, keras.layers.Dense(1)])


MODELS = {
    "functional": functional,
    "subclassed": Subclassed,
    "own step": lambda: Stepping([table(), keras.layers.Flatten(), keras.layers.Dense(1)]),
    "bidirectional": bidirectional,
}


def build(name, optimizer, **options):
    keras.utils.set_random_seed(4)
    model = MODELS[name]()
    model.compile(optimizer, "mse", **options)
    return model


def schedule():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.8), clipvalue=1.0)


def fit(model, data, **options):
    return model.fit(*data, batch_size=8, shuffle=False, verbose=0, **options).history["loss"]


def lazies(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, fastreg.Embedding)]


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@functools.cache
def reference(name):
    """Weights, losses and outputs of Keras's own training."""
    data = DATA
    model = build(name, schedule())
    losses = fit(model, data) + fit(model, data)
    return model.get_weights(), losses, model.predict(data[0], verbose=0)


# A functional model is built as soon as it is made, and what a recurrent layer adds shows in a step that was traced.
STAGES = {
    "functional": ("new", "trained"),
    "subclassed": ("new", "built", "trained"),
    "own step": ("new", "built", "trained"),
    "bidirectional": ("trained",),
}


@pytest.mark.parametrize(("name", "stage"), [(name, stage) for name in MODELS for stage in STAGES[name]])
def test_the_model_trains_as_before(lazy, name, stage):
    """It is the same object with the same layers, variables and optimizer, and has the numbers that it would have."""
    model = build(name, schedule())
    if stage == "built":
        model(DATA[0][:2])
    losses = fit(model, DATA) if stage == "trained" else []
    before = [model, type(model), model.optimizer, *model._flatten_layers(), *model.weights]
    paths, steps = [v.path for v in model.weights], int(model.optimizer.iterations)
    with no_warning():
        assert fastreg.accelerate(model, lazy=True) is model
    inner = model.optimizer.inner_optimizer
    after = [model, type(model), inner, *model._flatten_layers(), *model.weights]
    assert [id(each) for each in after] == [id(each) for each in before]
    assert [v.path for v in model.weights] == paths
    assert int(model.optimizer.iterations) == steps
    while len(losses) < 2:
        losses += fit(model, DATA)
    expected, expected_losses, outputs = reference(name)
    assert all(isinstance(layer.embeddings, LazyTable) for layer in lazies(model))
    assert len(lazies(model)) == (2 if name in ("functional", "subclassed") else 1)
    assert int(model.optimizer.iterations) == 16
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for ours, theirs in zip(model.get_weights(), expected, strict=True):
        assert lazy.error(ours, theirs) < 1e-5
    np.testing.assert_allclose(model.predict(DATA[0], verbose=0), outputs, rtol=1e-3, atol=1e-5)
    assert [row.bridge for row in fastreg.inspect(model)].count("lazy") == len(lazies(model))
    with no_warning():
        fastreg.accelerate(model, lazy=True)  # nothing is left to do
    assert model.optimizer.inner_optimizer is inner


OPTIMIZERS = {
    "adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adagrad(0.1), 8.0, dynamic_growth_steps=5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_of_the_optimizer_goes_over(lazy, name, tmp_path):
    """Without a penalty, and with every row looked up, lazy and dense steps are the same."""
    x, y = np.tile(np.arange(4), 6)[:, None], np.random.default_rng(0).normal(size=(24, 1, 1)).astype("float32")
    results = []
    for changed in (False, True):
        keras.utils.set_random_seed(4)
        embedding = keras.layers.Embedding(4, 3, embeddings_regularizer=keras.regularizers.L2(0.0))
        model = keras.Sequential([embedding, keras.layers.Dense(1)])
        optimizer = OPTIMIZERS[name]()
        model.compile(optimizer, "mse")
        fit(model, (x, y), epochs=2)
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if changed:
            step, rate, slots = inner.iterations, inner.learning_rate, [v.numpy() for v in inner.variables[2:]]
            with pytest.warns(UserWarning, match="decoupled from the gradient"):
                fastreg.accelerate(model, lazy=True)
            assert model.optimizer.inner_optimizer is optimizer
            assert inner.iterations is step
            assert inner.learning_rate is rate
            assert not [v for v in inner.variables if v.shape == (4, 3)]
            for ours, theirs in zip(model.optimizer.variables[-len(slots) :], slots, strict=True):
                np.testing.assert_array_equal(ours, theirs)
        fit(model, (x, y), epochs=2)
        results.append([*model.get_weights(), int(model.optimizer.iterations)])
        if name == "scaled":
            results[-1] += [float(model.optimizer.dynamic_scale), int(model.optimizer.step_counter)]
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5
    # Checkpoints of TensorFlow's refuse lists that were changed.
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))


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
    embedding = keras.layers.Embedding(4, 3, embeddings_regularizer=keras.regularizers.L2(0.01))
    model = keras.Sequential([embedding, keras.layers.Dense(1)])
    model.compile(make(), "mse", **options)
    scale, kind = float(model.optimizer.scale_loss(1.0)), keras.optimizers.LossScaleOptimizer
    is_scaler = isinstance(model.optimizer, kind)
    growth = model.optimizer.dynamic_growth_steps if is_scaler else None
    fastreg.accelerate(model, lazy=True)
    assert float(model.optimizer.scale_loss(1.0)) == scale
    assert isinstance(model.optimizer, kind) == is_scaler
    assert (model.optimizer.dynamic_growth_steps if is_scaler else None) == growth
    fit(model, (np.arange(4)[:, None], np.zeros((4, 1, 1))))
    assert float(model.optimizer.scale_loss(1.0)) == scale


def test_a_row_wise_accumulator_begins_with_the_mean(lazy):
    model = build("own step", fastreg.LazyRegularization(keras.optimizers.Adagrad(0.1), rowwise=True))
    model.optimizer.build(model(DATA[0][:2]) is not None and model.trainable_weights)
    accumulator = model.optimizer.inner_optimizer.variables[2]
    values = np.random.default_rng(0).random(accumulator.shape).astype("float32")
    accumulator.assign(values)
    with pytest.warns(UserWarning, match="decoupled"):
        fastreg.accelerate(model, lazy=True)
    (slot,) = [v for v in model.optimizer.variables if v.shape == (ROWS, 1)]
    np.testing.assert_allclose(slot, values.mean(axis=1, keepdims=True), rtol=1e-6)
    fit(model, DATA)


def test_what_no_configuration_holds_is_kept(lazy):
    """Adapted layers, variables' own attributes, losses and layers that nobody registered, and the global seed."""

    class Mine(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 0.01

    x = keras.Input((3,), dtype="string")
    lookup, scaled = keras.layers.StringLookup(max_tokens=ROWS), keras.layers.Normalization()
    lookup.adapt(np.array([["a", "b", "c"], ["a", "b", "d"]]))
    scaled.adapt(np.array([[900.0], [1100.0]]))
    vectors = keras.layers.Lambda(lambda rows: keras.ops.mean(rows, 1))(table()(lookup(x)))
    head = keras.layers.Dense(1)
    model = keras.Model(x, keras.ops.add(head(vectors), scaled(keras.layers.Lambda(lambda v: v[:, :1] * 1e3)(vectors))))
    head.kernel.constraint, head.bias.trainable = keras.constraints.NonNeg(), False
    head.kernel.regularizer = keras.regularizers.L1(0.5)
    head.bias_regularizer = keras.regularizers.L2(0.5)  # on a layer that is built: no penalty in Keras
    model.compile(keras.optimizers.SGD(Mine()), loss=lambda y, p: 100.0 * keras.ops.mean(keras.ops.abs(y - p)))
    data = tf.constant([["a", "b", "zz"], ["d", "c", "a"]]), tf.zeros((2, 1))
    before = model.predict(data[0], verbose=0), model.evaluate(*data, verbose=0), len(model.losses)
    keras.utils.set_random_seed(7)
    expected = keras.random.uniform((2,))
    keras.utils.set_random_seed(7)
    fastreg.accelerate(model, lazy=True)
    np.testing.assert_array_equal(keras.random.uniform((2,)), expected)
    np.testing.assert_array_equal(model.predict(data[0], verbose=0), before[0])
    assert model.evaluate(*data, verbose=0) == pytest.approx(before[1], rel=1e-6)
    assert len(model.losses) == before[2]
    bias = head.bias.numpy()
    fit(model, data, epochs=2)
    assert (head.kernel.numpy() >= 0).all()
    np.testing.assert_array_equal(head.bias, bias)


class Scaled(keras.layers.Embedding):
    def call(self, ids):
        return 2.0 * super().call(ids)


class GroupLasso(fastreg.L2):
    def __call__(self, x):
        return self.l2 * keras.ops.sum(keras.ops.norm(x, axis=1))


class Halving(fastreg.L2):
    """Its factor is another number each time it is asked for."""

    @property
    def l2(self):
        self.factor /= 2
        return self.factor

    @l2.setter
    def l2(self, value):
        self.factor = value


class Tied(keras.layers.Layer):
    def __init__(self, embedding):
        super().__init__()
        self.weight = embedding.embeddings

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.weight))


class Cell(keras.layers.SimpleRNNCell):
    def __init__(self):
        super().__init__(3)
        self.table = table()

    def build(self, shape):
        self.table.build()
        super().build((None, 5))

    def call(self, x, states):
        return super().call(keras.ops.mean(self.table(x), 1), states)


def _built(layer, **changes):
    layer.build()
    for name, value in changes.items():
        setattr(layer.embeddings, name, value)
    return layer


def _with_another_weight():
    layer = table()
    layer.add_weight((2,), "ones", name="another")
    return _built(layer)


def _with_its_own_call():
    layer = table()
    layer.call = functools.partial(keras.layers.Embedding.call, layer)
    return layer


def _sequential(layer):
    return keras.Sequential([keras.Input((4,), dtype="int32"), layer, keras.layers.Flatten(), keras.layers.Dense(1)])


def _tied(read):
    ids = keras.Input((4,), dtype="int32")
    embedding = _built(table())
    return keras.Model(ids, keras.layers.Dense(1)(read(keras.ops.mean(embedding(ids), 1), embedding)))


LEFT = {
    "a subclass": (lambda: _sequential(Scaled(ROWS, 5, embeddings_regularizer="l2")), "Scaled is a subclass"),
    "constraint": (lambda: _sequential(table(embeddings_constraint="non_neg")), "has a constraint"),
    "constraint of the variable": (
        lambda: _sequential(_built(table(), constraint=keras.constraints.NonNeg())),
        "has a constraint",
    ),
    "another weight": (lambda: _sequential(_with_another_weight()), "has weights beside the embeddings"),
    "its own call": (lambda: _sequential(_with_its_own_call()), "its call was replaced"),
    "lora": (lambda: _sequential(table(lora_rank=2)), "LoRA"),
    "other penalty": (lambda: _sequential(table(keras.regularizers.OrthogonalRegularizer())), "no L1, L2 or L1L2"),
    "own penalty": (lambda: _sequential(table(GroupLasso(0.1))), "subclass of L2 with its own __call__"),
    "computed factor": (lambda: _sequential(table(Halving(0.1))), "subclass of L2 with its own l2"),
    "tied weight": (lambda: _tied(lambda x, embedding: Tied(embedding)(x)), "is a weight of 'tied.*' too"),
    "tied operation": (
        lambda: _tied(lambda x, embedding: keras.ops.einsum("bd,vd->bv", x, embedding.embeddings)),
        "is an input of 'einsum",
    ),
    "loop": (
        lambda: keras.Sequential([keras.Input((2, 2), dtype="int32"), keras.layers.RNN(Cell()), keras.layers.Dense(1)]),
        "in the loop of 'rnn",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_stays_dense_is_named(kind):
    make, reason = LEFT[kind]
    model = make()
    optimizer = keras.optimizers.SGD(0.1)
    model.compile(optimizer, "mse")
    classes = [type(layer) for layer in model._flatten_layers()]
    with pytest.warns(UserWarning, match=f"stay dense.*{reason}"):
        fastreg.accelerate(model, lazy=True)
    assert [type(layer) for layer in model._flatten_layers()] == classes
    assert model.optimizer is optimizer
    dense = [row.reason for row in fastreg.inspect(model) if "embeddings" in row.path.split("/")[-1]]
    assert any(reason.split(".*")[0].split("'")[0] in each for each in dense)
    x = np.arange(16).reshape(4, *((2, 2) if kind == "loop" else (4,))) % ROWS
    assert np.isfinite(fit(model, (x, np.ones((4, 1), "float32")))).all()


def test_inspect_says_what_could_be_lazy():
    model = _sequential(table())
    (row,) = fastreg.inspect(model)
    assert row.reason == "not a regularizer of fastreg; dense: fastreg.accelerate(model, lazy=True) makes it lazy"
    fastreg.accelerate(model)
    (row,) = fastreg.inspect(model)
    assert row.reason.endswith("; dense: fastreg.accelerate(model, lazy=True) makes it lazy")
    fastreg.accelerate(model, lazy=True)
    (row,) = fastreg.inspect(model)
    assert row.bridge == "lazy"
    assert f"no slower from {models.LEAST_ROWS} rows on" in row.reason


def test_nothing_to_do_is_told():
    with pytest.warns(UserWarning, match="Nothing became lazy") as told:
        fastreg.accelerate(_sequential(table(None)), lazy=True)
    assert told[0].filename == __file__


def test_whose_numbers_differ_is_told(lazy):
    with pytest.warns(UserWarning, match="with Adagrad the penalty is decoupled"):
        fastreg.accelerate(build("own step", "adagrad"), lazy=True)
    model = _sequential(table(keras.regularizers.L1L2(0.1, 0.25)))
    with pytest.warns(UserWarning, match="L1 part of .* oscillates"):
        fastreg.accelerate(model, lazy=True)
    (layer,) = lazies(model)
    assert layer.embeddings_regularizer.get_config() == {"l1": 0.1, "l2": 0.25}


def state(model):
    """Everything that `accelerate` could change."""
    return [
        model.optimizer,
        model.train_function,
        *vars(model.optimizer).values(),
        *model.optimizer.variables,
        *(value for layer in model._flatten_layers() for value in vars(layer).values()),
        *(value for layer in model._flatten_layers() for value in [type(layer)]),
        *(value for variable in model.weights for value in (type(variable), variable.value, variable.regularizer)),
    ]


@pytest.mark.parametrize("fault", ["optimizer", "factor", "slot", "warning"])
def test_nothing_is_changed_if_anything_fails(lazy, fault, monkeypatch, tmp_path):
    """And the model trains on as if it had not been tried."""
    expected = build("functional", "adamax" if fault == "optimizer" else "adam")
    model = build("functional", "adamax" if fault == "optimizer" else "adam")
    for each in (expected, model):
        fit(each, DATA)
    error, message = (UserWarning, "decoupled") if fault == "warning" else (ValueError, "expected SGD, Adagrad, Adam")
    if fault == "factor":
        model.layers[-1].kernel.regularizer = keras.regularizers.L2(0.5)
        model.layers[-1].kernel.regularizer.l2, message = -1, "expected a non-negative float"
    if fault == "slot":
        made = []
        original = fastreg.LazyRegularization._add_slot

        def add_slot(*arguments):
            made.append(original(*arguments))
            if len(made) == 3:
                raise MemoryError("no more")
            return made[-1]

        monkeypatch.setattr(fastreg.LazyRegularization, "_add_slot", add_slot)
        error, message = MemoryError, "no more"
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message):
            fastreg.accelerate(model, lazy=True)
    after = state(model)
    assert len(after) == len(before)
    for was, now in zip(before, after, strict=True):
        assert was is now or was == now
    if fault == "factor":
        return
    assert fit(model, DATA) == fit(expected, DATA)
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))


def test_models_that_share_layers(lazy):
    """Of which the one does not know the other: what they traced is traced anew."""
    ids = keras.Input((4,), dtype="int32")
    layer = table()
    vectors = keras.ops.mean(layer(ids), 1)
    tower, model = keras.Model(ids, vectors), keras.Model(ids, keras.layers.Dense(1)(vectors))
    optimizer = keras.optimizers.SGD(0.1)
    for each in (tower, model):
        each.compile(optimizer, "mse")
    tower.predict(DATA[0], verbose=0)
    fastreg.accelerate(model, lazy=True)
    fit(model, DATA)
    expected = layer.embeddings.numpy()[DATA[0]].mean(axis=1)
    np.testing.assert_allclose(tower.predict(DATA[0], verbose=0), expected, rtol=1e-5)
    with pytest.raises((RuntimeError, ValueError), match=r"LazyRegularization|Unknown variable"):
        fit(tower, (DATA[0], expected))
    tower.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(tower, (DATA[0], expected))


def test_models_within_a_model(lazy):
    """Each optimizer is wrapped, one that two models share in one wrapper."""
    inner = _sequential(table())
    outer = keras.Sequential([inner])
    alone = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Dense(1)])
    ids = keras.Input((4,), dtype="int32")
    model = keras.Model(ids, keras.layers.Add()([outer(ids), alone(ids)]))
    shared, other = keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.2)
    model.compile(shared, "mse")
    outer.compile(shared, "mse")
    inner.compile(other, "mse")
    alone.compile("rmsprop", "mse")
    fastreg.accelerate(model, lazy=True)
    assert model.optimizer is outer.optimizer
    assert model.optimizer.inner_optimizer is shared
    assert inner.optimizer.inner_optimizer is other
    assert type(alone.optimizer) is keras.optimizers.RMSprop
    for each in (model, inner):
        fit(each, DATA)


class TwoOptimizers(Subclassed):
    def compile(self, for_tables, for_others):
        super().compile("adamax", "mse")  # which nothing uses
        self.for_tables, self.for_others = for_tables, for_others

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            loss = self.compute_loss(x, y, self(x))
        for optimizer, part in ((self.for_tables, self.pooled), (self.for_others, self.head)):
            optimizer.apply(tape.gradient(loss, part.trainable_weights), part.trainable_weights)
        return {"loss": loss}


@pytest.mark.parametrize("trained", [False, True])
def test_a_model_with_several_optimizers(lazy, trained):
    results = []
    for changed in (False, True):
        keras.utils.set_random_seed(2)
        model = TwoOptimizers()
        model.compile(keras.optimizers.SGD(0.1), keras.optimizers.Adamax(0.01))
        fit(model, DATA) if trained else model(DATA[0][:2])
        held = model.for_tables, model.for_others
        if changed:
            with pytest.warns(UserWarning, match=r"Adamax\. It must not train a lazy embedding"):
                fastreg.accelerate(model, lazy=True)
            assert model.for_tables.inner_optimizer is held[0]
            assert model.for_others is held[1]
        fit(model, DATA)
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


class TiedTo(keras.layers.Layer):
    """Reads the whole table of a layer that it has, which nothing tells before it is called."""

    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_tied_tables_train_as_with_keras(lazy, optimizer):
    """All rows of them; slowly, and told."""
    results = []
    for changed in (False, True):
        keras.utils.set_random_seed(2)
        ids, embedding = keras.Input((4,), dtype="int32"), table(keras.regularizers.L2(FACTOR * (optimizer == "sgd")))
        model = keras.Model(ids, keras.layers.Dense(1)(TiedTo(embedding)(keras.ops.mean(embedding(ids), 1))))
        model.compile(optimizer, "mse")
        if changed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that Adagrad's numbers differ with a penalty
                fastreg.accelerate(model, lazy=True)
        with pytest.warns(UserWarning, match="reads all of the table") if changed else no_warning():
            losses = fit(model, DATA, epochs=3)
        results.append([*model.get_weights(), losses])
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


def test_a_function_that_was_traced_before_does_not_go_on(lazy):
    """It would train memory that nobody reads any more."""
    layer = _built(table())
    lookup = tf.function(lambda ids: layer(ids))
    np.testing.assert_array_equal(lookup(tf.constant([3])), layer.embeddings.numpy()[3:4])
    assert fastreg.accelerate(layer, lazy=True) is layer
    with pytest.raises(tf.errors.InvalidArgumentError):
        lookup(tf.constant([3]))
    np.testing.assert_array_equal(layer(tf.constant([3])), layer.embeddings.numpy()[3:4])


def test_xla_stays_on():
    model, other = (build("own step", "sgd", jit_compile=jit) for jit in (True, False))
    for each in (model, other):
        fastreg.accelerate(each, lazy=True)
        fit(each, DATA)
    assert model.jit_compile
    assert model.get_compile_config()["jit_compile"]
    assert "compiled by XLA" in next(row.reason for row in fastreg.inspect(model) if row.bridge == "lazy")
    for weight, same in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(weight, same, rtol=0, atol=1e-6)


def test_distributed_models_stay_dense():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        models = [_sequential(table()), build("own step", "sgd")]
    for model in models:
        with pytest.warns(UserWarning, match="distributed by MirroredStrategy"):
            fastreg.accelerate(model, lazy=True)


def test_frozen_layers_stay_frozen(lazy):
    model = build("functional", "sgd")
    layer = next(layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding))
    layer.trainable = False
    fastreg.accelerate(model, lazy=True)
    assert type(layer) is fastreg.Embedding
    before = layer.embeddings.numpy()
    model.compile(fastreg.LazyRegularization("sgd"), "mse")
    fit(model, DATA)
    np.testing.assert_array_equal(layer.embeddings, before)


def test_the_regularizer_that_the_user_holds_still_counts(lazy):
    held = [keras.regularizers.L2(0.0), keras.regularizers.L2(0.0)]
    models = [_sequential(_built(table(penalty))) for penalty in held]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), "mse")
    fastreg.accelerate(models[0], lazy=True)
    for penalty, model in zip(held, models, strict=True):
        penalty.l2 = 0.5
        fit(model, DATA)
    for ours, theirs in zip(*(model.get_weights() for model in models), strict=True):
        assert lazy.error(ours, theirs) < 1e-5
    assert lazies(models[0])[0].get_config()["embeddings_regularizer"]["config"] == {"l2": 0.5}


def test_layers_made_later_are_named():
    """In a layer's own `build`, after which a second call finds them."""

    class Late(keras.layers.Layer):
        def build(self, shape):
            self.table = table()
            self.table.build()

        def call(self, ids):
            return keras.ops.mean(self.table(ids), 1)

    model = keras.Sequential([Late(name="late"), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="Nothing became lazy"):
        fastreg.accelerate(model, lazy=True)
    with pytest.warns(UserWarning, match=r"embedding.*made after fastreg.accelerate\(model, lazy=True\)"):
        fit(model, DATA)
    assert type(model.layers[0].table.embeddings.regularizer) is fastreg.L2
    with no_warning():
        fastreg.accelerate(model, lazy=True)
    fit(model, DATA)
    assert isinstance(model.layers[0].table.embeddings, LazyTable)


def loaded(model, path):
    model.save(path)
    return keras.models.load_model(path, custom_objects={"Subclassed": Subclassed})


@pytest.mark.parametrize("name", ["functional", "subclassed"])
@pytest.mark.filterwarnings("ignore:The numbers will differ")
def test_saved_and_loaded(lazy, name, tmp_path):
    """A model that is described by its configuration is lazy when it is loaded; one that its code makes is after
    another call. Both go on as the model that was saved."""
    model = build(name, "adagrad")
    fit(model, DATA)
    fastreg.accelerate(model, lazy=True)
    fit(model, DATA)
    again = loaded(model, tmp_path / "model.keras")
    np.testing.assert_allclose(again.predict(DATA[0], verbose=0), model.predict(DATA[0], verbose=0), rtol=1e-6)
    assert isinstance(again.optimizer, fastreg.LazyRegularization)
    assert bool(lazies(again)) == (name == "functional")
    fastreg.accelerate(again, lazy=True)
    assert fit(again, DATA) == fit(model, DATA)
    for one, other in ((again.weights, model.weights), (again.optimizer.variables, model.optimizer.variables)):
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    model.save_weights(tmp_path / "w.weights.h5")
    fresh = build(name, "adagrad")
    fresh(DATA[0][:2])
    fresh.load_weights(tmp_path / "w.weights.h5")  # into Keras's own layers
    np.testing.assert_allclose(fresh.predict(DATA[0], verbose=0), model.predict(DATA[0], verbose=0), rtol=1e-6)
    model.export(tmp_path / "exported", verbose=False)
    served = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(served.serve(DATA[0]), model.predict(DATA[0], verbose=0), rtol=1e-5)


@pytest.mark.parametrize("graph", [False, True])
def test_an_optimizer_of_a_loop_of_the_user_s(lazy, graph):
    """Whoever wraps it by hand goes on with its state."""
    results = []
    for changed in (False, True):
        keras.utils.set_random_seed(3)
        model, optimizer = _sequential(table(keras.regularizers.L2(0.0))), keras.optimizers.Adagrad(0.1)

        def step(model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(DATA[0]) - DATA[1])) + sum(model.losses)
            optimizer.apply(tape.gradient(loss, model.trainable_weights), model.trainable_weights)

        (tf.function(step) if graph else step)()
        if changed:
            fastreg.accelerate(model, lazy=True)
            with pytest.raises(RuntimeError, match=r"can only be updated by fastreg\.LazyRegularization"):
                step()
            optimizer = fastreg.LazyRegularization(optimizer)
        again = functools.partial(step, optimizer=optimizer)
        (tf.function(again) if graph else again)()
        results.append([*model.get_weights(), int(optimizer.iterations)])
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


@pytest.mark.filterwarnings("ignore:The numbers will differ")
def test_weights_of_checkpoints_from_before(lazy, tmp_path):
    model = build("subclassed", "adagrad")
    fit(model, DATA)
    path, weights = tf.train.Checkpoint(model=model).save(str(tmp_path / "before")), model.get_weights()
    fastreg.accelerate(model, lazy=True)
    fit(model, DATA)
    tf.train.Checkpoint(model=model).restore(path)
    for ours, theirs in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("lazily", [False, True])
def test_while_the_model_trains(lazy, lazily):
    class Accelerate(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                fastreg.accelerate(self.model, lazy=lazily)

    model = build("subclassed", schedule())
    fit(model, DATA, epochs=2, callbacks=[Accelerate()], validation_data=DATA)
    assert len(lazies(model)) == (2 if lazily else 0)
    for ours, theirs in zip(model.get_weights(), reference("subclassed")[0], strict=True):
        assert lazy.error(ours, theirs) < 1e-5


def test_inside_a_function_that_is_traced(lazy):
    """All is done at once, and no variable is of the graph."""
    model = build("own step", "sgd")
    fit(model, DATA)
    tf.function(lambda: fastreg.accelerate(model, lazy=True) and tf.constant(1))()
    assert len(lazies(model)) == 1
    fit(model, DATA)


def test_a_converted_layer_is_one_of_fastreg_s(lazy):
    """Built or not: with its methods and its restrictions."""
    for layer in (_built(table()), table(mask_zero=True)):
        fastreg.accelerate(layer, lazy=True)
        layer.build()
        assert isinstance(layer.embeddings, LazyTable)
        expected = FACTOR * np.square(layer.embeddings.numpy()).sum()
        assert float(layer.penalty()) == pytest.approx(expected, rel=1e-5)
        assert [float(loss) for loss in layer.losses] == pytest.approx([expected], rel=1e-5)
        again = keras.layers.deserialize(keras.layers.serialize(layer))
        assert type(again) is fastreg.Embedding
        assert again.get_config() == layer.get_config()
        for refused in (lambda layer=layer: layer.quantize("int8"), lambda layer=layer: layer.enable_lora(2)):
            with pytest.raises(NotImplementedError):
                refused()
