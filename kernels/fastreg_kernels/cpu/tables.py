"""Compiled code only: passes over a whole lazily regularised table, with the shrink that its rows have to come.

Rows are taken in chunks of about `launch.BLOCK` elements, which do not depend on the number of threads; nor do the
bits.
"""

from __future__ import annotations

import numpy as np

from fastreg_kernels.cpu import launch
from fastreg_kernels.cpu.jit import inner
from fastreg_kernels.cpu.rows import true_row
from fastreg_kernels.cpu.vector import LANES, load, load_first, ones, total, where_above, widen, zeros


@inner
def write(x, stamps, out, kind, width):
    """The true values of all rows, written to `out`; for the arguments see `rows.true_row` and `rows.shrink_of`."""
    _share_write(stamps[0].size, x.size, (x, stamps, out, kind, width))


@inner
def _write(first, last, x, stamps, out, kind, width):
    for row in range(first, last):
        true_row(row, x, stamps, out, row * width, kind, width)


_share_write = launch.sharing(_write)


@inner
def measure(x, stamps, kind, width):
    """`[sum(|w|), sum(w²), count of w ≠ 0]` of the true values w, accumulated in float64."""
    height = max(1, launch.BLOCK // max(1, width))
    chunks = -(-stamps[0].size // height)
    partials = np.empty((chunks, 3))
    _share_measure(chunks, x.size, (height, x, stamps, partials, kind, width))
    result = np.zeros(3)
    for chunk in range(chunks):
        result += partials[chunk]
    return result


@inner
def _measure(first, last, height, x, stamps, partials, kind, width):
    rows = np.empty(height * width, x.dtype)  # rounded, as they would be stored
    for chunk in range(first, last):
        start = chunk * height
        stop = min(start + height, stamps[0].size)
        for row in range(start, stop):
            true_row(row, x, stamps, rows, (row - start) * width, kind, width)
        size = (stop - start) * width
        tail = size - size % LANES
        tallies = (zeros(), zeros(), zeros())
        for i in range(0, tail, LANES):
            tallies = _tally(tallies, load(rows, i))
        if tail < size:
            tallies = _tally(tallies, load_first(rows, tail, size - tail))
        for i in range(3):
            partials[chunk, i] = total(tallies[i])


@inner
def _tally(tallies, v):
    magnitude = abs(widen(v))
    sum_abs, squares, count = tallies
    return sum_abs + magnitude, squares + magnitude * magnitude, count + where_above(magnitude, 0.0, ones())


_share_measure = launch.sharing(_measure)
