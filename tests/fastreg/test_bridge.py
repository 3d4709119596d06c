"""Which bridge serves a call: what users set, what stands in the way, and sizes known at run time only."""

import warnings

import fastreg_kernels
import numpy as np
import pytest
import tensorflow as tf

import fastreg
from fastreg._bridges import buffers
from fastreg._bridges.callback import exchange

FORCED = ("native", "py_function")


@pytest.mark.parametrize("name", ["auto", "native", "py_function", "xla", "tensorflow"])
def test_set_bridge(name):
    fastreg.set_bridge(name)
    assert fastreg.get_bridge() == fastreg.info()["bridge"] == name


@pytest.mark.parametrize("name", ["", "Auto", "numba", None, 1, True, ["auto"], b"auto"])
def test_unknown_bridges(name):
    before = fastreg.get_bridge()
    with pytest.raises(ValueError, match=r"'auto', 'native', 'py_function', 'xla', 'tensorflow'.*Received"):
        fastreg.set_bridge(name)
    assert fastreg.get_bridge() == before


def test_set_crossover():
    measured = fastreg.info()["crossover"]
    assert set(measured) == {"native", "graph", "eager"}
    for n in (0, 1, 12345, np.int64(7), 10**15):
        fastreg.set_crossover(n)
        assert fastreg.info()["crossover"] == {"native": n, "graph": n, "eager": n}
    fastreg.set_crossover(None)
    assert fastreg.info()["crossover"] == measured


@pytest.mark.parametrize("n", [-1, 1.0, 1.5, "10", True, False, np.float64(3), [3], np.int64(-2)], ids=repr)
def test_crossovers_that_are_no_sizes(n):
    measured = fastreg.info()["crossover"]
    with pytest.raises(ValueError, match=r"expected a non-negative integer or None\. Received: n="):
        fastreg.set_crossover(n)
    assert fastreg.info()["crossover"] == measured


@pytest.mark.parametrize("n", [0, -1, 1 << 20])
def test_thread_counts_out_of_range(n):
    with pytest.raises(ValueError, match="Invalid value for argument n"):
        fastreg.set_num_threads(n)


@pytest.mark.parametrize("n", [1.0, "2", None])
def test_thread_counts_that_are_no_integers(n):
    with pytest.raises(TypeError, match="Invalid type for argument n"):
        fastreg.set_num_threads(n)


def test_thread_counts_change_no_bits(forced, gradient):
    x = tf.constant(np.random.default_rng(0).normal(size=300_001).astype("float32"))
    before = fastreg.info()["threads"]
    results = []
    try:
        for threads in range(1, before + 1):
            fastreg.set_num_threads(threads)
            assert fastreg.info()["threads"] == threads
            results.append(gradient(fastreg.L1L2(0.1, 0.2), x))
    finally:
        fastreg.set_num_threads(before)
    for value, slope in results[1:]:
        assert float(value) == float(results[0][0])
        np.testing.assert_array_equal(slope, results[0][1])


@pytest.mark.parametrize("crossover", [2, 100])
@pytest.mark.parametrize("bridge_name", ["tensorflow", "auto", "native", "py_function"])
def test_the_setting_decides(bridge_name, crossover, gradient):
    fastreg.set_bridge(bridge_name)
    fastreg.set_crossover(crossover)
    for function in (gradient, tf.function(gradient)):
        for size, expected in ((crossover - 1, bridge_name in FORCED), (crossover, bridge_name != "tensorflow")):
            before = fastreg.info()["kernel_calls"]
            gradient_before_trace = function(fastreg.L2(0.5), tf.ones(size))[1]
            assert (gradient_before_trace.numpy() == 1.0).all()
            assert (fastreg.info()["kernel_calls"] > before) == expected


def test_native_ops_serve_any_size(gradient):
    fastreg.set_bridge("auto")
    assert fastreg.info()["crossover"]["native"] <= 1
    for function in (gradient, tf.function(gradient)):
        before = fastreg.info()["kernel_calls"]
        assert function(fastreg.L2(0.5), tf.ones(1))[1].numpy().tolist() == [1.0]
        assert fastreg.info()["kernel_calls"] > before


def test_eager_and_graph_crossovers_of_callbacks_differ(without_native_ops):
    """Reaching a kernel costs less eagerly."""
    fastreg.set_bridge("auto")
    sizes = fastreg.info()["crossover"]
    assert sizes["eager"] < sizes["graph"]
    between = (sizes["eager"] + sizes["graph"]) // 2
    x = tf.zeros(between)
    before = fastreg.info()["kernel_calls"]
    tf.function(fastreg.L2())(x)
    assert fastreg.info()["kernel_calls"] == before
    fastreg.L2()(x)
    assert fastreg.info()["kernel_calls"] == before + 1


def test_traced_functions_stay_as_they_are(forced):
    function = tf.function(fastreg.L2())
    x = tf.ones(10)
    function(x)
    fastreg.set_bridge("tensorflow")
    before = fastreg.info()["kernel_calls"]
    function(x)
    assert fastreg.info()["kernel_calls"] == before + 1


@pytest.mark.parametrize("name", FORCED)
def test_unknown_sizes_decide_at_run_time(name, gradient, request):
    """One trace serves both: small inputs by TensorFlow's ops, large ones by the kernels, whichever way leads there."""
    if name == "py_function":
        request.getfixturevalue("without_native_ops")
    fastreg.set_bridge("auto")
    fastreg.set_crossover(1000)
    function = tf.function(lambda x: gradient(fastreg.L1L2(0.5, 0.25), x), input_signature=[tf.TensorSpec([None])])
    for turn in range(3):
        for size, on_kernels in ((999, False), (1000, True), (0, False), (5000, True)):
            x = tf.constant(np.random.default_rng(turn).normal(size=size).astype("float32"))
            before = fastreg.info()["kernel_calls"]
            value, slope = function(x)
            calls = fastreg.info()["kernel_calls"] - before
            assert (calls > 0) == on_kernels
            expected = 0.5 * np.abs(x.numpy()).sum(dtype="float64") + 0.25 * np.square(x).sum(dtype="float64")
            np.testing.assert_allclose(value, expected, rtol=1e-5)
            np.testing.assert_allclose(slope, 0.5 * np.sign(x) + 0.5 * x.numpy(), rtol=1e-6)
    assert function.experimental_get_tracing_count() == 1
    assert {"bridge": "dynamic", "reason": f"decided at run time: {name} from 1,000 elements on"} in [
        {"bridge": entry["bridge"], "reason": entry["reason"]} for entry in fastreg.info()["choices"]
    ]


@pytest.mark.parametrize("shape", [None, [None, None], [None, 3]])
def test_unknown_shapes_when_forced(forced, gradient, shape):
    function = tf.function(lambda x: gradient(fastreg.L2(0.5), x), input_signature=[tf.TensorSpec(shape)])
    for rows in (0, 1, 4, 4, 4, 2):
        value, slope = function(tf.fill((rows, 3), 2.0))
        assert float(value) == 6.0 * rows
        assert slope.shape == (rows, 3)
        assert (slope.numpy() == 2.0).all()


def test_an_unreachable_crossover():
    """So large that no tensor can have as many elements, as users write "never"."""
    fastreg.set_bridge("auto")
    fastreg.set_crossover(10**30)
    function = tf.function(fastreg.L2(0.5), input_signature=[tf.TensorSpec([None])])
    assert float(function(tf.ones(4))) == 2.0
    assert float(fastreg.L2(0.5)(tf.ones(4))) == 2.0


def test_a_dtype_without_a_kernel_falls_back(bridge, gradient, monkeypatch):
    """As float16 on processors that cannot convert it."""
    monkeypatch.setattr(fastreg_kernels, "DTYPES", ("float32",))
    with bridge.falls_back("no kernel for float64"):
        slope = gradient(fastreg.L2(0.5), tf.constant([2.0, -3.0], tf.float64))[1]
    np.testing.assert_array_equal(slope, [2.0, -3.0])
    assert slope.dtype == "float64"


@pytest.mark.parametrize("name", FORCED)
def test_a_forced_bridge_warns_once_for_each_reason(name, monkeypatch):
    fastreg.set_bridge(name)
    compiled = tf.function(fastreg.L2(0.5), jit_compile=True)
    with pytest.warns(RuntimeWarning, match=f"TensorFlow's ops although the bridge is set to '{name}': .*XLA"):
        compiled(tf.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(tf.ones(4))
    monkeypatch.setattr(fastreg_kernels, "DTYPES", ("float32",))
    with pytest.warns(RuntimeWarning, match="no kernel for float16"):
        fastreg.L2(0.5)(tf.ones(3, "float16"))


@pytest.mark.parametrize("name", ["auto", "tensorflow"])
def test_other_bridges_never_warn(name):
    fastreg.set_bridge(name)
    fastreg.set_crossover(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(tf.function(fastreg.L2(0.5), jit_compile=True)(tf.ones(4))) == 2.0


def test_inside_of_a_callback_the_bridge_is_eager(forced):
    """A user's own tf.py_function may call the penalty."""

    @tf.function
    def function(x):
        return tf.py_function(fastreg.L2(0.5), [x], tf.float32)

    assert float(function(tf.ones(4))) == 2.0


def test_eager_calls_use_no_py_function(forced, gradient, monkeypatch):
    """They would leak: TensorFlow keeps an eager callback for the life of the process."""
    monkeypatch.setattr(tf, "py_function", None)
    assert (gradient(fastreg.L2(0.5), tf.ones(4))[1].numpy() == 1.0).all()


def test_host_arrays_and_tensors_share_memory():
    x = tf.constant([1.0, 2.0])
    array = exchange.host_array(x)
    assert not array.flags.writeable
    assert array.__array_interface__["data"] == np.asarray(x).__array_interface__["data"]
    buffer = buffers.array(array.shape, array.dtype)
    made = exchange.tensor(buffer)
    assert np.asarray(made).__array_interface__["data"][0] == buffer.__array_interface__["data"][0]


def test_kernel_calls_are_counted_in_every_thread(forced, in_threads):
    before = fastreg.info()["kernel_calls"]
    in_threads(lambda _: [fastreg.L2()(tf.ones(3)) for _ in range(50)])
    assert fastreg.info()["kernel_calls"] == before + 200


REPORT = """
import fastreg, tensorflow as tf
fastreg.L2()(tf.ones(3))
print(fastreg.info()["bridge"], fastreg.info()["kernel_calls"])
"""


def test_the_environment_sets_the_bridge(run_python):
    assert run_python(REPORT, FASTREG_BRIDGE="py_function").split() == ["py_function", "1"]
    assert run_python(REPORT, FASTREG_BRIDGE="native").split() == ["native", "1"]
    assert run_python(REPORT, FASTREG_BRIDGE="tensorflow").split() == ["tensorflow", "0"]
    error = run_python("import fastreg", ok=False, FASTREG_BRIDGE="numba")
    assert "ValueError: Invalid value for environment variable FASTREG_BRIDGE" in error
    assert "'numba'" in error
