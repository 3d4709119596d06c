"""The suite `recommender`: a model with the tables of a real data set, regularised lazily, and whether targets are met.

1. The lazily regularised model is Keras's where it should be. 2. Its training step against Keras's layers, regularised
and not, and against small tables. 3. The step does not grow with the tables. 4. Whole tables, on this machine. 5. Steps
of prediction and evaluation. 6. PyTorch and FBGEMM.
"""

from __future__ import annotations

from rich.console import Console

from fastreg_benchmarks.check import WRONG
from fastreg_benchmarks.lazy import run_parts
from fastreg_benchmarks.recommender import agreement, capped, rivals, uncapped
from fastreg_benchmarks.results import RecommenderRow
from fastreg_benchmarks.settings import Settings

ROW_TYPE = RecommenderRow

PARTS = (agreement.weights, uncapped.steps, rivals.with_memory, capped.growth, capped.against_keras, rivals.in_turns)
"""The whole tables, in processes of their own, before this one grows."""


def run(settings: Settings, console: Console) -> int:
    """Measure everything; 1 if weights or losses were wrong. A target that is missed is reported, no more."""
    _, lines = run_parts(PARTS, settings, console)
    return 1 if any(line.verdict == WRONG for line in lines) else 0
