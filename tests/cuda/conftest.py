"""Tests that launch CUDA kernels: in Numba's simulator (`NUMBA_ENABLE_CUDASIM=1`) or on a GPU (`FASTREG_TEST_GPU=1`).

Numba reads its variable when it is imported, so each way has a pytest of its own: `make test` and `make test-gpu` run
them. Without a variable there is nothing here to collect.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # Numba needs some of a GPU's memory too

import ml_dtypes  # noqa: F401 - NumPy learns the name bfloat16 from it
import numpy as np
import pytest

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
ON_GPU = not SIMULATED and os.environ.get("FASTREG_TEST_GPU") == "1"

if SIMULATED:
    collect_ignore_glob = ["test_gpu*.py"]
elif ON_GPU:
    # The simulator's: they put stand-ins in a GPU's place.
    collect_ignore_glob = ["test_device.py", "test_foreign_arrays.py", "test_bench.py"]
else:
    collect_ignore_glob = ["test_*.py"]


class Placed:
    """An array on the GPU that starts `offset` bytes after a multiple of 16, of any dtype and order."""

    def __init__(self, values, offset, order):
        from numba import cuda

        self._host = np.array(values, order=order)
        self.shape, self.dtype = self._host.shape, self._host.dtype
        padded = np.zeros(self._host.nbytes + 32, np.uint8)
        padded[offset : offset + self._host.nbytes] = self._host.reshape(-1, order="A").view(np.uint8)
        self._memory, self._offset = cuda.to_device(padded), offset
        self.__cuda_array_interface__ = {
            "shape": self.shape,
            "strides": self._host.strides,
            "typestr": self.dtype.str,
            "data": (self._memory.__cuda_array_interface__["data"][0] + offset, False),
            "version": 3,
        }

    def copy_to_host(self):
        part = self._memory.copy_to_host()[self._offset : self._offset + self._host.nbytes]
        order = "C" if self._host.flags.c_contiguous else "F"
        return part.view(self.dtype).reshape(self.shape, order=order)


def simulated(values, offset, order):
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    memory = np.empty(values.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 16 + offset
    array = np.ndarray(values.shape, values.dtype, memory.data, start, order=order)
    array[...] = values
    return FakeCUDAArray(array)


@pytest.fixture
def at():
    """A device array of given values that starts `offset` bytes after a multiple of 16."""

    def make(values, offset=0, order="C"):
        return (simulated if SIMULATED else Placed)(np.asarray(values), offset, order)

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
    """Kernels for a GPU where float64 arithmetic is plentiful, or one where it is scarce; each runs on any."""
    from fastreg_kernels.cuda import launch

    capability = {"float64": (9, 0), "compensated": (8, 9)}[request.param]
    real = launch.properties(0)
    other = launch.Properties(capability, real.multiprocessors, real.threads)
    monkeypatch.setattr(launch, "properties", lambda ordinal: other)
    return request.param
