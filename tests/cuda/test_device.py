"""Tensors through the CUDA kernels, simulated on tensors of the host.

What is simulated: the kernels, and a stream on which nothing runs before somebody waits for it. TensorFlow's side is
real: its memory, its DLPack export with its rules, its callbacks and gradients.
"""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from fastreg_kernels import cuda
from fastreg_kernels.cuda import devices, launch, variants
from tensorflow.python.framework import kernels as registered

import fastreg
from fastreg._bridges import settings, support
from fastreg._bridges.callback import device as _device
from fastreg._bridges.factors import Factors

DTYPES = ("float32", "float64", "float16", "bfloat16")


class LazyStream:
    """A stream that runs its kernels when it is waited for, as late as a GPU may; `log` has what happened, in order."""

    def __init__(self):
        self.waiting, self.log = [], []

    def synchronize(self):
        self.log.append("wait")
        for work in self.waiting:
            work()
        self.waiting.clear()


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    monkeypatch.setattr(_device, "_failure", None)
    monkeypatch.setattr(_device, "_failures", 0)
    monkeypatch.setattr(_device, "_prepared", set())
    settings._warned.clear()
    bridge = fastreg.get_bridge()
    yield
    fastreg.set_bridge(bridge)
    fastreg.set_crossover(None)


@pytest.fixture
def stream(monkeypatch):
    """The lazy stream, with TensorFlow's allocations and exports in its log too."""
    stream, at_once = LazyStream(), launch._launch
    monkeypatch.setattr(_device, "_stream", lambda ordinal: stream)

    def later(call, kernel, blocks, given, *arguments):
        assert given is stream, "TensorFlow's streams wait for no default stream"
        stream.log.append("launch")
        stream.waiting.append(lambda: at_once(call, kernel, blocks, 0, *arguments))

    def logged(name, function):
        def call(*arguments, **options):
            stream.log.append(name)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(launch, "_launch", later)
    monkeypatch.setattr(tf.raw_ops, "Empty", logged("allocate", tf.raw_ops.Empty))
    monkeypatch.setattr(tf.experimental.dlpack, "to_dlpack", logged("export", tf.experimental.dlpack.to_dlpack))
    return stream


@pytest.fixture
def on_gpu(stream, monkeypatch):
    """Have tensors of the host taken for tensors of a GPU."""
    callbacks = importlib.import_module("fastreg._bridges.callback.penalty")  # the package's name is the function's too
    monkeypatch.setattr(callbacks, "on_host", lambda x: False)
    monkeypatch.setattr(support, "is_likely_on_gpu", lambda x: True)
    fastreg.set_bridge("py_function")
    return stream


def tensor(size, dtype="float32", seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=size).astype(tf.as_dtype(dtype).as_numpy_dtype))


def expected_value(x, l1, l2):
    wide = x.numpy().astype("float64")
    return l1 * np.abs(wide).sum() + l2 * np.square(wide).sum()


def assert_gradient(actual, x, l1, l2, upstream=1.0):
    wide = x.numpy().astype("float64")
    expected = upstream * (l1 * np.sign(wide) + 2 * l2 * wide)
    eps = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[x.dtype.name]
    assert actual.dtype == x.dtype
    assert actual.shape == x.shape
    np.testing.assert_allclose(actual.numpy().astype("float64"), expected, rtol=2 * eps, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (37,), (6, 7)], ids=str)
def test_value_and_gradient(stream, shape, dtype):
    x, upstream = tensor(shape, dtype), tf.constant(-2.0, dtype)
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6, "float64": 1e-13}[dtype]
    value = _device.value(x, 0.25, 0.5)
    assert value.dtype == dtype
    assert value.shape == ()
    np.testing.assert_allclose(float(value), expected_value(x, 0.25, 0.5), rtol=tolerance)
    both, slope = _device.value_and_gradient(x, 0.25, 0.5, -2.0)
    assert both == value
    assert_gradient(slope, x, 0.25, 0.5, -2.0)
    assert_gradient(_device.gradient(x, upstream, 0.25, 0.5), x, 0.25, 0.5, -2.0)
    assert not stream.waiting


def test_memory_is_exported_after_it_is_allocated_and_kernels_are_waited_for(stream):
    """An export waits for what TensorFlow's GPU does, also with what the memory of an output held before."""
    x = tensor(40)
    for call in (
        lambda: _device.value(x, 0.5, 0.5),
        lambda: _device.value_and_gradient(x, 0.5, 0.5, 1.0),
        lambda: _device.gradient(x, tf.constant(1.0), 0.5, 0.5),
    ):
        stream.log.clear()
        call()
        log = stream.log[1:]  # the first export only asks which GPU it is
        assert stream.log[0] == "export"
        order = [name for index, name in enumerate(log) if index == 0 or log[index - 1] != name]
        assert order == ["allocate", "export", "launch", "wait"]
        assert log.count("export") == log.count("allocate") + (2 if log.count("allocate") == 1 else 1)


def test_a_kernel_that_is_not_waited_for_is_noticed(stream, monkeypatch):
    """The stand-in can fail: without the wait, the results are not there."""
    monkeypatch.setattr(LazyStream, "synchronize", lambda self: None)
    x = tensor(5000, seed=1)
    assert not np.allclose(float(_device.value(x, 0.5, 0.5)), expected_value(x, 0.5, 0.5))


def test_tensorflow_refuses_to_be_told_a_stream():
    """Which is why tensors are exported without one."""
    with pytest.raises(RuntimeError, match="stream"):
        tf.ones(3).__dlpack__(stream=1)
    assert cuda.forward(tf.constant([1.0, -2.0])).copy_to_host().tolist() == [3.0, 5.0]


def test_empty_tensors_launch_nothing(stream):
    x = tf.zeros((0, 3))
    value, slope = _device.value_and_gradient(x, 0.5, 0.5, 1.0)
    assert float(value) == 0.0
    assert slope.shape == _device.gradient(x, tf.constant(1.0), 0.5, 0.5).shape == (0, 3)
    assert stream.log == []


def test_inputs_stay_as_they_are_and_outputs_are_their_own(stream):
    x = tensor(50)
    before = x.numpy().copy()
    first, second = (_device.value_and_gradient(x, 0.5, 0.5, 1.0)[1] for _ in range(2))
    addresses = {_device._exported(t).address for t in (x, first, second)}
    assert len(addresses) == 3
    np.testing.assert_array_equal(x.numpy(), before)


@pytest.mark.parametrize("function", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_training_steps(on_gpu, function):
    """Two steps learn the upstream gradient; from the third on value and gradient come from one read."""
    x = tensor(60)

    @function
    def step(x, scale):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = scale * fastreg.L1L2(0.25, 0.5)(x)
        return value, tape.gradient(value, x)

    launches = []
    for scale in (1.0, 1.0, 1.0, 1.0, 3.0):
        on_gpu.log.clear()
        value, slope = step(x, tf.constant(scale))
        launches.append(on_gpu.log.count("launch"))
        np.testing.assert_allclose(float(value), scale * expected_value(x, 0.25, 0.5), rtol=1e-6)
        assert_gradient(slope, x, 0.25, 0.5, scale)
    assert launches[-3:] == [2, 2, 3]  # sums and fold; and a gradient of its own where the guess was wrong


def test_fit(on_gpu):
    """A model trained on the kernels ends where Keras's own penalties take it."""
    weights = []
    calls = fastreg.info()["kernel_calls"]
    for penalties in (keras.regularizers, fastreg):
        keras.utils.set_random_seed(1)
        stack = [keras.Input((3,)), keras.layers.Dense(4, kernel_regularizer=penalties.L1L2(0.01, 0.1))]
        model = keras.Sequential(stack)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        data = np.random.default_rng(0).normal(size=(8, 7)).astype("float32")
        model.fit(data[:, :3], data[:, 3:], batch_size=4, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    assert fastreg.info()["kernel_calls"] > calls
    for ours, theirs in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def fail(error):
    def raises(*arguments):
        raise error

    return raises


@pytest.mark.parametrize(
    ("module", "place", "error"),
    [
        (launch, "prepare", RuntimeError("ptxas does not know sm_999")),
        (devices, "on", ImportError("CUDA driver library cannot be found")),
        (devices, "ordinal_of", OSError("driver too old")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failures_before_the_first_launch_fall_back_with_one_warning(on_gpu, monkeypatch, module, place, error):
    monkeypatch.setattr(module, place, fail(error))
    fastreg.set_bridge("auto")
    fastreg.set_crossover(0)
    x = tensor(20)

    def both():
        kernels = importlib.import_module("fastreg._bridges.callback.penalty")._PenaltyKernels()
        vector = Factors(0.5, 0.25).vector()
        return kernels.value(x, vector)[0], kernels.gradient(x, tf.constant(1.0), vector)[0]

    with pytest.warns(RuntimeWarning, match=f"fastreg uses TensorFlow's ops: .*{error}") as warned:
        results = [both() for _ in range(3)]
    for value, slope in results:
        np.testing.assert_allclose(float(value), expected_value(x, 0.5, 0.25), rtol=1e-6)
        assert_gradient(slope, x, 0.5, 0.25)
    assert len(warned) == 1
    assert str(error) in _device.obstacle()
    assert "launch" not in on_gpu.log


def test_a_gpu_that_is_busy_for_a_moment_is_tried_again(on_gpu, monkeypatch):
    fastreg.set_bridge("auto")
    fastreg.set_crossover(0)
    kernels = importlib.import_module("fastreg._bridges.callback.penalty")._PenaltyKernels()
    x, vector = tensor(20), Factors(0.5, 0.25).vector()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "prepare", fail(MemoryError("out of memory")))
        with pytest.warns(RuntimeWarning, match="out of memory"):
            value = kernels.value(x, vector)[0]
    np.testing.assert_allclose(float(value), expected_value(x, 0.5, 0.25), rtol=1e-6)
    assert _device.obstacle() is None
    assert "launch" not in on_gpu.log
    np.testing.assert_allclose(float(kernels.value(x, vector)[0]), expected_value(x, 0.5, 0.25), rtol=1e-6)
    assert "launch" in on_gpu.log


def test_failures_before_the_first_launch_are_raised_on_a_forced_bridge(on_gpu, monkeypatch):
    monkeypatch.setattr(launch, "prepare", fail(RuntimeError("does not compile")))
    with pytest.raises(_device.UnavailableError, match="does not compile"):
        fastreg.L2(0.5)(tensor(20))


def test_failures_after_a_launch_are_raised(on_gpu, monkeypatch):
    x = tensor(20)
    fastreg.L2(0.5)(x)
    fastreg.set_bridge("auto")
    fastreg.set_crossover(0)
    monkeypatch.setattr(devices, "ordinal_of", fail(cuda.DeviceError("cuPointerGetAttribute failed")))
    with pytest.raises(cuda.DeviceError, match="cuPointerGetAttribute"):
        fastreg.L2(0.5)(x)
    assert _device.obstacle() is None


def test_a_driver_error_names_the_call(monkeypatch):
    from numba.cuda.simulator.cudadrv.driver import CudaAPIError

    CudaAPIError.__module__ = "numba.cuda.cudadrv.driver"  # where a GPU's is from

    class Kernel:
        def __getitem__(self, configuration):
            raise CudaAPIError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")

    monkeypatch.setattr(launch.penalty, "gradient", lambda *names: Kernel())
    with pytest.raises(cuda.DeviceError, match=r"cuda\.backward could not be launched: CUDA_ERROR_LAUNCH"):
        _device.gradient(tensor(5), tf.constant(1.0), 0.5, 0.5)


def test_without_numba_cuda_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(_device.importlib.util, "find_spec", lambda name: None)
    assert _device.obstacle() == "no kernel for GPUs without numba-cuda"


def test_what_is_likely_on_a_gpu(monkeypatch):
    class Placed:
        device = "/job:localhost/replica:0/task:0/device:GPU:1"

    class Unplaced:
        device = ""

    assert support.is_likely_on_gpu(Placed())
    assert not support.is_likely_on_gpu(tf.ones(1))
    for gpus in ([], ["a GPU"]):
        monkeypatch.setattr(support, "has_gpu", lambda gpus=gpus: bool(gpus))
        monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind, gpus=gpus: gpus)
        assert support.is_likely_on_gpu(Unplaced()) == bool(gpus)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorflow_has_what_this_needs_on_gpus(dtype):
    """Allocation without filling in each dtype, and callbacks whose outputs stay on the GPU."""
    number = tf.as_dtype(dtype).as_datatype_enum
    empty = [
        kernel
        for kernel in registered.get_registered_kernels_for_op("Empty").kernel
        if kernel.device_type == "GPU" and number in kernel.constraint[0].allowed_values.list.type
    ]
    callback = [
        kernel
        for kernel in registered.get_registered_kernels_for_op("EagerPyFunc").kernel
        if kernel.device_type in ("GPU", "DEFAULT")
    ]
    assert len(empty) == len(callback) == 1
    assert list(callback[0].host_memory_arg) == []


def test_kernels_are_loaded_on_each_gpu(monkeypatch):
    """Compiling gives what was compiled for another GPU; loading it here may fail, and has to before a launch."""
    loaded = []

    class Kernel:
        def compile(self, signature):
            return self

        def bind(self):
            loaded.append(self)

    variant = variants.Variant("backward", "float32", None, Kernel(), ())
    monkeypatch.setattr(launch, "SIMULATED", False)
    monkeypatch.setattr(launch, "_accumulator", lambda dtype, ordinal: "float64")
    monkeypatch.setattr(launch, "_registers", lambda ordinal: 32)
    monkeypatch.setattr(variants, "for_training", lambda *arguments: [variant])
    for ordinal in (0, 1):
        launch.prepare("float32", True, True, ordinal)
    assert len(loaded) == 2
