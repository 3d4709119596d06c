"""Penalty kernels on host arrays: fused sums, their gradient, and both at once.

Each block of `BLOCK` elements is summed in `LANES` float64 lanes, and the partials are added in block order. Neither
depends on the number of threads or on the vector width of the processor: results have the same bits everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from fastreg_kernels import _arrays
from fastreg_kernels.cpu.jit import inner, jit
from fastreg_kernels.cpu.launch import BLOCK, blocks, put, run, sharing, written
from fastreg_kernels.cpu.vector import (
    LANES,
    add,
    add_squares,
    fence,
    keep_nan,
    load,
    load_first,
    signed,
    store_first,
    total,
    zeros,
)


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
    result: NDArray[np.float64] = run(sums_of, flat.size, flat)
    return result


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
    result = _arrays.output(x, out)
    terms = coefficients_of(x, l1, l2, upstream)
    if terms == (None, None):
        result.fill(0)
    else:
        run(write_gradient, flat.size, flat, *written(result, x), *terms)
    return result


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
    result, terms = _arrays.output(x, out), coefficients_of(x, l1, l2, upstream)
    if terms == (None, None):
        values = forward(x)  # before the gradient, which may be x itself, is filled
        result.fill(0)
        return values, result
    return run(write_gradient_and_sum, flat.size, flat, *written(result, x), *terms), result


def coefficients_of(x: NDArray[Any], l1: float, l2: float, upstream: Any) -> tuple[Any, Any]:
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


@inner
def accumulate(v, sum_abs, sum_sq):
    """Both sums with the elements of a vector added."""
    magnitude = abs(v)
    return add(sum_abs, magnitude), add_squares(sum_sq, magnitude)


def derivative(v, l1, l2):
    """`l1 * sign(v) + l2 * v` without the terms whose coefficient is None."""
    raise NotImplementedError  # compiled code only: see below


@overload(derivative)
def _derivative_of_terms(v, l1, l2):
    if isinstance(l1, types.NoneType):
        return lambda v, l1, l2: l2 * v
    if isinstance(l2, types.NoneType):
        return lambda v, l1, l2: keep_nan(signed(l1, v), v)
    return lambda v, l1, l2: signed(l1, v) + l2 * v


@inner
def block_bounds(block, size):
    """Where a block starts, where its last whole vector ends, and where it stops."""
    start = block * BLOCK
    stop = min(start + BLOCK, size)
    return start, stop - (stop - start) % LANES, stop


@inner
def _sums(first, last, x, partials):
    """Both sums of each block from `first` to before `last`."""
    for block in range(first, last):
        start, tail, stop = block_bounds(block, x.size)
        sum_abs, sum_sq = zeros(), zeros()
        for i in range(start, tail, LANES):
            sum_abs, sum_sq = accumulate(load(x, i), sum_abs, sum_sq)
        if tail < stop:
            sum_abs, sum_sq = accumulate(load_first(x, tail, stop - tail), sum_abs, sum_sq)
        partials[block, 0] = total(sum_abs)
        partials[block, 1] = total(sum_sq)


_share_sums = sharing(_sums)


@inner
def _gradient_past_or_through(first, last, x, out, streamed, l1, l2):
    for block in range(first, last):
        start, tail, stop = block_bounds(block, x.size)
        for i in range(start, tail, LANES):
            put(out, i, derivative(load(x, i), l1, l2), streamed)
        if tail < stop:
            v = load_first(x, tail, stop - tail)
            store_first(out, tail, derivative(v, l1, l2), stop - tail)
    if streamed is not None:
        fence()


@inner
def _gradient(first, last, x, out, streamed, l1, l2):
    """The gradient of the blocks from `first` to before `last`."""
    if streamed:
        _gradient_past_or_through(first, last, x, out, True, l1, l2)
    else:
        _gradient_past_or_through(first, last, x, out, None, l1, l2)


_share_gradient = sharing(_gradient)


@inner
def _both_past_or_through(first, last, x, partials, out, streamed, l1, l2):
    for block in range(first, last):
        start, tail, stop = block_bounds(block, x.size)
        sum_abs, sum_sq = zeros(), zeros()
        for i in range(start, tail, LANES):
            v = load(x, i)
            sum_abs, sum_sq = accumulate(v, sum_abs, sum_sq)
            put(out, i, derivative(v, l1, l2), streamed)
        if tail < stop:
            v = load_first(x, tail, stop - tail)
            sum_abs, sum_sq = accumulate(v, sum_abs, sum_sq)
            store_first(out, tail, derivative(v, l1, l2), stop - tail)
        partials[block, 0] = total(sum_abs)
        partials[block, 1] = total(sum_sq)
    if streamed is not None:
        fence()


@inner
def _both(first, last, x, partials, out, streamed, l1, l2):
    """`_sums` and `_gradient` in one read of x."""
    if streamed:
        _both_past_or_through(first, last, x, partials, out, True, l1, l2)
    else:
        _both_past_or_through(first, last, x, partials, out, None, l1, l2)


_share_both = sharing(_both)


@inner
def folded(partials):
    """Add the partials up, in block order."""
    result = np.zeros(2)
    for block in range(partials.shape[0]):
        result[0] += partials[block, 0]
        result[1] += partials[block, 1]
    return result


@jit
def sums_of(x):
    """Both sums of x."""
    partials = np.empty((blocks(x.size), 2))
    _share_sums(blocks(x.size), x.size, (x, partials))
    return folded(partials)


@jit
def write_gradient(x, out, streamed, l1, l2):
    """Write the gradient of x, past the caches if `streamed`; a coefficient of None skips its term."""
    _share_gradient(blocks(x.size), x.size, (x, out, streamed, l1, l2))


@jit
def write_gradient_and_sum(x, out, streamed, l1, l2):
    """Both sums and the gradient, in one read of x."""
    partials = np.empty((blocks(x.size), 2))
    _share_both(blocks(x.size), x.size, (x, partials, out, streamed, l1, l2))
    return folded(partials)
