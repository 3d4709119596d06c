"""Part 4: steps that touch from few to all rows of a table, each row once."""

from __future__ import annotations

from collections.abc import Iterator

from fastreg_benchmarks import stats
from fastreg_benchmarks.lazy.rows import Key, measure
from fastreg_benchmarks.limits.lines import INFORMATION, Line
from fastreg_benchmarks.results import LazyRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import Workload

PART = "shares"
ROWS, QUICK_ROWS, WIDTH = 1_000_000, 20_000, 64
SHARES = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


def steps(settings: Settings) -> Iterator[tuple[list[LazyRow], list[Line]]]:
    """Lazy, dense with fastreg's kernels, and Keras, at each share."""
    rows = QUICK_ROWS if settings.quick else ROWS
    for share in SHARES:
        workload = Workload(rows, WIDTH, batch=max(1, round(share * rows)), fields=1, exponent=None)
        keys: list[Key] = [(provider, "sgd", workload) for provider in ("lazy", "fastreg", "keras")]
        measured, samples = measure(PART, keys, settings)
        ratios = [stats.ratio(samples[key], samples[keys[0]]) for key in keys[1:]]
        text = f"{ratios[0]} than dense fastreg, {ratios[1]} than Keras"
        line = Line(4, f"{share:.2%} of {rows:,} rows touched: times faster", "-", text, INFORMATION)
        yield measured, [line]
