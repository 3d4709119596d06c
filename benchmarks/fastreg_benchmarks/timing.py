"""Interleaved timing: every run once per round, in an order drawn anew, as many rounds as the time allows."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from fastreg_benchmarks.stats import Samples

WARM_UP_CALLS = 12
"""In training, fastreg computes the gradient ahead once two steps had the same upstream gradient, and moves a large
variable to huge pages in the steps after its first: calls after these are the steady state."""

MIN_ROUNDS = 5

MIN_SAMPLE_SECONDS = 1e-3
"""Shorter calls are repeated until a sample takes so long, after one that does not count: what the previous run left in
the caches, and its threads that still spin, then matter little, as the resolution of the clock does."""

FLUSH_BYTES = 64 << 20
"""More than the caches hold."""


@dataclass(frozen=True)
class Run:
    """Something to time.

    Attributes
    ----------
    call : callable
        Computes the result and returns it when it is complete.
    scope : callable
        Gives a context manager that is entered, untimed, around every group of calls.
    clock : callable, optional
        Takes a number of calls and returns the seconds of one, where the calls happen, and are timed, in another
        process.
    """

    call: Callable[[], Any]
    scope: Callable[[], AbstractContextManager[Any]] = nullcontext
    clock: Callable[[int], float] | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds per call of each run, one array of shape (rounds,) per run, and the calls that each sample averages."""

    samples: list[Samples]
    calls: list[int]


Batch = TypeVar("Batch")


def in_turns(step: Callable[[Batch], Any], batches: Sequence[Batch]) -> Run:
    """A run that takes a step on the next of some batches at every call."""
    endless = itertools.cycle(batches)
    return Run(lambda: step(next(endless)))


def warm_up(run: Run) -> Any:
    """Call a run until it is in its steady state, and return the last result, to be checked."""
    with run.scope():
        for _ in range(WARM_UP_CALLS - 1):
            run.call()
        return run.call()


def measure(runs: Sequence[Run], seconds: float, flush: bool = False) -> Timings:
    """Time runs that are warm, for about so many seconds in all, but at least `MIN_ROUNDS` rounds.

    Parameters
    ----------
    flush : bool
        Empty the caches, untimed, before every sample, which then is a single call: in training, a weight comes from
        memory, since a whole model has been read since its last penalty, but called again at once it comes from a
        cache.
    """
    calls = [1] * len(runs) if flush else [_calls_per_sample(run) for run in runs]
    elsewhere = np.ones(FLUSH_BYTES // 8) if flush else None
    rounds: list[list[float]] = []
    # No run always follows the same neighbour, whose caches, freed pages and still spinning threads it would inherit.
    order = np.random.default_rng()
    deadline = perf_counter() + seconds
    while len(rounds) < MIN_ROUNDS or perf_counter() < deadline:
        row = [0.0] * len(runs)
        for index in order.permutation(len(runs)):
            if elsewhere is not None:
                elsewhere.sum()
            row[index] = sample(runs[index], calls[index])
        rounds.append(row)
    return Timings([np.array(column) for column in zip(*rounds, strict=True)], calls)


def _calls_per_sample(run: Run) -> int:
    once = min(sample(run, 1) for _ in range(2))
    return max(1, math.ceil(MIN_SAMPLE_SECONDS / max(once, 1e-7)))


def sample(run: Run, calls: int) -> float:
    """Seconds per call, averaged over so many calls in a row."""
    if run.clock is not None:
        return run.clock(calls)
    call = run.call
    collecting = gc.isenabled()
    gc.disable()  # a collection walks TensorFlow's whole heap, at the expense of whichever run it hits
    try:
        with run.scope():
            if calls > 1:
                call()
            start = perf_counter()
            for _ in range(calls):
                call()
            return (perf_counter() - start) / calls
    finally:
        if collecting:
            gc.enable()
