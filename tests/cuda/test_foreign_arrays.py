"""Arrays of others by DLPack and `__cuda_array_interface__`, on memory of the host and simulated kernels."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf
from fastreg_kernels import cpu, cuda
from fastreg_kernels.cuda import arrays, devices

DTYPES = ("float32", "float64", "float16", "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_capsule_says_what_the_tensor_is(numbers, dtype):
    x = tf.constant(numbers((3, 4), dtype))
    view = arrays.of_capsule(tf.experimental.dlpack.to_dlpack(x), "x")
    assert (view.shape, view.dtype, view.order) == ((3, 4), dtype, "C")
    assert view.address % 64 == 0


class DLPackOnly:
    """A device array that others see by DLPack alone; `stream` is the one that the consumer named."""

    def __init__(self, array):
        self.array, self.stream = array, None

    def __dlpack__(self, *, stream=None):
        self.stream = stream
        return self.array.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_arrays_by_dlpack(dtype):
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(dtype)
    source, target = DLPackOnly(x), DLPackOnly(np.zeros_like(x))
    assert cuda.backward(source, 0.3, 0.7, out=target) is target
    np.testing.assert_array_equal(target.array, cpu.backward(x, 0.3, 0.7))
    assert source.stream is target.stream is None  # the default stream, which needs no telling


class ByInterface:
    """An array as `__cuda_array_interface__` shows it, of memory of the host."""

    def __init__(self, array, read_only=False, **others):
        self.array = array
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, read_only),
            "strides": None,
            "version": 3,
        } | others


def test_read_only_outputs_are_refused():
    x = ByInterface(np.ones(20, np.float32), read_only=True)
    assert cuda.forward(x).copy_to_host().tolist() == [20.0, 20.0]
    for out in (x, ByInterface(np.ones(20, np.float32), read_only=True)):
        with pytest.raises(ValueError, match="argument out: expected a writable array"):
            cuda.backward(x, 0.5, 0.5, out=out)


def test_another_stream_is_waited_for_on_the_gpu_of_the_array(monkeypatch):
    """A default stream has one handle on all GPUs: which it is depends on the one that is current."""
    log = []

    class Stream:
        def synchronize(self):
            log.append("wait")

    @contextlib.contextmanager
    def on(ordinal):
        log.append(f"GPU {ordinal}")
        yield
        log.append("back")

    monkeypatch.setattr(devices, "ordinal_of", lambda address: 3)
    monkeypatch.setattr(devices, "on", on)
    monkeypatch.setattr(arrays.cuda, "external_stream", lambda handle: log.append(handle) or Stream(), raising=False)
    arrays.view(ByInterface(np.ones(20, np.float32), stream=2), "x", 0)
    assert log == ["GPU 3", 2, "wait", "back"]
    log.clear()
    arrays.view(ByInterface(np.ones(20, np.float32), stream=1), "x", 0)  # the same default stream
    assert log == []


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "bfloat16"])
def test_bfloat16_by_dlpack_where_the_interface_has_no_name_for_it(numbers, dtype):
    x = tf.constant(numbers(30, "bfloat16"))

    class Both(DLPackOnly):
        __cuda_array_interface__ = None

        def __init__(self):
            super().__init__(x)
            self.dtype = dtype

    both = Both()
    both.__cuda_array_interface__ = {"shape": (30,), "typestr": "<V2", "data": (1, False), "version": 2}
    sums = cuda.forward(both).copy_to_host()
    np.testing.assert_array_equal(sums, cuda.forward(x).copy_to_host())
