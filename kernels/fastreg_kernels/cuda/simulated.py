"""Python stand-ins for the intrinsics of `intrinsics`, for Numba's simulator, which runs kernels as Python.

Half types are integers there too, so the bits that a kernel would store are what a test sees. A pack is a NumPy array
of its elements. Wide accesses at addresses that a GPU would refuse raise `MisalignedError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastreg_kernels._arrays import STORED

PACK_BYTES = 16

_FLOAT16, _BFLOAT16 = STORED["float16"], STORED["bfloat16"]
_WIDE = np.float64


class MisalignedError(RuntimeError):
    """A wide load or store at an address that is not a multiple of 16."""


def load(x: Any, i: int) -> NDArray[Any]:
    """The pack `x[i : i + 16 / itemsize]`."""
    array = _host(x)
    return _at(array, i).copy()


def store(out: Any, i: int, pack: NDArray[Any]) -> None:
    """Write a pack to `out[i : i + 16 / itemsize]`."""
    _at(_host(out), i)[:] = pack


def lane(pack: NDArray[Any], k: int) -> Any:
    """Element `k` of a pack, in the arithmetic type."""
    return _decode(pack[k])


def with_lane(pack: NDArray[Any], k: int, value: Any) -> NDArray[Any]:
    """A pack whose element `k` is `value`, rounded to the storage type."""
    result = pack.copy()
    result[k] = _encode(value, pack.dtype)
    return result


def element(x: Any, i: int) -> Any:
    """`x[i]` in the arithmetic type."""
    return _decode(_host(x)[_inside(_host(x), i)])


def set_element(out: Any, i: int, value: Any) -> None:
    """`out[i] = value`, rounded to the storage type."""
    array = _host(out)
    array[_inside(array, i)] = _encode(value, array.dtype)


def factor(source: Any, i: int) -> Any:
    """A factor in float64: element `i` of an array, the only element of an array of one, or a number itself."""
    if isinstance(source, (float, np.floating)):
        return _WIDE(source)
    array = _host(source)
    return _WIDE(_decode(array[0 if array.size == 1 else _inside(array, i)]))


def product(a: Any, b: Any) -> Any:
    """`a * b` rounded to nearest."""
    with np.errstate(all="ignore"):
        return a * b


def square_error(a: Any, square: Any) -> Any:
    """`a * a - square` with one rounding; for float32, whose products float64 holds exactly."""
    with np.errstate(all="ignore"):
        return np.float32(_WIDE(a) * _WIDE(a) - _WIDE(square))


def _host(array: Any) -> NDArray[Any]:
    """The NumPy array that the simulator wraps."""
    inner = getattr(array, "_item", array)
    result: NDArray[Any] = getattr(inner, "_ary", inner)
    return result


def _at(array: NDArray[Any], i: int) -> NDArray[Any]:
    count = PACK_BYTES // array.itemsize
    _inside(array, i)
    _inside(array, i + count - 1)
    part = array[i : i + count]
    if part.ctypes.data % PACK_BYTES:
        raise MisalignedError(f"element {i} is at an address that is {part.ctypes.data % PACK_BYTES} modulo 16")
    return part


def _inside(array: NDArray[Any], i: int) -> int:
    if not 0 <= i < array.size:
        raise IndexError(f"element {i} of an array of {array.size}")
    return i


def _decode(stored: Any) -> Any:
    if stored.dtype == _FLOAT16:
        return np.float32(stored.view(np.float16))
    if stored.dtype == _BFLOAT16:
        return (np.uint32(stored.view(np.uint16)) << np.uint32(16)).view(np.float32)
    return stored


def _encode(value: Any, storage: np.dtype[Any]) -> Any:
    with np.errstate(all="ignore"):
        if storage == _FLOAT16:
            return np.float16(np.float32(value)).view(storage)
        if storage == _BFLOAT16:
            bits = int(np.float32(value).view(np.uint32))
            rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 if value == value else bits >> 16 | 0x40
            return np.uint16(rounded & 0xFFFF).view(storage)
        return storage.type(value)
