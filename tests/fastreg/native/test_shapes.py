"""Static shapes: what is known of a penalty's tensors before a graph runs."""

import pytest
import tensorflow as tf

import fastreg
from fastreg._bridges.native import penalty_kernels as penalty
from fastreg._bridges.native import penalty_ops as ops
from fastreg._bridges.native.op import VARIANT, VARIANTS

ATTRIBUTES = {VARIANT: VARIANTS[penalty.L1_L2], "site": 0}
SHAPES = [[], [0], [4], [2, 3], [None], [None, 3], [2, None, 5], None]


def known(tensor):
    return None if tensor.shape.rank is None else tensor.shape.as_list()


@pytest.fixture(autouse=True)
def native():
    fastreg.set_bridge("native")
    with tf.GradientTape():
        fastreg.L1L2(0.5, 0.25)(tf.ones(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_ops(shape):
    def infer(x):
        factors, upstream, nothing = tf.zeros(2, tf.float64), tf.zeros(()), tf.zeros(2, tf.float64)
        value, ahead, assumed = ops.AHEAD(x, factors, **ATTRIBUTES)
        slope = ops.GRADIENT(x, factors, upstream, ahead, assumed, **ATTRIBUTES)
        again = ops.GRADIENT(x, factors, upstream, x, nothing, **ATTRIBUTES)
        assert [known(tensor) for tensor in (ops.VALUE(x, factors), value, assumed)] == [[], [], [2]]
        assert [known(tensor) for tensor in (ahead, slope, again)] == [shape] * 3
        return slope

    tf.function(infer).get_concrete_function(tf.TensorSpec(shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("factors", [(0.5, 0.25), (0.0, 0.25), (tf.constant(0.5), 0.25)], ids=["both", "l2", "tensor"])
def test_of_concrete_functions(bridge, gradient, shape, factors):
    function = tf.function(lambda x: gradient(lambda v: fastreg.l1_l2_penalty(v, *factors), x))
    value, slope = function.get_concrete_function(tf.TensorSpec(shape)).structured_outputs
    assert known(value) == []
    assert known(slope) == shape
    fastreg.l1_l2_penalty(tf.ones(1), 0.5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_second_derivatives(bridge, gradient, shape):
    function = tf.function(lambda x: gradient(lambda v: gradient(fastreg.L2(0.5), v)[1], x)[1])
    assert known(function.get_concrete_function(tf.TensorSpec(shape)).structured_outputs) == shape
    fastreg.L2()(tf.ones(1))


def test_at_run_time(gradient):
    function = tf.function(lambda x: gradient(fastreg.L1L2(0.5, 0.25), x), input_signature=[tf.TensorSpec(None)])
    for shape in ((), (0,), (3,), (2, 0, 3), (1, 2, 3, 4, 5)):
        for _ in range(3):  # the third gradient is computed ahead
            value, slope = function(tf.ones(shape))
            assert value.shape == ()
            assert slope.shape == shape
            assert (slope.numpy() == 1.0).all()
