"""Derivatives of derivatives, and forward mode, against TensorFlow's own of the same formula."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import fastreg

L1, L2 = 3 / 32, 3 / 128
X = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
DIRECTION = np.random.default_rng(1).normal(size=(3, 4)).astype("float32")


def fast(x):
    return fastreg.l1_l2_penalty(x, L1, L2)


def plain(x):
    return L1 * tf.reduce_sum(tf.abs(x)) + L2 * tf.reduce_sum(x * x)


def outer(value):
    """What makes the upstream gradient depend on x, so that every second-order term counts."""
    return value**3


def gradient_of(function, x, **options):
    with tf.GradientTape(**options) as tape:
        tape.watch(x)
        value = function(x)
    return tape.gradient(value, x)


def hessian_vector_product(penalty, x):
    return gradient_of(lambda v: tf.reduce_sum(gradient_of(lambda w: outer(penalty(w)), v) * DIRECTION), x)


def persistent_tapes(penalty, x):
    with tf.GradientTape(persistent=True) as second:
        second.watch(x)
        with tf.GradientTape(persistent=True) as first:
            first.watch(x)
            value = outer(penalty(x))
        slopes = [first.gradient(value, x), first.gradient(value, x, tf.constant(2.0))]
    return tf.stack([second.gradient(slope, x) for slope in slopes])


def one_persistent_tape(penalty, x):
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        slope = tape.gradient(outer(penalty(x)), x)
    return tape.gradient(slope, x)


def third_order(penalty, x):
    return gradient_of(lambda u: gradient_of(lambda v: gradient_of(lambda w: outer(penalty(w)), v), u), x)


def hessian_of(vectorize):
    def hessian(penalty, x):
        with tf.GradientTape(persistent=not vectorize) as tape:
            tape.watch(x)
            slope = gradient_of(lambda v: outer(penalty(v)), x)
        return tape.jacobian(slope, x, experimental_use_pfor=vectorize)

    hessian.__name__ = "hessian_vectorized" if vectorize else "hessian_in_a_loop"
    return hessian


def jacobian_of_values(penalty, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        values = tf.stack([penalty(x), 2.0 * penalty(x * x), outer(penalty(x))])
    return tape.jacobian(values, x)


def derivative_in_upstream(penalty, x):
    """The gradient is linear in the upstream gradient; its derivative there is a product with the direction."""
    upstream = tf.constant(3.0)
    with tf.GradientTape() as second:
        second.watch(upstream)
        with tf.GradientTape() as first:
            first.watch(x)
            value = penalty(x)
        slope = first.gradient(value, x, upstream)
    return tf.stack([second.gradient(slope, upstream, tf.constant(DIRECTION)), tf.reduce_sum(slope)])


def forward_mode(penalty, x):
    with tf.autodiff.ForwardAccumulator(x, tf.constant(DIRECTION)) as accumulator:
        value = outer(penalty(x))
    return accumulator.jvp(value)


def forward_over_backward(penalty, x):
    with tf.autodiff.ForwardAccumulator(x, tf.constant(DIRECTION)) as accumulator:
        slope = gradient_of(lambda v: outer(penalty(v)), x)
    return accumulator.jvp(slope)


def backward_over_forward(penalty, x):
    return gradient_of(lambda v: forward_mode(penalty, v), x)


def gradient_penalty(penalty, x):
    """The norm of the gradient as a loss, as in adversarial training."""
    return gradient_of(lambda v: tf.norm(gradient_of(lambda w: outer(penalty(w)), v)), x)


CASES = [
    hessian_vector_product,
    persistent_tapes,
    one_persistent_tape,
    third_order,
    hessian_of(vectorize=True),
    hessian_of(vectorize=False),
    jacobian_of_values,
    derivative_in_upstream,
    gradient_penalty,
]
FORWARD = [forward_mode, forward_over_backward, backward_over_forward]


STEPS = [X + np.float32(0.1 * step) for step in range(3)]
"""So many that gradients are computed ahead where they can be."""


@functools.cache
def expected(case):
    """Of each step, by TensorFlow's own derivatives."""
    return [np.asarray(case(plain, tf.constant(x))) for x in STEPS]


def check_three_steps(case, function):
    for x, theirs in zip(STEPS, expected(case), strict=True):
        assert np.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(function(tf.constant(x)), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("case", [*CASES, *FORWARD], ids=lambda case: case.__name__)
def test_eagerly(bridge, case):
    check_three_steps(case, functools.partial(case, fast))


def of_shape(case, shape):
    """A case traced once, for a shape that is known in part."""
    return tf.function(lambda x: case(fast, x), input_signature=[tf.TensorSpec(shape)])


@pytest.mark.parametrize("shape", [[3, 4], None], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_in_a_graph(bridge, case, shape):
    check_three_steps(case, of_shape(case, shape))
    if case is derivative_in_upstream:  # of which TensorFlow leaves the penalty out, if it is an op and no callback
        fast(tf.constant(X))


@pytest.mark.parametrize("shape", [[3, 4], None], ids=str)
@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.__name__)
def test_forward_mode_in_a_graph(bridge, case, shape):
    """A callback has no tangent that could be traced: the result would silently be zero."""
    if bridge.name == "py_function":
        with bridge.falls_back("forward-mode"):
            check_three_steps(case, of_shape(case, shape))
    else:
        check_three_steps(case, of_shape(case, shape))


@pytest.mark.parametrize("case", [*CASES, *FORWARD], ids=lambda case: case.__name__)
def test_under_xla(fresh_state, case):
    """Where every bridge leaves the penalty to TensorFlow's ops."""
    check_three_steps(case, tf.function(lambda x: case(fast, x), jit_compile=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_by_clusters(clusters, case):
    check_three_steps(case, of_shape(case, None))
    if case is derivative_in_upstream:
        fast(tf.constant(X))


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.__name__)
def test_forward_mode_by_clusters(clusters, case):
    """In a graph they have no tangent either."""
    check_three_steps(case, functools.partial(case, fast))
    assert clusters.kernel_calls() > 0
    with pytest.warns(RuntimeWarning, match="forward-mode"):
        check_three_steps(case, of_shape(case, [3, 4]))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("name", ["native", "py_function", "xla", "tensorflow"])
def test_forward_mode_of_what_the_penalty_is_multiplied_with(name, graph):
    """Of the upstream gradient alone: nothing that the penalty itself would know of."""

    def tangent(x, factor):
        with tf.autodiff.ForwardAccumulator(factor, tf.constant(3.0)) as accumulator:
            slope = gradient_of(lambda v: factor * fast(v), x)
        return accumulator.jvp(slope)

    fastreg.set_bridge(name)
    function = tf.function(tangent) if graph else tangent
    for _ in range(3):
        np.testing.assert_allclose(
            function(tf.constant(X), tf.constant(2.0)), 3 * (L1 * np.sign(X) + 2 * L2 * X), rtol=1e-5
        )


def test_second_order_through_a_traced_penalty(bridge):
    """Both tapes outside of the traced function."""
    traced = tf.function(fast)
    for step in range(3):
        x = tf.constant(X + 0.1 * step)
        np.testing.assert_allclose(
            hessian_vector_product(traced, x), hessian_vector_product(plain, x), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("factors", [(L1, 0.0), (0.0, L2)], ids=["l1", "l2"])
def test_each_factor_alone(bridge, factors):
    l1, l2 = factors
    ours = hessian_vector_product(lambda x: fastreg.l1_l2_penalty(x, l1, l2), tf.constant(X))
    theirs = hessian_vector_product(lambda x: l1 * tf.reduce_sum(tf.abs(x)) + l2 * tf.reduce_sum(x * x), tf.constant(X))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
