"""The command line of the soak, and its loop."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import fastreg_kernels
import keras
import tensorflow as tf
from rich.console import Console
from rich.table import Table

import fastreg
from fastreg.compare import memory
from fastreg_benchmarks import report
from fastreg_benchmarks.environment import use_host_only
from fastreg_benchmarks.soak import compare
from fastreg_benchmarks.soak.cases import Case, Training, draw
from fastreg_benchmarks.soak.training import Notes, run

WARM_CASES = 10
"""After which memory counts: libraries, threads and compiled kernels are there by then."""

NUDGES = (1, 2, 3, 4)
"""Seeds of changes of the start by a rounding, after which Keras's own training shows how much rounding can do."""

SHOWN = 8
"""Differences of a training that are printed, the first ones."""

AGREES, ROUNDING, REFUSED, DIFFERS, FAILED = "agrees", "rounding", "refused", "DIFFERS", "FAILED"


@dataclass
class Verdict:
    """Of one training: what came of it, and what to print of that."""

    outcome: str
    details: list[str] = field(default_factory=list)


@dataclass
class Totals:
    """What a soak counts."""

    trainings: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[int] = field(default_factory=list)
    growth: Counter[str] = field(default_factory=Counter)

    def add(self, case: Case, verdicts: Sequence[Verdict]) -> None:
        """One case."""
        self.trainings += len(verdicts)
        if any(verdict.outcome in (DIFFERS, FAILED) for verdict in verdicts):
            self.wrong.append(case.seed)
        self._count("bridge", case.bridge)
        self._count("at once", str(len(case.trainings)))
        for training, verdict in zip(case.trainings, verdicts, strict=True):
            self._count("outcome", verdict.outcome)
            for name in ("model", "tables", "penalties", "policy", "optimizer", "execution"):
                self._count(name, getattr(training, name))
            for option, _ in training.options:
                self._count("option", option)
            for mode in training.modes:
                self._count("mode", mode)

    def _count(self, what: str, value: str) -> None:
        self.counts.setdefault(what, Counter())[value] += 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, on Linux, which tells about memory; 1 if a training differed or failed."""
    options = _parser().parse_args(arguments)
    warnings.simplefilter("ignore")
    tf.get_logger().setLevel("ERROR")  # new models are new traces
    use_host_only()
    console = report.console()
    if options.case is not None:
        return int(bool(soak([options.case], float("inf"), console).wrong))
    seed = random.SystemRandom().randrange(10**6) * 10**6 if options.seed is None else options.seed
    console.print(f"soak: {options.minutes:g} minutes from seed {seed}; `--case SEED` runs a case again")
    totals = soak(range(seed, seed + 10**6), options.minutes * 60, console)
    return int(bool(totals.wrong))


def soak(seeds: Sequence[int], seconds: float, console: Console) -> Totals:
    """Run the cases of these seeds, until the time is over, and print what came of them."""
    start, totals, resident = time.monotonic(), Totals(), None
    calls, floatx = fastreg.info()["kernel_calls"], keras.config.floatx()
    bridge, threads = fastreg.get_bridge(), fastreg_kernels.get_num_threads()
    try:
        for number, seed in enumerate(seeds):
            if time.monotonic() - start > seconds:
                break
            if number == WARM_CASES:
                resident = memory.status("VmRSS"), memory.peak()
                totals.growth.clear()
            case = draw(seed)
            verdicts = run_case(case, totals.growth)
            totals.add(case, verdicts)
            _print(case, verdicts, console, loud=len(seeds) == 1)
    finally:
        keras.config.set_floatx(floatx)
        fastreg.set_bridge(bridge)
        fastreg.set_num_threads(threads)
    _print_totals(totals, console)
    console.print(f"{time.monotonic() - start:.0f} s, {fastreg.info()['kernel_calls'] - calls:,} calls of kernels")
    if resident is not None:
        now = memory.status("VmRSS"), memory.peak()
        mib = [f"{each / 2**20:,.0f} MiB" for pair in (resident, now) for each in pair]
        console.print(
            f"memory: resident {mib[0]} (peak {mib[1]}) after {WARM_CASES} cases, {mib[2]} (peak {mib[3]}) at the end"
        )
        # Keras keeps the graphs of every model that it trained: only what fastreg's side grows by more is a leak.
        grown = ", ".join(f"{side} {size / 2**20:+,.0f} MiB" for side, size in totals.growth.items())
        console.print(f"of that in trainings with: {grown}")
    for seed in totals.wrong:
        console.print(f"python -m fastreg_benchmarks.soak --case {seed}", style="bold red")
    return totals


def run_case(case: Case, growth: Counter[str]) -> list[Verdict]:
    """Run the trainings of a case: the references one after the other, fastreg's at once. Memory adds to `growth`."""
    keras.config.set_floatx(case.floatx)
    fastreg.set_bridge(case.bridge)
    fastreg.set_num_threads(min(case.threads, os.cpu_count() or 1))
    with _growing(growth, "references"):
        expected = [_attempt(training, False) for training in case.trainings]
    with _growing(growth, "fastreg"), ThreadPoolExecutor(len(case.trainings)) as executor:
        actual = list(executor.map(lambda training: _attempt(training, True), case.trainings))
    with _growing(growth, "references"):
        return [_judge(*each) for each in zip(case.trainings, actual, expected, strict=True)]


@contextlib.contextmanager
def _growing(growth: Counter[str], side: str) -> Iterator[None]:
    before = memory.status("VmRSS")
    yield
    keras.utils.clear_session()
    gc.collect()
    growth[side] += memory.status("VmRSS") - before


def _attempt(training: Training, ours: bool) -> Notes | Exception:
    try:
        return run(training, ours)
    except Exception as error:  # reported, with its traceback, by who compares
        return error


def _judge(training: Training, ours: Notes | Exception, theirs: Notes | Exception) -> Verdict:
    if isinstance(theirs, Exception):
        if type(ours) is type(theirs):
            return Verdict(REFUSED, [f"by both: {_first_line(theirs)}", *_traceback(theirs)])
        found = _first_line(ours) if isinstance(ours, Exception) else "nothing with fastreg"
        return Verdict(FAILED, [f"{_first_line(theirs)} in the reference, {found}", *_traceback(theirs)])
    if isinstance(ours, Exception):
        return Verdict(FAILED, [*_traceback(ours)])
    compared = compare.differences(training, ours, theirs)
    wrong = [each for each in compared if not each.size <= each.tolerance]
    if not wrong:
        return Verdict(AGREES)
    details = [f"{each.label}: {each.size:.1e}, tolerated {each.tolerance:.1e}" for each in wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        details.append(f"and {len(wrong) - SHOWN} more")
    return Verdict(ROUNDING if _is_rounding(training, wrong, theirs) else DIFFERS, details)


def _is_rounding(training: Training, wrong: Sequence[compare.Difference], theirs: Notes) -> bool:
    """Whether the reference differs from itself as much, started a rounding away.

    Weights that L1 holds at zero, clipped elements and sums in half precision make much of a rounding.
    """
    largest: dict[str, float] = {}
    for nudge in NUDGES:
        for each in compare.differences(training, run(training, False, nudge), theirs):
            largest[each.label] = max(largest.get(each.label, 0.0), each.size)
    return all(each.size <= 4 * largest.get(each.label, 0.0) for each in wrong)


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _traceback(error: Exception) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def _print(case: Case, verdicts: Sequence[Verdict], console: Console, loud: bool) -> None:
    resident = memory.status("VmRSS") / 2**20
    head = f"{case.seed}: {resident:,.0f} MiB; {case.bridge}, {case.threads} threads"
    for training, verdict in zip(case.trainings, verdicts, strict=True):
        is_wrong = verdict.outcome in (DIFFERS, FAILED)
        style = "bold red" if is_wrong else "yellow" if verdict.outcome != AGREES else None
        words = (
            training.tables,
            training.model,
            training.penalties,
            training.policy,
            training.optimizer,
            training.execution,
        )
        console.print(f"{head}; {', '.join(words)}: {' > '.join(training.modes)}: {verdict.outcome}", style=style)
        if is_wrong or loud:
            console.print(f"  {training}", markup=False)
        for line in verdict.details if is_wrong or loud else verdict.details[:1]:
            console.print(f"  {line}", markup=False)


def _print_totals(totals: Totals, console: Console) -> None:
    table = Table(title=f"{totals.trainings} trainings", title_justify="left", box=None)
    for name in ("what", "how often"):
        table.add_column(name, overflow="fold")
    for what, counter in totals.counts.items():
        table.add_row(what, ", ".join(f"{value} {count}" for value, count in counter.most_common()))
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastreg_benchmarks.soak",
        description="train random models with fastreg's penalties and with Keras's, and compare",
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="default: 30")
    parser.add_argument("--seed", type=int, help="of the first case; the next ones count on. Default: random")
    parser.add_argument("--case", type=int, metavar="SEED", help="run the case of this seed, and no other")
    return parser
