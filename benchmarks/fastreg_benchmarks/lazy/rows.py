"""Rows of results of timed steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from fastreg_benchmarks import stats, timing
from fastreg_benchmarks.lazy.steps import step
from fastreg_benchmarks.results import LazyRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.stats import Samples
from fastreg_benchmarks.workloads import Workload

Key = tuple[str, str, Workload]
"""Provider, optimizer, workload."""


def measure(part: str, keys: Sequence[Key], settings: Settings) -> tuple[list[LazyRow], dict[Key, Samples]]:
    """Time the steps of these, interleaved."""
    runs = [step(*key) for key in keys]
    for run in runs:
        timing.warm_up(run)
    samples = dict(zip(keys, timing.measure(runs, settings.seconds * len(runs)).samples, strict=True))
    return [row(part, key, samples[key], settings) for key in keys], samples


def row(part: str, key: Key, samples: Samples, settings: Settings) -> LazyRow:
    """One row."""
    provider, optimizer, workload = key
    p20, p50, p80 = stats.quantiles(samples)
    return LazyRow(
        **asdict(settings.environment),
        part=part,
        provider=provider,
        optimizer=optimizer,
        rows=workload.rows,
        width=workload.width,
        lookups=workload.batch * workload.fields,
        exponent=workload.exponent,
        rounds=len(samples),
        p20_s=p20,
        p50_s=p50,
        p80_s=p80,
    )
