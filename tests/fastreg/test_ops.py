"""Values and gradients of the penalty against Keras's regularizers and NumPy in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastreg

L1, L2 = 3 / 32, 3 / 128  # exact in every dtype: Keras rounds factors to float32
CLASSES = ["L1", "L2", "L1L2"]
EPSILON = {"float64": 2e-15, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
DTYPES = ["float32", "float64", "float16", "bfloat16"]
SHAPES = [(), (0,), (3, 0), (1,), (7,), (5, 1), (2, 3, 5)]

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(namespace, name):
    return {"L1": namespace.L1(L1), "L2": namespace.L2(L2), "L1L2": namespace.L1L2(L1, L2)}[name]


def normal(shape, dtype="float32", seed=0):
    return tf.cast(tf.constant(np.random.default_rng(seed).normal(size=shape)), dtype)


def wide(x):
    return tf.cast(x, tf.float64).numpy()


def exact(x, name, upstream=1.0):
    """Value and gradient in float64."""
    x = wide(x)
    l1, l2 = L1 * (name != "L2"), L2 * (name != "L1")
    value = l1 * np.abs(x).sum() + l2 * np.square(x).sum()
    return value, upstream * (l1 * np.sign(x) + 2 * l2 * x)


def assert_close(actual, expected, dtype, factor=1):
    assert actual.dtype == dtype
    np.testing.assert_allclose(wide(actual), expected, rtol=factor * EPSILON[dtype], atol=1e-300)


# No code path depends on both: kernels see flat arrays of any dtype.
SHAPES_AND_DTYPES = [(shape, "float32") for shape in SHAPES] + [
    (shape, dtype) for dtype in DTYPES if dtype != "float32" for shape in ((), (0,), (2, 3, 5))
]


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_value_and_gradient(bridge, gradient, shape, dtype, graph):
    def of_each_class(x):
        return [gradient(make(fastreg, name), x) for name in CLASSES]

    x = normal(shape, dtype)
    function = tf.function(of_each_class) if graph else of_each_class
    keras_s = [gradient(make(keras.regularizers, name), x) for name in CLASSES]
    for _ in range(3):  # the third gradient is computed ahead
        results = zip(CLASSES, function(x), keras_s, strict=True)
        for name, (value, slope), (keras_value, keras_slope) in results:
            exact_value, exact_slope = exact(x, name)
            assert value.shape == ()
            assert slope.shape == x.shape
            assert_close(value, exact_value, dtype, factor=4)
            assert_close(slope, exact_slope, dtype, factor=2)
            assert_close(value, wide(keras_value), dtype, factor=10)
            assert_close(slope, wide(keras_slope), dtype, factor=4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CLASSES)
def test_above_the_crossover(bridge, gradient, name, dtype):
    """Odd sizes of several blocks, with a crossover that they exceed."""
    fastreg.set_crossover(100_000)
    for size in (100_000, 163_841):
        x = normal((size,), dtype)
        for function in (gradient, tf.function(gradient)):
            value, slope = function(make(fastreg, name), x)
            exact_value, exact_slope = exact(x, name)
            assert_close(value, exact_value, dtype)
            assert_close(slope, exact_slope, dtype)
    assert bridge.kernel_calls() >= 4


SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, -2.0]
SPECIAL_SLOPES = {"L1": [0.0, 0.0, np.nan, 0.1, -0.1, -0.1], "L2": [0.0, -0.0, np.nan, np.inf, -np.inf, -0.4]}


@pytest.mark.parametrize("name", ["L1", "L2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values(bridge, gradient, name, dtype):
    ours, theirs = (gradient(getattr(r, name)(0.1), tf.constant(SPECIAL, dtype)) for r in (fastreg, keras.regularizers))
    tolerance = max(EPSILON[dtype], 2e-8)
    np.testing.assert_allclose(wide(ours[1]), SPECIAL_SLOPES[name], rtol=tolerance)
    np.testing.assert_allclose(wide(ours[1]), wide(theirs[1]), rtol=tolerance)
    np.testing.assert_array_equal(wide(ours[0]), wide(theirs[0]))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CLASSES)
def test_by_tensorflow_s_ops(fresh_state, gradient, name, dtype, graph):
    """Which add up in the dtype, as Keras's do."""
    fastreg.set_bridge("tensorflow")
    function = tf.function(gradient) if graph else gradient
    ours, theirs = make(fastreg, name), make(keras.regularizers, name)
    for shape in ((), (0,), (2, 3, 5)):
        value, slope = function(ours, normal(shape, dtype))
        exact_value, exact_slope = exact(normal(shape, dtype), name)
        assert_close(value, exact_value, dtype, factor=10)
        assert_close(slope, exact_slope, dtype, factor=4)
        assert slope.shape == shape
    for values in ([np.inf, 1.0], [-np.inf, 0.0], [np.nan, 1.0], SPECIAL):
        x = tf.constant(values, dtype)
        for actual, expected in zip(function(ours, x), function(theirs, x), strict=True):
            np.testing.assert_allclose(wide(actual), wide(expected), rtol=4 * EPSILON[dtype])


@pytest.mark.parametrize("name", ["L1", "L2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_of_zero_gradients(bridge, gradient, name, dtype):
    slope = wide(gradient(getattr(fastreg, name)(0.1), tf.constant(SPECIAL[:2], dtype))[1])
    np.testing.assert_array_equal(np.signbit(slope), np.signbit(SPECIAL_SLOPES[name][:2]))


def test_factors_are_not_rounded_to_float32(bridge, gradient):
    """Unlike Keras's, whose factors lose half their digits on the way to a float64 weight."""
    x = tf.constant([1.0, -3.0], tf.float64)
    assert_close(fastreg.L1L2(0.1, 0.3)(x), 0.1 * 4 + 0.3 * 10, "float64")
    assert_close(gradient(fastreg.L1L2(0.1, 0.3), x)[1], [0.7, -1.9], "float64")


@pytest.mark.parametrize("values", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0], [1e30, 1.0]])
@pytest.mark.parametrize("name", CLASSES)
def test_values_that_are_not_finite(bridge, name, values):
    x = tf.constant(values)
    np.testing.assert_allclose(make(fastreg, name)(x), make(keras.regularizers, name)(x), rtol=1e-6)


def test_sums_are_not_limited_by_the_range_of_a_half_type(forced):
    x = tf.fill((4096,), tf.constant(16.0, tf.float16))
    assert float(fastreg.L2(2.0**-10)(x)) == 1024.0  # the sum of squares alone is beyond float16


def test_sums_are_rounded_once(forced):
    """A little more than halfway from 1 to the next float16, and exactly halfway in float32."""
    x = tf.constant([1.0, 2.0**-11, 2.0**-24], tf.float16)
    assert float(fastreg.L1(1.0)(x)) == 1 + 2.0**-10


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CLASSES)
def test_large_and_odd_upstream_gradients(bridge, gradient, name, dtype, graph):
    x, penalty = normal((31,), dtype), make(fastreg, name)
    function = tf.function(gradient) if graph else gradient
    for upstream in (65536.0, 1e30, -3.0, 0.0, 2.0**-20, -1e-30, np.inf):
        theirs = gradient(make(keras.regularizers, name), x, upstream)[1]
        for _ in range(3):  # the third is computed ahead, in the one trace that there is
            ours = function(penalty, x, tf.constant(upstream, tf.float64))[1]
            assert_close(ours, wide(theirs), dtype, factor=2)


def test_an_overflowing_upstream_gradient_gives_infinity(bridge, gradient):
    x = tf.constant([1e20, -1e20, 1.0])
    ours, theirs = (gradient(r.L2(0.1), x, 1e30)[1] for r in (fastreg, keras.regularizers))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


UPSTREAMS = st.lists(
    st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.0, -1.0, 65536.0, 1e30]) | st.floats(-1e6, 1e6, width=32),
    min_size=1,
    max_size=9,
)


@quick
@given(upstreams=UPSTREAMS, name=st.sampled_from(CLASSES), graph=st.booleans(), seed=st.integers(0, 99))
def test_any_sequence_of_upstream_gradients(bridge, steps, upstreams, name, graph, seed):
    """The gradient that is computed ahead is used exactly if its guess was right, and is that of this step's x."""
    eager, traced = steps[name]
    kept = []
    for step, upstream in enumerate(upstreams):
        x = normal((45,), seed=seed + step)
        kept.append(((traced if graph else eager)(x, tf.constant(upstream, tf.float32)), exact(x, name, upstream)))
    for (value, slope), (exact_value, exact_slope) in kept:
        assert_close(value, exact_value, "float32", factor=4)
        np.testing.assert_allclose(slope, exact_slope, rtol=1e-6, atol=1e-30)


@pytest.fixture
def steps(bridge):
    """For each class one step function, eager and traced: the traced ones live through a whole test, as in training."""

    def of(name):
        def step(x, upstream):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = make(fastreg, name)(x)
            return value, tape.gradient(value, x, upstream)

        return step, tf.function(step)

    return {name: of(name) for name in CLASSES}


def test_concurrent_steps_of_one_function(bridge, steps, in_threads):
    """Threads with upstream gradients of their own each get the gradient of their own x and upstream."""
    for step in steps["L1L2"]:
        step(normal((1000,)), tf.constant(1.0))

        def work(number, step=step):
            for turn in range(60):
                x, upstream = normal((1000,), seed=10 * number + turn % 3), float(1 + (number + turn // 20) % 3)
                assert_close(step(x, tf.constant(upstream))[1], exact(x, "L1L2", upstream)[1], "float32")

        in_threads(work)


def test_zero_factors_compute_nothing(bridge, gradient):
    for function in (fastreg.l1_l2_penalty, tf.function(fastreg.l1_l2_penalty)):
        value = function(tf.constant([np.nan, np.inf]))
        assert value.dtype == tf.float32
        assert float(value) == 0.0
    assert float(fastreg.L1L2()(normal((3,), "float64"))) == 0.0
    assert gradient(fastreg.L2(0.0), normal((3,)))[1] is None
    assert bridge.kernel_calls() == 0
    fastreg.L1()(normal((3,)))


def test_a_zero_factor_skips_its_term(bridge, gradient):
    """Zero times infinity would be NaN."""
    x = tf.constant([np.inf, -np.inf])
    value, slope = gradient(lambda v: fastreg.l1_l2_penalty(v, l1=0.5), x)
    assert float(value) == np.inf
    np.testing.assert_array_equal(slope, [0.5, -0.5])


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_forward_without_backward(bridge, graph):
    penalty = tf.function(fastreg.L2(L2)) if graph else fastreg.L2(L2)
    for seed in range(4):
        x = normal((31, 3), seed=seed)
        assert_close(penalty(x), exact(x, "L2")[0], "float32", factor=4)
        with tf.GradientTape() as tape:
            tape.watch(x)
            assert_close(penalty(x), exact(x, "L2")[0], "float32", factor=4)
    if bridge.forced:
        assert bridge.kernel_calls() == 8


def test_sums_of_penalties_and_scaled_penalties(bridge, gradient):
    """Two penalties of one tensor, each with a factor in front, as regularization paths and loss scaling make them."""
    x = normal((31,))
    total = lambda r: lambda v: 3.0 * r.L1(L1)(v) + 0.5 * r.L2(L2)(v) + r.L2(L2)(2.0 * v)  # noqa: E731
    for function in (gradient, tf.function(gradient)):
        for _ in range(3):
            ours, theirs = function(total(fastreg), x), gradient(total(keras.regularizers), x)
            np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


@pytest.mark.parametrize("size", [100, None])
def test_plain_ops_go_over_x_no_more_than_they_must(fresh_state, gradient, size):
    """Differentiated by TensorFlow, the sums would spread the upstream gradient out and the squares be written."""
    fastreg.set_bridge("tensorflow")
    step = tf.function(lambda x: gradient(fastreg.L1L2(L1, L2), x))
    graph = step.get_concrete_function(tf.TensorSpec([size], tf.float32)).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    used = {node.op for node in nodes}
    assert used.isdisjoint({"Tile", "BroadcastTo", "Fill", "Square"})
    assert {"L2Loss", "Sign"} <= used
