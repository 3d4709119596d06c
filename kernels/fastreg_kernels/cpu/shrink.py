"""Soft-thresholding on host arrays, with factors for all of x or one per row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastreg_kernels import _arrays
from fastreg_kernels.cpu.jit import inner, jit
from fastreg_kernels.cpu.launch import BLOCK, blocks, put, run, sharing, written
from fastreg_kernels.cpu.vector import (
    LANES,
    fence,
    keep_nan,
    load,
    load_first,
    signed,
    soft_threshold,
    store_first,
)


def shrink(x: NDArray[Any], scale: Any, threshold: Any, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Scale, then soft-threshold: the proximal step of the elastic net.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any contiguous shape; C order and at least one dimension if `scale` or `threshold` has a value per row.
    scale, threshold : float, 0-d array, or ndarray of shape (x.shape[0],)
        Non-negative and finite, for all of `x` or one per row. They are rounded once to the dtype of `x`, or to
        float32 for the half types. A scale of zero skips its term.
    out : ndarray, optional
        As for `backward`; `out=x` works in place.

    Returns
    -------
    ndarray
        `sign(x) * max(0, scale * |x| - threshold)`, in the dtype of `x`; what vanishes is +0, and what a half type
        rounds to zero keeps its sign. NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        As for `backward`.
    """
    flat = _arrays.flat_input(x)
    result, dtype = _arrays.output(x, out), _arrays.arithmetic_dtype(x.dtype)
    if np.ndim(scale) == 0 and np.ndim(threshold) == 0:
        a, b = (dtype.type(_arrays.factor(v, n)) for v, n in ((scale, "scale"), (threshold, "threshold")))
        target, streamed = written(result, x)
        run(_shrink_all, flat.size, flat, target, True if streamed else None, a, b)
        return result
    if x.ndim == 0 or not x.flags.c_contiguous:
        raise ValueError("Invalid layout for argument x: factors per row expect rows in C order.")
    rows = x.shape[0]
    a, b = (_arrays.row_factors(v, n, rows).astype(dtype) for v, n in ((scale, "scale"), (threshold, "threshold")))
    if flat.size:
        run(_shrink_all_rows, flat.size, flat, _arrays.stored(result.reshape(-1)), a, b)
    return result


@inner
def shrunk(v, scale, threshold):
    """`sign(v) * max(0, scale * |v| - threshold)`, +0 for what vanishes; zero times infinity is NaN."""
    return _cut(scale * abs(v), threshold, v)


@inner
def _shrunk_by_any(v, scale, threshold):
    # A scale of zero skips its term, even for infinities, but no NaN may vanish with it.
    return _cut(scale * abs(v) if scale != 0.0 else keep_nan(signed(scale, v), v), threshold, v)


@inner
def _cut(magnitude, threshold, v):
    return soft_threshold(magnitude - threshold, v)


@inner
def _shrink_span(start, stop, x, out, streamed, scale, threshold):
    tail = stop - (stop - start) % LANES
    for i in range(start, tail, LANES):
        put(out, i, _shrunk_by_any(load(x, i), scale, threshold), streamed)
    if tail < stop:
        store_first(out, tail, _shrunk_by_any(load_first(x, tail, stop - tail), scale, threshold), stop - tail)


@inner
def _shrink(first, last, x, out, streamed, scale, threshold):
    _shrink_span(first * BLOCK, min(last * BLOCK, x.size), x, out, streamed, scale, threshold)
    if streamed is not None:
        fence()


_share_shrink = sharing(_shrink)


@inner
def _shrink_rows(first, last, x, out, scale, threshold):
    width = x.size // scale.size
    # Rows are cut at block boundaries, as everything is: a row goes to whoever has its first element.
    for row in range(-(-first * BLOCK // width), min(-(-last * BLOCK // width), scale.size)):
        _shrink_span(row * width, (row + 1) * width, x, out, None, scale[row], threshold[row])


_share_shrink_rows = sharing(_shrink_rows)


@jit
def _shrink_all(x, out, streamed, scale, threshold):
    _share_shrink(blocks(x.size), x.size, (x, out, streamed, scale, threshold))


@jit
def _shrink_all_rows(x, out, scale, threshold):
    _share_shrink_rows(blocks(x.size), x.size, (x, out, scale, threshold))
