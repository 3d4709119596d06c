"""Part 5: one table for the 26 categorical features of the Criteo Kaggle data set, with ids of a power law."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from fastreg_benchmarks import child, stats
from fastreg_benchmarks.environment import physical_memory
from fastreg_benchmarks.lazy.rows import row
from fastreg_benchmarks.limits.lines import INFORMATION, Line, verdict
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.results import LazyRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import CARDINALITIES, Workload

PART = "criteo"
WORKLOAD = Workload(sum(CARDINALITIES), width=16, batch=2048, fields=len(CARDINALITIES), exponent=1.05)
QUICK_ROWS = 100_000

PROVIDERS = {"lazy": "lazy", "keras-plain": "Keras without a regularizer", "keras": "Keras with L1L2"}


def steps(settings: Settings) -> Iterator[tuple[list[LazyRow], list[Line]]]:
    """Steps with SGD and the memory that they take, each in a process that may take as much as the machine has."""
    workload = replace(WORKLOAD, rows=QUICK_ROWS) if settings.quick else WORKLOAD
    table = workload.rows * workload.width * 4 / 2**30
    size = f"{workload.rows:,} rows x {workload.width} ({table:.1f} GiB), {workload.batch} x {workload.fields} ids"
    allowed = physical_memory()
    for provider, name in PROVIDERS.items():
        step = {"provider": provider, "optimizer": "sgd", "workload": asdict(workload)}
        found = child.attempt("lazy_steps", {**step, "seconds": settings.seconds, "allowed": allowed})
        rows = []
        if found is not None:
            rows.append(row(PART, (provider, "sgd", workload), np.array(found["seconds"]), settings))
        measured = step_and_peak(found, allowed)
        target, result = ("trains", verdict(found is not None)) if provider == "lazy" else ("-", INFORMATION)
        yield rows, [Line(5, f"{name}: {size}", target, measured, result)]


def step_and_peak(found: Mapping[str, Any] | None, allowed: int) -> str:
    """What a process found, in words: its median step and the memory that it took; it found nothing if it failed."""
    if found is None:
        return "fails"
    seconds = duration(stats.quantiles(np.array(found["seconds"]))[1])
    return f"{seconds} a step, peak memory {found['peak'] / 2**30:.1f} GiB of {allowed / 2**30:.1f}"
