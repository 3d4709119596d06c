"""Launching the CUDA kernels on memory that the caller has: grids and streams.

Nothing here allocates and nothing waits for the GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda

from fastreg_kernels.cuda import penalty, variants
from fastreg_kernels.cuda.accumulators import accumulator_name
from fastreg_kernels.cuda.arrays import View, numba_array
from fastreg_kernels.cuda.devices import DeviceError
from fastreg_kernels.cuda.jit import (
    FEWEST_REGISTERS,
    GRADIENT_REGISTERS,
    LEAST_BLOCKS,
    REGISTERS_PER_MULTIPROCESSOR,
    ROWS_REGISTERS,
    SIMULATED,
    SUM_REGISTERS,
    THREADS,
    registers_of,
)
from fastreg_kernels.cuda.lanes import ITEMSIZES, PACK_BYTES, lanes
from fastreg_kernels.cuda.shrink import shrink as shrink_kernel
from fastreg_kernels.cuda.shrink import shrink_rows as shrink_rows_kernel

if not SIMULATED:
    from numba.cuda.cudadrv.driver import Stream


@dataclass(frozen=True)
class Properties:
    """What the grids of a GPU are sized by."""

    compute_capability: tuple[int, int]
    multiprocessors: int
    threads: int  # that are resident on a multiprocessor


@functools.cache
def properties(ordinal: int) -> Properties:
    """Of the GPU that the driver numbers so."""
    if SIMULATED:
        return Properties((8, 0), 2, 2 * THREADS)
    device = cuda.gpus[ordinal]
    return Properties(
        tuple(device.compute_capability), device.MULTIPROCESSOR_COUNT, device.MAX_THREADS_PER_MULTIPROCESSOR
    )


def stream_of(stream: Any) -> Any:
    """A stream as Numba takes it: from None (the default stream), a handle, `__cuda_stream__`, or Numba's own."""
    if stream is None or SIMULATED:
        return 0
    if isinstance(stream, Stream):  # results keep it; its handle alone would not
        return stream
    if hasattr(stream, "__cuda_stream__"):
        stream = stream.__cuda_stream__()[1]
    return cuda.external_stream(int(stream)) if stream else 0


def most_blocks(ordinal: int, registers: int = FEWEST_REGISTERS) -> int:
    """Blocks of the largest grid: as many as are resident at once."""
    gpu = properties(ordinal)
    resident = min(gpu.threads, REGISTERS_PER_MULTIPROCESSOR // registers)
    return max(LEAST_BLOCKS, gpu.multiprocessors * (resident // THREADS))


def workspace_size(ordinal: int) -> int:
    """Float64 elements that the sums of an array need as a workspace."""
    return 2 * (most_blocks(ordinal) + 1)


def split(x: View, out: View | None = None) -> tuple[int, int]:
    """Elements before the first whole pack, and whole packs; no pack where x and out are aligned differently."""
    if out is not None and (x.address - out.address) % PACK_BYTES:
        return 0, 0
    head = min(x.size, -x.address % PACK_BYTES // ITEMSIZES[x.dtype])
    return head, (x.size - head) // lanes(x.dtype)


def prepare(dtype: str, has_l1: bool, has_l2: bool, ordinal: int) -> None:
    """Compile and load what a training step with these terms launches, on the current GPU, which `ordinal` names."""
    if not SIMULATED:
        for variant in variants.for_training(dtype, _accumulator(dtype, ordinal), has_l1, has_l2, _registers(ordinal)):
            variant.kernel.compile(variant.signature).bind()  # what another GPU compiled is not loaded here yet


def _blocks(x: View, packs: int, ordinal: int, registers: int) -> int:
    work = max(packs, x.size - packs * lanes(x.dtype))
    return min(max(LEAST_BLOCKS, -(-work // THREADS)), most_blocks(ordinal, registers))


def _launch(call: str, kernel: Any, blocks: int, stream: Any, *arguments: Any) -> None:
    try:
        kernel[blocks, THREADS, stream](*arguments)
    except Exception as error:
        if type(error).__module__.startswith(("cuda.", "numba.cuda.cudadrv", "numba.cuda.core")):
            raise DeviceError(f"fastreg_kernels.cuda.{call} could not be launched: {error}") from error
        raise


@dataclass(frozen=True)
class Sums:
    """Where sums go: a workspace of `workspace_size` float64 elements, and one element for the weighted penalty.

    The last two elements of the workspace are `[sum(|x|), sum(x²)]` afterwards.
    """

    workspace: View
    penalty: View
    l1: float = 0.0
    l2: float = 0.0

    def partials(self, blocks: int) -> Any:
        """One row for each block."""
        return numba_array(self.workspace.address, (blocks, 2), np.float64, self.workspace.owner)

    def totals(self) -> Any:
        """The last row."""
        last = self.workspace.address + self.workspace.nbytes - 16
        return numba_array(last, (1, 2), np.float64, self.workspace.owner)


def sums(x: View, result: Sums, ordinal: int, stream: Any) -> None:
    """Sums and weighted penalty of x."""
    dtype, (head, packs) = x.dtype, split(x)
    blocks = 0
    if x.size:
        accumulator = _accumulator(dtype, ordinal)
        blocks = _blocks(x, packs, ordinal, max(_registers(ordinal), SUM_REGISTERS[accumulator]))
        kernel = penalty.sums(dtype, accumulator, _registers(ordinal))
        _launch("forward", kernel, blocks, stream, x.flat(), head, packs, result.partials(blocks))
    _fold(result, blocks, stream)


def gradient(x: View, out: View, l1: float, l2: float, upstream: Any, ordinal: int, stream: Any) -> None:
    """`out = upstream * (l1 * sign(x) + 2 * l2 * x)`; `upstream` is a float or an array of one element."""
    if x.size:
        head, packs = split(x, out)
        kernel = penalty.gradient(x.dtype, l1 != 0.0, l2 != 0.0, _registers(ordinal))
        blocks = _blocks(x, packs, ordinal, max(_registers(ordinal), GRADIENT_REGISTERS.get(x.dtype, 0)))
        _launch("backward", kernel, blocks, stream, x.flat(), head, packs, out.flat(), l1, l2, upstream)


def both(x: View, result: Sums, out: View, l1: float, l2: float, upstream: Any, ordinal: int, stream: Any) -> None:
    """`sums` and `gradient` in one read of x, or in two where `out` is x."""
    if x.size == 0 or out.address == x.address:
        sums(x, result, ordinal, stream)
        gradient(x, out, l1, l2, upstream, ordinal, stream)
        return
    (head, packs), accumulator = split(x, out), _accumulator(x.dtype, ordinal)
    kernel = penalty.both(x.dtype, accumulator, l1 != 0.0, l2 != 0.0, _registers(ordinal))
    blocks = _blocks(x, packs, ordinal, max(_registers(ordinal), SUM_REGISTERS[accumulator]))
    arguments = (x.flat(), head, packs, result.partials(blocks), out.flat(), l1, l2, upstream)
    _launch("forward_backward", kernel, blocks, stream, *arguments)
    _fold(result, blocks, stream)


def shrink(x: View, out: View, scale: Any, threshold: Any, columns: int | None, ordinal: int, stream: Any) -> None:
    """Soft-thresholding; `columns` is the length of a row where a factor has a value for each, else None."""
    if x.size == 0:
        return
    head, packs = split(x, out)
    arguments: tuple[Any, ...] = (out.flat(), scale, threshold)
    registers = _registers(ordinal)
    if columns is None:
        kernel = shrink_kernel(x.dtype, registers)
    else:
        kernel = shrink_rows_kernel(x.dtype, registers)
        registers = max(registers, ROWS_REGISTERS)
        arguments += (columns,)
        if columns < lanes(x.dtype):  # a pack would straddle more than two rows
            head, packs = 0, 0
    blocks = _blocks(x, packs, ordinal, registers)
    _launch("shrink", kernel, blocks, stream, x.flat(), head, packs, *arguments)


def _registers(ordinal: int) -> int:
    return registers_of(properties(ordinal).threads)


def _accumulator(dtype: str, ordinal: int) -> str:
    return accumulator_name(dtype, properties(ordinal).compute_capability)


def _fold(result: Sums, blocks: int, stream: Any) -> None:
    factors = float(result.l1), float(result.l2)
    arguments = (result.partials(blocks), result.totals(), result.penalty.flat(), *factors)
    _launch("forward", penalty.fold, LEAST_BLOCKS, stream, *arguments)
