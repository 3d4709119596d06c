"""What a comparison found, side by side."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from fastreg_benchmarks import environment, stats
from rich import box
from rich.table import Table

from fastreg import info
from fastreg.compare.data import Examples, Split
from fastreg.compare.jobs import JOBS
from fastreg.compare.session import Outcome, Side
from fastreg.compare.settings import LAZY, Settings
from fastreg.compare.weights import Difference

MIN_TURNS_FOR_INTERVAL = 5

FEW = 100
"""Elements beyond the tolerance that an optimizer may explain; more need another explanation."""

_JIT = {None: "jit_compile as Keras chooses", True: "jit_compile", False: "no jit_compile"}

_MISSING = "-"

_FEW_TABLES = 3
"""Tables whose sizes are all named."""


@dataclass(frozen=True)
class Speedup:
    """Ratio of the median step times, and its 95% interval, None where too few turns were taken."""

    value: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.value:.2f}x (too few turns for an interval)"
        low, high = self.interval
        return f"{self.value:.2f}x (95% interval {low:.2f} to {high:.2f})"


def speedup(keras: Side, fastreg: Side) -> Speedup:
    """How many times faster the whole training step is with fastreg.

    The interval is a bootstrap over pairs of turns, each side's turn by its median: what disturbed both alike cancels.
    """
    slow, fast = (np.concatenate(side.turns) for side in (keras, fastreg))
    value = float(np.median(slow) / np.median(fast))
    if len(keras.turns) < MIN_TURNS_FOR_INTERVAL:
        return Speedup(value, None)
    by_turn = [np.asarray([np.median(turn) for turn in side.turns]) for side in (keras, fastreg)]
    ratio = stats.ratio(*by_turn)
    return Speedup(value, (ratio.low, ratio.high))


def header(settings: Settings, split: Split, examples: Examples) -> list[str]:
    """What is about to be compared, and on what."""
    here = environment.describe()
    commit = f" ({here.commit})" if here.commit else ""
    gpus = "".join(f", {name}" for name in info()["gpus"])
    mode = "eager" if settings.eager else _JIT[settings.jit]
    factors = ", ".join(f"{name}={getattr(settings, name):g}" for name in ("l1", "l2") if name in settings.regularizer)
    return [
        f"fastreg {here.fastreg}{commit}, TensorFlow {here.tensorflow}, Keras {here.keras}, Numba {here.numba}, "
        f"NumPy {here.numpy}, Python {here.python}",
        f"{here.device}, {here.cores} cores{gpus}; kernels on {here.threads} threads ({here.threading_layer})",
        f"{examples.source}; {split.held_out:,} held out",
        f"{_tables(split)} x {settings.dim}, each with {_class(settings)}({factors}); {settings.optimizer}, batches of "
        f"{settings.batch_size:,}, {mode}",
        *examples.notes,
        settings.command(),
    ]


def _tables(split: Split) -> str:
    sizes = list(split.tables.values())
    if len(sizes) > _FEW_TABLES:
        return f"{len(sizes)} tables of {min(sizes):,} to {max(sizes):,} rows, in all {sum(sizes):,},"
    *most, last = (f"{size:,}" for size in sizes)
    return f"tables of {', '.join(most)} and {last} rows"


def headings(settings: Settings) -> dict[str, str]:
    """What stands above the figures of each side."""
    names = {
        "keras": f"keras.regularizers.{_class(settings)}",
        "fastreg": f"fastreg.{_class(settings)}",
        LAZY: "fastreg.Embedding",
    }
    return {side: names[side] for side in settings.sides}


class Row(NamedTuple):
    """One figure of all sides; `reference`: it is none of the models'."""

    name: str
    cells: list[str]
    reference: bool = False


def rows(settings: Settings, split: Split, outcome: Outcome) -> list[Row]:
    """All figures."""
    sides = list(outcome.sides.values())
    steps = [np.concatenate(side.turns) for side in sides]
    quantiles = [stats.quantiles(times) for times in steps]
    result = [
        Row(f"step time, {name} of {settings.steps} steps", [_time(found[index]) for found in quantiles])
        for index, name in enumerate(("p20", "median", "p80"))
    ]
    result.append(
        Row("examples a second, at the median", [f"{settings.batch_size / found[1]:,.0f}" for found in quantiles])
    )
    per_epoch = split.training // settings.batch_size
    origin = "extrapolated from" if settings.steps < per_epoch else "from"
    label = f"epoch of {per_epoch} steps, {origin} {settings.steps} steps"
    result.append(Row(label, [_time(float(times.mean()) * per_epoch) for times in steps]))
    result.append(Row(f"loss, last {len(sides[0].turns[-1])} steps", _each(sides, "loss", "{:.6f}")))
    result.append(Row("penalty, after training", _each(sides, "penalty", "{:.6f}")))
    for name, title in JOBS[settings.model].figures.items():
        result.append(Row(title, [_quality(side.result[name]) for side in sides]))
        for what, figures in split.references.items():
            result.append(Row(f"{title} {what}", [_quality(figures[name])] * len(sides), reference=True))
    result.append(Row("memory before training", [_memory(side.ready["memory_before"]) for side in sides]))
    result.append(Row("peak memory in training", [_memory(side.result["peak_memory"]) for side in sides]))
    result.append(Row("kernel calls of fastreg", _each(sides, "kernel_calls", "{:,}")))
    zeros = list(outcome.zeros.values())
    result.append(Row("exact zeros in the tables", [f"{found.share:.1%}" for found in zeros]))
    result.append(Row("rows that are not all zero", [f"{found.kept:,}" for found in zeros]))
    result.append(Row("file of the tables", [_memory(found.nbytes) for found in zeros]))
    result.append(Row("file without rows of zeros", [_memory(found.pruned) for found in zeros]))
    return result


def table(settings: Settings, figures: list[Row]) -> Table:
    """All sides, one figure a row."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("", no_wrap=True)
    for heading in headings(settings).values():
        result.add_column(heading, justify="right")
    for row in figures:
        result.add_row(row.name, *row.cells, style="dim" if row.reference else None)
    return result


def notes(settings: Settings, outcome: Outcome) -> list[str]:
    """What a reader should know before he believes the figures."""
    result = []
    for side in settings.sides[1:]:
        found = outcome.sides[side].result
        if found["kernel_calls"] == 0:
            reasons = "; ".join(sorted({choice["reason"] for choice in found["choices"]}))
            served = f"No kernel ran: TensorFlow's ops served {headings(settings)[side]} as well"
            result.append(f"{served} ({reasons})." if reasons else f"{served}.")
    dense = outcome.differences.get("fastreg")
    if dense is not None and 0 < dense.beyond < FEW and settings.optimizer != "sgd" and settings.l1 > 0:
        result.append(
            f"{settings.optimizer} divides a gradient by its own magnitude, and that of L1 changes its sign at zero: "
            "the last bit of a weight next to zero decides in which direction it makes a whole step."
        )
    if LAZY in settings.sides and not settings.same_rule:
        result.append(
            "fastreg.Embedding has a rule of its own here: a weight that reaches zero stays there, where Keras's "
            "subgradient goes to and fro around it, and no adaptive optimizer rescales the penalty."
        )
    return result


class Verdict(NamedTuple):
    """Whether the models do what they should, in words."""

    text: str
    failed: bool = False


def verdicts(settings: Settings, outcome: Outcome) -> list[Verdict]:
    """How much faster each side is than Keras's, and whether its weights are as they should be."""
    result = []
    for side, difference in outcome.differences.items():
        speed = speedup(outcome.sides["keras"], outcome.sides[side])
        whose, models = (" of fastreg.Embedding", "Keras and fastreg.Embedding") if side == LAZY else ("", "the models")
        result.append(Verdict(f"whole step, speed-up{whose}: {speed}"))
        if side != LAZY or settings.same_rule or math.isinf(difference.relative):
            result.append(_agreement(difference, settings.tolerance, models))
        else:
            apart = f"{difference.relative:.1e} of max|w| from Keras ({difference.weight})"
            result.append(Verdict(f"fastreg.Embedding is {apart}, by its own rule"))
    return result


def _agreement(difference: Difference, tolerance: float, models: str) -> Verdict:
    if math.isinf(difference.relative):
        return Verdict(f"training diverged: {difference.weight} is not finite", failed=True)
    if difference.relative == 0:
        return Verdict(f"{models} agree: their weights are identical")
    found = (
        f"largest weight difference {difference.relative:.1e} of max|w| ({difference.weight}), tolerance {tolerance:g}"
    )
    if difference.beyond:
        reach = f"{difference.beyond:,} of {difference.elements:,} elements are beyond it"
        return Verdict(f"{models} disagree: {found}; {reach}", failed=True)
    return Verdict(f"{models} agree: {found}")


def _class(settings: Settings) -> str:
    return settings.regularizer.upper()


def _each(sides: list[Side], name: str, form: str) -> list[str]:
    return [form.format(side.result[name]) for side in sides]


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _quality(value: float) -> str:
    return _MISSING if math.isnan(value) else f"{value:.5f}"


def _memory(size: int | None) -> str:
    return _MISSING if size is None else f"{size / 2**20:,.0f} MiB"
