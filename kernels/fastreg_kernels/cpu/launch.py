"""How the work on an array is shared out, and where results are written.

Work is cut into blocks of `BLOCK` elements. They do not depend on the number of threads or on the vector width of the
processor, so that results have the same bits everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from numpy.typing import NDArray

from fastreg_kernels import _arrays, _shared, _threads
from fastreg_kernels._shared import atomic_add
from fastreg_kernels.cpu.jit import jit
from fastreg_kernels.cpu.vector import STREAM_ALIGNMENT, store, stream

BLOCK = 16384
"""Elements per block: one partial sum, and the unit in which work is shared out."""

PARALLEL_MIN_BLOCKS = 4
"""With fewer blocks than this, waking the threads costs more than they save."""

STREAM_MIN_BYTES = 8 << 20
"""From this size on, gradients are written past the caches, which could not hold them until they are read anyway."""


_threads_address = _shared.address("fastreg_threads")


def launch(serial: Any, parallel: Any, size: int, *arguments: Any) -> None:
    """Run a kernel over all blocks: on this thread where there is little to do, else on as many as are allowed."""
    count = blocks(size)
    threads = 1 if count < PARALLEL_MIN_BLOCKS else min(_threads.get_num_threads(), count)
    if threads == 1:
        serial(0, count, *arguments)
    else:
        with _threads.mask(threads):
            parallel(threads, count, *arguments)


@jit
def enter(blocks):
    """How many threads compiled code may use for so many blocks; to be followed by `leave`.

    Kernels that run at the same time, called by several threads, share what is allowed.
    """
    if blocks < PARALLEL_MIN_BLOCKS:
        return 1
    cells = carray(_threads_address(), _threads.WORDS, np.int64)
    running = atomic_add(cells, _threads.RUNNING, 1)
    return max(1, min(blocks, cells[_threads.ALLOWED] // (running + 1)))


@jit
def leave(blocks):
    """The work on so many blocks is done, for which `enter` allowed threads."""
    if blocks >= PARALLEL_MIN_BLOCKS:
        atomic_add(carray(_threads_address(), _threads.WORDS, np.int64), _threads.RUNNING, -1)


@jit
def blocks(size):
    """How many blocks an array of `size` elements has."""
    return -(-size // BLOCK)


def _is_streamed(address: int, size: int) -> bool:
    """Whether a result of `size` bytes at this address, which is not its input, is written past the caches."""
    return size >= STREAM_MIN_BYTES and address % STREAM_ALIGNMENT == 0


is_streamed = jit(_is_streamed)


def written(result: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """The result as the kernels take it, and whether it is to be written past the caches."""
    flat = _arrays.stored(result.reshape(-1, order="A"))
    address = _arrays.address(flat)
    in_place = address == _arrays.address(x)  # then each line is in the cache already
    return flat, not in_place and _is_streamed(address, flat.nbytes)


@jit
def put(out, i, v, streamed):
    """Store a vector, past the caches unless `streamed` is None: a kernel is compiled for either."""
    if streamed is None:
        store(out, i, v)
    else:
        stream(out, i, v)
