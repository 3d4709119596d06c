"""The suite `penalty`: sizes x dtypes x modes, value and value + gradient, every provider."""

from __future__ import annotations

from rich.console import Console

from fastreg_benchmarks import check, report, results
from fastreg_benchmarks.cases import PASSES, Case
from fastreg_benchmarks.measure import measure_case, release
from fastreg_benchmarks.results import Row
from fastreg_benchmarks.settings import Settings

ROW_TYPE = Row


def run(settings: Settings, console: Console) -> int:
    """Measure all cases; the exit code is 1 if any result was wrong."""
    rows: list[Row] = []
    for case in cases(settings):
        measured = measure_case(case, settings)
        release()
        console.print(report.case_table(str(case), measured))
        if settings.csv is not None:  # case by case, so that a run that is interrupted leaves what it has
            results.append(settings.csv, measured)
        rows += measured
    if settings.plot is not None:
        from fastreg_benchmarks import figures

        figures.plot(rows, settings.plot)
        console.print(f"plot: {settings.plot}")
    return exit_code(rows, console)


def cases(settings: Settings) -> list[Case]:
    """Every case of the settings, dtype by dtype."""
    return [Case(size, dtype, what) for dtype in settings.dtypes for size in settings.sizes for what in PASSES]


def exit_code(rows: list[Row], console: Console) -> int:
    """1, and a line for each, if results were wrong."""
    wrong = [row for row in rows if row.check == check.WRONG]
    for row in wrong:
        errors = f"value off by {row.value_error}, gradient by {row.gradient_error}"
        case = Case(row.size, row.dtype, row.what)
        console.print(f"{check.WRONG}: {row.provider}, {row.mode}, {case}: {errors}", style="bold red")
    return 1 if wrong else 0
