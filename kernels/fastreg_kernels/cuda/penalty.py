"""The CUDA kernels of the penalty: what a thread does with its elements, and how a block adds its threads up.

`head` and `packs` are the elements before the first multiple of 16 bytes in x and the packs of 16 bytes from there on.
Where x and the output start at different remainders of 16 both are 0, and all elements are handled one by one.

Sums are deterministic: each thread adds its elements in a fixed order, each block adds its threads in a fixed tree in
shared memory and writes one partial, and one block of a second kernel adds the partials. There are no atomics.

Kernels are built for a dtype, for the registers that a thread of the GPU may use, and, so that none holds a branch for
terms that it does not have, for a combination of terms.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from fastreg_kernels.cuda.accumulators import ACCUMULATORS, FLOAT64
from fastreg_kernels.cuda.jit import (
    FEWEST_REGISTERS,
    GRADIENT_REGISTERS,
    SUM_REGISTERS,
    THREADS,
    device_function,
    kernel,
)
from fastreg_kernels.cuda.lanes import arithmetic, factor, lane, lanes, product, set_element, store, with_lane
from fastreg_kernels.cuda.stride import elementwise, grid_stride

_totals_float64 = FLOAT64.totals


@device_function
def _block_sums(sum_abs, sum_sq, totals, row):
    """Add up the sums of a block's threads and write them to `totals[row]`."""
    shared = cuda.shared.array((2, THREADS), np.float64)
    thread = cuda.threadIdx.x
    shared[0, thread] = sum_abs
    shared[1, thread] = sum_sq
    half = THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if thread < half:
            shared[0, thread] += shared[0, thread + half]
            shared[1, thread] += shared[1, thread + half]
        half //= 2
    if thread == 0:
        totals[row, 0] = shared[0, 0]
        totals[row, 1] = shared[1, 0]


@kernel(FEWEST_REGISTERS)
def fold(partials, sums, penalty, l1, l2):
    """Add the partials up to `sums[0]`, and weigh them: `penalty[0] = l1 * sum(|x|) + l2 * sum(x²)`.

    For a grid of any number of blocks, of which the first does it all. A factor of zero skips its term.
    """
    if cuda.blockIdx.x > 0:
        return
    sum_abs, sum_sq = 0.0, 0.0
    for row in range(cuda.threadIdx.x, partials.shape[0], THREADS):
        sum_abs += partials[row, 0]
        sum_sq += partials[row, 1]
    _block_sums(sum_abs, sum_sq, sums, 0)
    if cuda.threadIdx.x == 0:
        value = 0.0
        if l1 != 0.0:
            value += l1 * sums[0, 0]
        if l2 != 0.0:
            value += l2 * sums[0, 1]
        penalty[0] = value


@functools.cache
def _add_pack(dtype: str, accumulator: str) -> Any:
    """A device function `(state, pack)`: the state with the elements of a pack added."""
    width, add = lanes(dtype), ACCUMULATORS[accumulator].add

    @device_function
    def add_pack(state, pack):
        for k in range(width):
            state = add(state, lane(pack, np.int32(k)))
        return state

    return add_pack


@functools.cache
def _thread_sums(dtype: str, accumulator: str) -> Any:
    """A device function `(x, head, packs)`: the state after what belongs to the calling thread."""
    start, add, add_pack = ACCUMULATORS[accumulator].start, ACCUMULATORS[accumulator].add, _add_pack(dtype, accumulator)

    @device_function
    def on_pack(state, pack, out, i, a, b):
        return add_pack(state, pack)

    @device_function
    def on_element(state, v, out, i, a, b):
        return add(state, v)

    stride = grid_stride(dtype, on_pack, on_element, at_once=2)
    return device_function(lambda x, head, packs: stride(start(), x, head, packs, x, 0.0, 0.0))


@functools.cache
def _block_partials(dtype: str, accumulator: str) -> Any:
    """A device function that writes the block's row of partials, given the state of each thread."""
    totals, is_reliable = ACCUMULATORS[accumulator].totals, ACCUMULATORS[accumulator].is_reliable
    thread_sums_float64 = _thread_sums(dtype, FLOAT64.name)

    @device_function
    def block_partials(state, x, head, packs, partials):
        sum_abs, sum_sq = totals(state)
        if not is_reliable(state):
            sum_abs, sum_sq = _totals_float64(thread_sums_float64(x, head, packs))
        _block_sums(sum_abs, sum_sq, partials, cuda.blockIdx.x)

    return block_partials


@functools.cache
def sums(dtype: str, accumulator: str, registers: int) -> Any:
    """Kernel `(x, head, packs, partials)`: one row of partials for each block."""
    thread_sums, block_partials = _thread_sums(dtype, accumulator), _block_partials(dtype, accumulator)

    @kernel(max(registers, SUM_REGISTERS[accumulator]))
    def sums_kernel(x, head, packs, partials):
        block_partials(thread_sums(x, head, packs), x, head, packs, partials)

    return sums_kernel


@functools.cache
def _derivative(dtype: str, has_l1: bool, has_l2: bool) -> Any:
    """A device function `(v, l1, l2)`: `l1 * sign(v) + l2 * v`, or the terms of it that there are."""
    zero = arithmetic(dtype)(0.0)

    @device_function
    def signed(l1, v):
        if v > zero:
            return l1
        if v < zero:
            return -l1
        return product(l1, abs(v))  # zero without a sign, or NaN

    if has_l1 and has_l2:
        return device_function(lambda v, l1, l2: signed(l1, v) + product(l2, v))
    if has_l1:
        return device_function(lambda v, l1, l2: signed(l1, v))
    if has_l2:
        return device_function(lambda v, l1, l2: product(l2, v))
    return device_function(lambda v, l1, l2: zero)


@functools.cache
def _derivative_pack(dtype: str, has_l1: bool, has_l2: bool) -> Any:
    """A device function `(pack, l1, l2)`: the derivatives of the elements of a pack, as a pack."""
    width, derivative = lanes(dtype), _derivative(dtype, has_l1, has_l2)

    @device_function
    def derivative_pack(pack, l1, l2):
        result = pack
        for k in range(width):
            result = with_lane(result, np.int32(k), derivative(lane(pack, np.int32(k)), l1, l2))
        return result

    return derivative_pack


@functools.cache
def gradient(dtype: str, has_l1: bool, has_l2: bool, registers: int) -> Any:
    """Kernel `(x, head, packs, out, l1, l2, upstream)`, which writes `upstream * (l1 * sign(x) + 2 * l2 * x)`.

    `l1` and `l2` are float64, `upstream` is float64 or an array of one element. The coefficients are formed in float64
    and rounded once. `out` may be `x`.
    """
    number = arithmetic(dtype)
    stride = elementwise(dtype, _derivative_pack(dtype, has_l1, has_l2), _derivative(dtype, has_l1, has_l2))

    @kernel(max(registers, GRADIENT_REGISTERS.get(dtype, 0)))
    def gradient_kernel(x, head, packs, out, l1, l2, upstream):
        scale = factor(upstream, np.int64(0))
        stride(0, x, head, packs, out, number(scale * l1), number(scale * 2.0 * l2))

    return gradient_kernel


@functools.cache
def both(dtype: str, accumulator: str, has_l1: bool, has_l2: bool, registers: int) -> Any:
    """Kernel `(x, head, packs, partials, out, l1, l2, upstream)`: `sums` and `gradient` in one read of x.

    `out` must not be `x`: a thread may have to add its elements up again.
    """
    number, start, add = arithmetic(dtype), ACCUMULATORS[accumulator].start, ACCUMULATORS[accumulator].add
    add_pack, block_partials = _add_pack(dtype, accumulator), _block_partials(dtype, accumulator)
    derivative, derivative_pack = _derivative(dtype, has_l1, has_l2), _derivative_pack(dtype, has_l1, has_l2)

    @device_function
    def on_pack(state, pack, out, i, l1, l2):
        state = add_pack(state, pack)  # first: then the registers of the sums' intermediates are free for the result
        store(out, i, derivative_pack(pack, l1, l2))
        return state

    @device_function
    def on_element(state, v, out, i, l1, l2):
        set_element(out, i, derivative(v, l1, l2))
        return add(state, v)

    stride = grid_stride(dtype, on_pack, on_element, at_once=1)

    @kernel(max(registers, SUM_REGISTERS[accumulator]))
    def both_kernel(x, head, packs, partials, out, l1, l2, upstream):
        scale = factor(upstream, np.int64(0))
        state = stride(start(), x, head, packs, out, number(scale * l1), number(scale * 2.0 * l2))
        block_partials(state, x, head, packs, partials)

    return both_kernel
