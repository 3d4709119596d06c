"""Each result against the float64 oracle: a benchmark of a wrong result is worth nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from fastreg_kernels import reference
from numpy.typing import NDArray

from fastreg_benchmarks.cases import L1, L2, VALUE_AND_GRADIENT, Inputs

OK, INEXACT, OVERFLOW, WRONG = "ok", "inexact", "overflow", "WRONG"

ROUNDINGS = 4
"""Units of the last place by which a gradient, or a value that is rounded once, may differ."""

SUM_TOLERANCE = 1e-12
"""Relative, of sums accumulated in float64, whose own roundings are nothing for the narrower dtypes."""

DTYPE_SUM_TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
"""Relative, of sums accumulated in the dtype of x, in some way that keeps their roundings from piling up."""

MOST_INEXACT = 1e-2
"""Relative; one addition after the other in the dtype of x explains an error of at most `size * eps`, and less than
this in practice."""


@dataclass(frozen=True)
class Verdict:
    """What the check of one result found.

    Attributes
    ----------
    status : {"ok", "inexact", "overflow", "WRONG"}
        Of sums accumulated in the dtype of x, as TensorFlow's ops do: `"inexact"` if roundings piled up, which XLA's
        sums show on the processor, `"overflow"` if a sum left the range of the dtype, though the penalty may be in it.
    value_error, gradient_error : float or None
        The largest relative errors; None for what was not computed or is infinite.
    """

    status: str
    value_error: float | None
    gradient_error: float | None


def check(inputs: Inputs, value: Any, gradient: Any, accumulated_in_dtype: bool) -> Verdict:
    """Compare a value, and a gradient where the case asks for one, with the oracle."""
    status, value_error = _check_value(inputs, float(value), accumulated_in_dtype)
    if inputs.case.what != VALUE_AND_GRADIENT:
        return Verdict(status, value_error, None)
    gradient_error = _gradient_error(inputs, gradient)
    if not gradient_error <= ROUNDINGS * float(finfo(inputs.x.dtype).eps):
        status = WRONG
    return Verdict(status, value_error, gradient_error if math.isfinite(gradient_error) else None)


def _check_value(inputs: Inputs, value: float, accumulated_in_dtype: bool) -> tuple[str, float | None]:
    expected = L1 * float(inputs.sums[0]) + L2 * float(inputs.sums[1])
    largest = float(finfo(inputs.x.dtype).max)
    if value == math.inf:
        if expected > largest:
            return OK, None
        return (OVERFLOW if accumulated_in_dtype and inputs.sums.max() > largest else WRONG), None
    error, eps = abs(value - expected) / expected, float(finfo(inputs.x.dtype).eps)
    if not math.isfinite(error):
        return WRONG, None
    if not accumulated_in_dtype:
        return OK if error <= max(ROUNDINGS * eps, SUM_TOLERANCE) else WRONG, error
    if error <= DTYPE_SUM_TOLERANCES[inputs.case.dtype]:
        return OK, error
    return INEXACT if error <= min(inputs.case.size * eps, MOST_INEXACT) else WRONG, error


def _gradient_error(inputs: Inputs, gradient: Any) -> float:
    """The largest relative error of an element, infinite where shape, dtype or an element is no number to compare."""
    if gradient is None:
        return math.inf
    array: NDArray[Any] = np.asarray(gradient)
    if array.shape != inputs.x.shape or array.dtype != inputs.x.dtype:
        return math.inf
    worst = 0.0
    for part in inputs.chunks():
        expected = reference.backward(inputs.x[part], L1, L2)
        errors = np.abs(array[part].astype(np.float64) - expected) / np.maximum(np.abs(expected), np.finfo(float).tiny)
        worst = max(worst, float(np.where(np.isnan(errors), np.inf, errors).max()))
    return worst


def finfo(dtype: np.dtype[Any]) -> Any:
    """What NumPy's `finfo` tells, of bfloat16 too."""
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
