"""Peak memory of `fit` on growing tables, in processes that may only take so much, up to where they fail."""

from __future__ import annotations

from collections.abc import Iterator

from fastreg_benchmarks import child
from fastreg_benchmarks.limits.lines import INFORMATION, Line, verdict
from fastreg_benchmarks.settings import Settings

ALLOWED_BYTES, QUICK_ALLOWED_BYTES = 6 << 30, 1 << 30
DIM = 64
SHARES = (12, 8, 6, 5, 4, 3)
"""Tables are so many times smaller than what a process is allowed to take."""


def growing_tables(settings: Settings) -> Iterator[Line]:
    """Line 4: three steps of SGD with an L1L2 penalty; a table that Keras cannot train is one more reason."""
    allowed = QUICK_ALLOWED_BYTES if settings.quick else ALLOWED_BYTES
    for share in SHARES:
        rows = allowed // share // (4 * DIM)
        grown = {name: _peak(name, rows, allowed) for name in ("fastreg", "keras")}
        ours, theirs = grown["fastreg"], grown["keras"]
        nbytes = 4 * DIM * rows
        measured = ", ".join(
            f"{name} {'fails' if size is None else f'{size >> 20:,} MiB ({size / nbytes:.1f} x)'}"
            for name, size in grown.items()
        )
        target = "no more than Keras"
        what = f"fit with a table of {rows:,} x {DIM} ({nbytes >> 20:,} MiB), {allowed >> 20:,} MiB allowed"
        if ours is None and theirs is None:
            yield Line(4, what, target, measured, INFORMATION)
            return
        yield Line(4, what, target, measured, verdict(ours is not None and (theirs is None or ours <= theirs)))


def _peak(provider: str, rows: int, allowed: int) -> int | None:
    grown: int | None = child.attempt("fit", {"provider": provider, "rows": rows, "dim": DIM, "allowed": allowed})
    return grown
