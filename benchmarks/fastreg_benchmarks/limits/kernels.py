"""Lines 1 and 5: the kernels' share of the machine's bandwidth, their accuracy, and their bits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import fastreg_kernels
import numpy as np
from fastreg_kernels import reference

from fastreg_benchmarks import bandwidth, child, stats, timing
from fastreg_benchmarks.cases import L1, L2, VALUE, Case, Inputs
from fastreg_benchmarks.check import ROUNDINGS, SUM_TOLERANCE, WRONG, finfo
from fastreg_benchmarks.limits.lines import LARGE, QUICK_LARGE, Line, at_least, verdict
from fastreg_benchmarks.settings import Settings

FORWARD_SHARE, OTHER_SHARE = 0.90, 0.85
OTHER_DTYPES_LESS = 0.05
LARGEST_SUM_ERROR = 1e-7
_THREADS = 8

_SCALE, _THRESHOLD = 0.9999, 1e-5
"""Of the shrink in place: so mild that x stays what it is over all the repetitions."""


def shares(settings: Settings) -> Iterator[Line]:
    """Line 1, for every dtype: each kernel in turns with the probe that moves as many bytes."""
    for dtype in fastreg_kernels.DTYPES:
        case = Case(QUICK_LARGE if settings.quick else LARGE, dtype, VALUE)
        inputs, probe = Inputs(case), bandwidth.Probe(case.nbytes)
        x, out = inputs.x, inputs.out
        # Byte models: forward reads x; backward and forward_backward read x + write g; shrink reads and writes x.
        kernels: list[tuple[str, Callable[[], Any], int, float]] = [  # name, call, probe, share to reach
            ("forward", partial(fastreg_kernels.forward, x), 0, FORWARD_SHARE),
            ("backward", partial(fastreg_kernels.backward, x, L1, L2, out=out), 1, OTHER_SHARE),
            ("forward_backward", partial(fastreg_kernels.forward_backward, x, L1, L2, out=out), 1, OTHER_SHARE),
            ("shrink in place", partial(fastreg_kernels.shrink, x, _SCALE, _THRESHOLD, out=x), 2, OTHER_SHARE),
        ]
        wrong = _wrong_kernels(inputs)
        probes = [timing.Run(call) for call in (probe.read, probe.copy, probe.scale)]
        runs = [*probes, *(timing.Run(call) for _, call, _, _ in kernels)]
        for run in runs:
            timing.warm_up(run)
        samples = timing.measure(runs, settings.seconds).samples
        for index, (name, _, probe_index, share) in enumerate(kernels):
            target = share - (0 if dtype == "float32" else OTHER_DTYPES_LESS)
            ours = samples[len(probes) + index]
            reached = stats.ratio(samples[probe_index], ours)
            limit = ("read", "copy", "scale in place")[probe_index]
            moved = case.nbytes * (1 if limit == "read" else 2)
            rates = [moved / 1e9 / stats.quantiles(which)[1] for which in (ours, samples[probe_index])]
            yield Line(
                1,
                f"{name}, {case.size:,} {dtype}",
                f"at least {target:.2f} of {limit}",
                f"{reached}; {rates[0]:.0f} of {rates[1]:.0f} GB/s",
                WRONG if name in wrong else at_least(reached, target),
            )


def _wrong_kernels(inputs: Inputs) -> set[str]:
    """Names of the kernels whose result on the first elements differs from the oracle's."""
    x = inputs.x[: next(inputs.chunks()).stop].copy()
    sums, gradient = fastreg_kernels.forward_backward(x, L1, L2)
    tolerance = ROUNDINGS * float(finfo(x.dtype).eps)
    results = {
        "forward": (fastreg_kernels.forward(x), reference.forward(x), SUM_TOLERANCE),
        "backward": (fastreg_kernels.backward(x, L1, L2), reference.backward(x, L1, L2), tolerance),
        "forward_backward": (gradient, reference.backward(x, L1, L2), tolerance),
        "shrink in place": (
            fastreg_kernels.shrink(x, _SCALE, _THRESHOLD),
            reference.shrink(x, _SCALE, _THRESHOLD),
            tolerance,
        ),
    }
    wrong = {
        name
        for name, (result, expected, allowed) in results.items()
        if not np.allclose(result.astype(np.float64), expected, rtol=allowed, atol=1e-6)
    }
    return wrong if np.array_equal(sums, results["forward"][0]) else wrong | {"forward_backward"}


def accuracy(settings: Settings) -> Iterator[Line]:
    """Line 5: the error of the sums, and whether the number of threads shows in any bit."""
    inputs = Inputs(Case(QUICK_LARGE if settings.quick else LARGE, "float32", VALUE))
    errors = np.abs(fastreg_kernels.forward(inputs.x) / inputs.sums - 1)
    yield Line(
        5,
        f"relative error of the sums of {inputs.case.size:,} float32",
        f"below {LARGEST_SUM_ERROR:g}",
        f"{errors.max():.1e}",
        verdict(errors.max() < LARGEST_SUM_ERROR),
    )
    threads = max(_THREADS, os.cpu_count() or 1)
    different = child.run("bits", {"size": (1 << 20) + 3, "threads": threads}, {"NUMBA_NUM_THREADS": str(threads)})
    yield Line(5, f"bits with 1 to {threads} threads", "one result", f"{different}", verdict(different == 1))
