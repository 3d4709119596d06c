"""What the command line asks of a suite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastreg_benchmarks.bandwidth import Bandwidth
from fastreg_benchmarks.environment import Environment


@dataclass(frozen=True)
class Settings:
    """What to measure, for how long, and where results go.

    Attributes
    ----------
    seconds : float
        For each case, all its providers together.
    warm : bool
        Whether calls are repeated with warm caches where these would be emptied otherwise.
    csv, plot : Path or None
        None: nothing is written.
    jax_python : Path or None
        The interpreter that has XLA's compiler for GPUs, for the suite that needs it.
    """

    suite: str
    sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    providers: tuple[str, ...]
    seconds: float
    quick: bool
    warm: bool
    csv: Path | None
    plot: Path | None
    environment: Environment
    bandwidth: Bandwidth
    jax_python: Path | None = None
