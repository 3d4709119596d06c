"""One case by all its providers: warmed up, checked, timed in turns, and compared."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import fastreg
from fastreg._bridges import counters
from fastreg.cli import UsageError
from fastreg_benchmarks import bandwidth, check, environment, stats, timing
from fastreg_benchmarks.cases import Case, Inputs
from fastreg_benchmarks.providers import Provider, plan
from fastreg_benchmarks.results import Row
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.stats import Ratio, Samples
from fastreg_benchmarks.timing import Run

COPIES = 8
"""Arrays of the size of x that a case needs in memory at most: inputs, gradients, the temporaries of Keras's ops."""

COLD_BYTES = 1 << 20
"""An x of this size or more is measured with cold caches; reading a smaller one costs next to nothing, wherever it is,
beside the fixed cost of a call."""


def require_memory(case: Case) -> None:
    """Refuse a case that does not fit into the machine's memory."""
    needed = COPIES * case.nbytes
    if needed > environment.physical_memory():
        raise UsageError(f"{case.size:,} {case.dtype} need about {needed / 2**30:,.0f} GiB, more than this machine has")


def measure_case(case: Case, settings: Settings) -> list[Row]:
    """The rows of a case: every provider and mode of the settings that can compute it."""
    inputs = Inputs(case)
    chosen = plan(case, settings.providers, settings.modes)
    runs = [provider.run(inputs, mode) for provider, mode in chosen]
    checked = [prepare(inputs, provider, run) for (provider, _), run in zip(chosen, runs, strict=True)]
    probed = case.nbytes >= bandwidth.MEMORY_BYTES
    if probed:  # beside the others: bandwidth changes with what else the machine does
        runs.append(Run(bandwidth.Probe(case.nbytes).limit(case.what)))
        timing.warm_up(runs[-1])
    timings = time_case(case, runs, settings)
    limit = stats.quantiles(timings.samples[-1])[1] if probed else settings.bandwidth.seconds(case)
    cold = case.nbytes >= (bandwidth.MEMORY_BYTES if settings.warm else COLD_BYTES)
    rows = []
    for index, (provider, mode) in enumerate(chosen):
        samples = timings.samples[index]
        p20, p50, p80 = stats.quantiles(samples)
        verdict, bridge = checked[index]
        best_keras, speedup = _against_best(chosen, timings.samples, samples)
        mode_speedup = _against_mode(chosen, timings.samples, samples, mode)
        rows.append(
            Row(
                **asdict(settings.environment),
                suite=settings.suite,
                size=case.size,
                dtype=case.dtype,
                what=case.what,
                provider=provider.name,
                mode=mode,
                bridge=bridge,
                caches="cold" if cold else "warm",
                rounds=samples.size,
                calls=timings.calls[index],
                p20_s=p20,
                p50_s=p50,
                p80_s=p80,
                gbs=case.model_bytes / p50 / 1e9,
                limit_s=limit,
                limit_share=limit / p50,
                best_keras=best_keras,
                **_columns("speedup", speedup),
                **_columns("mode_speedup", mode_speedup),
                check=verdict.status,
                value_error=verdict.value_error,
                gradient_error=verdict.gradient_error,
            )
        )
    return rows


def time_case(case: Case, runs: Sequence[Run], settings: Settings) -> timing.Timings:
    """Time the runs of a case, with cold caches where its size and the settings ask for it."""
    flush = not settings.warm and COLD_BYTES <= case.nbytes < bandwidth.MEMORY_BYTES
    return timing.measure(runs, settings.seconds, flush)


def release() -> None:
    """Give back what the last case left: its graphs are cycles, and its gradients are kept for reuse."""
    gc.collect()
    fastreg.clear_buffers()


def prepare(inputs: Inputs, provider: Provider, run: Run) -> tuple[check.Verdict, str]:
    """Warm a run up and check its result; also what bridge served it, if it is one of fastreg's."""
    before = Counter(counters.choices)
    value, gradient = provider.read(timing.warm_up(run))
    served = Counter(counters.choices) - before
    bridge = "/".join(sorted({choice.bridge for choice in served}))
    in_dtype = provider.accumulates_in_dtype or bridge == "tensorflow"
    return check.check(inputs, value, gradient, in_dtype), bridge


def _columns(name: str, ratio: Ratio | None) -> dict[str, Any]:
    values = (None, None, None) if ratio is None else (ratio.value, ratio.low, ratio.high)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


Plan = Sequence[tuple[Provider, str]]


def _against_best(plan: Plan, all_samples: Sequence[Samples], samples: Samples) -> tuple[str | None, Ratio | None]:
    baselines = [
        (stats.quantiles(all_samples[index])[1], index) for index, (provider, _) in enumerate(plan) if provider.baseline
    ]
    if not baselines:
        return None, None
    _, index = min(baselines)
    return plan[index][1], stats.ratio(all_samples[index], samples)


def _against_mode(plan: Plan, all_samples: Sequence[Samples], samples: Samples, mode: str) -> Ratio | None:
    for index, (provider, baseline_mode) in enumerate(plan):
        if provider.baseline and baseline_mode == mode:
            return stats.ratio(all_samples[index], samples)
    return None
