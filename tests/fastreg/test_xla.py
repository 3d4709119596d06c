"""Penalties in code that XLA compiles: how exact they are, and how often the compiled code goes over a weight."""

import functools
import math

import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from fastreg_benchmarks.hlo import text, traffic
from fastreg_kernels import reference

import fastreg

L1, L2 = 2.0**-12, 2.0**-13
"""Exact in every dtype, and so small that the penalties of millions of elements are in the range of float16."""

DTYPES = ["float32", "float64", "float16", "bfloat16"]
SIZES = [0, 1, 1023, 1024, 1025, (1 << 20) + 7, 1 << 24]
PENALTIES = {"fastreg": fastreg.L1L2(L1, L2), "keras": keras.regularizers.L1L2(L1, L2)}

pytestmark = pytest.mark.usefixtures("fresh_state")


@functools.cache
def numbers():
    return np.random.default_rng(0).standard_normal(max(SIZES), np.float32)


def exact(x):
    """The value in float64."""
    sums = [reference.forward(part) for part in np.array_split(x, max(1, x.size >> 18))]
    return L1 * math.fsum(part[0] for part in sums) + L2 * math.fsum(part[1] for part in sums)


@functools.cache
def compiled(name, dtype, shape=()):
    """Value and gradient; one that is traced for any size is compiled for each that comes all the same."""

    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = PENALTIES[name](x)
        return value, tape.gradient(value, x)

    signature = None if shape == () else [tf.TensorSpec(shape, dtype)]
    return tf.function(value_and_gradient, jit_compile=True, autograph=False, input_signature=signature)


ROUNDINGS = {"float64": 4}
"""Units of the last place by which the value may be further off than Keras's; for the others it is rounded once."""


# Where blocks end is the same for each dtype. The largest is where sums in float32 lose digits, and where those of
# float16, were they of its range, would overflow.
CASES = [("float32", size) for size in SIZES] + [
    *((dtype, size) for dtype in DTYPES[1:] for size in (1025, (1 << 20) + 7)),
    ("float16", 1 << 24),
]


@pytest.mark.parametrize(("dtype", "size"), CASES)
def test_no_less_exact_than_keras(dtype, size):
    x = numbers()[:size].astype(dtype)
    (value, slope), (keras_value, keras_slope) = (compiled(name, dtype)(tf.constant(x)) for name in PENALTIES)
    expected, eps = exact(x), float(ml_dtypes.finfo(dtype).eps)
    assert value.dtype == slope.dtype == dtype
    assert (value.shape, slope.shape) == ((), x.shape)
    errors = [abs(float(each) - expected) for each in (value, keras_value)]
    assert errors[0] <= errors[1] + ROUNDINGS.get(dtype, 1) * eps * expected
    assert errors[0] <= 4 * eps * expected
    some = slice(None, None, 1 + size // 10_000)
    ours, theirs = (each.numpy()[some].astype("float64") for each in (slope, keras_slope))
    np.testing.assert_allclose(ours, theirs, rtol=2 * eps)


@pytest.mark.parametrize("shape", [[None], None], ids=str)
def test_a_shape_that_is_unknown_when_traced(shape):
    function = compiled("fastreg", "float32", None if shape is None else tuple(shape))
    for size in (0, 3, 1025, 5000):
        x = numbers()[:size]
        value, slope = function(tf.constant(x))
        np.testing.assert_allclose(value, exact(x), rtol=1e-6)
        np.testing.assert_allclose(slope, reference.backward(x, L1, L2), rtol=1e-6)
    assert function.experimental_get_tracing_count() == 1


UNITS = 256
ROWS, WIDTH, LOOKUPS = 2048, 64, 16
"""Of a dense layer and of tables: so small that compiling takes longer than running."""


def dense(name, dtype, optimizer):
    layer = keras.layers.Dense(UNITS, use_bias=False, kernel_regularizer=PENALTIES.get(name), dtype=dtype)
    layer.build((None, UNITS))
    return layer, tf.zeros((2, UNITS), dtype), keras.optimizers.get(optimizer)


def table(name, dtype, optimizer):
    layer = keras.layers.Embedding(ROWS, WIDTH, embeddings_regularizer=PENALTIES[name], dtype=dtype)
    layer.build()
    return layer, tf.range(LOOKUPS), keras.optimizers.get(optimizer)


def lazy_table(name, dtype, optimizer):
    layer = fastreg.Embedding(ROWS, WIDTH, embeddings_regularizer=PENALTIES[name], dtype=dtype)
    layer.build()
    return layer, tf.range(LOOKUPS), fastreg.LazyRegularization(optimizer)


def optimised(layer, inputs, optimizer):
    """What the processor runs in a training step."""
    weights = layer.trainable_weights
    optimizer.build(weights)

    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.add_n([tf.reduce_mean(tf.square(layer(inputs))), *layer.losses])
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    function = tf.function(step, jit_compile=True, autograph=False)
    return function.experimental_get_compiler_ir(inputs)(stage="optimized_hlo")


def passes(hlo, nbytes):
    """How many kernels go over a weight of so many bytes, how many of them reduce it, and all that they move."""
    kernels = [kernel for kernel in traffic.count(hlo).kernels if kernel.bytes >= nbytes]
    reductions = [kernel for kernel in kernels if kernel.read >= nbytes and kernel.written <= nbytes / 8]
    return len(kernels), len(reductions), sum(kernel.bytes for kernel in kernels)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_value_and_gradient_have_one_sum(dtype):
    x = tf.constant(numbers()[: 1 << 16].astype(dtype))
    both = [compiled(name, dtype).experimental_get_compiler_ir(x)(stage="optimized_hlo") for name in PENALTIES]
    ours, theirs = (passes(hlo, x.numpy().nbytes) for hlo in both)
    assert ours[1] == 1
    assert all(our < their for our, their in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize("size", [5 << 10, (1 << 31) + 1029])
def test_what_xla_must_not_see_through(size):
    """The weight that is read, and the sums of blocks, which are added up in float64: of any size."""
    x, blocks, rest = tf.TensorSpec([size]), size >> 10, size % 1024
    hlo = compiled("fastreg", "float32").experimental_get_compiler_ir(x)(stage="hlo")
    instructions = [i for each in text.parse(hlo).computations.values() for i in each.instructions.values()]
    barriers = [array.elements for i in instructions if i.opcode == "opt-barrier" for array in i.arrays]
    assert sorted(barriers) == [blocks + rest, size]
    reductions = [array for i in instructions if i.opcode == "reduce" for array in i.arrays if array.bits > 8]
    assert sorted(reductions) == [(1, 64), (blocks, 32)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [dense, table])
def test_steps_go_over_a_weight_less_often_than_with_keras(make, dtype, optimizer):
    """Keras's penalty is two sums."""
    steps = [make(name, dtype, optimizer) for name in PENALTIES]
    nbytes = steps[0][0].weights[0].numpy().nbytes
    ours, theirs = (passes(optimised(*step), nbytes) for step in steps)
    assert ours[1] == theirs[1] - 1
    assert all(our < their for our, their in zip(ours, theirs, strict=True)), (ours, theirs)


@pytest.mark.parametrize(("optimizer", "reads"), [("sgd", 1), ("adam", 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_only_reads_a_weight_more_often_than_without_a_penalty(dtype, optimizer, reads):
    """For the value, and for each moment of Adam's: XLA computes the gradient where it needs it. Nothing is written."""
    steps = [dense(name, dtype, optimizer) for name in ("fastreg", "none")]
    nbytes = steps[0][0].weights[0].numpy().nbytes
    ours, without = (passes(optimised(*step), nbytes) for step in steps)
    assert ours[0] == without[0] + 1
    assert ours[2] <= without[2] + (reads + 0.01) * nbytes


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_of_a_lazy_table_only_update_it_in_place(optimizer):
    """Nor is there anything else of its size; where XLA scatters half types on processors, it converts the table."""
    step = lazy_table("fastreg", "float32", optimizer)
    hlo = optimised(*step)
    nbytes = step[0].weights[0].numpy().nbytes
    assert max(kernel.bytes for kernel in traffic.count(hlo, least=True).kernels) < nbytes / 2
