"""The CUDA kernels of soft-thresholding, with factors for all of x or one per row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastreg_kernels.cuda.jit import ROWS_REGISTERS, device_function, kernel
from fastreg_kernels.cuda.lanes import arithmetic, factor, lane, lanes, product, set_element, store, with_lane
from fastreg_kernels.cuda.stride import elementwise, grid_stride


@functools.cache
def _soft(dtype: str) -> Any:
    """A device function `(v, scale, threshold)`: `sign(v) * max(0, scale * |v| - threshold)`, +0 for what vanishes."""
    zero = arithmetic(dtype)(0.0)

    @device_function
    def soft(v, scale, threshold):
        if v != v:
            return v
        if scale == zero:  # zero times infinity would be NaN
            return zero
        magnitude = product(scale, abs(v)) - threshold
        if magnitude <= zero:
            return zero
        return magnitude if v > zero else -magnitude

    return soft


@functools.cache
def _soft_pack(dtype: str) -> Any:
    """A device function `(pack, count, a, b, c, d)`: the first `count` elements by scale a and threshold b, the others
    by c and d.
    """
    width, soft = lanes(dtype), _soft(dtype)

    @device_function
    def soft_pack(pack, count, a, b, c, d):
        result = pack
        for k in range(width):
            v = lane(pack, np.int32(k))
            result = with_lane(result, np.int32(k), soft(v, a, b) if k < count else soft(v, c, d))
        return result

    return soft_pack


@functools.cache
def shrink(dtype: str, registers: int) -> Any:
    """Kernel `(x, head, packs, out, scale, threshold)`; `scale` and `threshold` as `upstream` of `gradient`."""
    width, number, soft_pack = lanes(dtype), arithmetic(dtype), _soft_pack(dtype)
    stride = elementwise(dtype, device_function(lambda pack, a, b: soft_pack(pack, width, a, b, a, b)), _soft(dtype))

    @kernel(registers)
    def shrink_kernel(x, head, packs, out, scale, threshold):
        a, b = number(factor(scale, np.int64(0))), number(factor(threshold, np.int64(0)))
        stride(0, x, head, packs, out, a, b)

    return shrink_kernel


@functools.cache
def shrink_rows(dtype: str, registers: int) -> Any:
    """Kernel `(x, head, packs, out, scale, threshold, columns)` for rows of `columns` elements.

    `scale` and `threshold` are arrays of one value per row, arrays of one element, or numbers. Rows that are shorter
    than a pack have to come with `packs` 0: a pack may straddle two rows and no more.
    """
    width, number, soft, soft_pack = lanes(dtype), arithmetic(dtype), _soft(dtype), _soft_pack(dtype)

    @device_function
    def factors(scale, threshold, row):
        return number(factor(scale, row)), number(factor(threshold, row))

    @device_function
    def on_pack(columns, pack, out, i, scale, threshold):
        row = i // columns
        count = np.int32(min((row + 1) * columns - i, width))  # elements of the pack that are in this row
        a, b = factors(scale, threshold, row)
        c, d = a, b
        if count < width:
            c, d = factors(scale, threshold, row + 1)
        store(out, i, soft_pack(pack, count, a, b, c, d))  # one store: a warp's is then of whole sectors
        return columns

    @device_function
    def on_element(columns, v, out, i, scale, threshold):
        a, b = factors(scale, threshold, i // columns)
        set_element(out, i, soft(v, a, b))
        return columns

    stride = grid_stride(dtype, on_pack, on_element, at_once=1)

    @kernel(max(registers, ROWS_REGISTERS))
    def shrink_rows_kernel(x, head, packs, out, scale, threshold, columns):
        stride(columns, x, head, packs, out, scale, threshold)

    return shrink_rows_kernel
