"""The plot of the suite: time over the size of the table, and over the share of rows touched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastreg_benchmarks import figures
from fastreg_benchmarks.results import LazyRow

_STYLES = {
    "lazy": ("fastreg, lazy", "#0072B2", "o", "-"),
    "fastreg": ("fastreg, dense", "#009E73", "D", "--"),
    "keras": ("Keras", "#D55E00", "s", ":"),
    "keras-plain": ("Keras, no regularizer", "#7F7F7F", "^", "-."),
}


def plot(rows: Sequence[LazyRow], path: Path) -> None:
    """Draw a run.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row for row in rows if row.optimizer == "sgd"]
    _draw(left, [row for row in steps if row.part in ("sizes", "against-keras")], lambda row: row.rows)
    left.set(xlabel="rows of the table", title=f"step, {_lookups(steps, 'sizes')}")
    _draw(right, [row for row in steps if row.part == "shares"], lambda row: 100 * row.lookups / row.rows)
    right.set(xlabel="rows touched, %", title=f"step, {_table(steps, 'shares')}")
    figures.save(figure, "Training step with L1L2 on an embedding, SGD", rows[0], path)


def _draw(axes: Any, rows: Sequence[LazyRow], position: Callable[[LazyRow], float]) -> None:
    for provider, (label, color, marker, dashes) in _STYLES.items():
        # What several parts of the suite timed is drawn once, as the last of them found it.
        line = {position(row): row.p50_s * 1e3 for row in rows if row.provider == provider}
        if line:
            places = sorted(line)
            times = [line[place] for place in places]
            axes.plot(places, times, label=label, color=color, marker=marker, linestyle=dashes, markersize=4)
    axes.set(xscale="log", yscale="log", ylabel="milliseconds")
    axes.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _lookups(rows: Sequence[LazyRow], part: str) -> str:
    found = next((row for row in rows if row.part == part), None)
    return "" if found is None else f"{found.lookups:,} ids, width {found.width}"


def _table(rows: Sequence[LazyRow], part: str) -> str:
    found = next((row for row in rows if row.part == part), None)
    return "" if found is None else f"{found.rows:,} rows x {found.width}"
