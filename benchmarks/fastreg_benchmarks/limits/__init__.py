"""The suite `limits`: the project's performance targets, what is measured, and whether they are met.

1. Kernels' share of the memory bandwidth. 2. Value and gradient through Keras against the limit and against Keras. 3.
Of Keras's time, by size and mode; never slower, at any size. 4. Memory. 5. Accuracy, and the same bits for any number
of threads. 6. Start-up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from rich.console import Console

from fastreg_benchmarks import check, report, results
from fastreg_benchmarks.limits import kernels, processes, training
from fastreg_benchmarks.limits.lines import Line
from fastreg_benchmarks.measure import release
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.settings import Settings

ROW_TYPE = LimitRow

Part = Callable[[Settings], Iterable[Line]]

PARTS = (
    kernels.shares,
    training.through_keras,
    training.by_size,
    training.never_slower,
    processes.memory,
    kernels.accuracy,
    processes.start_up,
)


def run(settings: Settings, console: Console) -> int:
    """Measure all targets; the exit code is 1 if a result was wrong. A target that is missed is reported, no more."""
    return run_parts(PARTS, settings, console)


def run_parts(parts: Sequence[Part], settings: Settings, console: Console) -> int:
    """Measure lines part by part, print and keep them; the exit code is 1 if a result was wrong."""
    rows: list[LimitRow] = []
    for part in parts:
        measured = []
        for line in part(settings):
            measured.append(LimitRow(**asdict(settings.environment), **line._asdict()))
            console.print(f"{line.line}  {line.what}: {line.measured}", style="dim", markup=False)
        release()
        if settings.csv is not None:
            results.append(settings.csv, measured)
        rows += measured
    print_targets(rows, console)
    return 1 if any(row.verdict == check.WRONG for row in rows) else 0


def print_targets(rows: Sequence[LimitRow], console: Console) -> None:
    """The table of targets, and how many were met."""
    console.print(report.limits_table(rows))
    counts = Counter(row.verdict for row in rows)
    console.print(" · ".join(f"{count} {verdict}" for verdict, count in counts.items()))
