"""What the tests of the Keras-facing package share: the bridge each runs on, models to train, and new processes."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import functools
import gc
import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import fastreg
from fastreg._bridges import native, settings
from fastreg._tables import rules

FORCED = ("native", "py_function")
"""The bridges that use kernels whatever the size."""

STEPS_PER_EPOCH, EPOCHS, EAGER_EPOCHS, BATCH = 8, 7, 2, 8
"""56 steps in a graph, where tracing takes longest; eager steps take 20 times as long, and differ by no state."""

gc.freeze()  # what is imported by now stays: the collections of the tests need not look at it


LONG = ("test_leaks.py", "test_memory.py", "test_interrupts.py", "test_files.py", "test_shutdown.py")


def pytest_collection_modifyitems(items):
    """The longest tests first, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def fresh_state():
    """Settings, policies and seeds as in a new process, before and after each test."""
    bridge = fastreg.get_bridge()
    settings._warned.clear()
    rules.explained.update(("Adagrad", "Adam", "AdamW", "RMSprop"))
    keras.utils.set_random_seed(1)
    yield
    fastreg.set_bridge(bridge)
    fastreg.set_crossover(None)
    keras.config.set_dtype_policy("float32")


class Bridge:
    """The bridge that a test runs on, and the check that it really served.

    On a forced bridge a test that used no kernel, or on XLA's no cluster, fails, unless it said that TensorFlow's ops
    would serve and why; then a test that did use one, or whose choices do not give that reason, fails.
    """

    def __init__(self, name):
        fastreg.set_bridge(name)
        self.name, self.forced = name, name in (*FORCED, "xla")
        self._calls, self._choices, self._reason = fastreg.info()["kernel_calls"], _choices(), None

    def kernel_calls(self):
        """How often a kernel ran; on XLA's bridge, how often a cluster was chosen."""
        if self.name == "xla":
            return (_choices() - self._choices)["xla", "set_bridge"]
        return fastreg.info()["kernel_calls"] - self._calls

    def reasons(self):
        """Why which bridge was chosen since the test began, as a set of pairs (bridge, reason)."""
        return set(_choices() - self._choices)

    def falls_back(self, reason):
        """Expect TensorFlow's ops, and within the context that is returned the one warning of a forced bridge."""
        self._reason = reason
        if self.forced:
            return pytest.warns(RuntimeWarning, match=reason)
        return pytest.MonkeyPatch.context()  # any context that does nothing

    def check(self):
        if not self.forced:
            return
        if self._reason is None:
            assert self.kernel_calls() > 0, "no kernel ran on the forced bridge"
        else:
            assert self.kernel_calls() == 0
            assert any(b == "tensorflow" and self._reason in reason for b, reason in self.reasons()), self.reasons()


def _choices():
    return Counter({(entry["bridge"], entry["reason"]): entry["count"] for entry in fastreg.info()["choices"]})


@pytest.fixture(params=[*FORCED, "auto"])
def bridge(request, fresh_state):
    """Runs a test on each way to the kernels, whatever the size, and as users get them."""
    chosen = Bridge(request.param)
    yield chosen
    chosen.check()


@pytest.fixture(params=FORCED)
def forced(request, fresh_state):
    """For tests about the kernels' own path."""
    chosen = Bridge(request.param)
    yield chosen
    chosen.check()


@pytest.fixture
def clusters(fresh_state):
    """Runs a test on clusters that XLA compiles."""
    chosen = Bridge("xla")
    yield chosen
    chosen.check()


@pytest.fixture
def without_native_ops(monkeypatch):
    """As where TensorFlow's library does not export what native ops need; `"auto"` then falls back to callbacks."""
    for name in ("obstacle", "penalty_obstacle", "table_obstacle"):
        monkeypatch.setattr(native, name, lambda *arguments: "no native ops in this test")


@pytest.fixture(scope="session")
def operations():
    """The types of the operations of a graph, and of the functions that it calls."""

    def of_graph(graph):
        definition = graph.as_graph_def()
        return {
            node.op for nodes in (definition.node, *(f.node_def for f in definition.library.function)) for node in nodes
        }

    return of_graph


class Launcher:
    """The process of launcher.py, and what it is asked."""

    def __init__(self):
        command = [sys.executable, "-P", Path(__file__).with_name("launcher.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __call__(self, path, arguments, environment, seconds):
        streams = {name: f"{path}.{name}" for name in ("stdout", "stderr")}
        request = {"path": str(path), "arguments": arguments, "environment": environment, **streams}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        child = int(self.process.stdout.readline())
        timer = threading.Timer(seconds, os.killpg, (child, signal.SIGKILL))
        timer.start()
        code = int(self.process.stdout.readline())
        late = not timer.is_alive()
        timer.cancel()
        return code, *(Path(stream).read_text() for stream in streams.values()), late

    def stop(self):
        self.process.kill()
        self.process.communicate()


def run_fresh(path, arguments, environment, seconds):
    process = subprocess.Popen(
        [sys.executable, path, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        printed, late = process.communicate(timeout=seconds), False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, late = process.communicate(), True
    return process.returncode, *printed, late


@pytest.fixture(scope="session")
def run_process(tmp_path_factory):
    """Run a script in a new process: its exit code, and what it printed on stdout and on stderr.

    It is a child of a process that has imported TensorFlow and Keras, and nothing else; or, if it is to be `fresh`,
    started from nothing, as where the import itself, the allocator or `multiprocessing` is tested. After some seconds
    it is killed, with the children that it started, and then the test fails. Keyword arguments are environment
    variables.
    """
    launchers = []

    def run(script, *arguments, seconds=200, fresh=False, **environment):
        path = tmp_path_factory.mktemp("process") / "script.py"
        path.write_text(textwrap.dedent(script))
        arguments, environment = [*map(str, arguments)], os.environ | environment
        if fresh or not sys.platform.startswith("linux"):
            code, output, errors, late = run_fresh(path, arguments, environment, seconds)
        else:
            launcher = launchers.pop() if launchers else Launcher()
            try:
                code, output, errors, late = launcher(path, arguments, environment, seconds)
            except BaseException:
                launcher.stop()  # whose next answer would be one to this question
                raise
            launchers.append(launcher)
        if late:
            pytest.fail(f"the process did not end in {seconds} s:\n{output}\n{errors[-4000:]}")
        return code, output, errors

    yield run
    for launcher in launchers:
        launcher.stop()


@pytest.fixture(scope="session")
def run_python(run_process):
    """Run code in a new process and return what it printed; arguments as for `run_process`."""

    def run(script, *arguments, ok=True, **options):
        code, output, errors = run_process(script, *arguments, **options)
        if ok:
            assert code == 0, errors[-4000:]
            return output
        assert code != 0, output
        return errors

    return run


@keras.saving.register_keras_serializable(package="tests")
class GatedLayer(layers.Layer):
    """An LSTM as users write their own: weights from add_weight, each with its regularizer."""

    def __init__(self, units, kernel_regularizer=None, recurrent_regularizer=None, bias_regularizer=None, **options):
        super().__init__(**options)
        self.units = units
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = keras.regularizers.get(recurrent_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)

    def build(self, shape):
        width = 4 * self.units
        self.kernel = self.add_weight((shape[-1], width), "glorot_uniform", regularizer=self.kernel_regularizer)
        self.recurrent = self.add_weight((self.units, width), "orthogonal", regularizer=self.recurrent_regularizer)
        self.bias = self.add_weight((width,), "ones", regularizer=self.bias_regularizer)

    def call(self, x):
        state = output = keras.ops.zeros((keras.ops.shape(x)[0], self.units), x.dtype)
        for step in range(x.shape[1]):
            gates = keras.ops.matmul(x[:, step], self.kernel) + keras.ops.matmul(output, self.recurrent) + self.bias
            keep, write, read, new = keras.ops.split(gates, 4, axis=-1)
            state = keras.ops.sigmoid(keep) * state + keras.ops.sigmoid(write) * keras.ops.tanh(new)
            output = keras.ops.sigmoid(read) * keras.ops.tanh(state)
        return output


class Subclassed(keras.Model):
    """Layers as attributes, a weight of its own, and a penalty of outputs."""

    def __init__(self, penalties):
        super().__init__()
        self.hidden = layers.Dense(16, "tanh", kernel_regularizer=penalties.L2(0.02))
        self.head = layers.Dense(1, activity_regularizer=penalties.L1(0.003))
        self.scale = self.add_weight((12,), "ones", regularizer=penalties.L1L2(0.001, 0.01), name="scale")

    def call(self, x):
        return self.head(self.hidden(x * self.scale))


def _sequential(p):
    regularizers = {"kernel_regularizer": p.L1L2(1e-4, 0.02), "bias_regularizer": p.L2(0.01)}
    hidden = layers.Dense(16, "relu", bias_initializer="ones", **regularizers)
    return keras.Sequential([keras.Input((12,)), hidden, layers.Dense(1, kernel_regularizer=p.L1(0.001))])


def _embedding(p, rows=50):
    tokens = keras.Input((6,), dtype="int32")
    embedded = layers.Embedding(rows, 8, embeddings_regularizer=p.L1L2(1e-5, 0.01))(tokens)
    return keras.Model(tokens, layers.Dense(1)(layers.GlobalAveragePooling1D()(embedded)))


def _large(p):
    return _embedding(p, rows=fastreg.info()["crossover"]["graph"] // 8 + 1)


def _lstm(p):
    regularizers = {"kernel_regularizer": p.L2(0.01), "recurrent_regularizer": p.L1(1e-4)}
    return keras.Sequential(
        [keras.Input((5, 4)), layers.LSTM(8, bias_regularizer=p.L1L2(1e-4, 0.01), **regularizers), layers.Dense(1)]
    )


def _custom(p):
    regularizers = {"kernel_regularizer": p.L2(0.01), "recurrent_regularizer": p.L1(1e-4)}
    gated = GatedLayer(8, bias_regularizer=p.L1L2(1e-4, 0.01), **regularizers)
    return keras.Sequential([keras.Input((5, 4)), gated, layers.Dense(1)])


def _convolution(p):
    deep = layers.DepthwiseConv2D(3, depthwise_regularizer=p.L1(1e-4), activity_regularizer=p.L2(1e-4))
    stack = [layers.Conv2D(6, 3, activation="relu", kernel_regularizer=p.L2(0.01)), deep, layers.Flatten()]
    return keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Dense(1)])


def _activity(p):
    first = layers.Dense(8, "tanh", activity_regularizer=p.L2(0.02))
    penalised = layers.ActivityRegularization(l1=1e-3) if p is keras.regularizers else layers.ActivityRegularization()
    if p is not keras.regularizers:
        penalised.activity_regularizer = p.L1L2(1e-3, 0.0)
    return keras.Sequential([keras.Input((12,)), first, penalised, layers.Dense(1, activity_regularizer=p.L1(0.003))])


def _shared(p):
    x = keras.Input((12,))
    shared, frozen = (
        layers.Dense(12, "tanh", kernel_regularizer=p.L2(0.02)),
        layers.Dense(12, kernel_regularizer=p.L1()),
    )
    frozen.trainable = False
    return keras.Model(x, layers.Dense(1)(shared(frozen(shared(x)))))


def _lora(p):
    adapted = layers.Dense(16, "tanh", kernel_regularizer=p.L2(0.02))
    model = keras.Sequential([keras.Input((12,)), adapted, layers.Dense(1)])
    adapted.enable_lora(2)
    return model


MODELS = {
    "sequential": (_sequential, "numbers"),
    "embedding": (_embedding, "tokens"),
    "large": (_large, "tokens"),
    "lstm": (_lstm, "series"),
    "custom": (_custom, "series"),
    "convolution": (_convolution, "images"),
    "activity": (_activity, "numbers"),
    "shared": (_shared, "numbers"),
    "lora": (_lora, "numbers"),
    "subclassed": (Subclassed, "numbers"),
}


@functools.cache
def _data(kind):
    generator = np.random.default_rng(3)
    n = BATCH * STEPS_PER_EPOCH - 3  # the last batch is smaller
    x = generator.normal(size=(n, *{"numbers": (12,), "tokens": (6,), "series": (5, 4), "images": (8, 8, 3)}[kind]))
    if kind == "tokens":
        x = generator.integers(0, 50, x.shape)
    if kind == "images":
        x *= 0.3
    return x.astype("int32" if kind == "tokens" else "float32"), generator.normal(size=(n, 1)).astype("float32")


class Trainer:
    """Builds and trains the models of the registry, the same way whoever's penalties they have."""

    def build(self, name, penalties, policy="float32"):
        keras.config.set_dtype_policy(policy)
        keras.utils.set_random_seed(7)
        return MODELS[name][0](penalties)

    def data(self, name):
        return _data(MODELS[name][1])

    def optimizer(self):
        return keras.optimizers.SGD(0.02, momentum=0.9)

    def fit(self, name, penalties, optimizer=None, policy="float32", **options):
        """A trained model and its history: 56 steps, or 16 eagerly. `optimizer` makes one."""
        model = self.build(name, penalties, policy)
        model.compile((optimizer or self.optimizer)(), "mse", **options)
        return model, self.more(model, name)

    def more(self, model, name):
        x, y = self.data(name)
        epochs = EAGER_EPOCHS if model.run_eagerly else EPOCHS
        return model.fit(x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0).history["loss"]

    @functools.cache  # noqa: B019 - one trainer for the session
    def reference(self, name, **options):
        """Weights and losses of the same model with Keras's own regularizers."""
        model, losses = self.fit(name, keras.regularizers, **options)
        return model.get_weights(), losses


@pytest.fixture(scope="session")
def trainer():
    return Trainer()


@pytest.fixture(scope="session")
def assert_same_weights():
    """Each weight within 1e-5 of its largest magnitude."""

    def check(actual, expected, tolerance=1e-5):
        assert len(actual) == len(expected) > 0
        for ours, theirs in zip(actual, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert np.isfinite(theirs).all()
            limit = tolerance * np.abs(theirs.astype("float64")).max()
            np.testing.assert_allclose(ours.astype("float64"), theirs.astype("float64"), rtol=0, atol=limit)

    return check


@pytest.fixture(scope="session")
def in_threads():
    """Run `work(number)` in threads numbered from 0, all at once, and raise what any of them raises."""

    def run(work, threads=4):
        with ThreadPoolExecutor(threads) as executor:
            list(executor.map(work, range(threads)))

    return run


@pytest.fixture(scope="session")
def gradient():
    """Value and gradient of a penalty of one tensor, with an upstream gradient."""

    def of(penalty, x, upstream=None):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = penalty(x)
        seed = None if upstream is None else tf.cast(tf.convert_to_tensor(upstream, tf.float64), value.dtype)
        return value, tape.gradient(value, x, seed)

    return of
