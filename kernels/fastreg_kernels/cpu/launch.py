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
from fastreg_kernels.cpu._spread import spreading
from fastreg_kernels.cpu.jit import inner
from fastreg_kernels.cpu.vector import STREAM_ALIGNMENT, store, stream

BLOCK = 16384
"""Elements per block: one partial sum, and the unit in which work is shared out."""

PARALLEL_MIN_BLOCKS = 4
"""With fewer blocks than this, waking the threads costs more than they save."""

STREAM_MIN_BYTES = 8 << 20
"""From this size on, gradients are written past the caches, which could not hold them until they are read anyway."""


_threads_address = _shared.address("fastreg_threads")


def run(kernel: Any, size: int, *arguments: Any) -> Any:
    """Call a compiled kernel that shares work on `size` elements out, from Python."""
    if size >= PARALLEL_MIN_BLOCKS * BLOCK:
        _threads.threading_layer()  # starts the threads, which compiled code cannot
    return kernel(*arguments)


def sharing(task: Any) -> Any:
    """A compiled function `share(pieces, size, arguments)` that calls `task(first, last, *arguments)`, a compiled
    function without result, for so many pieces of work.

    On this thread if the work, on arrays of `size` elements in all, is little, else in equal parts on as many threads
    as are allowed. Calls at the same time, on several threads, share what is allowed.
    """
    on_threads = spreading(task)

    @inner
    def share(pieces, size, arguments):
        if size < PARALLEL_MIN_BLOCKS * BLOCK or pieces < 2:
            task(0, pieces, *arguments)
            return
        cells = carray(_threads_address(), _threads.WORDS, np.int64)
        running = atomic_add(cells, _threads.RUNNING, 1)
        failed = on_threads(max(1, min(pieces, cells[_threads.ALLOWED] // (running + 1))), pieces, cells, arguments)
        atomic_add(cells, _threads.RUNNING, -1)
        if failed:
            raise MemoryError("no memory for what a kernel needs on each thread")

    return share


@inner
def blocks(size):
    """How many blocks an array of `size` elements has."""
    return -(-size // BLOCK)


@inner
def is_streamed(address, size):
    """Whether a result of `size` bytes at this address, which is not its input, is written past the caches."""
    return size >= STREAM_MIN_BYTES and address % STREAM_ALIGNMENT == 0


def written(result: NDArray[Any], x: NDArray[Any]) -> tuple[NDArray[Any], bool]:
    """The result as the kernels take it, and whether it is to be written past the caches."""
    flat = _arrays.stored(result.reshape(-1, order="A"))
    address = _arrays.address(flat)
    in_place = address == _arrays.address(x)  # then each line is in the cache already
    return flat, not in_place and is_streamed(address, flat.nbytes)


@inner
def put(out, i, v, streamed):
    """Store a vector, past the caches unless `streamed` is None: a kernel is compiled for either."""
    if streamed is None:
        store(out, i, v)
    else:
        stream(out, i, v)
