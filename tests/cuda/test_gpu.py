"""What only a GPU shows: TensorFlow's own streams and memory, large arrays, compiled kernels as loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from fastreg_kernels import cpu, cuda, reference
from fastreg_kernels.cuda import devices, launch, variants
from fastreg_kernels.cuda.accumulators import accumulator_name
from numba import cuda as numba_cuda

import fastreg
from fastreg._bridges.callback import device as _device

DTYPES = ("float32", "float64", "float16", "bfloat16")
TOLERANCE = {"float32": 1e-6, "float64": 1e-13, "float16": 2e-3, "bfloat16": 1.6e-2}


@pytest.fixture(autouse=True)
def forced():
    bridge = fastreg.get_bridge()
    fastreg.set_bridge("py_function")
    yield
    fastreg.set_bridge(bridge)


def normal(size, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=size).astype(dtype)


def value_and_gradient(penalty, x, scale=1.0):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = penalty(x) * tf.cast(scale, x.dtype)
    return value, tape.gradient(value, x)


def test_tensorflow_and_numba_see_a_gpu():
    assert tf.config.list_physical_devices("GPU")
    assert numba_cuda.is_available()


@pytest.mark.parametrize("function", [lambda f: f, tf.function], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 1000, (1 << 20) + 3])
def test_through_tensorflow(size, dtype, function):
    values = normal(size, dtype)
    with tf.device("/GPU:0"):
        x = tf.constant(values)
    step = function(lambda x: value_and_gradient(fastreg.L1L2(0.25, 0.5), x, 2.0))
    calls = fastreg.info()["kernel_calls"]
    for _ in range(4):  # the third step knows the upstream gradient
        value, slope = step(x)
        assert "GPU" in slope.device
        with np.errstate(over="ignore"):
            sums = reference.forward(values)
            expected = np.asarray(2 * (0.25 * sums[0] + 0.5 * sums[1])).astype(dtype).astype(float)
        np.testing.assert_allclose(float(value), expected, rtol=TOLERANCE[dtype])
        right = reference.backward(values, 0.25, 0.5, 2.0)
        np.testing.assert_allclose(slope.numpy().astype(float), right, rtol=TOLERANCE[dtype], atol=1e-6)
    assert fastreg.info()["kernel_calls"] > calls


def test_order_with_what_tensorflow_computes():
    """Inputs that are still being computed, and memory that is still being read when it is handed out again."""
    with tf.device("/GPU:0"):
        generator = tf.random.Generator.from_seed(1)
        for turn in range(50):
            a = generator.normal((2048, 2048))
            for _ in range(4):
                a = tf.linalg.matmul(a, a) / 45.0  # stays near 1
            value, slope = value_and_gradient(fastreg.L2(0.5), a)
            expected_value, expected_slope = value_and_gradient(keras.regularizers.L2(0.5), a)
            a = slope = slope * 1.0
            np.testing.assert_allclose(float(value), float(expected_value), rtol=1e-4, err_msg=f"turn {turn}")
            assert float(tf.reduce_max(tf.abs(slope - expected_slope))) == 0.0, turn


@pytest.mark.parametrize("jit_compile", [False, "auto"])
def test_fit(jit_compile):
    """On the kernels without XLA; with it, which is Keras's choice on a GPU, on TensorFlow's ops."""
    weights = []
    for penalties in (keras.regularizers, fastreg):
        keras.utils.set_random_seed(1)
        table = keras.layers.Embedding(1000, 16, embeddings_regularizer=penalties.L1L2(1e-5, 1e-2))
        model = keras.Sequential(
            [keras.Input((4,), dtype="int32"), table, keras.layers.Flatten(), keras.layers.Dense(1)]
        )
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
        ids = np.random.default_rng(0).integers(0, 1000, (64, 4), "int32")
        calls = fastreg.info()["kernel_calls"]
        with pytest.warns(RuntimeWarning, match="XLA") if penalties is fastreg and jit_compile else nothing():
            model.fit(ids, np.ones((64, 1)), batch_size=16, epochs=3, shuffle=False, verbose=0)
        if penalties is fastreg:
            assert (fastreg.info()["kernel_calls"] > calls) == (jit_compile is False)
        weights.append(model.get_weights())
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def nothing():
    return pytest.MonkeyPatch.context()


def test_a_stream_of_the_callers():
    x = normal(1 << 22, "float32")
    stream = numba_cuda.stream()
    device = numba_cuda.to_device(x, stream=stream)
    for given in (stream, int(stream.handle)):
        sums, slope = cuda.forward_backward(device, 0.25, 0.5, stream=given)
        stream.synchronize()
        np.testing.assert_allclose(sums.copy_to_host(), cpu.forward(x), rtol=1e-10)
        np.testing.assert_array_equal(slope.copy_to_host(), cpu.backward(x, 0.25, 0.5))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_every_grid_stride(dtype):
    """Many more packs than threads; the same bits every time."""
    x = normal((1 << 24) + 5, dtype)
    device = numba_cuda.to_device(x)
    results = {cuda.forward(device).copy_to_host().tobytes() for _ in range(5)}
    assert len(results) == 1
    np.testing.assert_allclose(np.frombuffer(results.pop()), cpu.forward(x), rtol=1e-10)
    np.testing.assert_array_equal(cuda.shrink(device, 0.5, 0.125).copy_to_host(), cpu.shrink(x, 0.5, 0.125))


def test_more_elements_than_an_int32_counts():
    size = (1 << 31) + 5
    if numba_cuda.current_context().get_memory_info().free < 3 * 2 * size:
        pytest.skip("needs 12 GiB of GPU memory")
    x = np.zeros(size, np.float16)
    x[[0, 1 << 30, (1 << 31) - 1, 1 << 31, -1]] = [1.0, -2.0, 4.0, -8.0, 16.0]
    device = numba_cuda.to_device(x)
    assert cuda.forward(device).copy_to_host().tolist() == [31.0, 341.0]
    sums, slope = cuda.forward_backward(device, 0.5, 0.25)
    assert sums.copy_to_host().tolist() == [31.0, 341.0]
    assert slope[-1:].copy_to_host()[0] == 8.5
    assert slope[1 << 31 : (1 << 31) + 1].copy_to_host()[0] == -4.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_as_the_driver_loaded_them(dtype):
    """No more registers than the audit allows; no local memory where the tests of machine code find none."""
    capability = launch.properties(0).compute_capability
    name = accumulator_name(dtype, capability)
    for variant in variants.for_training(dtype, name, True, True, launch._registers(0)):
        kernel = variant.kernel.compile(variant.signature)
        if capability in ((8, 0), (9, 0)):
            assert kernel.local_mem_per_thread == 0
        assert kernel.regs_per_thread <= variant.kernel.targetoptions["max_registers"]


def test_every_gpu_serves_its_own_tensors():
    for index in range(len(tf.config.list_logical_devices("GPU"))):
        with tf.device(f"/GPU:{index}"):
            x = tf.constant([1.0, -2.0])
            value, slope = value_and_gradient(fastreg.L1(0.5), x)
        assert value.device.endswith(f"GPU:{index}")
        assert slope.device.endswith(f"GPU:{index}")
        assert slope.numpy().tolist() == [0.5, -0.5]
    assert _device.obstacle() is None


def test_memory_that_one_gpu_can_use_and_memory_that_all_can():
    assert devices.only_reader_of(0) is None
    for ordinal, gpu in enumerate(numba_cuda.gpus):
        with gpu:
            own, managed, mapped = (
                make(3, np.float32)
                for make in (numba_cuda.device_array, numba_cuda.managed_array, numba_cuda.mapped_array)
            )
        address = own.__cuda_array_interface__["data"][0]
        assert devices.only_reader_of(address) == devices.ordinal_of(address) == ordinal
        for shared in (managed, mapped):
            assert devices.only_reader_of(shared.__cuda_array_interface__["data"][0]) is None
