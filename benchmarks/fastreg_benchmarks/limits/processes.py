"""Lines 4 and 6: peak memory and start-up, in processes of their own."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator

from fastreg_benchmarks import child
from fastreg_benchmarks.cases import PASSES, VALUE, Case
from fastreg_benchmarks.limits.lines import INFORMATION, LARGE, QUICK_LARGE, Line, verdict
from fastreg_benchmarks.providers import DIRECT, EAGER, FUNCTION
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.settings import Settings

PROCESSES = (
    ("kernel", DIRECT),
    ("fastreg", EAGER),
    ("fastreg", FUNCTION),
    ("keras", EAGER),
    ("keras", FUNCTION),
)

SLACK_BYTES = 16 << 20
"""What a process allocates by the way: not of the size of x, and none of the penalty's business."""

MOST_IMPORT_SECONDS, MOST_FIRST_CALL_SECONDS, MOST_COMPILE_SECONDS = 0.5, 0.1, 5.0
START_UPS, QUICK_START_UPS = 5, 2


def memory(settings: Settings) -> Iterator[Line]:
    """Line 4: how much peak memory grows, in units of the size of x; Keras for comparison."""
    for what in PASSES:
        case = Case(QUICK_LARGE if settings.quick else LARGE, "float32", what)
        buffers = 0 if what == VALUE else 1
        for provider, mode in PROCESSES:
            arguments = {"provider": provider, "mode": mode, **vars(case)}
            grown = child.run("memory", arguments)
            target = INFORMATION if provider == "keras" else f"{buffers} x the size of x"
            name = f"memory of {provider}, {mode}, {case}"
            if grown is None:
                yield Line(4, name, target, "this system does not tell", INFORMATION)
                continue
            met = grown <= buffers * case.nbytes + SLACK_BYTES
            measured = f"{grown / case.nbytes:.2f} x, {grown >> 20:,} MiB"
            yield Line(4, name, target, measured, INFORMATION if provider == "keras" else verdict(met))


def start_up(settings: Settings) -> Iterator[Line]:
    """Line 6: the import, and the first call when compiled kernels are in their cache, and when they are not."""
    child.run("start_up", {})  # fills the caches
    times = [child.run("start_up", {}) for _ in range(QUICK_START_UPS if settings.quick else START_UPS)]
    for name, what, most in (
        ("import", "`import fastreg` after TensorFlow and Keras", MOST_IMPORT_SECONDS),
        ("first_call", "first value + gradient with a warm cache", MOST_FIRST_CALL_SECONDS),
    ):
        seconds = statistics.median(entry[name] for entry in times)
        yield Line(6, what, f"under {duration(most)}", duration(seconds), verdict(seconds < most))
    with tempfile.TemporaryDirectory() as empty:
        seconds = child.run("start_up", {}, {"NUMBA_CACHE_DIR": empty})["first_call"]
    what, most = "first value + gradient, with its kernels to be compiled", MOST_COMPILE_SECONDS
    yield Line(6, what, f"under {duration(most)}", duration(seconds), verdict(seconds < most))
