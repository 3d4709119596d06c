"""Part 5: one table for the 26 categorical features of the Criteo Kaggle data set, with ids of a power law."""

from __future__ import annotations

from collections.abc import Iterator

from fastreg.compare import memory
from fastreg_benchmarks import stats
from fastreg_benchmarks.environment import physical_memory
from fastreg_benchmarks.lazy.rows import Key, measure
from fastreg_benchmarks.lazy.steps import Workload
from fastreg_benchmarks.limits.lines import INFORMATION, Line
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.results import LazyRow
from fastreg_benchmarks.settings import Settings

PART = "criteo"
CARDINALITIES = (
    *(1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194, 27),
    *(14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572),
)
WORKLOAD = Workload(sum(CARDINALITIES), width=16, batch=2048, fields=len(CARDINALITIES), exponent=1.05)
QUICK_ROWS = 100_000


def steps(settings: Settings) -> Iterator[tuple[list[LazyRow], list[Line]]]:
    """Steps with SGD and with row-wise Adagrad, and the memory they took."""
    rows = QUICK_ROWS if settings.quick else WORKLOAD.rows
    workload = Workload(rows, WORKLOAD.width, WORKLOAD.batch, WORKLOAD.fields, WORKLOAD.exponent)
    key: Key = ("lazy", "sgd", workload)
    memory.reset_peak()
    measured, samples = measure(PART, [key], settings)
    peak = memory.peak()
    text = f"{duration(stats.quantiles(samples[key])[1])} a step"
    text += f", peak memory of the process {peak / 2**30:.1f} of {physical_memory() / 2**30:.1f} GiB"
    table = workload.rows * workload.width * 4 / 2**30
    name = f"{workload.rows:,} rows x {workload.width} ({table:.1f} GiB), {workload.batch} x {workload.fields} ids"
    yield measured, [Line(5, name, "trains", text, INFORMATION)]
