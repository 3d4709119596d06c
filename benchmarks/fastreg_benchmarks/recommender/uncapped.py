"""Line 4: all rows of Criteo's tables, each provider in a process that may take as much as the machine has."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from fastreg_benchmarks import child
from fastreg_benchmarks.environment import physical_memory
from fastreg_benchmarks.lazy.criteo import PROVIDERS, step_and_peak
from fastreg_benchmarks.limits.lines import INFORMATION, Line, verdict
from fastreg_benchmarks.recommender import capped
from fastreg_benchmarks.recommender.rows import row
from fastreg_benchmarks.results import RecommenderRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import Recommender

PART = "uncapped"
QUICK_CAP = 500_000


def whole(settings: Settings) -> Recommender:
    """The workload with whole tables; a quick run cuts them."""
    return capped.WORKLOAD.capped(QUICK_CAP) if settings.quick else capped.WORKLOAD


def described(workload: Recommender) -> str:
    """Its size in words."""
    gib = workload.rows * workload.width * 4 / 2**30
    return f"{len(workload.cardinalities)} tables of {workload.rows:,} rows x {workload.width} ({gib:.1f} GiB)"


def steps(settings: Settings) -> Iterator[tuple[list[RecommenderRow], list[Line]]]:
    """Steps of training and the memory that they take."""
    workload, allowed = whole(settings), physical_memory()
    for provider, name in PROVIDERS.items():
        arguments = {"provider": provider, "workload": asdict(workload), "seconds": settings.seconds}
        found = child.attempt("recommender_steps", {**arguments, "allowed": allowed})
        rows = []
        if found is not None:
            rows.append(row(PART, provider, workload, np.array(found["seconds"]), settings, found["peak"]))
        target, result = "-", INFORMATION
        if provider == "lazy":
            target, result = "trains", verdict(found is not None and math.isfinite(found["loss"]))
        yield rows, [Line(4, f"{name}: {described(workload)}", target, step_and_peak(found, allowed), result)]
