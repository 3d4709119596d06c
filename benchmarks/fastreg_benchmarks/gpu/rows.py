"""A row of GPU results."""

from __future__ import annotations

from dataclasses import dataclass

from fastreg_benchmarks.environment import Environment


@dataclass(frozen=True, kw_only=True)
class GpuRow(Environment):
    """One provider on one case. Times are seconds per call.

    Attributes
    ----------
    part : {"kernel", "penalty", "training"}
        A kernel alone, by CUDA events with a cold L2 cache; a penalty through TensorFlow, by the host's clock until the
        GPU is idle; a training step, likewise.
    what : str
        Of a kernel its call; else `"value"`, `"value+gradient"` or `"step"`.
    mode : str
        How TensorFlow runs it; `"events"` for a kernel.
    gbs : float
        Bytes that have to be moved at least, over the median, in GB/s.
    rival, share : str, float
        What it is compared with (a copy of as many bytes for a kernel, else Keras compiled by XLA), and the speed
        relative to that: for a kernel its bytes per second over the copy's, else the rival's time over this time.
    check : {"ok", "inexact", "overflow", "WRONG", ""}
        Against the float64 oracle; empty for a training step.
    """

    part: str
    size: int
    dtype: str
    what: str
    provider: str
    mode: str
    rounds: int
    p20_s: float
    p50_s: float
    p80_s: float
    gbs: float
    rival: str
    share: float
    check: str
