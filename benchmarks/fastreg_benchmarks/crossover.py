"""The suite `crossover`: from which size on the kernels, reached through the bridge, beat TensorFlow's ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console

from fastreg._bridges import choose
from fastreg_benchmarks import penalty, results
from fastreg_benchmarks.cases import VALUE_AND_GRADIENT, Case
from fastreg_benchmarks.measure import measure_case, release
from fastreg_benchmarks.providers import EAGER, FUNCTION
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.results import Row
from fastreg_benchmarks.settings import Settings

ROW_TYPE = Row
FORCED, OPS = "fastreg-forced", "fastreg-ops"
SIZES = tuple(1 << power for power in range(23))
CONSTANTS = {FUNCTION: "GRAPH_CROSSOVER", EAGER: "EAGER_CROSSOVER"}


def run(settings: Settings, console: Console) -> int:
    """Measure all sizes, print the ratios and the constants that follow; the exit code is 1 if a result was wrong."""
    settings = replace(settings, providers=(OPS, FORCED))
    rows: list[Row] = []
    for dtype in settings.dtypes:
        measured: list[Row] = []
        for size in settings.sizes:
            case = Case(size, dtype, VALUE_AND_GRADIENT)
            measured += measure_case(case, settings)
            release()
            for mode in settings.modes:
                console.print(_line(measured, case, mode))
        if settings.csv is not None:
            results.append(settings.csv, measured)
        for mode in settings.modes:
            console.print(_conclusion(mode, dtype, crossover(measured, mode)), style="bold")
        rows += measured
    return penalty.exit_code(rows, console)


def crossover(rows: Sequence[Row], mode: str) -> int | None:
    """The smallest size from which the forced bridge is faster at every larger size, or None if it is nowhere."""
    times = {(row.size, row.provider): row.p50_s for row in rows if row.mode == mode}
    smallest = None
    for size in sorted({size for size, _ in times}, reverse=True):
        if times[size, FORCED] >= times[size, OPS]:
            break
        smallest = size
    return smallest


def _line(rows: Sequence[Row], case: Case, mode: str) -> str:
    ops, forced = (
        next(row.p50_s for row in rows if (row.size, row.provider, row.mode) == (case.size, name, mode))
        for name in (OPS, FORCED)
    )
    times = f"TensorFlow's ops {duration(ops):>8}, forced bridge {duration(forced):>8}"
    return f"{mode:>11}  {case.size:>10,} {case.dtype}  {times}, ops / forced {ops / forced:.2f}"


def _conclusion(mode: str, dtype: str, size: int | None) -> str:
    name = CONSTANTS.get(mode, mode)
    now = getattr(choose, name, None)
    found = "the forced bridge is not faster at the largest size" if size is None else _power_of_two(size)
    return f"{name} from {dtype}: {found}" + (f"   (now {_power_of_two(now)})" if now is not None else "")


def _power_of_two(size: int) -> str:
    power = size.bit_length() - 1
    return f"1 << {power} ({size:,})" if size == 1 << power else f"{size:,}"
