"""The machine's memory bandwidth: what the kernels are held against.

The probes share the kernels' threads and vector instructions, but none of their loops: these go over the same number of
bytes and do as little as can be done with them. (Loops in plain Numba do not reach the limit, and would flatter.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastreg_kernels.cpu.jit import jit
from fastreg_kernels.cpu.launch import BLOCK, blocks, run, sharing
from fastreg_kernels.cpu.vector import LANES, fence, load, store, stream, total, zeros
from numpy.typing import NDArray

from fastreg_benchmarks import timing
from fastreg_benchmarks.cases import VALUE, Case, aligned_empty

PROBE_BYTES = 256 << 20
QUICK_PROBE_BYTES = 64 << 20

MEMORY_BYTES = 64 << 20
"""A case whose x is at least so big lies in memory, not in a cache, and has its limit probed beside it."""

_FACTOR = np.float32(0.999)  # not 1, which a compiler could leave out


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second.

    Attributes
    ----------
    read : float
        Reading: the limit of the value.
    copy : float
        Reading and writing a scaled copy with non-temporal stores, both counted: the limit of value and gradient.
    scale : float
        Scaling in place, reading and writing counted.
    """

    read: float
    copy: float
    scale: float

    def seconds(self, case: Case) -> float:
        """The least time that a case can take, if its data comes from memory."""
        return case.model_bytes / (self.read if case.what == VALUE else self.copy)


class Probe:
    """The probes on arrays of (at least) so many bytes."""

    def __init__(self, nbytes: int) -> None:
        self.x = aligned_empty(blocks(-(-nbytes // 8)) * BLOCK * 2, "float32")  # whole blocks, of pairs too
        # From 1 to 2: normal numbers also in pairs as float64, and after having been scaled many times.
        np.random.default_rng().random(out=self.x, dtype=np.float32)
        self.x += 1
        self.out = aligned_empty(self.x.size, "float32")
        self._doubles = self.x.view(np.float64)

    def read(self) -> float:
        """Read x: the sum of its pairs of elements, taken as float64."""
        totals = np.zeros(blocks(self._doubles.size))
        run(_read, self._doubles.size, self._doubles, totals)
        return float(totals.sum())

    def copy(self) -> NDArray[np.float32]:
        """Write a scaled copy of x past the caches."""
        run(_copy, self.x.size, self.x, self.out, _FACTOR)
        return self.out

    def scale(self) -> NDArray[np.float32]:
        """Scale x in place."""
        run(_scale, self.x.size, self.x, _FACTOR)
        return self.x

    def limit(self, what: str) -> Callable[[], Any]:
        """The probe that limits the value, or value and gradient."""
        return self.read if what == VALUE else self.copy


def measure(nbytes: int, seconds: float) -> Bandwidth:
    """Time the three probes on arrays of so many bytes."""
    probe = Probe(nbytes)
    runs = [timing.Run(call) for call in (probe.read, probe.copy, probe.scale)]
    for timed in runs:
        timing.warm_up(timed)
    samples = timing.measure(runs, seconds).samples
    read, copy, scale = (float(np.median(values)) for values in samples)
    moved = probe.x.nbytes
    return Bandwidth(read=moved / read, copy=2 * moved / copy, scale=2 * moved / scale)


@jit
def _read_blocks(first: int, last: int, doubles: Any, totals: Any) -> None:
    sums = zeros()
    for i in range(first * BLOCK, last * BLOCK, LANES):
        sums = sums + load(doubles, i)
    totals[first] = total(sums)


@jit
def _copy_blocks(first: int, last: int, x: Any, out: Any, factor: Any) -> None:
    for i in range(first * BLOCK, last * BLOCK, LANES):
        stream(out, i, factor * load(x, i))
    fence()


@jit
def _scale_blocks(first: int, last: int, x: Any, factor: Any) -> None:
    for i in range(first * BLOCK, last * BLOCK, LANES):
        store(x, i, factor * load(x, i))


_share_read, _share_copy, _share_scale = (sharing(task) for task in (_read_blocks, _copy_blocks, _scale_blocks))


@jit
def _read(doubles: Any, totals: Any) -> None:
    _share_read(totals.size, doubles.size, (doubles, totals))


@jit
def _copy(x: Any, out: Any, factor: Any) -> None:
    _share_copy(blocks(x.size), x.size, (x, out, factor))


@jit
def _scale(x: Any, factor: Any) -> None:
    _share_scale(blocks(x.size), x.size, (x, factor))
