"""How a thread adds up `|x|` and `x²`: in float64, or in pairs of float32 where float64 arithmetic is scarce.

GPUs for data centers (compute capability 8.0, 9.0, ...) have one float64 unit for every two of float32, and memory is
the limit of a float64 sum. Others have one for 32 or 64, and it would be the arithmetic: 2 float64 additions and 2
conversions per element would take up to three times as long as reading it.

The compensated accumulator keeps each sum as `high + low`, both float32. Adding to `high` leaves a rounding error that
is itself a float32 number, which six additions recover exactly (Knuth's TwoSum), as a fused multiply-add recovers that
of the square; all errors are added up in `low`. So the sum is as good as one in float64 (to about n · 2^-48 for n
elements of a thread) as long as squares neither overflow nor lose bits below the smallest float32. `is_reliable` tells,
once per thread; where it is not, NaN and infinity included, the thread adds its elements up again in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastreg_kernels.cuda.jit import device_function
from fastreg_kernels.cuda.lanes import product, square_error

FAST_FLOAT64 = frozenset({(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)})
"""Compute capabilities that have half as many float64 units as float32 units."""

_LEAST_SQUARES = np.float32(2.0**-77)
"""Squares below 2^-126 lose bits, up to 2^-150 each. A thread adds less than 2^28 of them, so that where its sum is
this large they are less than 2^-45 of it.
"""

_MOST_SQUARES = np.float32(2.0**120)

_ZERO = np.float32(0.0)


@dataclass(frozen=True)
class Accumulator:
    """Device functions that add elements up; a state is a tuple.

    Attributes
    ----------
    start : callable
        `start()` gives the state of nothing.
    add : callable
        `add(state, v)` gives the state with one element more.
    totals : callable
        `totals(state)` gives `(sum(|x|), sum(x²))` in float64.
    is_reliable : callable
        `is_reliable(state)` tells whether these are the sums to float64's accuracy.
    """

    name: str
    start: Any
    add: Any
    totals: Any
    is_reliable: Any


@device_function
def _start_float64():
    return 0.0, 0.0


@device_function
def _add_float64(state, v):
    magnitude = np.float64(abs(v))
    return state[0] + magnitude, state[1] + magnitude * magnitude


@device_function
def _totals_float64(state):
    return state


@device_function
def _always(state):
    return True


@device_function
def _start_compensated():
    return _ZERO, _ZERO, _ZERO, _ZERO


@device_function
def _two_sum(a, b):
    """`a + b` rounded, and the error of that, exactly."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@device_function
def _add_compensated(state, v):
    high_abs, low_abs, high_sq, low_sq = state
    square = product(v, v)
    high_abs, error_abs = _two_sum(high_abs, abs(v))
    high_sq, error_sq = _two_sum(high_sq, square)
    return high_abs, low_abs + error_abs, high_sq, low_sq + (error_sq + square_error(v, square))


@device_function
def _totals_compensated(state):
    high_abs, low_abs, high_sq, low_sq = state
    return np.float64(high_abs) + np.float64(low_abs), np.float64(high_sq) + np.float64(low_sq)


@device_function
def _is_reliable(state):
    return state[0] == _ZERO or (state[2] >= _LEAST_SQUARES and state[2] < _MOST_SQUARES)


FLOAT64 = Accumulator("float64", _start_float64, _add_float64, _totals_float64, _always)
COMPENSATED = Accumulator("compensated", _start_compensated, _add_compensated, _totals_compensated, _is_reliable)

ACCUMULATORS = {accumulator.name: accumulator for accumulator in (FLOAT64, COMPENSATED)}


def accumulator_name(dtype: str, compute_capability: tuple[int, int]) -> str:
    """Which accumulator serves elements of a dtype on a GPU."""
    return FLOAT64.name if dtype == "float64" or compute_capability in FAST_FLOAT64 else COMPENSATED.name
