"""Tables of GPU results, and the targets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from fastreg_benchmarks.gpu.rows import GpuRow
from fastreg_benchmarks.report import duration

KERNEL_SHARE, FORWARD_SHARE, LARGE = 0.90, 0.95, 1 << 28
XLA_SHARE, XLA_FROM = 1 / 1.1, 1 << 24


def table(rows: Sequence[GpuRow]) -> Table:
    """The rows of one part of one case."""
    first = rows[0]
    title = f"{first.part}: {first.size:,} {first.dtype}, compared with {first.rival}"
    result = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("what", "provider", "mode"):
        result.add_column(name, no_wrap=True)
    for name in ("p50", "p20 - p80", "GB/s", "share", "n", "check"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        spread = f"{duration(row.p20_s)} - {duration(row.p80_s)}"
        figures = (duration(row.p50_s), spread, f"{row.gbs:.1f}", f"{row.share:.1%}", str(row.rounds), row.check)
        result.add_row(row.what, row.provider, row.mode, *figures)
    return result


def targets(rows: Sequence[GpuRow]) -> Table:
    """What was aimed at, measured or not."""
    result = Table(title="targets", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("what", "target", "measured", "verdict"):
        result.add_column(name)
    for what, target, share in _targets(rows):
        result.add_row(what, f"{target:.0%}", f"{share:.1%}", "pass" if share >= target else "fail")
    return result


def _targets(rows: Sequence[GpuRow]) -> Iterator[tuple[str, float, float]]:
    for row in rows:
        if row.dtype != "float32":
            continue
        if row.part == "kernel" and row.size >= LARGE and row.provider == "kernel":
            target = FORWARD_SHARE if row.what == "forward" else KERNEL_SHARE
            yield f"{row.what} of {row.size:,}, of copy bandwidth", target, row.share
        if row.part == "penalty" and row.size >= XLA_FROM and (row.provider, row.mode) == ("fastreg", "tf.function"):
            yield f"{row.what} of {row.size:,}, of XLA's speed", XLA_SHARE, row.share
