"""The table of `fastreg info --cuda-audit`: what the CUDA kernels compile to."""

from __future__ import annotations

import importlib.util

from rich.console import Console
from rich.table import Table

from fastreg.cli import UsageError

COLUMNS = (
    "compute capability",
    "kernel",
    "dtype",
    "accumulator",
    "registers",
    "occupancy",
    "shared bytes",
    "spilled bytes",
    "LDG.128",
    "STG.128",
    "narrow",
    "KiB in flight",
    "float64",
)
"""Of the loop for whole packs, LDG.128, STG.128, narrow and float64 count instructions: 128-bit loads and stores, other
accesses to global memory, float64 arithmetic. In flight is what the threads of a multiprocessor have asked for
before they store."""


def run(console: Console) -> int:
    """Compile every kernel for every architecture that is looked at, and print a row for each.

    Raises
    ------
    UsageError
        If numba-cuda or one of NVIDIA's tools is missing.
    """
    if importlib.util.find_spec("numba_cuda") is None:
        raise UsageError("--cuda-audit needs numba-cuda: pip install 'fastreg-keras[cuda]' nvidia-cuda-nvdisasm")
    from fastreg_kernels.cuda import audit

    table = Table(*COLUMNS, title="CUDA kernels as compiled")
    try:
        for kernel in audit.every():
            variant = kernel.variant
            table.add_row(
                ".".join(map(str, kernel.compute_capability)),
                variant.name,
                variant.dtype,
                variant.accumulator or "",
                str(kernel.registers),
                f"{kernel.occupancy:.0%}",
                f"{kernel.shared:,}",
                str(kernel.spilled),
                str(kernel.wide_loads),
                str(kernel.wide_stores),
                str(kernel.narrow),
                str(kernel.in_flight // 1024),
                str(kernel.float64),
            )
    except audit.ToolError as error:
        raise UsageError(str(error)) from error
    console.print(table)
    return 0
