"""How the CUDA kernels are compiled, and the shape of the grids they run on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda
from numba.cuda.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
"""Whether Numba runs kernels as Python (`NUMBA_ENABLE_CUDASIM=1`)."""

THREADS = 8 if SIMULATED else 256
"""Threads per block; a power of two. The simulator starts a Python thread for each."""

LEAST_BLOCKS = 1 if SIMULATED else 128
"""Blocks of the smallest grid. Numba warns of an idle device below 128, and blocks without work cost next to nothing.
"""

REGISTERS, BOTH_REGISTERS, ROWS_REGISTERS = 32, 40, 48
"""Registers per thread that kernels may use. With 32, 2,048 threads are resident on a multiprocessor of compute
capability 8.0 or 9.0, which is all that fit; with 40 1,536 (all of 8.6 and 8.9), with 48 1,280. The kernel that sums
and writes, and the one that looks rows up, would put values into memory with less. 1,280 threads have 20 KiB on their
way, one load each; bandwidth times latency is about 18 KiB per multiprocessor of an H100.
"""


def kernel(registers: int) -> Callable[[Callable[..., Any]], Any]:
    """A function that runs on a grid, compiled for each combination of argument types.

    Link-time optimisation is off: what runs is then what `fastreg info --cuda-audit` compiles and looks at.
    """
    if SIMULATED:
        return cuda.jit  # type: ignore[no-any-return]
    return cuda.jit(lto=False, max_registers=registers)  # type: ignore[no-any-return]


def device_function(function: Callable[..., Any]) -> Any:
    """A function that kernels call. Inlined by Numba, or it would be compiled apart, which needs a GPU."""
    return cuda.jit(function, device=True, inline="always")
