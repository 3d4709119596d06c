"""The kernels alone: CUDA events, a cold L2 cache, percent of the bandwidth that a copy reaches in the same rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter
from typing import Any

import fastreg_kernels.cuda as kernels
import numpy as np
from fastreg_kernels import reference
from numba import cuda

from fastreg_benchmarks import stats
from fastreg_benchmarks.cases import L1, L2, VALUE_AND_GRADIENT, Case, Inputs
from fastreg_benchmarks.check import OK, ROUNDINGS, SUM_TOLERANCE, WRONG, finfo
from fastreg_benchmarks.environment import Environment
from fastreg_benchmarks.gpu.rows import GpuRow

COPY = "copy"

PASSES = {
    COPY: 2,  # read x + write y, by the driver
    "forward": 1,  # read x
    "backward": 2,  # read x + write g
    "forward_backward": 2,  # read x + write g
    "shrink": 2,  # read x + write y
    "shrink rows": 2,  # read x + write y; the factors of a row are nothing beside it
}
"""The byte model: how often the bytes of x have to cross the memory bus at least."""

FLUSH_BYTES, FLUSHES = 512 << 20, 3
"""Written before each call: far more than an L2 cache holds, and long enough for the host to enqueue what is timed
while the GPU is still busy with it, so that the host's own time is not in the figure."""

COLUMNS = 64
MIN_ROUNDS = 7
SCALE, THRESHOLD = 63 / 64, 1 / 128
"""Exact in every dtype."""


def measure(size: int, dtype: str, seconds: float, where: Environment, flush_bytes: int = FLUSH_BYTES) -> list[GpuRow]:
    """Time each kernel on normal numbers, in turns, for about so many seconds; check each result before."""
    inputs = Inputs(Case(size, dtype, VALUE_AND_GRADIENT))
    stream = cuda.stream()
    x, out = _to_device(inputs.x, stream), _to_device(np.zeros_like(inputs.x), stream)
    calls = _calls(x, out, size, stream)
    checks = {name: _check(name, call(), out, inputs, stream) for name, call in calls.items()}
    junk = cuda.device_array(flush_bytes // 4, np.float32, stream=stream)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    order, deadline = np.random.default_rng(), perf_counter() + seconds
    with cuda.defer_cleanup():  # giving memory back waits for the GPU
        while len(samples[COPY]) < MIN_ROUNDS or perf_counter() < deadline:
            for name in order.permutation(list(calls)):
                samples[name].append(_time(calls[name], junk, stream))
    copied = 2 * inputs.case.nbytes / float(np.median(samples[COPY]))
    rows = []
    for name in calls:
        p20, p50, p80 = stats.quantiles(np.array(samples[name]))
        rate = PASSES[name] * inputs.case.nbytes / p50
        rows.append(
            GpuRow(
                **asdict(where),
                part="kernel",
                size=size,
                dtype=dtype,
                what=name,
                provider="driver" if name == COPY else "kernel",
                mode="events",
                rounds=len(samples[name]),
                p20_s=p20,
                p50_s=p50,
                p80_s=p80,
                gbs=rate / 1e9,
                rival=COPY,
                share=rate / copied,
                check=checks[name],
            )
        )
    return rows


def _calls(x: Any, out: Any, size: int, stream: Any) -> dict[str, Callable[[], Any]]:
    columns = COLUMNS if size % COLUMNS == 0 else 1
    table, target = x.reshape(size // columns, columns), out.reshape(size // columns, columns)
    scale, threshold = (_to_device(np.full(size // columns, value), stream) for value in (SCALE, THRESHOLD))
    return {
        COPY: lambda: out.copy_to_device(x, stream=stream),
        "forward": lambda: kernels.forward(x, stream=stream),
        "backward": lambda: kernels.backward(x, L1, L2, out=out, stream=stream),
        "forward_backward": lambda: kernels.forward_backward(x, L1, L2, out=out, stream=stream)[0],
        "shrink": lambda: kernels.shrink(x, SCALE, THRESHOLD, out=out, stream=stream),
        "shrink rows": lambda: kernels.shrink(table, scale, threshold, out=target, stream=stream),
    }


def _to_device(x: Any, stream: Any) -> Any:
    if x.dtype.name != "bfloat16":
        return cuda.to_device(x, stream=stream)
    return kernels.BFloat16Array(cuda.to_device(x.view(np.uint16), stream=stream))


def _time(call: Callable[[], Any], junk: Any, stream: Any) -> float:
    """Seconds of a call on the GPU."""
    start, stop = cuda.event(), cuda.event()
    for _ in range(FLUSHES):
        kernels.shrink(junk, 0.0, 0.0, out=junk, stream=stream)
    start.record(stream)
    call()
    stop.record(stream)
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _check(name: str, result: Any, out: Any, inputs: Inputs, stream: Any) -> str:
    stream.synchronize()
    if name.startswith("forward"):
        sums = result.copy_to_host(stream=stream)
        stream.synchronize()
        error = np.abs(sums - inputs.sums) / inputs.sums
        # Sums of float32 pairs are as good as this where a thread adds fewer than some thousand elements.
        if not error.max() <= max(SUM_TOLERANCE, 1e-10):
            return WRONG
    if name == "forward":
        return OK
    actual, expected = out.copy_to_host(stream=stream), _EXPECTED[name]
    stream.synchronize()
    limit = ROUNDINGS * float(finfo(inputs.x.dtype).eps)
    for part in inputs.chunks():
        right = expected(inputs.x[part])
        error = np.abs(actual[part].astype(np.float64) - right)
        # Shrinking subtracts: its error is relative to what it subtracts from.
        if not (error <= limit * np.maximum(np.abs(right), np.abs(inputs.x[part].astype(np.float64)))).all():
            return WRONG
    return OK


_EXPECTED: dict[str, Callable[[Any], Any]] = {
    COPY: lambda x: x.astype(np.float64),
    "backward": lambda x: reference.backward(x, L1, L2),
    "forward_backward": lambda x: reference.backward(x, L1, L2),
    "shrink": lambda x: reference.shrink(x, SCALE, THRESHOLD),
    "shrink rows": lambda x: reference.shrink(x, SCALE, THRESHOLD),
}
