"""Rows of results, and the CSV files that keep them: one file per suite, runs appended."""

from __future__ import annotations

import csv
import os
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from fastreg.cli import UsageError
from fastreg_benchmarks.environment import Environment


@dataclass(frozen=True, kw_only=True)
class Row(Environment):
    """One provider in one mode on one case. Times are seconds per call, speed-ups how many times faster than Keras.

    Attributes
    ----------
    bridge : str
        What served a call of fastreg; empty for others.
    caches : {"cold", "warm"}
        Whether x came from memory, or from what the call before had left in the caches.
    rounds, calls : int
        Interleaved repetitions, and calls that each of them averages.
    gbs : float
        The case's model bytes over the median, in GB/s.
    limit_s, limit_share : float
        The least time that memory bandwidth allows, and that over the median.
    best_keras : str
        The mode in which Keras was fastest, or None where Keras was not measured.
    speedup, speedup_low, speedup_high : float
        Against that, with the 95% interval of paired repetitions.
    mode_speedup, mode_speedup_low, mode_speedup_high : float
        Against Keras in the same mode.
    check : {"ok", "inexact", "overflow", "WRONG"}
    value_error, gradient_error : float
        Relative, against the float64 oracle.
    """

    suite: str
    size: int
    dtype: str
    what: str
    provider: str
    mode: str
    bridge: str
    caches: str
    rounds: int
    calls: int
    p20_s: float
    p50_s: float
    p80_s: float
    gbs: float
    limit_s: float
    limit_share: float
    best_keras: str | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    mode_speedup: float | None
    mode_speedup_low: float | None
    mode_speedup_high: float | None
    check: str
    value_error: float | None
    gradient_error: float | None


@dataclass(frozen=True, kw_only=True)
class LimitRow(Environment):
    """One target of the suite `limits`; its verdict is "unclear" where the interval of what was measured holds it."""

    line: int
    what: str
    target: str
    measured: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class LazyRow(Environment):
    """One kind of training step in the suite `lazy`. Times are seconds per step.

    Attributes
    ----------
    part : {"sizes", "against-keras", "shares", "criteo"}
    provider : {"lazy", "lazy-l2", "fastreg", "keras", "keras-plain"}
        The embedding layer.
    rows, width : int
        Of the table.
    lookups : int
        Ids a step.
    exponent : float or None
        Of their power law; None where no id occurs twice in a step.
    """

    part: str
    provider: str
    optimizer: str
    rows: int
    width: int
    lookups: int
    exponent: float | None
    rounds: int
    p20_s: float
    p50_s: float
    p80_s: float


@dataclass(frozen=True, kw_only=True)
class RecommenderRow(Environment):
    """One kind of step in the suite `recommender`. Times are seconds per step.

    Attributes
    ----------
    part : {"fit", "predict", "evaluate", "growth", "uncapped", "rivals"}
    provider : {"lazy", "keras", "keras-plain", "keras-1000", "fbgemm", "torch-sparse"}
    tables, rows, width : int
        Number of tables, the rows of all, and their width.
    batch : int
        Ids a step looks up in each table.
    exponent : float
        Of their power law.
    peak_bytes : int or None
        Largest resident memory of the process, of those that had one of their own.
    """

    part: str
    provider: str
    tables: int
    rows: int
    width: int
    batch: int
    exponent: float
    rounds: int
    p20_s: float
    p50_s: float
    p80_s: float
    peak_bytes: int | None


AnyRow = TypeVar("AnyRow", bound=Environment)


def prepare(path: Path, row_type: type[AnyRow]) -> None:
    """Refuse a file that rows of this type cannot be appended to, before anything is measured."""
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent} to write {path.name} to")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write {path}")
    try:
        header = _header(path)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"cannot append to {path}: {error}") from None
    if header and header != _columns(row_type):
        raise UsageError(f"{path} has other columns than this version writes: name another file, or move it away")


def append(path: Path, rows: Sequence[AnyRow]) -> None:
    """Append rows to a CSV file, with a header if it is new."""
    if not rows:
        return
    new = not _header(path)
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, _columns(type(rows[0])), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read(path: Path, row_type: type[AnyRow]) -> list[AnyRow]:
    """All rows of a CSV file."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if list(reader.fieldnames or ()) != _columns(row_type):
                raise UsageError(f"{path} does not have the columns of benchmark results")
            types = typing.get_type_hints(row_type)
            return [row_type(**_values(line, types)) for line in reader]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"cannot read results from {path}: {error}") from None


def newest_run(rows: Sequence[AnyRow]) -> list[AnyRow]:
    """The rows of the run that began last."""
    newest = max((row.date for row in rows), default="")
    return [row for row in rows if row.date == newest]


def _columns(row_type: type[Environment]) -> list[str]:
    return [field.name for field in fields(row_type)]


def _header(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _values(line: dict[Any, Any], types: dict[str, Any]) -> dict[str, Any]:
    if None in line or None in line.values():  # how the csv module tells of too many and too few
        raise ValueError("a line has not as many columns as the header")
    return {name: _parse(text, types[name]) for name, text in line.items()}


def _parse(text: str, kind: Any) -> Any:
    options = typing.get_args(kind) or (kind,)
    if type(None) in options and text == "":
        return None
    return options[0](text)
