"""The suite `lazy`: training steps of lazily regularised tables against dense ones, and whether its targets are met.

1. The step does not grow with the table. 2. Against Keras's layers, regularised and not. 3. Against 1,000 rows.
4. From which share of rows touched on dense is faster. 5. A table of the size of Criteo's, on this machine.
6. Tables of few rows: whether there is a size below which dense is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from rich.console import Console

from fastreg_benchmarks import results
from fastreg_benchmarks.lazy import criteo, figures, shares, sizes
from fastreg_benchmarks.limits import print_targets
from fastreg_benchmarks.limits.lines import Line
from fastreg_benchmarks.measure import release
from fastreg_benchmarks.results import AnyRow, LazyRow, LimitRow
from fastreg_benchmarks.settings import Settings

ROW_TYPE = LazyRow

PARTS = (criteo.steps, sizes.steps, shares.steps)
"""The largest first, in processes of its own: Keras's optimizers keep the graphs of models that are gone, and with them
their tables, so that this one grows."""


def run(settings: Settings, console: Console) -> int:
    """Measure everything; 0, since nothing here has a result that could be wrong. Tests compare results."""
    rows, _ = run_parts(PARTS, settings, console)
    if settings.plot is not None:
        figures.plot(rows, settings.plot)
        console.print(f"plot: {settings.plot}")
    return 0


def run_parts(
    parts: Sequence[Callable[[Settings], Iterable[tuple[list[AnyRow], list[Line]]]]],
    settings: Settings,
    console: Console,
) -> tuple[list[AnyRow], list[Line]]:
    """Measure rows and lines part by part, and print and keep them."""
    lines: list[Line] = []
    rows: list[AnyRow] = []
    for part in parts:
        measured: list[AnyRow] = []
        for row, found in part(settings):
            measured += row
            lines += found
            for line in found:
                console.print(f"{line.line}  {line.what}: {line.measured}", style="dim", markup=False)
            release()
        if settings.csv is not None:
            results.append(settings.csv, measured)
        rows += measured
    lines.sort(key=lambda line: line.line)
    targets = [LimitRow(**asdict(settings.environment), **line._asdict()) for line in lines]
    if settings.csv is not None:
        results.append(settings.csv.with_stem(f"{settings.csv.stem}_targets"), targets)
    print_targets(targets, console)
    return rows, lines
