"""The plot of the suite `penalty`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastreg.cli import UsageError
from fastreg_benchmarks.cases import VALUE_AND_GRADIENT
from fastreg_benchmarks.environment import Environment
from fastreg_benchmarks.providers import DEFAULT_MODES, DIRECT, EAGER, FUNCTION, JIT
from fastreg_benchmarks.results import Row

# Okabe and Ito's palette, told apart with any colour vision; markers and dashes tell lines apart in print.
_KERAS_STYLES = {EAGER: ("#E69F00", "s", ":"), FUNCTION: ("#D55E00", "o", "--"), JIT: ("#CC79A7", "^", "-.")}
_FASTREG_STYLES = {EAGER: ("#56B4E9", "s", "-"), FUNCTION: ("#0072B2", "o", "-"), JIT: ("#7F7F7F", "^", "-")}
_KERNEL_STYLE = ("#009E73", "D", "-")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw time and speed-up over size, of value and gradient in the first dtype of a run.

    Raises
    ------
    UsageError
        If there is nothing to draw.
    """
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    rows = [row for row in rows if row.what == VALUE_AND_GRADIENT]
    if not rows:
        raise UsageError(f"no results of {VALUE_AND_GRADIENT} to draw")
    rows = [row for row in rows if row.dtype == rows[0].dtype]
    figure = Figure(figsize=(10, 4.6), dpi=130, layout="constrained")
    times, speedups = figure.subplots(1, 2)
    _draw_times(times, rows)
    _draw_speedups(speedups, rows)
    save(figure, f"L1L2 penalty and its gradient, {rows[0].dtype}", rows[0], path)


def save(figure: Any, title: str, first: Environment, path: Path) -> None:
    """Write a figure with its title, and below it where its medians were measured."""
    figure.suptitle(title, fontweight="bold")
    figure.supxlabel(
        f"{first.device}, {first.threads} threads · TensorFlow {first.tensorflow}, Keras {first.keras} · medians"
        f" · {first.date[:10]}",
        fontsize=8,
        color="#555555",
    )
    try:
        figure.savefig(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from None


def _draw_times(axes: Any, rows: Sequence[Row]) -> None:
    for mode, style in _KERAS_STYLES.items():
        _draw_line(axes, _line(rows, "keras", mode), f"Keras, {mode}", style)
    for mode in (EAGER, FUNCTION):
        _draw_line(axes, _line(rows, "fastreg", mode), f"fastreg, {mode}", _FASTREG_STYLES[mode])
    _draw_line(axes, _line(rows, "kernel", DIRECT), "kernel alone", _KERNEL_STYLE)
    limits = {row.size: row.limit_s * 1e3 for row in rows}
    # From memory: below the size of the caches nothing has to come from there, and nothing else is that fast.
    axes.plot(
        sorted(limits), [limits[size] for size in sorted(limits)], color="black", linewidth=1, label="memory limit"
    )
    axes.set(xscale="log", yscale="log", xlabel="elements", ylabel="milliseconds", title="time")
    axes.set_ylim(bottom=min(row.p50_s for row in rows) * 1e3 / 2)
    axes.grid(which="major", color="#DDDDDD", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_speedups(axes: Any, rows: Sequence[Row]) -> None:
    for mode in DEFAULT_MODES:
        line = [row for row in _line(rows, "fastreg", mode) if row.mode_speedup is not None]
        if not line:
            continue
        color, marker, dashes = _FASTREG_STYLES[mode]
        sizes = [row.size for row in line]
        lows, highs = [row.mode_speedup_low for row in line], [row.mode_speedup_high for row in line]
        axes.fill_between(sizes, lows, highs, color=color, alpha=0.2, linewidth=0)
        axes.plot(sizes, [row.mode_speedup for row in line], color=color, marker=marker, linestyle=dashes, label=mode)
        last = line[-1]
        axes.annotate(
            f"{last.mode_speedup:.1f}x",
            (last.size, last.mode_speedup),
            textcoords="offset points",
            xytext=(6, -3),
            fontsize=8,
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="elements", title="times faster than Keras in the same mode")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.margins(x=0.12)
    axes.grid(which="major", color="#DDDDDD", linewidth=0.6)
    if axes.get_lines()[1:]:  # besides the one at 1
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)


def _line(rows: Sequence[Row], provider: str, mode: str) -> list[Row]:
    return sorted((row for row in rows if (row.provider, row.mode) == (provider, mode)), key=lambda row: row.size)


def _draw_line(axes: Any, line: Sequence[Row], label: str, style: tuple[str, str, str]) -> None:
    if line:
        color, marker, dashes = style
        axes.plot(
            [row.size for row in line],
            [row.p50_s * 1e3 for row in line],
            color=color,
            marker=marker,
            markersize=4,
            linestyle=dashes,
            label=label,
        )
