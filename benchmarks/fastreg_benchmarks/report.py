"""Tables on the screen, and the README's."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fastreg.cli import UsageError
from fastreg_benchmarks import check
from fastreg_benchmarks.bandwidth import Bandwidth
from fastreg_benchmarks.cases import VALUE_AND_GRADIENT
from fastreg_benchmarks.environment import Environment
from fastreg_benchmarks.providers import DEFAULT_MODES, EAGER, FUNCTION
from fastreg_benchmarks.results import LimitRow, Row

_WIDTH = 144
"""Columns that the tables need. A narrower terminal wraps lines, which loses less than cells that are cut short."""

_STYLES = {
    check.WRONG: "bold red",
    check.OVERFLOW: "yellow",
    check.INEXACT: "yellow",
    "fail": "bold red",
    "unclear": "yellow",
    "pass": "green",
}


def console() -> Console:
    """Where tables are printed."""
    return Console(width=max(Console().width, _WIDTH), highlight=False)


def header(environment: Environment, bandwidth: Bandwidth) -> str:
    """What was measured on, and the bandwidth found there."""
    commit = f" ({environment.commit})" if environment.commit else ""
    gbs = " · ".join(f"{name} {value / 1e9:.1f}" for name, value in vars(bandwidth).items())
    return f"fastreg {environment.fastreg}{commit} · {_machine(environment)}\nbandwidth in GB/s: {gbs}"


def case_table(title: str, rows: Sequence[Row]) -> Table:
    """The rows of one case."""
    unit, scale = ("ms", 1e3) if max((row.p50_s for row in rows), default=0) >= 1e-2 else ("µs", 1e6)
    limit = f", {rows[0].caches} caches, limit {duration(rows[0].limit_s)}" if rows else ""
    table = Table(title=f"{title}{limit}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("provider", "mode", "bridge"):
        table.add_column(name, no_wrap=True)
    for name in (f"p50 {unit}", "p20 - p80", "GB/s", "limit", "x best Keras", "x Keras, same mode", "n", "check"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        style = _STYLES.get(row.check)
        table.add_row(
            row.provider,
            row.mode,
            row.bridge,
            _digits(row.p50_s * scale),
            f"{_digits(row.p20_s * scale)} - {_digits(row.p80_s * scale)}",
            f"{row.gbs:.2f}",
            f"{row.limit_share:.0%}",
            _times(row.speedup, row.speedup_low, row.speedup_high),
            _times(row.mode_speedup, row.mode_speedup_low, row.mode_speedup_high),
            str(row.rounds),
            f"[{style}]{row.check}[/]" if style else row.check,
        )
    return table


def limits_table(rows: Sequence[LimitRow]) -> Table:
    """Targets, what was measured, verdicts."""
    table = Table(title="targets", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("line", "what", "target", "measured", "verdict"):
        table.add_column(name, overflow="fold", no_wrap=name == "what")
    for row in rows:
        style = _STYLES.get(row.verdict, "dim")
        # Intervals are written in brackets, which rich would take for markup.
        measured = row.measured.replace("[", r"\[")
        table.add_row(str(row.line), row.what, row.target, measured, f"[{style}]{row.verdict}[/]")
    return table


def limits_markdown(rows: Sequence[LimitRow]) -> str:
    """Targets, what was measured and verdicts of one run, as Markdown."""
    if not rows:
        raise UsageError("no run of targets to print")
    return "\n".join(
        [
            "| target | of | measured | verdict |",
            "|---|---|---|---|",
            *(f"| {row.target} | {row.what} | {row.measured} | {row.verdict} |" for row in rows),
            "",
            _origin(rows[0]),
        ]
    )


def readme_table(rows: Sequence[Row]) -> str:
    """Value and gradient in float32, of one run, as Markdown.

    Raises
    ------
    UsageError
        If the run lacks Keras or fastreg on such a case.
    """
    chosen = [row for row in rows if row.dtype == "float32" and row.what == VALUE_AND_GRADIENT]
    lines = []
    for size in sorted({row.size for row in chosen}):
        by_name = {(row.provider, row.mode): row for row in chosen if row.size == size}
        keras = [by_name[key] for mode in DEFAULT_MODES if (key := ("keras", mode)) in by_name]
        eager, ours = by_name.get(("fastreg", EAGER)), by_name.get(("fastreg", FUNCTION))
        if eager is None or ours is None or eager.mode_speedup is None or ours.mode_speedup is None or not keras:
            continue
        fastest = min(keras, key=lambda row: row.p50_s)
        cells = [f"{size:,}"]
        cells += [f"**{duration(row.p50_s)}**" if row is fastest else duration(row.p50_s) for row in keras]
        cells += [duration(eager.p50_s), f"{eager.mode_speedup:.1f}x", eager.bridge]
        cells += [duration(ours.p50_s), f"{ours.mode_speedup:.1f}x", ours.bridge, f"{ours.speedup:.1f}x"]
        cells.append(f"{ours.limit_share:.0%}")
        lines.append((tuple(row.mode for row in keras), cells))
    modes = {modes for modes, _ in lines}
    if len(modes) != 1:
        raise UsageError("no run with float32, value+gradient, Keras and fastreg in both modes for all sizes")
    columns = ["elements", *(f"Keras, {mode}" for mode in modes.pop())]
    columns += ["fastreg, eager", "x Keras, eager", "served by"]
    columns += ["fastreg, tf.function", "x Keras, tf.function", "served by", "x best Keras", "of memory limit"]
    environment = chosen[0]
    return "\n".join(
        [
            f"| {' | '.join(columns)} |",
            f"|{'---:|' * len(columns)}",
            *(f"| {' | '.join(cells)} |" for _, cells in lines),
            "",
            f"Value and gradient, float32, medians. {_origin(environment)}",
        ]
    )


def duration(seconds: float) -> str:
    """Seconds with three digits, in a unit to read."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale * 0.9995:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{_digits(seconds * 1e9)} ns"


def _digits(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def _times(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    digits = 2 if value < 10 else 1
    return f"{value:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def _origin(environment: Environment) -> str:
    commit = f", commit {environment.commit}" if environment.commit else ""
    return f"{_machine(environment)}; {environment.date[:10]}{commit}."


def _machine(environment: Environment) -> str:
    return (
        f"{environment.device}, {environment.threads} threads ({environment.threading_layer}) · "
        f"TensorFlow {environment.tensorflow}, Keras {environment.keras}, Numba {environment.numba}, "
        f"NumPy {environment.numpy}, Python {environment.python}"
    )
