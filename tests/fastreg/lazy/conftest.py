"""Training of a bare table with known gradients, its dense float64 oracle, and small models around a lazy layer."""

import contextlib
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

ROWS, WIDTH = 23, 5


@pytest.fixture(autouse=True)
def restored_floatx():
    """As in a new process, after each test."""
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


@pytest.fixture(params=["auto", "tensorflow"], autouse=True)
def way(request, fresh_state):
    """Runs each test on both ways of tables: native ops, and TensorFlow's own."""
    fastreg.set_bridge(request.param)
    return request.param


@pytest.fixture
def float64():
    """Keras in float64 throughout, learning rates and schedules included."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


class Plan:
    """Ids and gradients for every step: `loss = sum(gradient * lookup(ids)) + penalty`, so data gradients are known."""

    def __init__(self, steps, rows=ROWS, width=WIDTH, batch=6, seed=0):
        generator = np.random.default_rng(seed)
        self.start = generator.normal(size=(rows, width))
        # The last four rows are never looked up.
        self.ids = [(generator.zipf(1.4, batch) - 1) % (rows - 4) for _ in range(steps)]
        self.gradients = [generator.normal(size=(batch, width)) * 0.3 for _ in range(steps)]

    def __len__(self):
        return len(self.ids)

    def layer(self, penalty, dtype="float64", **options):
        rows, width = self.start.shape
        layer = fastreg.Embedding(rows, width, embeddings_regularizer=penalty, dtype=dtype, **options)
        layer.build()
        layer.embeddings.assign(self.start)
        return layer

    def train(self, layer, optimizer, steps=None, graph=True, before=lambda step: None):
        """Run these steps, by default all, with the optimizer, and return the weights."""

        def step(ids, gradient):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.cast(layer(ids), layer.compute_dtype) * tf.cast(gradient, layer.compute_dtype))
                loss += tf.cast(sum(layer.losses), layer.compute_dtype)
            optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

        if graph:
            step = tf.function(step, jit_compile=graph == "xla")
        for number in range(len(self)) if steps is None else steps:
            before(number)
            step(tf.constant(self.ids[number], tf.int32), tf.constant(self.gradients[number]))
        return layer.embeddings.numpy()


def data_gradient(weights, ids, gradient):
    dense = np.zeros_like(weights)
    np.add.at(dense, ids, gradient)
    return dense


def shrink(w, a, b):
    return np.sign(w) * np.maximum(0, a * np.abs(w) - b)


FTRL = {
    "l1_regularization_strength": 0.5,
    "l2_regularization_strength": 0.25,
    "l2_shrinkage_regularization_strength": 0.125,
    "beta": 0.0625,
}


def oracle(
    plan, kind, rates, l1=0.0, l2=0.0, steps=None, start=None, epsilon=1e-7, state=None, implicit=False, decay=0.0
):
    """The dense rule in float64: every weight shrinks, then touched rows take their optimizer's update."""
    l2 += decay / 2
    w = np.array(plan.start if start is None else start, dtype=np.float64)
    state = {} if state is None else state
    accumulator = state.setdefault("accumulator", np.full_like(w[:, :1] if kind == "rowwise" else w, 0.125))
    m, v = state.setdefault("m", np.zeros_like(w)), state.setdefault("v", np.zeros_like(w))
    for number in range(len(plan)) if steps is None else steps:
        rate = rates[number]
        w = shrink(w, 1, rate * l1) / (1 + 2 * rate * l2) if implicit else shrink(w, 1 - 2 * rate * l2, rate * l1)
        rows, g = np.unique(plan.ids[number]), data_gradient(w, plan.ids[number], plan.gradients[number])
        g = g[rows]
        if kind == "sgd":
            w[rows] -= rate * g
        elif kind in ("adagrad", "rowwise"):
            accumulator[rows] += np.square(g) if kind == "adagrad" else np.square(g).mean(axis=1, keepdims=True)
            w[rows] -= rate * g / np.sqrt(accumulator[rows] + epsilon)
        elif "rmsprop" in kind:
            v[rows] = 0.9 * v[rows] + (1 - 0.9) * np.square(g)
            m[rows] = 0.9 * m[rows] + (1 - 0.9) * g
            centre = np.square(m[rows]) if kind == "centered rmsprop" else 0.0
            w[rows] -= rate * g / np.sqrt(v[rows] - centre + epsilon)
        elif kind == "ftrl":
            before = accumulator[rows]
            accumulator[rows] += np.square(g)
            growth = (np.sqrt(accumulator[rows]) - np.sqrt(before)) / rate
            m[rows] += g + 2 * FTRL["l2_shrinkage_regularization_strength"] * w[rows] - growth * w[rows]
            limit = FTRL["l1_regularization_strength"]
            beyond = m[rows] - np.clip(m[rows], -limit, limit)
            l2_of_all = FTRL["l2_regularization_strength"] + FTRL["beta"] / (2 * rate)
            w[rows] = -beyond / (np.sqrt(accumulator[rows]) / rate + 2 * l2_of_all)
        else:
            squares = np.square(g).mean(axis=1, keepdims=True) if kind == "rowwise adam" else np.square(g)
            m[rows] += (g - m[rows]) * (1 - 0.9)
            v[rows] += (squares - v[rows]) * (1 - 0.999)
            time = number + 1
            alpha = rate * np.sqrt(1 - 0.999**time) / (1 - 0.9**time)
            w[rows] -= alpha * m[rows] / (np.sqrt(v[rows]) + epsilon)
    return w


OPTIMIZERS = {
    "sgd": keras.optimizers.SGD,
    "adagrad": keras.optimizers.Adagrad,
    "rowwise": keras.optimizers.Adagrad,
    "adam": keras.optimizers.Adam,
    "rowwise adam": keras.optimizers.Adam,
    "rmsprop": keras.optimizers.RMSprop,
    "centered rmsprop": functools.partial(keras.optimizers.RMSprop, centered=True),
    "ftrl": functools.partial(keras.optimizers.Ftrl, **FTRL),
}


class Lazy:
    """What the tests of lazy regularisation share."""

    plan, oracle, shrink = Plan, staticmethod(oracle), staticmethod(shrink)
    kinds = tuple(OPTIMIZERS)
    penalised = tuple(kind for kind in OPTIMIZERS if kind != "ftrl")  # which has penalties of its own

    @staticmethod
    def optimizer(kind, rate=0.25, implicit=False, **options):
        if kind in ("adagrad", "rowwise", "ftrl"):  # a value that Keras's rounding of it to float32 leaves alone
            options.setdefault("initial_accumulator_value", 0.125)
        return fastreg.LazyRegularization(
            OPTIMIZERS[kind](rate, **options), rowwise="rowwise" in kind, implicit=implicit
        )

    @staticmethod
    def gradient(layer, weight=1.0):
        """Of a loss that is nothing but the penalty, with this weight."""
        with tf.GradientTape() as tape:
            loss = weight * sum(layer.losses)
        return tape.gradient(loss, layer.embeddings)

    @staticmethod
    def error(actual, expected):
        """The largest difference in units of the largest weight."""
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        assert actual.shape == expected.shape
        return np.abs(actual - expected).max() / (np.abs(expected).max() or 1.0)  # all may have shrunk to zero

    @staticmethod
    def model(layer, fields=4):
        """A regression from `fields` ids."""
        ids = keras.Input((fields,), dtype="int32")
        return keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids))))

    @staticmethod
    def data(rows=ROWS, fields=4, n=64, seed=5):
        generator = np.random.default_rng(seed)
        x = ((generator.zipf(1.4, (n, fields)) - 1) % rows).astype("int32")
        return x, generator.normal(size=(n, 1)).astype(keras.config.floatx())

    @classmethod
    def compiled(cls, penalty, optimizer, layer_class=fastreg.Embedding, rows=ROWS, width=WIDTH, **options):
        keras.utils.set_random_seed(11)
        model = cls.model(layer_class(rows, width, embeddings_regularizer=penalty))
        model.compile(optimizer, "mse", **options)
        return model


@pytest.fixture(scope="session")
def lazy():
    return Lazy


@pytest.fixture
def cpu_reads():
    """Count the whole reads of tables, each of which flushes."""

    @contextlib.contextmanager
    def counting(layer):
        count = []
        flush = type(layer.embeddings).flush
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(layer.embeddings), "flush", lambda table: (count.append(1), flush(table))[1])
            yield count

    return counting
