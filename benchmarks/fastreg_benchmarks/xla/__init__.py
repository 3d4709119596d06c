"""The suite `xla`: penalties in code that XLA compiles for the processor, against Keras's, and whether targets are met.

1. Value and gradient. 2. The same with an optimizer's update, as one compiled step. 3. A recommender with lazily
regularised tables.
"""

from __future__ import annotations

from rich.console import Console

from fastreg_benchmarks.limits import run_parts
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.xla import penalties, tables

ROW_TYPE = LimitRow

PARTS = (penalties.value_and_gradient, penalties.updates, tables.training)


def run(settings: Settings, console: Console) -> int:
    """Measure everything; 1 if a result was wrong. A target that is missed is reported, no more."""
    return run_parts(PARTS, settings, console)
