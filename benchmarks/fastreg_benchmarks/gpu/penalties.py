"""Penalties through TensorFlow on a GPU: fastreg's kernels against Keras's ops, with and without XLA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import tensorflow as tf

from fastreg_benchmarks import stats, timing
from fastreg_benchmarks.cases import VALUE, VALUE_AND_GRADIENT, Case, Inputs
from fastreg_benchmarks.environment import Environment
from fastreg_benchmarks.gpu.rows import GpuRow
from fastreg_benchmarks.measure import prepare, release
from fastreg_benchmarks.providers import EAGER, FUNCTION, JIT, PROVIDERS
from fastreg_benchmarks.timing import Run

PLAN = [("keras", EAGER), ("keras", FUNCTION), ("keras", JIT)]
PLAN += [("fastreg-callback", EAGER), ("fastreg-callback", FUNCTION), ("fastreg", FUNCTION), ("fastreg", JIT)]
RIVAL = ("keras", JIT)


def measure(size: int, dtype: str, seconds: float, where: Environment) -> list[GpuRow]:
    """Time value, and value and gradient, of a variable: every provider in turns, until the GPU is idle."""
    rows = []
    for what in (VALUE, VALUE_AND_GRADIENT):
        inputs = Inputs(Case(size, dtype, what))
        runs = [synchronised(PROVIDERS[name].run(inputs, mode)) for name, mode in PLAN]
        verdicts = [prepare(inputs, PROVIDERS[name], run)[0] for (name, _), run in zip(PLAN, runs, strict=True)]
        samples = timing.measure(runs, seconds).samples
        rival = float(np.median(samples[PLAN.index(RIVAL)]))
        for (name, mode), verdict, values in zip(PLAN, verdicts, samples, strict=True):
            p20, p50, p80 = stats.quantiles(values)
            rows.append(
                GpuRow(
                    **asdict(where),
                    part="penalty",
                    size=size,
                    dtype=dtype,
                    what=what,
                    provider=name,
                    mode=mode,
                    rounds=values.size,
                    p20_s=p20,
                    p50_s=p50,
                    p80_s=p80,
                    gbs=inputs.case.model_bytes / p50 / 1e9,
                    rival=" ".join(RIVAL),
                    share=rival / p50,
                    check=verdict.status,
                )
            )
        del runs, inputs
        release()
    return rows


def synchronised(run: Run) -> Run:
    """The same call, complete when the GPU is: TensorFlow returns as soon as it has enqueued its ops."""
    return replace(run, call=_then_wait(run.call))


def _then_wait(call: Callable[[], Any]) -> Callable[[], Any]:
    def complete() -> Any:
        result = call()
        tf.test.experimental.sync_devices()
        return result

    return complete
