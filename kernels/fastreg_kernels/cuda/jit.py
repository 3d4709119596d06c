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

REGISTERS, ROWS_REGISTERS = 32, 40
SUM_REGISTERS = {"float64": REGISTERS, "compensated": 40}
"""Registers per thread that kernels may use: of those with factors per row, and of those that sum, by accumulator.

With 32, the 2,048 threads of a multiprocessor of compute capability 8.0, 9.0 or 10.0 are resident. With 40, 1,536 are:
all that fit on 8.6, 8.9 and 12.0, which the compensated accumulator is for.
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
