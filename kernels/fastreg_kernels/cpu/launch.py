"""How the work on an array is shared out, and where results are written.

Work is cut into blocks of `BLOCK` elements. They do not depend on the number of threads or on the vector width of the
processor, so that results have the same bits everywhere.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fastreg_kernels import _arrays, _threads
from fastreg_kernels.cpu.jit import jit
from fastreg_kernels.cpu.vector import STREAM_ALIGNMENT, store, stream

BLOCK = 16384
"""Elements per block: one partial sum, and the unit in which work is shared out."""

PARALLEL_MIN_BLOCKS = 4
"""With fewer blocks than this, waking the threads costs more than they save."""

STREAM_MIN_BYTES = 8 << 20
"""From this size on, gradients are written past the caches, which could not hold them until they are read anyway."""


def launch(serial: Any, parallel: Any, size: int, *arguments: Any) -> None:
    """Run a kernel over all blocks: on this thread where there is little to do, else on as many as are allowed."""
    count = blocks(size)
    threads = 1 if count < PARALLEL_MIN_BLOCKS else min(_threads.get_num_threads(), count)
    if threads == 1:
        serial(0, count, *arguments)
    else:
        with _threads.mask(threads):
            parallel(threads, count, *arguments)


def blocks(size: int) -> int:
    """How many blocks an array of `size` elements has."""
    return -(-size // BLOCK)


def written(result: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], bool | None]:
    """The result as the kernels take it, and True if it is to be written past the caches, else None.

    None rather than False, for Numba compiles a version of a kernel for each type.
    """
    flat = _arrays.stored(result.reshape(-1, order="A"))
    address = _arrays.address(flat)
    in_place = address == _arrays.address(x)  # then each line is in the cache already
    streamed = flat.nbytes >= STREAM_MIN_BYTES and not in_place and address % STREAM_ALIGNMENT == 0
    return flat, True if streamed else None


@jit
def put(out, i, v, streamed):
    """Store a vector, past the caches unless `streamed` is None."""
    if streamed is None:
        store(out, i, v)
    else:
        stream(out, i, v)
