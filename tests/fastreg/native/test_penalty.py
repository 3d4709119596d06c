"""Penalties by native ops: counting beyond 32 bits. Values and gradients are those of all bridges, in `test_ops.py`."""

import numpy as np
import pytest
import tensorflow as tf

import fastreg


@pytest.mark.large
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_more_elements_than_an_int32_counts(dtype, graph):
    fastreg.set_bridge("native")
    size, places, values = 2**31 + 5, [0, 2**30, 2**31 - 1, 2**31, 2**31 + 4], [1.0, -2.0, 4.0, -8.0, 16.0]
    numbers = np.zeros(size, dtype)
    numbers[places] = values
    x = tf.constant(numbers)
    del numbers

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = fastreg.L1L2(1.0, 0.5)(x)
        slope = tape.gradient(value, x)
        return value, tf.gather(slope, tf.constant(places, tf.int64)), tf.size(slope, out_type=tf.int64)

    function = tf.function(step) if graph else step
    for _ in range(3):  # the third gradient is computed ahead
        value, slope, count = function(x)
        assert float(value) == 31.0 + 170.5 if dtype == "float32" else float(value) == 201.5
        np.testing.assert_array_equal(slope, np.sign(values) + values)
        assert int(count) == size
