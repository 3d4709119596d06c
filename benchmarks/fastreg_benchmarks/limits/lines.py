"""One line of the table of targets."""

from __future__ import annotations

from typing import NamedTuple

from fastreg_benchmarks import stats
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.stats import Ratio, Samples

PASS, FAIL, UNCLEAR, INFORMATION = "pass", "fail", "unclear", "-"

LARGE, QUICK_LARGE = 1 << 26, 1 << 24
"""Elements of the weight to which most targets refer, and of the one that a quick run takes instead."""


class Line(NamedTuple):
    """A target, what was measured, and the verdict; `line` is the target's number."""

    line: int
    what: str
    target: str
    measured: str
    verdict: str


def verdict(met: bool) -> str:
    """Of a figure without an interval."""
    return PASS if met else FAIL


def at_least(ratio: Ratio, target: float) -> str:
    """Of a ratio that should not be below a target; unclear where its interval holds the target."""
    return PASS if ratio.low >= target else FAIL if ratio.high < target else UNCLEAR


def at_most(ratio: Ratio, target: float) -> str:
    """Of a ratio that should not exceed a target; unclear where its interval holds the target."""
    return PASS if ratio.high <= target else FAIL if ratio.low > target else UNCLEAR


def with_medians(ratio: Ratio, first: Samples, second: Samples) -> str:
    """A ratio of two runs, with the medians of both."""
    return f"{ratio}; {' against '.join(duration(stats.quantiles(samples)[1]) for samples in (first, second))}"
