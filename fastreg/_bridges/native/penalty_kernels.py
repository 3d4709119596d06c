"""What TensorFlow calls to compute penalties and their gradients: compiled, without Python and its lock.

The kernels are those of `fastreg_kernels`. Here stands what is between them and TensorFlow: inputs, outputs, and the
guess by which a value and its gradient come of one read of x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from fastreg_kernels import _shared
from fastreg_kernels.cpu import launch, penalty
from fastreg_kernels.cpu.jit import inner
from numba import carray, types
from numba.extending import overload

from fastreg._bridges import counters, pages
from fastreg._bridges.native import capi
from fastreg._bridges.native.compiler import callback
from fastreg._bridges.native.tensors import (
    FLOAT64,
    discard,
    expect,
    failed,
    finish,
    first,
    handle_of_input,
    kind,
    no_memory,
    output,
    put_first,
    scalar_output,
    shape_of,
)

SITES = 1 << 14
"""How many penalties can have a guess of their own; those beyond share. A wrong guess costs time, nothing else."""

COMPUTE = types.void(types.uintp, types.uintp)
"""Of the kernel's state, as `create` returned it, and the context of the call."""

_guesses = _shared.region("fastreg_guesses", 2 * SITES)
_guesses_address = _shared.address("fastreg_guesses")
if not _guesses.any():
    _guesses.view(np.float64).fill(np.nan)  # equals nothing


_site_name = capi.text("site")


@callback(types.uintp(types.uintp))
def site(construction):
    """The number of a penalty, as a kernel's state."""
    status, box = capi.NewStatus(), np.zeros(1, np.int64)
    capi.GetAttrInt64(construction, _site_name(), capi.memory(box), status)
    capi.DeleteStatus(status)
    return np.uintp(box[0] % SITES)


@inner
def _guess_of(site):
    """The upstream gradients of the last two gradients that were not computed ahead."""
    return carray(_guesses_address(), 2 * SITES, np.float64)[2 * site : 2 * site + 2]


_places = _shared.region("fastreg_places", pages.WORDS * SITES)
_places_address = _shared.address("fastreg_places")


@inner
def _place_of(site):
    """What is known of the memory that a penalty reads."""
    return carray(_places_address(), pages.WORDS * SITES, np.int64)[pages.WORDS * site : pages.WORDS * (site + 1)]


@inner
def _scale(upstream):
    """The upstream gradient; NaN without a payload, as the kernels expect of coefficients."""
    return upstream if upstream == upstream else np.nan


@inner
def weighted(sums, l1, l2):
    """The penalty in float64. A factor of zero skips its term, even where the sum is not finite."""
    value = 0.0
    if l1 != 0.0:
        value += l1 * sums[0]
    if l2 != 0.0:
        value += l2 * sums[1]
    return value


@inner
def _both(x, out, l1, l2):
    return penalty.write_gradient_and_sum(x, out, launch.is_streamed(out.ctypes.data, out.nbytes), l1, l2)


@inner
def _gradient(x, out, l1, l2):
    penalty.write_gradient(x, out, launch.is_streamed(out.ctypes.data, out.nbytes), l1, l2)


L1, L2, L1_L2, ANY = range(4)
"""Variants of an op that writes a gradient: which terms that has. A factor of zero skips its term, and each combination
has a kernel of its own. Where factors are known only when the op runs, it is any of them."""


def _both_of(terms, x, out, factors, a, b):
    """`_both` of the terms of a variant."""
    raise NotImplementedError  # compiled code only


@overload(_both_of, prefer_literal=True)
def _both_of_variant(terms, x, out, factors, a, b):
    def by_factors(terms, x, out, factors, a, b):
        if factors[0] != 0.0 and factors[1] != 0.0:
            return _both(x, out, a, b)
        if factors[0] != 0.0:
            return _both(x, out, a, None)
        if factors[1] != 0.0:
            return _both(x, out, None, b)
        out[:] = 0
        return penalty.sums_of(x)

    return {
        L1: lambda terms, x, out, factors, a, b: _both(x, out, a, None),
        L2: lambda terms, x, out, factors, a, b: _both(x, out, None, b),
        L1_L2: lambda terms, x, out, factors, a, b: _both(x, out, a, b),
        ANY: by_factors,
    }[terms.literal_value]


def _gradient_of(terms, x, out, factors, a, b):
    """`_gradient` of the terms of a variant."""
    raise NotImplementedError  # compiled code only


@overload(_gradient_of, prefer_literal=True)
def _gradient_of_variant(terms, x, out, factors, a, b):
    def by_factors(terms, x, out, factors, a, b):
        if factors[0] != 0.0 and factors[1] != 0.0:
            _gradient(x, out, a, b)
        elif factors[0] != 0.0:
            _gradient(x, out, a, None)
        elif factors[1] != 0.0:
            _gradient(x, out, None, b)
        else:
            out[:] = 0

    return {
        L1: lambda terms, x, out, factors, a, b: _gradient(x, out, a, None),
        L2: lambda terms, x, out, factors, a, b: _gradient(x, out, None, b),
        L1_L2: lambda terms, x, out, factors, a, b: _gradient(x, out, a, b),
        ANY: by_factors,
    }[terms.literal_value]


def value(dtype: tf.DType) -> Any:
    """`value = FastregPenalty(x, factors)`."""
    stored, _, number = kind(dtype)
    size = dtype.size

    def compute(kernel, context):
        status = capi.NewStatus()
        x_handle, factors_handle = handle_of_input(context, 0, status), handle_of_input(context, 1, status)
        value_handle = np.uintp(0)
        try:
            if expect(factors_handle, 2, status):
                value_handle = scalar_output(context, 0, number, size, status)
            if value_handle != 0:
                x = carray(capi.TensorData(x_handle), capi.TensorElementCount(x_handle), stored)
                factors = carray(capi.TensorData(factors_handle), 2, np.float64)
                sums = penalty.sums_of(x)
                put_first(carray(capi.TensorData(value_handle), 1, stored), weighted(sums, factors[0], factors[1]))
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(value_handle)
        capi.DeleteTensor(x_handle)
        capi.DeleteTensor(factors_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


def value_and_gradient(dtype: tf.DType, terms: int) -> Any:
    """`value, ahead, assumed = FastregPenaltyAhead(x, factors)`.

    If the last two backwards had one upstream gradient, `ahead` is the gradient for that, and `assumed` is 1 and the
    upstream gradient. Otherwise x stands in for it, since loops stack tensors of one shape only, and `assumed` is 0 and
    0.
    """
    stored, arithmetic, number = kind(dtype)
    size = dtype.size

    def compute(kernel, context):
        status = capi.NewStatus()
        x_handle, factors_handle = handle_of_input(context, 0, status), handle_of_input(context, 1, status)
        count = capi.TensorElementCount(x_handle)
        guess = _guess_of(kernel)
        upstream = guess[1]
        # A call that succeeds clears the status, so nothing may be called after one that failed.
        value_handle = assumed_handle = ahead_handle = np.uintp(0)
        try:
            if expect(factors_handle, 2, status):
                value_handle = scalar_output(context, 0, number, size, status)
            if value_handle != 0:
                two = np.full(2, 2, np.int64)
                assumed_handle = capi.AllocateOutput(context, 2, FLOAT64, capi.memory(two), 1, 16, status)
            if assumed_handle != 0:
                if upstream == guess[0]:
                    ahead_handle = output(context, 1, number, shape_of(x_handle), count * size, status)
                else:
                    capi.SetOutput(context, 1, x_handle, status)
            if not failed(status):
                x = carray(capi.TensorData(x_handle), count, stored)
                pages.gather(_place_of(kernel), x.ctypes.data, x.nbytes)
                factors = carray(capi.TensorData(factors_handle), 2, np.float64)
                assumed = carray(capi.TensorData(assumed_handle), 2, np.float64)
                if ahead_handle != 0:
                    out, scale = carray(capi.TensorData(ahead_handle), count, stored), _scale(upstream)
                    a, b = arithmetic(scale * factors[0]), arithmetic(scale * 2.0 * factors[1])
                    sums = _both_of(terms, x, out, factors, a, b)
                    assumed[0], assumed[1] = 1.0, upstream
                else:
                    sums = penalty.sums_of(x)
                    assumed[0], assumed[1] = 0.0, 0.0
                put_first(carray(capi.TensorData(value_handle), 1, stored), weighted(sums, factors[0], factors[1]))
                counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(value_handle)
        discard(assumed_handle)
        discard(ahead_handle)
        capi.DeleteTensor(x_handle)
        capi.DeleteTensor(factors_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)


def gradient(dtype: tf.DType, terms: int) -> Any:
    """`gradient = FastregPenaltyGradient(x, factors, upstream, ahead, assumed)`: `ahead` if that is the one asked
    for.
    """
    stored, arithmetic, number = kind(dtype)
    size = dtype.size

    def compute(kernel, context):
        status = capi.NewStatus()
        x_handle, factors_handle = handle_of_input(context, 0, status), handle_of_input(context, 1, status)
        upstream_handle, assumed_handle = handle_of_input(context, 2, status), handle_of_input(context, 4, status)
        count = capi.TensorElementCount(x_handle)
        ahead_handle = gradient_handle = np.uintp(0)
        try:
            is_usable = expect(factors_handle, 2, status) and expect(upstream_handle, 1, status)
            is_usable = is_usable and expect(assumed_handle, 2, status)
            upstream, is_ahead = 0.0, False
            if is_usable:
                upstream = first(carray(capi.TensorData(upstream_handle), 1, stored))
                assumed = carray(capi.TensorData(assumed_handle), 2, np.float64)
                is_ahead = assumed[0] != 0.0 and assumed[1] == upstream
            if is_ahead:
                ahead_handle = handle_of_input(context, 3, status)
                if expect(ahead_handle, count, status):
                    capi.SetOutput(context, 0, ahead_handle, status)
            elif is_usable:
                guess = _guess_of(kernel)
                guess[0], guess[1] = guess[1], upstream
                gradient_handle = output(context, 0, number, shape_of(x_handle), count * size, status)
                if gradient_handle != 0:
                    x = carray(capi.TensorData(x_handle), count, stored)
                    factors = carray(capi.TensorData(factors_handle), 2, np.float64)
                    out, scale = carray(capi.TensorData(gradient_handle), count, stored), _scale(upstream)
                    a, b = arithmetic(scale * factors[0]), arithmetic(scale * 2.0 * factors[1])
                    _gradient_of(terms, x, out, factors, a, b)
                    counters.count_kernel_call()
        except Exception:
            no_memory(status)
        discard(ahead_handle)
        discard(gradient_handle)
        capi.DeleteTensor(x_handle)
        capi.DeleteTensor(factors_handle)
        capi.DeleteTensor(upstream_handle)
        capi.DeleteTensor(assumed_handle)
        finish(context, status)

    return callback(COMPUTE)(compute)
