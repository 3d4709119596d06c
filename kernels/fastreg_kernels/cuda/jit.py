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

REGISTERS_PER_MULTIPROCESSOR = 65_536
"""Of every GPU since compute capability 5.0."""

FEWEST_REGISTERS, ROWS_REGISTERS = 32, 40
SUM_REGISTERS = {"float64": FEWEST_REGISTERS, "compensated": 40}
GRADIENT_REGISTERS = {"float64": 40}
"""Registers per thread that kernels may use on every GPU: all; those with factors per row; those that sum, by
accumulator; gradients, by dtype. 40 leave 1,536 threads where 2,048 fit.
"""


def registers_of(threads: int) -> int:
    """Registers per thread with which so many threads are resident on a multiprocessor: 32 of 2,048 (compute capability
    8.0, 9.0, 10.0), 40 of 1,536 (8.6, 8.9, 12.0), and 64 of 1,024 (7.5), which no kernel needs more of.
    """
    return max(FEWEST_REGISTERS, min(64, REGISTERS_PER_MULTIPROCESSOR // threads // 8 * 8))


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
