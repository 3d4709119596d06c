"""The CUDA kernels of the penalty: what a thread does with its elements, and how a block adds its threads up.

The threads of a fixed grid stride over the packs of 16 bytes in x. Elements before the first multiple of 16 bytes and
after the last whole pack (the edges) are handled one by one, as all are where x and the output start at different
remainders of 16: then `packs` is 0.

Sums are deterministic: each thread adds its elements in a fixed order, each block adds its threads in a fixed tree in
shared memory and writes one partial, and one block of a second kernel adds the partials. There are no atomics.

Kernels are built for a dtype and, so that none holds a branch for terms that it does not have, for a combination of
terms.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import cuda

from fastreg_kernels._cuda_accumulators import ACCUMULATORS, FLOAT64
from fastreg_kernels._cuda_jit import BOTH_REGISTERS, REGISTERS, THREADS, device_function, kernel
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


@kernel(REGISTERS)
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
    """A device function that adds up what belongs to the calling thread."""
    width, add_pack = lanes(dtype), _add_pack(dtype, accumulator)
    start, add = ACCUMULATORS[accumulator].start, ACCUMULATORS[accumulator].add

    @device_function
    def thread_sums(x, head, packs):
        first, step = np.int64(cuda.grid(1)), np.int64(cuda.gridsize(1))
        state = start()
        j = first
        while j + step < packs:  # two packs are on their way before the first is used
            a, b = load(x, head + j * width), load(x, head + (j + step) * width)
            state = add_pack(add_pack(state, a), b)
            j += 2 * step
        if j < packs:
            state = add_pack(state, load(x, head + j * width))
        edge = first
        while edge < x.size - packs * width:
            state = add(state, element(x, edge if edge < head else edge + packs * width))
            edge += step
        return state

    return thread_sums


@functools.cache
def sums(dtype: str, accumulator: str) -> Any:
    """Kernel `(x, head, packs, partials)`: one row of partials for each block."""
    totals, is_reliable = ACCUMULATORS[accumulator].totals, ACCUMULATORS[accumulator].is_reliable
    thread_sums, thread_sums_float64 = _thread_sums(dtype, accumulator), _thread_sums(dtype, FLOAT64.name)

    @kernel(REGISTERS)
    def sums_kernel(x, head, packs, partials):
        state = thread_sums(x, head, packs)
        sum_abs, sum_sq = totals(state)
        if not is_reliable(state):
            sum_abs, sum_sq = _totals_float64(thread_sums_float64(x, head, packs))
        _block_sums(sum_abs, sum_sq, partials, cuda.blockIdx.x)

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
def gradient(dtype: str, has_l1: bool, has_l2: bool) -> Any:
    """Kernel `(x, head, packs, out, l1, l2, upstream)`, which writes `upstream * (l1 * sign(x) + 2 * l2 * x)`.

    `l1` and `l2` are float64, `upstream` is float64 or an array of one element. The coefficients are formed in float64
    and rounded once. `out` may be `x`.
    """
    width, number = lanes(dtype), arithmetic(dtype)
    derivative, derivative_pack = _derivative(dtype, has_l1, has_l2), _derivative_pack(dtype, has_l1, has_l2)

    @kernel(REGISTERS)
    def gradient_kernel(x, head, packs, out, l1, l2, upstream):
        scale = factor(upstream, np.int64(0))
        a1, a2 = number(scale * l1), number(scale * 2.0 * l2)
        first, step = np.int64(cuda.grid(1)), np.int64(cuda.gridsize(1))
        j = first
        while j + step < packs:
            here, there = head + j * width, head + (j + step) * width
            a, b = load(x, here), load(x, there)
            store(out, here, derivative_pack(a, a1, a2))
            store(out, there, derivative_pack(b, a1, a2))
            j += 2 * step
        if j < packs:
            store(out, head + j * width, derivative_pack(load(x, head + j * width), a1, a2))
        edge = first
        while edge < x.size - packs * width:
            i = edge if edge < head else edge + packs * width
            set_element(out, i, derivative(element(x, i), a1, a2))
            edge += step

    return gradient_kernel


@functools.cache
def both(dtype: str, accumulator: str, has_l1: bool, has_l2: bool) -> Any:
    """Kernel `(x, head, packs, partials, out, l1, l2, upstream)`: `sums` and `gradient` in one read of x.

    `out` must not be `x`: a thread may have to add its elements up again.
    """
    width, number, add = lanes(dtype), arithmetic(dtype), ACCUMULATORS[accumulator].add
    start, add_pack = ACCUMULATORS[accumulator].start, _add_pack(dtype, accumulator)
    totals, is_reliable = ACCUMULATORS[accumulator].totals, ACCUMULATORS[accumulator].is_reliable
    thread_sums_float64 = _thread_sums(dtype, FLOAT64.name)
    derivative, derivative_pack = _derivative(dtype, has_l1, has_l2), _derivative_pack(dtype, has_l1, has_l2)

    @kernel(BOTH_REGISTERS)
    def both_kernel(x, head, packs, partials, out, l1, l2, upstream):
        scale = factor(upstream, np.int64(0))
        a1, a2 = number(scale * l1), number(scale * 2.0 * l2)
        first, step = np.int64(cuda.grid(1)), np.int64(cuda.gridsize(1))
        state = start()
        j = first
        while j < packs:  # one at a time: two and the accumulators do not fit into the registers
            pack = load(x, head + j * width)
            store(out, head + j * width, derivative_pack(pack, a1, a2))
            state = add_pack(state, pack)
            j += step
        edge = first
        while edge < x.size - packs * width:
            i = edge if edge < head else edge + packs * width
            v = element(x, i)
            set_element(out, i, derivative(v, a1, a2))
            state = add(state, v)
            edge += step
        sum_abs, sum_sq = totals(state)
        if not is_reliable(state):
            sum_abs, sum_sq = _totals_float64(thread_sums_float64(x, head, packs))
        _block_sums(sum_abs, sum_sq, partials, cuda.blockIdx.x)

    return both_kernel
