"""Penalty kernels on arrays of a GPU: the functions of `cpu`, with the caller's stream.

Needs the package `numba-cuda` (the extra `cuda`). Results stay on the GPU and nothing waits for it: what is returned is
complete when the stream's work so far is. Sums have the same bits on every run; gradients and shrunk arrays have the
bits that the kernels of `cpu` give.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np

from fastreg_kernels import _arrays

if importlib.util.find_spec("numba_cuda") is None:
    raise ModuleNotFoundError(
        "fastreg_kernels.cuda needs numba-cuda: pip install 'fastreg-keras[cuda]'", name="numba_cuda"
    )

from numba import cuda

from fastreg_kernels.cuda import devices, launch
from fastreg_kernels.cuda.arrays import BFloat16Array, View, address_of, empty_like, view
from fastreg_kernels.cuda.devices import DeviceError
from fastreg_kernels.cuda.jit import SIMULATED
from fastreg_kernels.cuda.launch import Sums

__all__ = ["DTYPES", "BFloat16Array", "DeviceError", "backward", "forward", "forward_backward", "shrink"]

DTYPES = tuple(_arrays.STORED)
"""Names of the dtypes that have kernels."""


def forward(x: Any, stream: Any = None) -> Any:
    """Both penalty sums of `x`, in one read of it.

    Parameters
    ----------
    x : device array of float32, float64, float16 or bfloat16
        Anything with `__cuda_array_interface__` or `__dlpack__`, of any contiguous shape, empty and 0-d too. bfloat16,
        for which the former has no name, comes by DLPack, from an object whose `dtype` says so, or as `BFloat16Array`.
    stream : int, Numba stream, object with `__cuda_stream__`, or None
        Where the kernels run; None is the default stream.

    Returns
    -------
    Numba device array of float64, shape (2,)
        `[sum(|x|), sum(x²)]`. Sums are accumulated in float64, or as compensated pairs of float32 on GPUs where float64
        arithmetic is scarce, and added up in float64. Their order depends on the size of x, on where it starts within
        16 bytes, and on the model of the GPU.

    Raises
    ------
    TypeError
        If `x` is not on a GPU or has another dtype.
    ValueError
        If `x` is not contiguous.
    DeviceError
        If the driver refuses a launch.
    """
    stream = launch.stream_of(stream)
    source = view(x, "x", stream)
    ordinal = devices.ordinal_of(source.address)
    with devices.on(ordinal):
        workspace, result = _workspace(ordinal, stream)
        launch.sums(source, result, ordinal, stream)
        return workspace[-3:-1]


def backward(x: Any, l1: float, l2: float, upstream: Any = 1.0, out: Any = None, stream: Any = None) -> Any:
    """The gradient of `l1 * sum(|x|) + l2 * sum(x²)` times the upstream gradient.

    Parameters
    ----------
    x, stream
        As for `forward`.
    l1, l2 : float
        Non-negative factors. A factor of zero skips its term, so that an infinite weight does not become NaN.
    upstream : float or device array of one element
        The gradient with respect to the penalty. An array is read by the kernel and never by the host.
    out : device array, optional
        Where to write: shape, dtype and layout of `x`, `x` itself allowed. One that starts at the same remainder of 16
        bytes as x is written fastest.

    Returns
    -------
    device array
        `upstream * (l1 * sign(x) + 2 * l2 * x)`, in the dtype of `x`, with sign(0) = 0: `out`, or a Numba device array.
        The two coefficients are computed in float64 and rounded once, to float32 for the half types; these are computed
        in float32 and rounded to nearest at the end.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, dtype, shape, layout or range, if `out` overlaps `x` in part, or if an array is
        on another GPU than `x`.
    DeviceError
        If the driver refuses a launch.
    """
    stream = launch.stream_of(stream)
    source = view(x, "x", stream)
    l1, l2 = _arrays.factor(l1, "l1"), _arrays.factor(l2, "l2")
    ordinal = devices.ordinal_of(source.address)
    with devices.on(ordinal):
        target, result = _output(source, out, ordinal, stream)
        launch.gradient(source, target, l1, l2, _upstream(upstream, ordinal, stream), ordinal, stream)
        return result


def forward_backward(
    x: Any, l1: float, l2: float, upstream: Any = 1.0, out: Any = None, stream: Any = None
) -> tuple[Any, Any]:
    """`forward` and `backward` in one read of `x`, or in two where `out` is x; parameters, results and errors are
    theirs.

    Returns
    -------
    tuple of device arrays
        `([sum(|x|), sum(x²)], gradient)`.
    """
    stream = launch.stream_of(stream)
    source = view(x, "x", stream)
    l1, l2 = _arrays.factor(l1, "l1"), _arrays.factor(l2, "l2")
    ordinal = devices.ordinal_of(source.address)
    with devices.on(ordinal):
        target, result = _output(source, out, ordinal, stream)
        workspace, sums = _workspace(ordinal, stream)
        launch.both(source, sums, target, l1, l2, _upstream(upstream, ordinal, stream), ordinal, stream)
        return workspace[-3:-1], result


def shrink(x: Any, scale: Any, threshold: Any, out: Any = None, stream: Any = None) -> Any:
    """Scale, then soft-threshold: the proximal step of the elastic net.

    Parameters
    ----------
    x, stream
        As for `forward`; C order and at least one dimension if `scale` or `threshold` has a value per row.
    scale, threshold : float, device array of one element, or array of shape (x.shape[0],)
        Non-negative and finite, for all of `x` or one per row. They are rounded once to the dtype of `x`, or to float32
        for the half types. A scale of zero skips its term. Values on the GPU are not visited by the host and not
        checked; a NumPy array with one per row is copied there.
    out : device array, optional
        As for `backward`; `out=x` works in place.

    Returns
    -------
    device array
        `sign(x) * max(0, scale * |x| - threshold)`, in the dtype of `x`; what vanishes is +0, and what a half type
        rounds to zero keeps its sign. NaN stays NaN.

    Raises
    ------
    TypeError, ValueError, DeviceError
        As for `backward`.
    """
    stream = launch.stream_of(stream)
    source = view(x, "x", stream)
    rows = source.shape[0] if source.shape else None
    ordinal = devices.ordinal_of(source.address)
    with devices.on(ordinal):
        a, a_per_row = _factor(scale, "scale", rows, ordinal, stream)
        b, b_per_row = _factor(threshold, "threshold", rows, ordinal, stream)
        columns = None
        if a_per_row or b_per_row:
            if source.order != "C":
                raise ValueError("Invalid layout for argument x: factors per row expect rows in C order.")
            columns = math.prod(source.shape[1:])
        target, result = _output(source, out, ordinal, stream)
        launch.shrink(source, target, a, b, columns, ordinal, stream)
        return result


def _workspace(ordinal: int, stream: Any) -> tuple[Any, Sums]:
    """A new workspace with one element more at its end for the penalty, which is not asked for here."""
    size = launch.workspace_size(ordinal)
    array = cuda.device_array(size + 1, np.float64, stream=stream)
    address = address_of(array)
    space = View(address, (size,), "float64", "C", array)
    return array, Sums(space, View(address + space.nbytes, (1,), "float64", "C", array))


def _view_here(array: Any, name: str, ordinal: int, stream: Any) -> View:
    """The memory of another array than x, which kernels on this GPU have to reach."""
    found = view(array, name, stream)
    other = devices.only_reader_of(found.address)
    if other not in (None, ordinal):
        raise ValueError(
            f"Invalid device for argument {name}: expected an array on GPU {ordinal}, where x is. Received: one on "
            f"GPU {other}"
        )
    return found


def _output(x: View, out: Any, ordinal: int, stream: Any) -> tuple[View, Any]:
    """Memory for a result like `x`, and what to return: `out`, or a new array."""
    if out is None:
        array, target = empty_like(x, stream)
        return target, array
    target = _view_here(out, "out", ordinal, stream)
    if target.read_only:
        raise ValueError("Invalid value for argument out: expected a writable array. Received: a read-only one")
    if target.dtype != x.dtype or target.shape != x.shape:
        raise ValueError(
            f"Invalid value for argument out: expected an array of shape {x.shape} and dtype {x.dtype}, as x. "
            f"Received: shape {target.shape}, dtype {target.dtype}"
        )
    if target.order != x.order and x.size > max(x.shape, default=1):
        raise ValueError("Invalid value for argument out: expected the memory layout (C or F order) of x.")
    if target.address != x.address and abs(target.address - x.address) < x.nbytes:
        raise ValueError("Invalid value for argument out: expected x itself or memory apart from it. Received: overlap")
    return target, out


def _is_on_device(value: Any) -> bool:
    if isinstance(value, (np.ndarray, np.generic)):
        return False
    ours = isinstance(value, BFloat16Array) or (SIMULATED and hasattr(value, "_ary"))
    return ours or hasattr(value, "__cuda_array_interface__") or hasattr(value, "__dlpack__")


def _upstream(upstream: Any, ordinal: int, stream: Any) -> Any:
    """As the kernel takes it: a float, or an array of one element on the GPU."""
    if not _is_on_device(upstream):
        return _arrays.scalar(upstream, "upstream")
    scalar = _view_here(upstream, "upstream", ordinal, stream)
    if scalar.size != 1:
        raise TypeError(f"Invalid type for argument upstream: expected a real scalar. Received: shape {scalar.shape}")
    return scalar.flat()


def _factor(value: Any, name: str, rows: int | None, ordinal: int, stream: Any) -> tuple[Any, bool]:
    """A factor as the kernel takes it, and whether it has a value for each row."""
    if not _is_on_device(value):
        if np.ndim(value) == 0:
            return _arrays.factor(value, name), False
        if rows is None:
            raise ValueError(f"Invalid value for argument {name}: expected a scalar for an x without rows.")
        return cuda.to_device(_arrays.row_factors(value, name, rows), stream=stream), True
    factors = _view_here(value, name, ordinal, stream)
    if factors.shape == () or factors.shape == (1,) != (rows,):
        return factors.flat(), False
    if factors.shape != (rows,):
        raise ValueError(
            f"Invalid value for argument {name}: expected a scalar or one value for each of the {rows} rows of x. "
            f"Received: shape {factors.shape}"
        )
    return factors.flat(), True
