"""Timed steps, their rows of results, and their lines of targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from fastreg_benchmarks import stats, timing
from fastreg_benchmarks.check import WRONG
from fastreg_benchmarks.limits.lines import INFORMATION, Line, at_least, at_most, with_medians
from fastreg_benchmarks.results import RecommenderRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.stats import Samples
from fastreg_benchmarks.timing import Run
from fastreg_benchmarks.workloads import Recommender


class Timed(NamedTuple):
    """Seconds of steps, and whether what they gave was finite."""

    samples: Samples
    finite: bool


def measure(runs: Mapping[str, Run], settings: Settings) -> dict[str, Timed]:
    """Time runs, interleaved."""
    finite = [bool(np.isfinite(timing.warm_up(run)).all()) for run in runs.values()]
    samples = timing.measure(list(runs.values()), settings.seconds * len(runs)).samples
    return dict(zip(runs, map(Timed, samples, finite), strict=True))


def row(
    part: str,
    provider: str,
    workload: Recommender,
    samples: Samples,
    settings: Settings,
    peak_bytes: int | None = None,
) -> RecommenderRow:
    """One row."""
    p20, p50, p80 = stats.quantiles(samples)
    return RecommenderRow(
        **asdict(settings.environment),
        part=part,
        provider=provider,
        tables=len(workload.cardinalities),
        rows=workload.rows,
        width=workload.width,
        batch=workload.batch,
        exponent=workload.exponent,
        rounds=len(samples),
        p20_s=p20,
        p50_s=p50,
        p80_s=p80,
        peak_bytes=peak_bytes,
    )


def compared(
    line: int, what: str, first: Timed, second: Timed, *, least: float | None = None, most: float | None = None
) -> Line:
    """The line of the first over the second, which should be at least or at most so much; or neither."""
    ratio = stats.ratio(first.samples, second.samples)
    target, verdict = "-", INFORMATION
    if least is not None:
        target, verdict = f"at least {least:g}", at_least(ratio, least)
    if most is not None:
        target, verdict = f"at most {most:g}", at_most(ratio, most)
    if not (first.finite and second.finite):
        verdict = WRONG
    return Line(line, what, target, with_medians(ratio, first.samples, second.samples), verdict)
