"""The suite `steps`: whole training steps, and what a penalty does to the rest of them.

Models of many layers, TensorFlow's own ops beside the kernels' threads, several penalties at once, and the memory that
`fit` takes on growing tables.
"""

from __future__ import annotations

from rich.console import Console

from fastreg_benchmarks.limits import run_parts
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.steps import memory, models, threads

ROW_TYPE = LimitRow

PARTS = (models.many_layers, threads.beside_other_ops, threads.several_at_once, memory.growing_tables)


def run(settings: Settings, console: Console) -> int:
    """Measure everything; a target that is missed is reported, no more."""
    return run_parts(PARTS, settings, console)
