"""What the kernels accept: checks of arrays and factors, with errors that name the argument."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba.core.registry import cpu_target
from numpy.typing import NDArray


def _has_float16() -> bool:
    """Whether the processor converts float16 itself; without that, compiled code would call what is not there."""
    triple, _, features = cpu_target.target_context.codegen().magic_tuple()
    return not triple.startswith(("x86", "i386", "i686")) or "+f16c" in features


STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.uint16),
    "bfloat16": np.dtype(np.int16),
}
"""How elements are passed to kernels, by the name of their dtype: half types, of which Numba compiles neither, as bits,
and told apart by the kind of integer that holds them."""

DTYPES = tuple(name for name in STORED if name != "float16" or _has_float16())
"""Names of the dtypes that have kernels. NumPy knows bfloat16 once `ml_dtypes` is imported."""


# Asked at every call, and NumPy spells out the name of a dtype each time.
@functools.cache
def _has_kernels(dtype: np.dtype[Any]) -> bool:
    return dtype.name in DTYPES and dtype.isnative


@functools.cache
def storage(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype as which the kernels take elements of this one."""
    return STORED[dtype.name]


def stored(flat: NDArray[Any]) -> NDArray[Any]:
    """A view of an array as the kernels take it: half types as integers, see `STORED`."""
    return flat.view(storage(flat.dtype))


def arithmetic_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which elements are computed with, and to which factors are rounded."""
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def flat_input(x: Any) -> NDArray[Any]:
    """`x` as a read-only view of shape (size,), in memory order, as the kernels take it.

    Always read-only, so that each kernel is compiled for one kind of input and not for two.
    """
    flat = stored(_contiguous(x, "x").reshape(-1, order="A"))
    flat.flags.writeable = False
    return flat


def address(x: NDArray[Any]) -> int:
    """Where the memory of an array begins."""
    return int(x.__array_interface__["data"][0])


def output(x: NDArray[Any], out: Any) -> NDArray[Any]:
    """An array for a result of the shape, dtype and layout of `x`: `out`, or a new one."""
    if out is None:
        return np.empty_like(x)
    array = _contiguous(out, "out")
    if array.dtype != x.dtype or array.shape != x.shape:
        raise ValueError(
            f"Invalid value for argument out: expected an array of shape {x.shape} and dtype {x.dtype}, as x. "
            f"Received: shape {array.shape}, dtype {array.dtype}"
        )
    check_writable(array, "out")
    if not _is_laid_out_as(array, x):
        raise ValueError("Invalid value for argument out: expected the memory layout (C or F order) of x.")
    apart = address(array) - address(x)
    if apart != 0 and abs(apart) < x.nbytes:
        raise ValueError("Invalid value for argument out: expected x itself or memory apart from it. Received: overlap")
    return array


def in_place(x: Any, name: str) -> NDArray[Any]:
    """An array that may be written to."""
    array = _contiguous(x, name)
    check_writable(array, name)
    return array


def check_writable(array: NDArray[Any], name: str) -> None:
    """See that an array may be written to."""
    if not array.flags.writeable:
        raise ValueError(f"Invalid value for argument {name}: expected a writable array. Received: a read-only one")


def _is_laid_out_as(array: NDArray[Any], x: NDArray[Any]) -> bool:
    """Whether two contiguous arrays of one shape have their elements in one order."""
    flags, of_x = array.flags, x.flags
    return bool((flags.c_contiguous and of_x.c_contiguous) or (flags.f_contiguous and of_x.f_contiguous))


def beside(x: NDArray[Any], other: Any, name: str, writable: bool) -> NDArray[Any]:
    """An array of the shape, dtype and layout of `x` as the kernels take it, of shape (size,)."""
    array = in_place(other, name) if writable else _contiguous(other, name)
    if array.dtype != x.dtype or array.shape != x.shape or not _is_laid_out_as(array, x):
        raise ValueError(
            f"Invalid value for argument {name}: expected an array of shape {x.shape}, dtype {x.dtype} and memory "
            f"layout as x. Received: shape {array.shape}, dtype {array.dtype}"
        )
    flat = stored(array.reshape(-1, order="A"))
    flat.flags.writeable = writable
    return flat


def check_apart(arrays: Sequence[NDArray[Any]], names: Sequence[str]) -> None:
    """See that no two arrays share memory."""
    spans = sorted(
        (address(array), array.nbytes, name) for array, name in zip(arrays, names, strict=True) if array.size
    )
    for (first, size, one), (second, _, other) in itertools.pairwise(spans):
        if first + size > second:
            raise ValueError(f"Invalid value for argument {other}: expected memory apart from {one}. Received: overlap")


def factor(value: Any, name: str) -> float:
    """A finite, non-negative factor."""
    number = scalar(value, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"Invalid value for argument {name}: expected a non-negative float. Received: {name}={value}")
    return number


def scalar(value: Any, name: str) -> float:
    """A real scalar or 0-d array as a Python float."""
    if type(value) is float:
        return value
    array = np.asarray(value)
    if array.ndim != 0 or array.dtype.kind not in "biuf":
        raise TypeError(f"Invalid type for argument {name}: expected a real scalar. Received: {name}={value!r}")
    return float(array)


def row_factors(value: Any, name: str, rows: int) -> NDArray[np.float64]:
    """A scalar or one value per row as a float64 array of shape (rows,), each non-negative and finite."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Invalid type for argument {name}: expected real numbers. Received: dtype {array.dtype}")
    if array.ndim != 0 and array.shape != (rows,):
        raise ValueError(
            f"Invalid value for argument {name}: expected a scalar or one value for each of the {rows} rows of x. "
            f"Received: shape {array.shape}"
        )
    if not ((array >= 0) & np.isfinite(array)).all():
        raise ValueError(f"Invalid value for argument {name}: expected non-negative, finite values. Received: {value}")
    return np.ascontiguousarray(np.broadcast_to(array, (rows,)), dtype=np.float64)


def _contiguous(x: Any, name: str) -> NDArray[Any]:
    if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):  # what is masked would count
        raise TypeError(f"Invalid type for argument {name}: expected a NumPy array. Received: {type(x).__name__}")
    if not _has_kernels(x.dtype):
        raise TypeError(f"Invalid dtype for argument {name}: expected {' or '.join(DTYPES)}. Received: {x.dtype}")
    if not (x.flags.c_contiguous or x.flags.f_contiguous):
        raise ValueError(
            f"Invalid layout for argument {name}: expected a contiguous array. Received: shape {x.shape} with strides "
            f"{x.strides} bytes"
        )
    return x
