"""Native ops as TensorFlow sees them: definitions, kernels, errors, and what debuggers put around them."""

import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels, op_def_registry

import fastreg
from fastreg._bridges.native import penalty_kernels as penalty
from fastreg._bridges.native import penalty_ops as ops
from fastreg._bridges.native.op import VARIANT, VARIANTS

DTYPES = ("float32", "float64", "float16", "bfloat16")
NOTHING = tf.zeros(2, tf.float64)
ATTRIBUTES = {VARIANT: VARIANTS[penalty.L1_L2], "site": 0}


@pytest.fixture(params=DTYPES)
def x(request):
    x = tf.cast(tf.constant([[1.0, -2.0, 0.5]]), request.param)
    fastreg.set_bridge("native")
    fastreg.L2()(x)  # defines the ops
    for op in ops.OPS:
        op.prepare(x.dtype, *[penalty.L1_L2 for attribute in op.types if attribute == VARIANT])
    return x


def run(function, graph):
    return (tf.function(function, autograph=False) if graph else function)()


def test_definitions(x):
    for op in ops.OPS:
        definition = op_def_registry.get(op.name)
        assert [f"{argument.name}" for argument in definition.input_arg] == [i.partition(":")[0] for i in op.inputs]
        assert not definition.is_stateful  # what nobody asks for, TensorFlow leaves out
        registered = kernels.get_registered_kernels_for_op(op.name).kernel
        keys = [{c.name: list(c.allowed_values.list.type) for c in kernel.constraint} for kernel in registered]
        assert {key["T"][0] for key in keys} >= {x.dtype.as_datatype_enum}
        assert all(set(key) == set(op.types) for key in keys)
        assert len({str(sorted(key.items())) for key in keys}) == len(keys)
        assert {kernel.device_type for kernel in registered} == {"CPU"}


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("size", [0, 1, 3, 100])
def test_factors_of_the_wrong_shape(x, size, graph):
    """Whoever calls the op by hand gets an error, and nothing beyond an input is read."""
    factors, one = tf.ones(size, tf.float64), tf.ones((), x.dtype)
    calls = fastreg.info()["kernel_calls"]
    for call in (
        lambda: ops.VALUE(x, factors),
        lambda: ops.AHEAD(x, factors, **ATTRIBUTES),
        lambda: ops.GRADIENT(x, factors, one, x, NOTHING, **ATTRIBUTES),
        lambda: ops.GRADIENT(x, NOTHING, one, x, factors, **ATTRIBUTES),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="another number of elements than the op expects"):
            run(call, graph)
    assert fastreg.info()["kernel_calls"] == calls


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("wrong", [0, 2, 7])
def test_other_inputs_of_the_wrong_shape(x, wrong, graph):
    ahead = tf.constant([1.0, 1.0], tf.float64)
    upstream, gradient = tf.ones(wrong, x.dtype), tf.ones(wrong, x.dtype)
    for call in (
        lambda: ops.GRADIENT(x, NOTHING, upstream, x, NOTHING, **ATTRIBUTES),
        lambda: ops.GRADIENT(x, NOTHING, tf.ones((), x.dtype), gradient, ahead, **ATTRIBUTES),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="another number of elements than the op expects"):
            run(call, graph)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_other_dtypes_have_no_kernel(x, graph):
    """TensorFlow's own error, as the bridge never asks for one."""
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError)):
        run(lambda: ops.VALUE(tf.constant([1, 2]), tf.ones(2, tf.float64)), graph)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_next_call_after_an_error_works(x, graph):
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(lambda: ops.VALUE(x, tf.ones(3, tf.float64)), graph)
    assert float(run(lambda: ops.VALUE(x, tf.constant([0.5, 1.0], tf.float64)), graph)) == 7.0


def test_what_nobody_asks_for_is_left_out(gradient):
    """TensorFlow prunes a penalty of which nothing is used, as its own ops."""
    fastreg.set_bridge("native")

    @tf.function
    def function(x):
        gradient(fastreg.L2(), x)
        return x + 1.0

    before = fastreg.info()["kernel_calls"]
    function(tf.ones(3))
    assert fastreg.info()["kernel_calls"] == before


CHECKED = """
    import json, sys
    import keras, numpy as np, tensorflow as tf
    import fastreg
    tf.debugging.enable_check_numerics()
    generator = np.random.default_rng(0)
    x, y = (generator.normal(size=(64, n)).astype("float32") for n in (12, 1))
    before, histories = fastreg.info()["kernel_calls"], []
    for options in ({"jit_compile": False}, {"run_eagerly": True}):
        for penalties in (fastreg, keras.regularizers):
            keras.utils.set_random_seed(1)
            hidden = keras.layers.Dense(16, "relu", kernel_regularizer=penalties.L1L2(1e-3, 0.02))
            head = keras.layers.Dense(1, kernel_regularizer=penalties.L2(0.02), activity_regularizer=penalties.L1(0.01))
            model = keras.Sequential([keras.Input((12,)), hidden, head])
            model.compile(keras.optimizers.SGD(0.02), "mse", **options)
            histories.append(model.fit(x, y, batch_size=32, epochs=2, verbose=0, shuffle=False).history["loss"])
    calls, caught = fastreg.info()["kernel_calls"] - before, {}

    def slope(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            value = fastreg.L2(0.5)(v)
        return tape.gradient(value, v)

    functions = {"eager": fastreg.L2(0.5), "graph": tf.function(fastreg.L2(0.5)), "slope": tf.function(slope)}
    for name, function in functions.items():
        try:
            function(tf.constant([1e30, 1.0]) if name != "slope" else tf.constant([1.0, np.nan]))
            caught[name] = ""
        except tf.errors.InvalidArgumentError as error:
            caught[name] = str(error)
    print("RESULTS" + json.dumps([histories, calls, caught]))
"""


@pytest.mark.parametrize("name", ["native", "py_function", "tensorflow", "auto"])
def test_check_numerics_is_silent_over_training_and_loud_over_nan(run_python, name):
    """Not even an output that nobody uses is undefined; an infinite penalty is traced back to its op."""
    histories, calls, caught = json.loads(run_python(CHECKED, FASTREG_BRIDGE=name).split("RESULTS")[1])
    for ours, theirs in (histories[:2], histories[2:]):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (calls > 0) == (name != "tensorflow")
    if name in ("native", "auto"):  # what comes of a callback, TensorFlow does not look at
        assert "Inf" in caught["eager"]
        assert "FastregPenalty" in caught["eager"]
        assert "Inf" in caught["graph"]
        assert "FastregPenalty" in caught["graph"]
        assert "NaN" in caught["slope"]
