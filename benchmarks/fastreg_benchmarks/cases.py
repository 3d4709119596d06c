"""What is measured: a size, a dtype, and value alone or value and gradient; its inputs, byte model and oracle."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from fastreg_kernels import reference
from fastreg_kernels._arrays import STORED
from numpy.typing import NDArray

L1, L2 = 1 / 128, 1 / 64
"""The factors. Powers of two are exact in every dtype: that Keras rounds factors to float32 is not in question here."""

VALUE, VALUE_AND_GRADIENT = "value", "value+gradient"

PASSES = {
    VALUE: 1,  # read x
    VALUE_AND_GRADIENT: 2,  # read x + write g
}
"""The byte model: how often the bytes of x have to cross the memory bus at least."""

DTYPES = tuple(STORED)
"""All that have kernels on some processor or GPU; which of them a provider takes, it says itself."""

ALIGNMENT = 64
"""Bytes; from such an address on, non-temporal stores can be used."""

_CHUNK = 1 << 20
"""Elements that the oracle takes at a time: its float64 temporaries stay small beside what is measured."""


@dataclass(frozen=True)
class Case:
    """One thing to compute, by all providers."""

    size: int
    dtype: str
    what: str

    @property
    def nbytes(self) -> int:
        """Bytes of x."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def model_bytes(self) -> int:
        """Bytes that have to be moved at least."""
        return PASSES[self.what] * self.nbytes

    def __str__(self) -> str:
        return f"{self.what.replace('+', ' + ')} of {self.size:,} {self.dtype}"


class Inputs:
    """The data of a case, the same for all its providers; what one of them does not need is not made."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.x = normal(case.size, case.dtype)

    @functools.cached_property
    def variable(self) -> Any:
        """A Keras Variable with the values of x."""
        return keras.Variable(self.x, dtype=self.case.dtype)

    @functools.cached_property
    def out(self) -> NDArray[Any]:
        """A gradient buffer to reuse."""
        return aligned_empty(self.case.size, self.case.dtype)

    @functools.cached_property
    def sums(self) -> NDArray[np.float64]:
        """The oracle's `[sum(|x|), sum(x²)]`."""
        parts = [reference.forward(self.x[part]) for part in self.chunks()]
        return np.array([math.fsum(part[i] for part in parts) for i in range(2)])

    def chunks(self) -> Iterator[slice]:
        """Slices that cover x."""
        return (slice(start, start + _CHUNK) for start in range(0, self.case.size, _CHUNK))


def aligned_empty(size: int, dtype: str) -> NDArray[Any]:
    """An uninitialised array that starts at a multiple of `ALIGNMENT`, as `np.empty` does by luck only."""
    nbytes = size * np.dtype(dtype).itemsize
    block = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + nbytes].view(dtype)


def normal(size: int, dtype: str) -> NDArray[Any]:
    """Fresh normally distributed values, never zeros: compressible or denormal data could be faster or slower."""
    x = aligned_empty(size, dtype)
    generator = np.random.default_rng()
    for start in range(0, size, _CHUNK):
        part = x[start : start + _CHUNK]
        part[:] = generator.standard_normal(part.size, np.float64 if dtype == "float64" else np.float32)
    return x
