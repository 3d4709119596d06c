"""Figures in the project's documents: drawn and printed from the newest results, never typed.

A document holds the table of a CSV file of results between the lines `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastreg.cli import EXIT_USAGE, UsageError
from fastreg_benchmarks import environment, figures, report, results
from fastreg_benchmarks.results import LimitRow, Row

DOCUMENTS = ("README.md", "docs/performance.md", "docs/embeddings.md")

TABLES: dict[str, tuple[type[Any], Callable[[Any], str]]] = {
    "penalty": (Row, report.readme_table),
    "limits": (LimitRow, report.limits_markdown),
    "steps": (LimitRow, report.limits_markdown),
    "lazy_targets": (LimitRow, report.limits_markdown),
    "recommender_targets": (LimitRow, report.limits_markdown),
    "bags": (LimitRow, report.limits_markdown),
    "xla": (LimitRow, report.limits_markdown),
    "xla-gpu": (LimitRow, report.limits_markdown),
}
"""By name of the CSV file: its rows, and what prints them."""

NOT_MEASURED = "Not measured yet."
"""In the place of a table whose results were never kept."""

_MARKED = re.compile(r"^<!-- ([\w-]+) -->$.*?^<!-- /\1 -->$", re.DOTALL | re.MULTILINE)


def refreshed(text: str, folder: Path) -> str:
    """A document with each of its tables printed anew from the newest run in the CSV files of a folder.

    Raises
    ------
    UsageError
        If a table's results are unreadable, or there are none of its name.
    """

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise UsageError(f"no results {name} for the table <!-- {name} -->")
        row_type, printed = TABLES[name]
        path = folder / f"{name}.csv"
        table = printed(results.newest_run(results.read(path, row_type))) if path.exists() else NOT_MEASURED
        return f"<!-- {name} -->\n\n{table}\n\n<!-- /{name} -->"

    return _MARKED.sub(table, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the plot and print all tables into the documents of the checkout."""
    parser = argparse.ArgumentParser(description="Draw the plot and refresh the tables of README.md and docs.")
    parser.parse_args(arguments)
    root = environment.checkout()
    try:
        if root is None:
            raise UsageError("not in a checkout of the project")
        folder = root / "benchmarks" / "results"
        figures.plot(results.newest_run(results.read(folder / "penalty.csv", Row)), folder / "penalty.png")
        for name in DOCUMENTS:
            document = root / name
            document.write_text(refreshed(document.read_text(encoding="utf-8"), folder), encoding="utf-8")
    except UsageError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_USAGE
    return 0
