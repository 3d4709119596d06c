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
    return _attribute("DEVICE_ORDINAL", address)


def only_reader_of(address: int) -> int | None:
    """The number of the one GPU that can use the memory an address is in; None if all can: memory that is managed, or
    the host's, or none.
    """
    if SIMULATED or address == 0 or _attribute("IS_MANAGED", address):
        return None
    from cuda.bindings import driver

    is_host = _attribute("MEMORY_TYPE", address) == int(driver.CUmemorytype.CU_MEMORYTYPE_HOST)
    return None if is_host else ordinal_of(address)


def _attribute(name: str, address: int) -> int:
    from cuda.bindings import driver

    attribute = getattr(driver.CUpointer_attribute, f"CU_POINTER_ATTRIBUTE_{name}")
    error, found = driver.cuPointerGetAttribute(attribute, address)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"cuPointerGetAttribute failed for address {address:#x}: {error.name}")
    return int(found)


@contextlib.contextmanager
def on(ordinal: int) -> Iterator[None]:
    """Make a GPU current for the calling thread."""
    if SIMULATED:
        yield
    else:
        with cuda.gpus[ordinal]:
            yield
