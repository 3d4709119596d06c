"""Every kernel with the argument types it is launched with, for compiling ahead and for looking at what is compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numba.cuda import types
from numba.cuda.np.numpy_support import from_dtype

from fastreg_kernels._arrays import STORED
from fastreg_kernels.cuda import penalty
from fastreg_kernels.cuda.shrink import shrink as shrink_kernel
from fastreg_kernels.cuda.shrink import shrink_rows as shrink_rows_kernel

_COUNT, _FACTOR = types.int64, types.float64


@dataclass(frozen=True)
class Variant:
    """A kernel and its argument types.

    Attributes
    ----------
    name : str
        What it does: the public call, with `rows` for factors per row, `fold` for the second pass of sums.
    dtype : str
    accumulator : str or None
        None for a kernel that does not sum.
    kernel : object
        Numba's dispatcher.
    signature : tuple
    """

    name: str
    dtype: str
    accumulator: str | None
    kernel: Any
    signature: tuple[Any, ...]


def _array(element: Any, ndim: int = 1) -> Any:
    return types.Array(element, ndim, "C")


def fold() -> Variant:
    """The second pass."""
    rows = _array(types.float64, 2)
    signature = (rows, rows, _array(types.float64), _FACTOR, _FACTOR)
    return Variant("fold", "float64", "float64", penalty.fold, signature)


def forward(dtype: str, accumulator: str, registers: int) -> Variant:
    """The first pass of the sums."""
    signature = (_array(from_dtype(STORED[dtype])), _COUNT, _COUNT, _array(types.float64, 2))
    return Variant("forward", dtype, accumulator, penalty.sums(dtype, accumulator, registers), signature)


def backward(
    dtype: str, registers: int, has_l1: bool = True, has_l2: bool = True, upstream_on_device: bool = True
) -> Variant:
    """The gradient."""
    x = _array(from_dtype(STORED[dtype]))
    upstream = x if upstream_on_device else _FACTOR
    signature = (x, _COUNT, _COUNT, x, _FACTOR, _FACTOR, upstream)
    return Variant("backward", dtype, None, penalty.gradient(dtype, has_l1, has_l2, registers), signature)


def forward_backward(dtype: str, accumulator: str, registers: int, has_l1: bool = True, has_l2: bool = True) -> Variant:
    """Both in one read, for an upstream gradient that is a number."""
    x = _array(from_dtype(STORED[dtype]))
    signature = (x, _COUNT, _COUNT, _array(types.float64, 2), x, _FACTOR, _FACTOR, _FACTOR)
    kernel = penalty.both(dtype, accumulator, has_l1, has_l2, registers)
    return Variant("forward_backward", dtype, accumulator, kernel, signature)


def shrink(dtype: str, registers: int) -> Variant:
    """Soft-thresholding by numbers."""
    x = _array(from_dtype(STORED[dtype]))
    return Variant("shrink", dtype, None, shrink_kernel(dtype, registers), (x, _COUNT, _COUNT, x, _FACTOR, _FACTOR))


def shrink_rows(dtype: str, registers: int) -> Variant:
    """Soft-thresholding by one float64 value per row."""
    x, factors = _array(from_dtype(STORED[dtype])), _array(types.float64)
    signature = (x, _COUNT, _COUNT, x, factors, factors, _COUNT)
    kernel = shrink_rows_kernel(dtype, registers)
    return Variant("shrink rows", dtype, None, kernel, signature)


def for_training(dtype: str, accumulator: str, has_l1: bool, has_l2: bool, registers: int) -> list[Variant]:
    """What a training step through TensorFlow launches."""
    return [
        fold(),
        forward(dtype, accumulator, registers),
        backward(dtype, registers, has_l1, has_l2),
        forward_backward(dtype, accumulator, registers, has_l1, has_l2),
    ]


def every(accumulators: Any, registers: int) -> Iterator[Variant]:
    """All kernels for all dtypes, with the accumulator that `accumulators(dtype)` names, and with both terms."""
    yield fold()
    for dtype in STORED:
        accumulator = accumulators(dtype)
        yield forward(dtype, accumulator, registers)
        yield backward(dtype, registers)
        yield forward_backward(dtype, accumulator, registers)
        yield shrink(dtype, registers)
        yield shrink_rows(dtype, registers)
