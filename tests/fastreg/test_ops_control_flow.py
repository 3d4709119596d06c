"""The penalty inside TensorFlow's control flow and function transformations, against the same code on Keras's."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg


def in_while_loop(penalty, x):
    """Weights that change and upstream gradients that differ in every turn."""

    def body(turn, total, weight):
        return [turn + 1, total + penalty(weight) * tf.cast(turn, tf.float32), weight * 0.5]

    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.while_loop(
            lambda turn, *_: turn < 4, body, [tf.constant(0), tf.constant(0.0), x], maximum_iterations=9
        )[1]
    return total, tape.gradient(total, x)


def in_cond(penalty, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.cond(tf.reduce_sum(x) > 0, lambda: 2.0 * penalty(x), lambda: 3.0 * penalty(-x))
    return value, tape.gradient(value, x)


def in_cond_in_while_loop(penalty, x):
    def body(turn, total, weight):
        value = tf.cond(turn % 2 == 0, lambda: penalty(weight), lambda: tf.constant(0.0))
        return [turn + 1, total + value * tf.cast(turn, tf.float32), weight * 0.5]

    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.while_loop(
            lambda turn, *_: turn < 5, body, [tf.constant(0), tf.constant(0.0), x], maximum_iterations=9
        )[1]
    return total, tape.gradient(total, x)


def in_map(penalty, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = tf.map_fn(lambda factor: penalty(factor * x), tf.constant([1.0, 2.0, 3.0]))
    return values, tape.gradient(values, x)


def with_recompute(penalty, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.recompute_grad(lambda v: penalty(2.0 * v))(x)
    return value, tape.gradient(value, x)


def vectorized(penalty, x):
    return tf.vectorized_map(penalty, tf.stack([x, -2.0 * x, 3.0 * x])), tf.zeros(())


def vectorized_gradient(penalty, x):
    def slope(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            value = penalty(v)
        return tape.gradient(value, v)

    return tf.vectorized_map(slope, tf.stack([x, -2.0 * x, 3.0 * x])), tf.zeros(())


def with_symbolic_gradients(penalty, x):
    value = penalty(x)
    return value, tf.gradients(value, x, grad_ys=tf.constant(5.0))[0]


def without_control_dependencies(penalty, x):
    with tf.control_dependencies(None), tf.GradientTape() as tape:
        tape.watch(x)
        value = penalty(x)
    return value, tape.gradient(value, x)


CASES = [in_while_loop, in_cond, in_cond_in_while_loop, in_map, with_recompute, vectorized, vectorized_gradient]
GRAPH_ONLY = [with_symbolic_gradients, without_control_dependencies]
PENALTIES = {namespace: namespace.L1L2(3 / 32, 3 / 128) for namespace in (fastreg, keras.regularizers)}


STEPS = [np.random.default_rng(step).normal(size=(7, 5)).astype("float32") for step in range(4)]
"""So many that gradients are computed ahead where they can be."""


def with_fastreg(case):
    return functools.partial(case, PENALTIES[fastreg])


@functools.cache
def expected(case):
    """What the case gives with Keras's penalty, in each step: eagerly, unless it exists in graphs only."""
    function = functools.partial(case, PENALTIES[keras.regularizers])
    if case in GRAPH_ONLY:
        function = tf.function(function)
    return [[result.numpy() for result in function(tf.constant(x))] for x in STEPS]


def check_four_steps(case, function):
    for x, theirs in zip(STEPS, expected(case), strict=True):
        for actual, wanted in zip(function(tf.constant(x)), theirs, strict=True):
            assert actual.shape == wanted.shape
            np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_eagerly(bridge, case):
    check_four_steps(case, with_fastreg(case))


@pytest.mark.parametrize("shape", [[7, 5], [None, 5], None], ids=["static", "dynamic", "unknown"])
@pytest.mark.parametrize("case", [*CASES, *GRAPH_ONLY], ids=lambda case: case.__name__)
def test_in_a_graph(bridge, case, shape):
    """With a crossover that x exceeds: "auto" finds out in the graph, under a tape, if the size is not known before."""
    fastreg.set_crossover(20)
    check_four_steps(case, tf.function(with_fastreg(case), input_signature=[tf.TensorSpec(shape)]))
    if (shape is not None and shape[0] is not None) or case not in (
        vectorized,
        vectorized_gradient,
        with_symbolic_gradients,
    ):
        assert bridge.kernel_calls() > 0


@pytest.mark.parametrize("case", [*CASES, *GRAPH_ONLY], ids=lambda case: case.__name__)
def test_by_clusters(clusters, case):
    check_four_steps(case, tf.function(with_fastreg(case), input_signature=[tf.TensorSpec([None, 5])]))


@pytest.mark.parametrize("name", ["native", "py_function"])
def test_vectorized_map_falls_back_to_a_loop(name):
    """TensorFlow has a vectorized form of its own ops only, and says so where it must not loop instead."""
    fastreg.set_bridge(name)
    x = tf.ones([3, 4])
    traced = tf.function(lambda x: tf.vectorized_map(PENALTIES[fastreg], x, fallback_to_while_loop=False))
    with pytest.raises(ValueError, match=r"No pfor vectorization defined for (FastregPenalty|EagerPyFunc)"):
        traced(x)
    calls = fastreg.info()["kernel_calls"]
    values = tf.function(lambda x: tf.vectorized_map(PENALTIES[fastreg], x))(x)
    np.testing.assert_allclose(values, [4 * 3 / 32 + 4 * 3 / 128] * 3, rtol=1e-6)
    assert fastreg.info()["kernel_calls"] >= calls + 3


@pytest.mark.parametrize("case", [in_while_loop, in_cond, with_recompute], ids=lambda case: case.__name__)
def test_under_xla(bridge, case):
    with bridge.falls_back("XLA"):
        check_four_steps(case, tf.function(with_fastreg(case), jit_compile=True))


def test_clusters_under_xla(clusters):
    with clusters.falls_back("XLA"):
        check_four_steps(in_cond, tf.function(with_fastreg(in_cond), jit_compile=True))


@pytest.mark.parametrize("persistent", [False, True])
def test_tape_outside_of_a_traced_function(bridge, persistent):
    """Upstream gradients that change from step to step reach the traced penalty from outside."""
    ours, theirs = (tf.function(PENALTIES[namespace]) for namespace in (fastreg, keras.regularizers))
    nested = tf.function(lambda x: 2.0 * ours(x))
    for step, upstream in enumerate([1.0, 1.0, 1.0, 3.0, 0.0, -2.0, -2.0, -2.0, -2.0]):
        x = tf.constant(np.random.default_rng(step).normal(size=(31,)).astype("float32"))
        with tf.GradientTape(persistent=persistent) as tape:
            tape.watch(x)
            mine, keras_own = upstream * nested(x), 2.0 * upstream * theirs(x)
            both = tf.stack([mine, keras_own])
        if persistent:
            for _ in range(2):
                np.testing.assert_allclose(tape.gradient(mine, x), tape.gradient(keras_own, x), rtol=1e-5)
        np.testing.assert_allclose(tape.gradient(both, x, tf.constant([1.0, -1.0])), np.zeros(31), atol=1e-6)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_gradient_taken_twice(bridge, graph):
    """Each with its own upstream gradient, from one recording."""

    def twice(penalty, x):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            value = penalty(x)
        return [tape.gradient(value, x, tf.constant(upstream)) for upstream in (1.0, 1.0, 4.0, 4.0)]

    function = tf.function(twice) if graph else twice
    for step in range(3):
        x = tf.constant(np.random.default_rng(step).normal(size=(31,)).astype("float32"))
        for actual, expected in zip(
            function(PENALTIES[fastreg], x), twice(PENALTIES[keras.regularizers], x), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_one_trace_with_and_one_without_xla(bridge):
    """An outer function that is compiled falls back although the same penalty ran on kernels before."""
    penalty = PENALTIES[fastreg]

    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = penalty(x)
        return tape.gradient(value, x)

    x = tf.constant([1.0, -2.0])
    expected = 3 / 32 * np.sign(x) + 3 / 64 * x
    np.testing.assert_allclose(tf.function(slope)(x), expected, rtol=1e-6)
    before = bridge.kernel_calls()
    if bridge.forced:
        with pytest.warns(RuntimeWarning, match="XLA"):
            np.testing.assert_allclose(tf.function(slope, jit_compile=True)(x), expected, rtol=1e-6)
    else:
        np.testing.assert_allclose(tf.function(slope, jit_compile=True)(x), expected, rtol=1e-6)
    assert bridge.kernel_calls() == before


@pytest.mark.parametrize("name", ["native", "py_function", "xla", "tensorflow"])
def test_a_gradient_that_alone_is_compiled(name):
    """The forward ran eagerly, the backward is traced within XLA."""
    fastreg.set_bridge(name)
    x = tf.constant([1.0, -2.0, 0.0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        value = PENALTIES[fastreg](x)
    compiled = tf.function(lambda upstream: tape.gradient(value, x, upstream), jit_compile=True)
    expected = 3 / 32 * np.sign(x) + 3 / 64 * x.numpy()
    for upstream in (1.0, -2.0):
        np.testing.assert_allclose(compiled(tf.constant(upstream)), upstream * expected, rtol=1e-6)
