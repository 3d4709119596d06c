"""Penalty kernels on host arrays: fused sums, their gradient, both at once, and soft-thresholding.

Work is cut into blocks of `BLOCK` elements, each summed in `LANES` float64 lanes. Blocks and lanes do not depend on
the number of threads or on the vector width of the processor, and the partials are added in block order: results have
the same bits everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange, types
from numba.extending import overload
from numpy.typing import NDArray

from fastreg_kernels import _arrays, _threads
from fastreg_kernels._jit import jit, parallel_jit
from fastreg_kernels._vector import (
    LANES,
    STREAM_ALIGNMENT,
    add,
    add_squares,
    fence,
    keep_nan,
    load,
    load_first,
    signed,
    soft_threshold,
    store,
    store_first,
    stream,
    total,
    zeros,
)

BLOCK = 16384
"""Elements per block: one partial sum, and the unit in which work is shared out."""

PARALLEL_MIN_BLOCKS = 4
"""With fewer blocks than this, waking the threads costs more than they save."""

STREAM_MIN_BYTES = 8 << 20
"""From this size on, gradients are written past the caches, which could not hold them until they are read anyway."""


def forward(x: NDArray[Any]) -> NDArray[np.float64]:
    """Both penalty sums of `x`, in one read of it.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any contiguous shape, empty and 0-d too.

    Returns
    -------
    ndarray of float64, shape (2,)
        `[sum(|x|), sum(x²)]`. Products and sums are float64; the bits do not depend on the number of threads.

    Raises
    ------
    TypeError
        If `x` is not an array of a supported dtype.
    ValueError
        If `x` is not contiguous.
    """
    flat = _arrays.flat_input(x)
    partials = _partials(flat)
    _launch(_sums, _sums_parallel, flat.size, flat, partials)
    return _fold(partials)


def backward(
    x: NDArray[Any], l1: float, l2: float, upstream: Any = 1.0, out: NDArray[Any] | None = None
) -> NDArray[Any]:
    """The gradient of `l1 * sum(|x|) + l2 * sum(x²)` times the upstream gradient.

    Parameters
    ----------
    x : ndarray of float32, float64, float16 or bfloat16
        Any contiguous shape.
    l1, l2 : float
        Non-negative factors. A factor of zero skips its term, so that an infinite weight does not become NaN.
    upstream : float or 0-d array
        The gradient with respect to the penalty.
    out : ndarray, optional
        Where to write: shape, dtype and layout of `x`, `x` itself allowed. One that starts at a multiple of 64 bytes is
        written fastest.

    Returns
    -------
    ndarray
        `upstream * (l1 * sign(x) + 2 * l2 * x)`, in the dtype of `x`, with sign(0) = 0. The two coefficients are
        computed in float64 and rounded once, to float32 for the half types; these are computed in float32 and rounded
        to nearest at the end.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, dtype, shape, layout or range, or if `out` overlaps `x` in part.
    """
    flat = _arrays.flat_input(x)
    gradient, terms = _arrays.output(x, out), _terms(x, l1, l2, upstream)
    if terms == (None, None):
        gradient.fill(0)
    else:
        _launch(_gradient, _gradient_parallel, flat.size, flat, *_written(gradient, x), *terms)
    return gradient


def forward_backward(
    x: NDArray[Any], l1: float, l2: float, upstream: Any = 1.0, out: NDArray[Any] | None = None
) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """`forward` and `backward` in one read of `x`; parameters, results and errors are theirs.

    Returns
    -------
    tuple of ndarray
        `([sum(|x|), sum(x²)], gradient)`.
    """
    flat = _arrays.flat_input(x)
    gradient, terms = _arrays.output(x, out), _terms(x, l1, l2, upstream)
    if terms == (None, None):
        sums = forward(x)  # before the gradient, which may be x itself, is filled
        gradient.fill(0)
        return sums, gradient
    partials = _partials(flat)
    _launch(_both, _both_parallel, flat.size, flat, partials, *_written(gradient, x), *terms)
    return _fold(partials), gradient


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
        _launch(_shrink, _shrink_parallel, flat.size, flat, *_written(result, x), a, b)
        return result
    if x.ndim == 0 or not x.flags.c_contiguous:
        raise ValueError("Invalid layout for argument x: factors per row expect rows in C order.")
    rows = x.shape[0]
    a, b = (_arrays.row_factors(v, n, rows).astype(dtype) for v, n in ((scale, "scale"), (threshold, "threshold")))
    if flat.size:
        _launch(_shrink_rows, _shrink_rows_parallel, flat.size, flat, _arrays.stored(result.reshape(-1)), a, b)
    return result


def _launch(serial: Any, parallel: Any, size: int, *arguments: Any) -> None:
    """Run a kernel over all blocks: on this thread where there is little to do, else on as many as are allowed."""
    blocks = _blocks(size)
    threads = 1 if blocks < PARALLEL_MIN_BLOCKS else min(_threads.get_num_threads(), blocks)
    if threads == 1:
        serial(0, blocks, *arguments)
    else:
        with _threads.mask(threads):
            parallel(threads, blocks, *arguments)


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def _partials(flat: NDArray[Any]) -> NDArray[np.float64]:
    return np.empty((_blocks(flat.size), 2))


def _terms(x: NDArray[Any], l1: float, l2: float, upstream: Any) -> tuple[Any, Any]:
    """The coefficients of the gradient's terms, in the dtype of the arithmetic; None for a term that is skipped.

    A kernel is compiled for each combination of terms, and so holds no branch for those it does not have.
    """
    dtype = _arrays.arithmetic_dtype(x.dtype)
    l1, l2 = _arrays.factor(l1, "l1"), _arrays.factor(l2, "l2")
    scale = _arrays.scalar(upstream, "upstream")
    if math.isnan(scale):
        scale = math.nan  # without a payload, as the kernels expect of coefficients
    with np.errstate(over="ignore"):  # beyond the range of the dtype, infinity is the right coefficient
        return None if l1 == 0.0 else dtype.type(scale * l1), None if l2 == 0.0 else dtype.type(scale * 2.0 * l2)


def _written(result: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], bool | None]:
    """The result as the kernels take it, and True if it is to be written past the caches, else None.

    None rather than False, for Numba compiles a version of a kernel for each type.
    """
    flat = _arrays.stored(result.reshape(-1, order="A"))
    address = _arrays.address(flat)
    in_place = address == _arrays.address(x)  # then each line is in the cache already
    streamed = flat.nbytes >= STREAM_MIN_BYTES and not in_place and address % STREAM_ALIGNMENT == 0
    return flat, True if streamed else None


@jit
def _accumulate(v, sum_abs, sum_sq):
    magnitude = abs(v)
    return add(sum_abs, magnitude), add_squares(sum_sq, magnitude)


def _derivative(v, l1, l2):
    """`l1 * sign(v) + l2 * v` without the terms whose coefficient is None."""
    raise NotImplementedError  # compiled code only: see below


@overload(_derivative)
def _derivative_of_terms(v, l1, l2):
    if isinstance(l1, types.NoneType):
        return lambda v, l1, l2: l2 * v
    if isinstance(l2, types.NoneType):
        return lambda v, l1, l2: keep_nan(signed(l1, v), v)
    return lambda v, l1, l2: signed(l1, v) + l2 * v


@jit
def _soft(v, scale, threshold):
    # A scale of zero skips its term, even for infinities, but no NaN may vanish with it.
    magnitude = scale * abs(v) if scale != 0.0 else keep_nan(signed(scale, v), v)
    return soft_threshold(magnitude - threshold, v)


@jit
def _put(out, i, v, streamed):
    if streamed is None:
        store(out, i, v)
    else:
        stream(out, i, v)


@jit
def _block(block, size):
    """Where a block starts, where its last whole vector ends, and where it stops."""
    start = block * BLOCK
    stop = min(start + BLOCK, size)
    return start, stop - (stop - start) % LANES, stop


@jit
def _sums(first, last, x, partials):
    for block in range(first, last):
        start, tail, stop = _block(block, x.size)
        sum_abs, sum_sq = zeros(), zeros()
        for i in range(start, tail, LANES):
            sum_abs, sum_sq = _accumulate(load(x, i), sum_abs, sum_sq)
        if tail < stop:
            sum_abs, sum_sq = _accumulate(load_first(x, tail, stop - tail), sum_abs, sum_sq)
        partials[block, 0] = total(sum_abs)
        partials[block, 1] = total(sum_sq)


@jit
def _gradient(first, last, x, out, streamed, l1, l2):
    for block in range(first, last):
        start, tail, stop = _block(block, x.size)
        for i in range(start, tail, LANES):
            _put(out, i, _derivative(load(x, i), l1, l2), streamed)
        if tail < stop:
            v = load_first(x, tail, stop - tail)
            store_first(out, tail, _derivative(v, l1, l2), stop - tail)
    if streamed is not None:
        fence()


@jit
def _both(first, last, x, partials, out, streamed, l1, l2):
    for block in range(first, last):
        start, tail, stop = _block(block, x.size)
        sum_abs, sum_sq = zeros(), zeros()
        for i in range(start, tail, LANES):
            v = load(x, i)
            sum_abs, sum_sq = _accumulate(v, sum_abs, sum_sq)
            _put(out, i, _derivative(v, l1, l2), streamed)
        if tail < stop:
            v = load_first(x, tail, stop - tail)
            sum_abs, sum_sq = _accumulate(v, sum_abs, sum_sq)
            store_first(out, tail, _derivative(v, l1, l2), stop - tail)
        partials[block, 0] = total(sum_abs)
        partials[block, 1] = total(sum_sq)
    if streamed is not None:
        fence()


@jit
def _shrink_span(start, stop, x, out, streamed, scale, threshold):
    tail = stop - (stop - start) % LANES
    for i in range(start, tail, LANES):
        _put(out, i, _soft(load(x, i), scale, threshold), streamed)
    if tail < stop:
        store_first(out, tail, _soft(load_first(x, tail, stop - tail), scale, threshold), stop - tail)


@jit
def _shrink(first, last, x, out, streamed, scale, threshold):
    _shrink_span(first * BLOCK, min(last * BLOCK, x.size), x, out, streamed, scale, threshold)
    if streamed is not None:
        fence()


@jit
def _shrink_rows(first, last, x, out, scale, threshold):
    width = x.size // scale.size
    # Rows are cut at block boundaries, as everything is: a row goes to whoever has its first element.
    for row in range(-(-first * BLOCK // width), min(-(-last * BLOCK // width), scale.size)):
        _shrink_span(row * width, (row + 1) * width, x, out, None, scale[row], threshold[row])


@parallel_jit
def _sums_parallel(threads, blocks, x, partials):
    for t in prange(threads):
        _sums(t * blocks // threads, (t + 1) * blocks // threads, x, partials)


@parallel_jit
def _gradient_parallel(threads, blocks, x, out, streamed, l1, l2):
    for t in prange(threads):
        first, last = t * blocks // threads, (t + 1) * blocks // threads
        _gradient(first, last, x, out, streamed, l1, l2)


@parallel_jit
def _both_parallel(threads, blocks, x, partials, out, streamed, l1, l2):
    for t in prange(threads):
        first, last = t * blocks // threads, (t + 1) * blocks // threads
        _both(first, last, x, partials, out, streamed, l1, l2)


@parallel_jit
def _shrink_parallel(threads, blocks, x, out, streamed, scale, threshold):
    for t in prange(threads):
        _shrink(t * blocks // threads, (t + 1) * blocks // threads, x, out, streamed, scale, threshold)


@parallel_jit
def _shrink_rows_parallel(threads, blocks, x, out, scale, threshold):
    for t in prange(threads):
        _shrink_rows(t * blocks // threads, (t + 1) * blocks // threads, x, out, scale, threshold)


@jit
def _fold(partials):
    result = np.zeros(2)
    for block in range(partials.shape[0]):
        result[0] += partials[block, 0]
        result[1] += partials[block, 1]
    return result
