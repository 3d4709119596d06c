"""Statistics of timings: quantiles, and ratios with the interval that paired repetitions support."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""Bootstrap resamples; the ends of a 95% interval then rest on 50 of them each."""

Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95% interval."""

    value: float
    low: float
    high: float

    def inverse(self) -> Ratio:
        """The ratio the other way round."""
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low)

    def __str__(self) -> str:
        digits = 3 if self.value < 10 else 1
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def quantiles(samples: Samples) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile."""
    p20, p50, p80 = np.percentile(samples, (20, 50, 80))
    return float(p20), float(p50), float(p80)


def _resampled_medians(rounds: int, *samples: Samples) -> list[Samples]:
    # Drawn with a fixed seed: one set of timings has one interval.
    drawn = np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))
    return [np.median(values[drawn], axis=1) for values in samples]


def ratio(numerator: Samples, denominator: Samples) -> Ratio:
    """The ratio of the medians of two runs that were timed in the same rounds, with its bootstrap interval.

    Whole rounds are resampled, so that what disturbed both runs of a round alike cancels out.

    Parameters
    ----------
    numerator, denominator : ndarray of float64, shape (rounds,)
        Timings; those at one index were taken in one round.

    Raises
    ------
    ValueError
        If the shapes differ: there are no pairs then.
    """
    if numerator.shape != denominator.shape:
        raise ValueError(f"Expected timings of the same rounds. Received: {numerator.shape}, {denominator.shape}")
    above, below = _resampled_medians(numerator.size, numerator, denominator)
    return _with_interval(np.median(numerator) / np.median(denominator), above / below)


def difference(first: Samples, second: Samples) -> Ratio:
    """The difference of the medians of two runs, with its interval as in `ratio`."""
    minuend, subtrahend = _resampled_medians(first.size, first, second)
    return _with_interval(np.median(first) - np.median(second), minuend - subtrahend)


def _with_interval(value: Any, resampled: Samples) -> Ratio:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Ratio(float(value), float(low), float(high))
