"""What the CUDA kernels accept: any object with `__cuda_array_interface__` or `__dlpack__`, as flat device memory."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from fastreg_kernels._arrays import STORED
from fastreg_kernels.cuda import devices, dlpack
from fastreg_kernels.cuda.jit import SIMULATED
from fastreg_kernels.cuda.lanes import ITEMSIZES

if SIMULATED:
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

_DEVICES = (dlpack.CPU,) if SIMULATED else (dlpack.CUDA, dlpack.CUDA_MANAGED)


@dataclass(frozen=True)
class View:
    """Contiguous device memory of somebody's array.

    Attributes
    ----------
    address : int
    shape : tuple of int
    dtype : str
        A key of `STORED`.
    order : {"C", "F"}
    owner : object
        Keeps the memory.
    read_only : bool
        Whether the owner says so; by DLPack none can.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    order: str
    owner: Any
    read_only: bool = False

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self.size * ITEMSIZES[self.dtype]

    def flat(self) -> Any:
        """A Numba device array of shape (size,), in memory order, of the stored type."""
        return numba_array(self.address, (self.size,), STORED[self.dtype], self.owner)


def numba_array(address: int, shape: tuple[int, ...], dtype: Any, owner: Any) -> Any:
    """Device memory as the C-ordered array that Numba passes to a kernel; no copy, and no synchronisation."""
    if SIMULATED:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(address) if size else b""
        return FakeCUDAArray(np.ndarray(shape, dtype, memory))
    return cuda.as_cuda_array(_Interface(address, shape, np.dtype(dtype), owner), sync=False)


class _Interface:
    """The least object that has `__cuda_array_interface__`."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: Any) -> None:
        self._owner = owner
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


class BFloat16Array:
    """A device array of bfloat16, which Numba cannot make: one of uint16 that holds the bits.

    Parameters
    ----------
    bits : Numba device array of uint16
    """

    dtype = "bfloat16"

    def __init__(self, bits: Any) -> None:
        if bits.dtype != np.uint16:
            raise TypeError(f"Invalid dtype for argument bits: expected uint16. Received: {bits.dtype}")
        self.bits = bits

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the bits."""
        return tuple(self.bits.shape)

    def reshape(self, *shape: int) -> BFloat16Array:
        """The same memory in another shape."""
        return BFloat16Array(self.bits.reshape(*shape))

    def copy_to_device(self, source: BFloat16Array, stream: Any = 0) -> None:
        """Copy the elements of another such array."""
        self.bits.copy_to_device(source.bits, stream=stream)

    def copy_to_host(self, stream: Any = 0) -> Any:
        """A NumPy array of bfloat16, which NumPy knows once `ml_dtypes` is imported."""
        return self.bits.copy_to_host(stream=stream).view("bfloat16")


def view(x: Any, name: str, stream: Any) -> View:
    """The memory of an array, in order after what its owner does with it on the stream that it names.

    Parameters
    ----------
    x : object
        With `__cuda_array_interface__` or `__dlpack__`, contiguous, of a dtype that has kernels.
    name : str
        Of the argument, for errors.
    stream : Numba stream or 0
        Where the kernel will run.

    Raises
    ------
    TypeError
        If it is no array on a GPU, or its dtype has no kernels.
    ValueError
        If it is not contiguous, or starts at an address that is not a multiple of its item size.
    """
    given = None
    if isinstance(x, BFloat16Array):
        x, given = x.bits, x.dtype
    if SIMULATED and isinstance(x, FakeCUDAArray):
        return _from_numpy(x, name, given)
    exports = hasattr(x, "__dlpack__") and not isinstance(x, np.ndarray)
    # The interface has no name for bfloat16; whoever has both is asked by DLPack.
    if not (exports and _is_bfloat16(x)) and getattr(x, "__cuda_array_interface__", None) is not None:
        return _from_interface(x, name, stream, given)
    if exports and x.__dlpack_device__()[0] in _DEVICES:
        handle = _dlpack_stream(stream)
        # TensorFlow, which waits for its tensor instead, refuses to be told a stream; the default one needs no telling.
        return of_capsule(x.__dlpack__() if handle == 1 else x.__dlpack__(stream=handle), name)
    raise TypeError(f"Invalid type for argument {name}: expected an array on a GPU. Received: {type(x).__name__}")


def of_capsule(capsule: Any, name: str) -> View:
    """The memory that a DLPack capsule describes, which has to be ready. Errors are those of `view`."""
    described = dlpack.describe(capsule)
    if described.device_type not in _DEVICES:
        raise TypeError(f"Invalid device for argument {name}: expected a GPU. Received: kind {described.device_type}")
    itemsize = ITEMSIZES.get(described.dtype, 1)
    strides = None if described.strides is None else tuple(stride * itemsize for stride in described.strides)
    return _checked(described.address, described.shape, strides, described.dtype, capsule, name)


def empty_like(x: View, stream: Any) -> tuple[Any, View]:
    """A new device array of the shape, dtype and layout of `x`, and its memory."""
    bits = np.uint16 if x.dtype == "bfloat16" else x.dtype
    array = cuda.device_array(x.shape, bits, order=x.order, stream=stream)
    result = BFloat16Array(array) if x.dtype == "bfloat16" else array
    return result, View(address_of(array), x.shape, x.dtype, x.order, array)


def address_of(array: Any) -> int:
    """Where a Numba device array starts."""
    interface = array._ary.__array_interface__ if SIMULATED else array.__cuda_array_interface__
    return int(interface["data"][0])


def _from_numpy(x: Any, name: str, dtype: str | None) -> View:
    array = x._ary
    return _checked(array.ctypes.data, array.shape, array.strides, dtype or array.dtype.name, x, name)


def _from_interface(x: Any, name: str, stream: Any, dtype: str | None) -> View:
    interface = x.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise TypeError(f"Invalid type for argument {name}: expected an array without a mask. Received: a masked one")
    address, read_only = interface["data"]
    theirs = interface.get("stream")
    if theirs is not None and theirs != _dlpack_stream(stream):
        with devices.on(devices.ordinal_of(address)):  # each GPU has a default stream of its own
            cuda.external_stream(theirs).synchronize()
    dtype = dtype or np.dtype(interface["typestr"]).name
    if dtype.startswith("void") and _is_bfloat16(x):
        dtype = "bfloat16"
    strides = interface.get("strides")
    return _checked(address, tuple(interface["shape"]), strides, dtype, x, name, bool(read_only))


def _is_bfloat16(x: Any) -> bool:
    return str(getattr(x, "dtype", "")).endswith("bfloat16")  # of PyTorch: torch.bfloat16


def _checked(
    address: int, shape: tuple[int, ...], strides: Any, dtype: str, owner: Any, name: str, read_only: bool = False
) -> View:
    if dtype not in STORED:
        raise TypeError(f"Invalid dtype for argument {name}: expected {' or '.join(STORED)}. Received: {dtype}")
    order = _order(shape, strides, ITEMSIZES[dtype])
    if order is None:
        raise ValueError(
            f"Invalid layout for argument {name}: expected a contiguous array. Received: shape {shape} with strides "
            f"{strides} bytes"
        )
    if address % ITEMSIZES[dtype]:
        raise ValueError(f"Invalid layout for argument {name}: expected aligned elements. Received: address {address}")
    return View(int(address), tuple(shape), dtype, order, owner, read_only)


def _order(shape: tuple[int, ...], strides: Any, itemsize: int) -> str | None:
    if strides is None or 0 in shape:
        return "C"
    for order, axes in (("C", range(len(shape) - 1, -1, -1)), ("F", range(len(shape)))):
        expected = itemsize
        for axis in axes:
            if shape[axis] != 1 and strides[axis] != expected:
                break
            expected *= shape[axis]
        else:
            return order
    return None


def _dlpack_stream(stream: Any) -> int:
    """A stream's handle as DLPack and the array interface write it: 1 is the legacy default stream."""
    handle = getattr(stream, "handle", stream)
    return int(getattr(handle, "value", handle) or 0) or 1
