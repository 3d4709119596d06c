"""Compiled code only: passes over a whole lazily regularised table, with the shrink that its rows have to come.

Rows are taken in chunks of about `launch.BLOCK` elements, which do not depend on the number of threads; nor do the
bits.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from fastreg_kernels.cpu import launch, penalty
from fastreg_kernels.cpu.jit import inner
from fastreg_kernels.cpu.rows import true_row


@inner
def write(x, stamps, product, threshold, out, kind, width):
    """The true values of all rows, written to `out`; for the arguments see `rows.true_row` and `rows.update_rows`."""
    _share_write(stamps.shape[0], x.size, (x, stamps, product, threshold, out, kind, width))


@inner
def _write(first, last, x, stamps, product, threshold, out, kind, width):
    for row in range(first, last):
        true_row(row, x, stamps, product, threshold, out, row * width, kind, width)


_share_write = launch.sharing(_write)


@inner
def measure(x, stamps, product, threshold, kind, width):
    """`[sum(|w|), sum(w²), count of zeros]` of the true values w, accumulated in float64."""
    height = max(1, launch.BLOCK // max(1, width))
    chunks = -(-stamps.shape[0] // height)
    partials = np.empty((chunks, 3))
    _share_measure(chunks, x.size, (height, x, stamps, product, threshold, partials, kind, width))
    result = np.zeros(3)
    for chunk in range(chunks):
        result += partials[chunk]
    return result


@inner
def _measure(first, last, height, x, stamps, product, threshold, partials, kind, width):
    rows = np.empty(height * width, x.dtype)  # rounded, as they would be stored
    sums = np.empty((launch.blocks(rows.size), 2))
    for chunk in range(first, last):
        start = chunk * height
        stop = min(start + height, stamps.shape[0])
        for row in range(start, stop):
            true_row(row, x, stamps, product, threshold, rows, (row - start) * width, kind, width)
        values = rows[: (stop - start) * width]
        penalty.sums(0, launch.blocks(values.size), values, sums)
        partials[chunk] = 0.0
        for block in range(launch.blocks(values.size)):
            partials[chunk, 0] += sums[block, 0]
            partials[chunk, 1] += sums[block, 1]
        for i in range(values.size):
            partials[chunk, 2] += _is_zero(values[i])


_share_measure = launch.sharing(_measure)


def _is_zero(value):
    """Whether an element as it is stored is zero, of either sign."""
    raise NotImplementedError  # compiled code only


@overload(_is_zero)
def _is_zero_of(value):
    if isinstance(value, types.Float):
        return lambda value: value == 0.0
    return lambda value: value & 0x7FFF == 0
