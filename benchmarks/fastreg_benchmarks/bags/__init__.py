"""The suite `bags`: what recommenders and wide models do besides looking single rows up, and whether targets are met.

1. Bags of ids, summed, against `keras_rs` and FBGEMM, neither with a regularizer. 2. A linear model of tables of width
1 that Ftrl trains, against Keras's.
"""

from __future__ import annotations

from rich.console import Console

from fastreg_benchmarks.bags import linear, pooled
from fastreg_benchmarks.limits import run_parts
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.settings import Settings

ROW_TYPE = LimitRow

PARTS = (pooled.training, linear.training)


def run(settings: Settings, console: Console) -> int:
    """Measure everything; 1 if weights were wrong. A target that is missed is reported, no more."""
    return run_parts(PARTS, settings, console)
