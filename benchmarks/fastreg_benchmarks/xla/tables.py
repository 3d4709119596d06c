"""Line 3: a step of the recommender as XLA compiles it, with small and with large tables."""

from __future__ import annotations

from collections.abc import Iterator

from fastreg_benchmarks.lazy.sizes import SMALL
from fastreg_benchmarks.limits.lines import Line
from fastreg_benchmarks.recommender import capped
from fastreg_benchmarks.recommender.models import NAMES, steps
from fastreg_benchmarks.recommender.rows import compared, measure
from fastreg_benchmarks.settings import Settings

PLAIN = "keras-plain"
MOST_OF_SMALL, MOST_OF_PLAIN = 1.3, 1.0
"""Of a step with small tables, and of Keras's with large ones and no regularizer."""


def training(settings: Settings) -> Iterator[Line]:
    """Lazily regularised tables against Keras's without a regularizer, and the large ones against the small."""
    large = capped.capped(settings)
    workloads = {f"tables of {SMALL:,}": capped.WORKLOAD.resized(SMALL), capped.described(large): large}
    lazy = {f"lazy, {words}": steps("lazy", workload, jit=True).fit for words, workload in workloads.items()}
    plain = {f"{PLAIN}, {words}": steps(PLAIN, workload, jit=True).fit for words, workload in workloads.items()}
    timed = measure({**lazy, **plain}, settings)
    under, over = workloads
    for words, most in ((under, None), (over, MOST_OF_PLAIN)):
        what = f"step of the recommender, {words}: lazy over {NAMES[PLAIN]}"
        yield compared(3, what, timed[f"lazy, {words}"], timed[f"{PLAIN}, {words}"], most=most)
    what = f"step of the recommender, lazy: {over} over {under}"
    yield compared(3, what, timed[f"lazy, {over}"], timed[f"lazy, {under}"], most=MOST_OF_SMALL)
