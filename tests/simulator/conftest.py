"""Tests of the CUDA kernels in Numba's simulator, which `NUMBA_ENABLE_CUDASIM=1` turns on before Numba is imported.

`make test` runs them in a process of their own; without the variable there is nothing here to collect.
"""

import os

import ml_dtypes  # noqa: F401 - NumPy learns the name bfloat16 from it
import numpy as np
import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
collect_ignore_glob = [] if SIMULATED else ["test_*.py"]


class DLPackOnly:
    """A device array that others see by DLPack alone; `stream` is the one that the consumer named."""

    def __init__(self, array):
        self._array, self.stream = array, None

    def __dlpack__(self, *, stream=None):
        self.stream = stream
        if self._array.dtype.name == "bfloat16":
            raise BufferError("NumPy exports no bfloat16")
        return self._array.__dlpack__()

    def __dlpack_device__(self):
        return (1, 0)


@pytest.fixture
def at():
    """A simulated device array of given values that starts `offset` bytes after a multiple of 16."""

    def make(values, offset=0, order="C"):
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        values = np.asarray(values)
        memory = np.empty(values.nbytes + 64, np.uint8)
        start = -memory.ctypes.data % 16 + offset
        array = np.ndarray(values.shape, values.dtype, memory.data, start, order=order)
        array[...] = values
        return FakeCUDAArray(array)

    return make


@pytest.fixture
def numbers():
    """Normal numbers of any shape and dtype, the same each time; a few of them zero."""

    def make(shape, dtype, seed=0):
        values = np.random.default_rng(seed).normal(scale=3.0, size=shape)
        return np.where(np.abs(values) < 0.05, 0.0, values).astype(dtype)

    return make


@pytest.fixture(params=["float64", "compensated"])
def accumulator(request, monkeypatch):
    """The GPU that is simulated: one where float64 arithmetic is plentiful, or one where it is scarce."""
    from fastreg_kernels import _cuda_launch

    capability = {"float64": (9, 0), "compensated": (8, 9)}[request.param]
    real = _cuda_launch.properties(0)
    simulated = _cuda_launch.Properties(capability, real.multiprocessors, real.threads)
    monkeypatch.setattr(_cuda_launch, "properties", lambda ordinal: simulated)
    return request.param


@pytest.fixture
def dlpack_only():
    return DLPackOnly
