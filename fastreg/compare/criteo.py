"""Lines of Criteo's format: a label, 13 counts and 26 categories, separated by tabs."""

from __future__ import annotations

import gzip
import re
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from fastreg_benchmarks.workloads import CARDINALITIES, scattered
from numpy.typing import NDArray

from fastreg.cli import UsageError
from fastreg.compare.data import Examples
from fastreg.compare.job import Notify

COUNTS, CATEGORIES = 13, len(CARDINALITIES)

NAMED = 3
"""Bad lines that are named, with what is wrong with them."""

PATIENCE = 100_000
"""Lines at the beginning of a file of which one has to be good."""

MISSING = -1
"""Stands for a category that is empty, which is a value like others."""

_LABEL, _COUNT, _CATEGORY = rb"[01]", rb"(?:-?\d{1,18})?", rb"[0-9A-Fa-f]{0,8}"
_LINE = re.compile(rb"%b(?:\t%b){%d}(?:\t%b){%d}" % (_LABEL, _COUNT, COUNTS, _CATEGORY, CATEGORIES))

_LONGEST = 4096
"""Bytes of a line; what has no ends of lines is not read into memory."""

_SHOWN = 20
"""Characters of a bad field that are shown."""

_NOTIFY = 1000


@dataclass
class Lines:
    """What was read.

    Attributes
    ----------
    good : int
    labels, counts, categories : array of int
        By line: 1, 13 and 26 for each that is good. A count that is empty is 0.
    number : int
        Lines, with bad ones.
    faults : list of str
        Of the first bad lines.
    broken : str
        Why the file could not be read to its end, or nothing.
    """

    good: int = 0
    labels: array[int] = field(default_factory=lambda: array("q"))
    counts: array[int] = field(default_factory=lambda: array("q"))
    categories: array[int] = field(default_factory=lambda: array("q"))
    number: int = 0
    faults: list[str] = field(default_factory=list)
    broken: str = ""

    def add(self, line: bytes) -> None:
        """Take one line, without its end."""
        self.number += 1
        if _LINE.fullmatch(line) is None:
            if len(self.faults) < NAMED:
                self.faults.append(f"line {self.number}: {fault(line)}")
            return
        label, *values = line.split(b"\t")
        self.good += 1
        self.labels.append(int(label))
        self.counts.extend([int(value) if value else 0 for value in values[:COUNTS]])
        self.categories.extend([int(value, 16) if value else MISSING for value in values[COUNTS:]])


def load(path: Path, rows: int, table_rows: int, notify: Notify) -> Examples:
    """Read the first lines of a file.

    Parameters
    ----------
    path : Path
        Text, or text compressed by gzip.
    rows : int
        Good lines to read at most.
    table_rows : int
        Rows of a table at most.
    notify : callable

    Raises
    ------
    fastreg.cli.UsageError
        If the file cannot be read, or has fewer than two good lines.
    """
    lines = _read(path, rows, notify)
    if lines.number == 0:
        raise UsageError(f"{path}: {lines.broken or 'the file is empty'}")
    if lines.good == 0:
        raise UsageError(f"{path}: none of {lines.number:,} lines is of Criteo's format; {'; '.join(lines.faults)}")
    if lines.good < 2:
        raise UsageError(f"{path}: 1 good line; one to train on and one to validate on are the least")
    counts = np.frombuffer(lines.counts, np.int64).reshape(-1, COUNTS)
    ids, tables = looked_up(np.frombuffer(lines.categories, np.int64).reshape(-1, CATEGORIES), table_rows)
    return Examples(
        {"counts": logarithms(counts), "ids": ids},
        np.frombuffer(lines.labels, np.int64).astype(np.float32),
        tables,
        f"{path}: {lines.good:,} impressions, {sum(lines.labels) / lines.good:.1%} of them clicked",
        _notes(path, lines),
    )


def logarithms(counts: NDArray[np.int64]) -> NDArray[np.float32]:
    """`log(1 + x)` of counts, those below zero taken for zero."""
    return np.log1p(np.maximum(counts, 0)).astype(np.float32)


def looked_up(categories: NDArray[np.int64], table_rows: int) -> tuple[NDArray[np.int32], dict[str, int]]:
    """Rows of tables for categories, and how many rows the tables have.

    A table has as many rows as the whole data set has values, whatever share of it was read, but no more than
    `table_rows`; values that are too many share rows.

    Parameters
    ----------
    categories : ndarray of int64, shape (examples, 26)
    table_rows : int
    """
    ids = np.empty(categories.shape, np.int32)
    tables = {}
    for number, cardinality in enumerate(CARDINALITIES):
        values, codes = np.unique(categories[:, number], return_inverse=True)
        rows = min(max(cardinality, values.size), table_rows)
        ids[:, number] = scattered(codes, rows)
        tables[table_name(number)] = rows
    return ids, tables


def table_name(number: int) -> str:
    """The name of the table of a category, as Criteo counts them."""
    return f"C{number + 1}"


def fault(line: bytes) -> str:
    """What is wrong with a line that is not of the format."""
    if len(line) >= _LONGEST:
        return f"longer than {_LONGEST} bytes"
    label, *values = line.split(b"\t")
    if len(values) != COUNTS + CATEGORIES:
        return f"fields separated by tabs: {1 + len(values)}, not {1 + COUNTS + CATEGORIES}"
    if re.fullmatch(_LABEL, label) is None:
        return f"the label is {_shown(label)}, not 0 or 1"
    for number, value in enumerate(values[:COUNTS], 1):
        if re.fullmatch(_COUNT, value) is None:
            return f"count {number} is {_shown(value)}, not an integer"
    number, value = next(
        (number, value) for number, value in enumerate(values[COUNTS:], 1) if re.fullmatch(_CATEGORY, value) is None
    )
    return f"category {number} is {_shown(value)}, not up to 8 hexadecimal digits"


def _shown(value: bytes) -> str:
    text = value.decode(errors="backslashreplace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _read(path: Path, rows: int, notify: Notify) -> Lines:
    lines = Lines()
    notify(f"reading {path}", 0)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            text = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
            for line in _lines(text):
                lines.add(line)
                if lines.number % _NOTIFY == 0:
                    notify(f"reading {path}", _NOTIFY)
                if lines.good == rows or (lines.good == 0 and lines.number == PATIENCE):
                    break
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        lines.broken = f"not read to its end: {' '.join(str(error).split())}"
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    return lines


def _lines(text: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends; of one that is too long, its beginning."""
    first = True
    while line := text.readline(_LONGEST):
        whole = line
        while len(line) == _LONGEST and not line.endswith(b"\n"):
            line = text.readline(_LONGEST)
        if first:
            whole, first = whole.removeprefix(b"\xef\xbb\xbf"), False
        yield whole.rstrip(b"\r\n")


def _notes(path: Path, lines: Lines) -> tuple[str, ...]:
    bad = lines.number - lines.good
    notes = []
    if bad:
        more = "; …" if bad > len(lines.faults) else ""
        notes.append(f"{path}: {bad:,} of {lines.number:,} lines left out: {'; '.join(lines.faults)}{more}")
    if lines.broken:
        notes.append(f"{path}: {lines.broken}")
    return tuple(notes)
