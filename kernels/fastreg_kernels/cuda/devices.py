"""Which GPU memory belongs to, and making it current."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from numba import cuda

from fastreg_kernels.cuda.jit import SIMULATED


class DeviceError(RuntimeError):
    """The driver refused or failed; the message names the call."""


def ordinal_of(address: int) -> int:
    """The number of the GPU whose memory an address is in; 0 for no address, that of an empty array."""
    if SIMULATED or address == 0:
        return 0
    from cuda.bindings import driver

    attribute = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    error, ordinal = driver.cuPointerGetAttribute(attribute, address)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"cuPointerGetAttribute failed for address {address:#x}: {error.name}")
    return int(ordinal)


@contextlib.contextmanager
def on(ordinal: int) -> Iterator[None]:
    """Make a GPU current for the calling thread."""
    if SIMULATED:
        yield
    else:
        with cuda.gpus[ordinal]:
            yield
