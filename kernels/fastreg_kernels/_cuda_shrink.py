"""The CUDA kernels of soft-thresholding, with factors for all of x or one per row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from fastreg_kernels._cuda_jit import REGISTERS, ROWS_REGISTERS, device_function, kernel
from fastreg_kernels._cuda_lanes import (
    arithmetic,
    element,
    factor,
    lane,
    lanes,
    load,
    product,
    set_element,
    store,
    with_lane,
)


@functools.cache
def _soft(dtype: str) -> Any:
    """A device function `(v, scale, threshold)`: `sign(v) * max(0, scale * |v| - threshold)`, +0 for what vanishes."""
    zero = arithmetic(dtype)(0.0)

    @device_function
    def soft(v, scale, threshold):
        magnitude = zero
        if scale != zero:  # zero times infinity would be NaN
            magnitude = product(scale, abs(v))
        magnitude = magnitude - threshold
        if v != v:
            return v
        if magnitude <= zero:
            return zero
        return magnitude if v > zero else -magnitude

    return soft


@functools.cache
def _soft_pack(dtype: str) -> Any:
    """A device function `(pack, scale, threshold)`, for a pack within one row."""
    width, soft = lanes(dtype), _soft(dtype)

    @device_function
    def soft_pack(pack, scale, threshold):
        result = pack
        for k in range(width):
            result = with_lane(result, np.int32(k), soft(lane(pack, np.int32(k)), scale, threshold))
        return result

    return soft_pack


@functools.cache
def shrink(dtype: str) -> Any:
    """Kernel `(x, head, packs, out, scale, threshold)`; `scale` and `threshold` as `upstream` of `gradient`."""
    width, number, soft, soft_pack = lanes(dtype), arithmetic(dtype), _soft(dtype), _soft_pack(dtype)

    @kernel(REGISTERS)
    def shrink_kernel(x, head, packs, out, scale, threshold):
        a, b = number(factor(scale, np.int64(0))), number(factor(threshold, np.int64(0)))
        first, step = np.int64(cuda.grid(1)), np.int64(cuda.gridsize(1))
        j = first
        while j + step < packs:
            here, there = head + j * width, head + (j + step) * width
            p, q = load(x, here), load(x, there)
            store(out, here, soft_pack(p, a, b))
            store(out, there, soft_pack(q, a, b))
            j += 2 * step
        if j < packs:
            store(out, head + j * width, soft_pack(load(x, head + j * width), a, b))
        edge = first
        while edge < x.size - packs * width:
            i = edge if edge < head else edge + packs * width
            set_element(out, i, soft(element(x, i), a, b))
            edge += step

    return shrink_kernel


@functools.cache
def shrink_rows(dtype: str) -> Any:
    """Kernel `(x, head, packs, out, scale, threshold, columns)` for rows of `columns` elements.

    `scale` and `threshold` are arrays of one value per row, arrays of one element, or numbers.
    """
    width, number, soft, soft_pack = lanes(dtype), arithmetic(dtype), _soft(dtype), _soft_pack(dtype)

    @device_function
    def soft_element(x, out, i, scale, threshold, row):
        a, b = number(factor(scale, row)), number(factor(threshold, row))
        set_element(out, i, soft(element(x, i), a, b))

    @kernel(ROWS_REGISTERS)
    def shrink_rows_kernel(x, head, packs, out, scale, threshold, columns):
        first, step = np.int64(cuda.grid(1)), np.int64(cuda.gridsize(1))
        j = first
        while j < packs:
            i = head + j * width
            row = i // columns
            if i + width <= (row + 1) * columns:
                a, b = number(factor(scale, row)), number(factor(threshold, row))
                store(out, i, soft_pack(load(x, i), a, b))
            else:  # the pack straddles rows
                for k in range(i, i + width):
                    soft_element(x, out, k, scale, threshold, k // columns)
            j += step
        edge = first
        while edge < x.size - packs * width:
            i = edge if edge < head else edge + packs * width
            soft_element(x, out, i, scale, threshold, i // columns)
            edge += step

    return shrink_rows_kernel
