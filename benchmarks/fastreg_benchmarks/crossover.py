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
OPS = "fastreg-ops"
SIZES = tuple(1 << power for power in range(23))
CONSTANTS = {
    ("fastreg-native", FUNCTION): "NATIVE_CROSSOVER",
    ("fastreg-native", EAGER): "NATIVE_CROSSOVER",
    ("fastreg-callback", FUNCTION): "GRAPH_CROSSOVER",
    ("fastreg-callback", EAGER): "EAGER_CROSSOVER",
}
"""By provider and mode; native ops have one, so it is the larger of the two."""

MODES = (EAGER, FUNCTION)
_FORCED = ("fastreg-native", "fastreg-callback")


def run(settings: Settings, console: Console) -> int:
    """Measure all sizes, print the ratios and the constants that follow; the exit code is 1 if a result was wrong."""
    settings = replace(settings, providers=(OPS, *_FORCED))
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
        for provider in _FORCED:
            for mode in settings.modes:
                console.print(_conclusion(provider, mode, dtype, crossover(measured, provider, mode)), style="bold")
        rows += measured
    return penalty.exit_code(rows, console)


def crossover(rows: Sequence[Row], provider: str, mode: str) -> int | None:
    """The smallest size from which a provider is faster at every larger size, or None if it is nowhere."""
    times = {(row.size, row.provider): row.p50_s for row in rows if row.mode == mode}
    smallest = None
    for size in sorted({size for size, _ in times}, reverse=True):
        if times[size, provider] >= times[size, OPS]:
            break
        smallest = size
    return smallest


def _line(rows: Sequence[Row], case: Case, mode: str) -> str:
    times = {row.provider: row.p50_s for row in rows if (row.size, row.mode) == (case.size, mode)}
    ratios = ", ".join(f"{name} {duration(times[name]):>8} ({times[OPS] / times[name]:.2f}x)" for name in _FORCED)
    return f"{mode:>11}  {case.size:>10,} {case.dtype}  TensorFlow's ops {duration(times[OPS]):>8}, {ratios}"


def _conclusion(provider: str, mode: str, dtype: str, size: int | None) -> str:
    name = CONSTANTS[provider, mode]
    now = getattr(choose, name)
    found = "not faster at the largest size" if size is None else _power_of_two(size)
    return f"{name} from {dtype}, {mode}: {found}   (now {_power_of_two(now)})"


def _power_of_two(size: int) -> str:
    power = size.bit_length() - 1
    return f"1 << {power} ({size:,})" if size == 1 << power else f"{size:,}"
