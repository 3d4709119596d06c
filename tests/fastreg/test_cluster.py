"""Penalties that XLA compiles in programs that it does not compile, as on GPUs, here on the processor."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg._bridges import choose, cluster, support

DTYPES = {"float32": 2.0**-23, "float64": 2.0**-52, "float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture
def on_gpu(monkeypatch):
    """Have tensors of the host taken for tensors of a GPU without CUDA kernels."""
    monkeypatch.setattr(support, "is_likely_on_gpu", lambda x: True)
    monkeypatch.setattr(choose.device, "obstacle", lambda: "no CUDA kernels in this test")
    monkeypatch.setattr(choose, "CLUSTER_CROSSOVER", 100)


@pytest.fixture
def choices():
    """What was chosen in this test, and how often."""
    before = choose.counters.choices.copy()
    choose.counters.choices.clear()
    yield lambda: dict(choose.counters.choices)
    choose.counters.choices.update(before)


def called(function, *arguments):
    """The attributes of the calls of functions in a graph: XLA compiles those that are marked so."""
    graph = function.get_concrete_function(*arguments).graph
    nodes = [node for each in graph.as_graph_def().library.function for node in each.node_def]
    nodes += graph.as_graph_def().node
    return [node for node in nodes if node.op.endswith("PartitionedCall") and node.attr["_XlaMustCompile"].b]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", [(0.25, 0.0), (0.0, 0.125), (0.25, 0.125)], ids=["l1", "l2", "l1l2"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_values_and_gradients(clusters, gradient, factors, dtype, graph):
    ours, theirs = fastreg.L1L2(*factors), keras.regularizers.L1L2(*factors)
    x = tf.constant(np.random.default_rng(0).normal(size=(31, 7)).astype(dtype))
    value, slope = (tf.function(gradient) if graph else gradient)(ours, x)
    wide = x.numpy().astype(float)
    assert value.dtype == slope.dtype == dtype
    assert slope.shape == x.shape
    exact = factors[0] * np.abs(wide).sum() + factors[1] * np.square(wide).sum()
    np.testing.assert_allclose(float(value), exact, rtol=DTYPES[dtype])
    np.testing.assert_allclose(
        slope.numpy().astype(float), factors[0] * np.sign(wide) + 2 * factors[1] * wide, rtol=DTYPES[dtype]
    )
    np.testing.assert_allclose(
        slope.numpy().astype(float), gradient(theirs, x)[1].numpy().astype(float), rtol=4 * DTYPES[dtype]
    )


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 1, 3)], ids=str)
def test_shapes(clusters, gradient, shape):
    value, slope = gradient(fastreg.L1L2(0.5, 0.25), tf.fill(shape, -2.0))
    assert float(value) == 2.0 * np.prod(shape)
    assert (slope.numpy() == np.full(shape, -1.5, np.float32)).all()


def test_special_values(clusters, gradient):
    x = tf.constant([0.0, -0.0, np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(gradient(fastreg.L1(0.5), x)[1], [0.0, 0.0, np.nan, 0.5, -0.5])
    np.testing.assert_array_equal(gradient(fastreg.L2(0.5), x)[1], [0.0, 0.0, np.nan, np.inf, -np.inf])
    assert float(fastreg.L1(0.5)(x[3:])) == np.inf


def test_factors_that_change_in_one_trace(clusters):
    strength = tf.Variable(0.5)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = fastreg.l1_l2_penalty(x, 0.25, strength)
        return value, *tape.gradient(value, [x, strength])

    x = tf.constant([1.0, -2.0])
    for factor in (0.5, 2.0):
        strength.assign(factor)
        value, slope, of_strength = step(x)
        assert float(value) == 0.75 + 5.0 * factor
        np.testing.assert_array_equal(slope, [0.25 + 2 * factor, -0.25 - 4 * factor])
        assert float(of_strength) == 5.0


def test_two_calls_that_xla_compiles_and_one_trace_for_all(clusters, gradient):
    """One for the value and one for the gradient; new shapes and factors are no new functions."""
    cluster._compiled.cache_clear()
    for factor in (0.5, 0.125, 3.0):
        for shape in ([4], [2, 3], [None, 3], None):
            function = tf.function(lambda x, factor=factor: gradient(fastreg.L2(factor), x))
            calls = called(function, tf.TensorSpec(shape))
            assert [call.attr["f"].func.name.split("_")[3] for call in calls] == ["value", "gradient"]
            assert len(calls) == 2
    assert cluster._compiled.cache_info().misses == 1
    assert not called(tf.function(keras.regularizers.L2(0.5)), tf.TensorSpec([4]))


def test_graphs_go_when_their_functions_go(clusters, gradient):
    """The first to call a cluster too, in whose trace the cluster is made."""
    cluster._compiled.cache_clear()
    graphs = []
    for _ in range(2):
        function = tf.function(lambda: gradient(fastreg.L2(0.5), tf.ones(3)))
        graphs.append(weakref.ref(function.get_concrete_function().graph))
        function()
        del function
    gc.collect()
    assert [graph() for graph in graphs] == [None, None]


def test_under_a_debugger(clusters):
    """Which would put ops into a cluster that XLA does not know."""
    cluster._compiled.cache_clear()
    tf.debugging.enable_check_numerics()
    try:
        assert float(tf.function(fastreg.L2(0.5))(tf.constant([2.0]))) == 2.0
        with pytest.raises(tf.errors.InvalidArgumentError, match="NaN"):
            tf.function(fastreg.L2(0.5))(tf.constant([np.nan]))
    finally:
        tf.debugging.disable_check_numerics()


def test_what_auto_takes_on_gpus(on_gpu, gradient, choices):
    """Clusters for large tensors of known size, TensorFlow's ops for others."""
    fastreg.set_bridge("auto")
    for size in (99, 100):
        for function in (gradient, tf.function(gradient)):
            assert (function(fastreg.L2(0.5), tf.ones(size))[1].numpy() == 1.0).all()
    of_any_size = tf.function(lambda x: gradient(fastreg.L2(0.5), x), input_signature=[tf.TensorSpec([None])])
    assert (of_any_size(tf.ones(200))[1].numpy() == 1.0).all()
    assert choices() == {
        ("tensorflow", "fewer than 100 elements"): 2,
        ("xla", "100 elements or more"): 2,
        ("tensorflow", "no CUDA kernels in this test"): 1,
    }


def test_what_auto_takes_on_gpus_with_kernels(on_gpu, monkeypatch):
    monkeypatch.setattr(choose.device, "obstacle", lambda: None)
    monkeypatch.setattr(choose.tf.config, "get_visible_devices", lambda kind: ["a GPU"])

    def foreseen(size):
        return choose.foresee(tf.float32, size, eager=False, xla=False)

    assert foreseen(99) == ("tensorflow", "fewer than 100 elements")
    assert foreseen(choose.GPU_CROSSOVER - 1) == ("xla", "100 elements or more")
    assert foreseen(choose.GPU_CROSSOVER) == ("py_function", f"{choose.GPU_CROSSOVER:,} elements or more")
    assert foreseen(None) == ("dynamic", f"decided at run time: py_function from {choose.GPU_CROSSOVER:,} elements on")
    assert choose.foresee(tf.float32, 1 << 40, eager=False, xla=True)[0] == "tensorflow"
    fastreg.set_crossover(50)
    assert foreseen(60) == ("py_function", "50 elements or more")
    assert foreseen(49) == ("tensorflow", "fewer than 50 elements")
    fastreg.set_crossover(1000)
    assert foreseen(999) == ("xla", "100 elements or more")
    assert fastreg.info()["gpu_crossover"] == {"xla": 100, "py_function": 1000}


def test_where_xla_cannot_be_had(on_gpu, monkeypatch, gradient, choices):
    """TensorFlow's ops serve, and the reason is told."""
    fastreg.set_bridge("auto")
    cluster._attempt.cache_clear()
    monkeypatch.setattr(cluster, "_found", [])

    def refuse(*arguments):
        raise tf.errors.InternalError(None, None, "libdevice not found")

    with monkeypatch.context() as patch:
        patch.setattr(cluster, "_compiled", refuse)
        assert (gradient(fastreg.L2(0.5), tf.ones(200))[1].numpy() == 1.0).all()
    cluster._attempt.cache_clear()
    reason = "XLA cannot be used: InternalError: libdevice not found"
    assert fastreg.info()["xla_obstacle"] == reason
    assert choices() == {("tensorflow", reason): 1}


@pytest.mark.parametrize("wrong", ["value", "gradient"])
def test_a_penalty_that_xla_gets_wrong_is_noticed(monkeypatch, wrong):
    cluster._attempt.cache_clear()
    monkeypatch.setattr(cluster, "_found", [])
    with monkeypatch.context() as patch:
        original = getattr(cluster, f"_{wrong}")
        patch.setattr(cluster, f"_{wrong}", lambda *arguments: 2.0 * original(*arguments))
        assert "a penalty and its gradient were" in cluster.dtype_obstacle(tf.float32)
    cluster._attempt.cache_clear()


def test_fit(on_gpu, choices):
    """A model trained without XLA, its weights on clusters, ends where Keras's own penalties take it."""
    weights = []
    for penalties in (keras.regularizers, fastreg):
        keras.utils.set_random_seed(1)
        stack = [keras.Input((30,)), keras.layers.Dense(4, kernel_regularizer=penalties.L1L2(0.01, 0.1))]
        model = keras.Sequential(stack)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        data = np.random.default_rng(0).normal(size=(8, 34)).astype("float32")
        model.fit(data[:, :30], data[:, 30:], batch_size=4, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert ("xla", "100 elements or more") in choices()
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_is_saved_holds_no_cluster(on_gpu, tmp_path):
    fastreg.set_bridge("auto")
    module = tf.Module()
    module.penalty = tf.function(fastreg.L2(0.5), input_signature=[tf.TensorSpec([200])])
    module.penalty(tf.ones(200))
    tf.saved_model.save(module, tmp_path)
    loaded = tf.saved_model.load(tmp_path)
    assert float(loaded.penalty(tf.ones(200))) == 100.0
    assert not called(loaded.penalty, tf.TensorSpec([200]))
