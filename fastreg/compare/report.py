"""What a comparison found, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from fastreg_benchmarks import environment, stats
from rich import box
from rich.console import Console
from rich.table import Table

from fastreg import info
from fastreg.compare.data import Split
from fastreg.compare.session import Outcome, Side
from fastreg.compare.settings import Settings

MIN_TURNS_FOR_INTERVAL = 5

FEW = 100
"""Elements beyond the tolerance that an optimizer may explain; more need another explanation."""

_JIT = {None: "jit_compile as Keras chooses", True: "jit_compile", False: "no jit_compile"}

_MISSING = "-"


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


def print_header(console: Console, settings: Settings, split: Split, source: str) -> None:
    """What is about to be compared, and on what."""
    here = environment.describe()
    commit = f" ({here.commit})" if here.commit else ""
    gpus = "".join(f", {name}" for name in info()["gpus"])
    mode = "eager" if settings.eager else _JIT[settings.jit]
    factors = ", ".join(f"{name}={getattr(settings, name):g}" for name in ("l1", "l2") if name in settings.regularizer)
    lines = (
        f"fastreg {here.fastreg}{commit}, TensorFlow {here.tensorflow}, Keras {here.keras}, Numba {here.numba}, "
        f"NumPy {here.numpy}, Python {here.python}",
        f"{here.device}, {here.cores} cores{gpus}; kernels on {here.threads} threads ({here.threading_layer})",
        f"{source}: {split.training + split.held_out:,} ratings of {split.items:,} items by {split.users:,} users, "
        f"{split.held_out:,} held out",
        f"tables of {split.users:,}, {split.items:,} and {settings.rows:,} rows x {settings.dim}, each with "
        f"{_class(settings)}({factors}); {settings.optimizer}, batches of {settings.batch_size:,}, {mode}",
        settings.command(),
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def table(settings: Settings, split: Split, outcome: Outcome) -> Table:
    """All sides, one figure a row."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    result.add_column("", no_wrap=True)
    result.add_column(f"keras.regularizers.{_class(settings)}", justify="right")
    result.add_column(f"fastreg.{_class(settings)}", justify="right")
    sides: tuple[Side, ...] = (outcome.keras, outcome.fastreg)
    if outcome.lazy is not None:
        result.add_column("fastreg.Embedding", justify="right")
        sides = (*sides, outcome.lazy)
    steps = [np.concatenate(side.turns) for side in sides]
    quantiles = [stats.quantiles(times) for times in steps]
    for index, name in enumerate(("p20", "median", "p80")):
        result.add_row(f"step time, {name} of {settings.steps} steps", *(_time(found[index]) for found in quantiles))
    per_epoch = split.training // settings.batch_size
    origin = "extrapolated from" if settings.steps < per_epoch else "from"
    label = f"epoch of {per_epoch} steps, {origin} {settings.steps} steps"
    result.add_row(label, *(_time(float(times.mean()) * per_epoch) for times in steps))
    result.add_row(f"loss, last {len(outcome.keras.turns[-1])} steps", *_each(sides, "loss", "{:.6f}"))
    result.add_row("penalty, after training", *_each(sides, "penalty", "{:.6f}"))
    result.add_row("validation RMSE", *_each(sides, "rmse", "{:.5f}"))
    result.add_row("validation RMSE of the mean rating", *[f"{split.baseline:.5f}"] * len(sides), style="dim")
    result.add_row("memory before training", *(_memory(side.ready["memory_before"]) for side in sides))
    result.add_row("peak memory in training", *(_memory(side.result["peak_memory"]) for side in sides))
    result.add_row("kernel calls of fastreg", *_each(sides, "kernel_calls", "{:,}"))
    if outcome.zeros:
        result.add_row("exact zeros in the tables", *(f"{zeros.share:.1%}" for zeros in outcome.zeros))
        result.add_row("rows that are not all zero", *(f"{zeros.kept:,}" for zeros in outcome.zeros))
        result.add_row("file of the tables", *(_memory(zeros.nbytes) for zeros in outcome.zeros))
        result.add_row("file without rows of zeros", *(_memory(zeros.pruned) for zeros in outcome.zeros))
    return result


def notes(settings: Settings, outcome: Outcome) -> list[str]:
    """What a reader should know before he believes the figures."""
    result = []
    if outcome.fastreg.result["kernel_calls"] == 0:
        reasons = sorted({choice["reason"] for choice in outcome.fastreg.result["choices"]})
        result.append(f"No kernel ran: TensorFlow's ops served fastreg as well ({'; '.join(reasons)}).")
    if 0 < outcome.difference.beyond < FEW and settings.optimizer != "sgd" and settings.l1 > 0:
        result.append(
            f"{settings.optimizer} divides a gradient by its own magnitude, and that of L1 changes its sign at zero: "
            "the last bit of a weight next to zero decides in which direction it makes a whole step."
        )
    if outcome.lazy is not None and not settings.same_rule:
        result.append(
            "fastreg.Embedding has a rule of its own here: a weight that reaches zero stays there, where Keras's "
            "subgradient goes to and fro around it, and no adaptive optimizer rescales the penalty."
        )
    return result


def _class(settings: Settings) -> str:
    return settings.regularizer.upper()


def _each(sides: tuple[Side, ...], name: str, form: str) -> list[str]:
    return [form.format(side.result[name]) for side in sides]


def _time(seconds: float) -> str:
    if seconds >= 100:
        return f"{seconds:,.0f} s"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def _memory(size: int | None) -> str:
    return _MISSING if size is None else f"{size / 2**20:,.0f} MiB"
