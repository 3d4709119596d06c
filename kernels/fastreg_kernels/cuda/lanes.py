"""What kernels use to get at elements: intrinsics on a GPU, their Python stand-ins in Numba's simulator."""

from __future__ import annotations

from typing import Any

from fastreg_kernels._arrays import STORED, arithmetic_dtype
from fastreg_kernels.cuda.jit import SIMULATED

if SIMULATED:
    from fastreg_kernels.cuda.simulated import (
        element,
        factor,
        lane,
        load,
        product,
        set_element,
        square_error,
        store,
        with_lane,
    )
else:
    from fastreg_kernels.cuda.intrinsics import (
        element,
        factor,
        lane,
        load,
        product,
        set_element,
        square_error,
        store,
        with_lane,
    )

PACK_BYTES = 16
"""Bytes that a thread loads and stores at a time."""

ITEMSIZES = {name: stored.itemsize for name, stored in STORED.items()}
"""Bytes of an element of each dtype that has kernels."""

__all__ = [
    "ITEMSIZES",
    "PACK_BYTES",
    "arithmetic",
    "element",
    "factor",
    "lane",
    "lanes",
    "load",
    "product",
    "set_element",
    "square_error",
    "store",
    "with_lane",
]


def lanes(dtype: str) -> int:
    """Elements per pack."""
    return PACK_BYTES // ITEMSIZES[dtype]


def arithmetic(dtype: str) -> Any:
    """The NumPy type in which elements of a dtype are computed with."""
    return arithmetic_dtype(STORED[dtype]).type
