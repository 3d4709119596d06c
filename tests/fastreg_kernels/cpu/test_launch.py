"""How work is shared out to threads."""

import fastreg_kernels
import numpy as np
import pytest
from fastreg_kernels import _threads
from fastreg_kernels.cpu.jit import jit
from fastreg_kernels.cpu.launch import BLOCK, PARALLEL_MIN_BLOCKS, sharing
from hypothesis import given, settings
from hypothesis import strategies as st

ENOUGH = PARALLEL_MIN_BLOCKS * BLOCK

fastreg_kernels.threading_layer()


@jit
def mark(first, last, times, parts, nothing):
    for piece in range(first, last):
        times[piece] += 1
        parts[piece] = first + (0 if nothing is None else 1)


@jit
def need(first, last, sizes):
    for piece in range(first, last):
        np.empty(sizes[piece])[0] = 1.0


_share_mark, _share_need = sharing(mark), sharing(need)


@jit
def mark_all(size, times, parts):
    _share_mark(times.size, size, (times, parts, None))


@jit
def need_all(sizes):
    _share_need(sizes.size, ENOUGH, (sizes,))


@settings(deadline=None)
@given(pieces=st.integers(0, 300), size=st.sampled_from([0, ENOUGH - 1, ENOUGH]), threads=st.integers(1, 8))
def test_every_piece_once_in_equal_parts(pieces, size, threads):
    before = int(_threads._cells[_threads.ALLOWED])
    times, parts = np.zeros(pieces, np.int64), np.zeros(pieces, np.int64)
    _threads._cells[_threads.ALLOWED] = threads
    try:
        mark_all(size, times, parts)
    finally:
        _threads._cells[_threads.ALLOWED] = before
    assert (times == 1).all()
    sizes = np.unique(parts, return_counts=True)[1]
    if fastreg_kernels.threading_layer() == "workqueue":
        return
    assert len(sizes) == min(pieces, 1 if size < ENOUGH else threads)
    assert not len(sizes) or sizes.max() - sizes.min() <= 1
    assert _threads._cells[_threads.RUNNING] == 0


@pytest.mark.parametrize("where", [None, 0, 7])
def test_memory_that_a_part_does_not_get(where):
    """No result is returned as if all parts had been done."""
    sizes = np.ones(8, np.int64)
    if where is None:
        need_all(sizes)
    else:
        sizes[where] = 1 << 60
        with pytest.raises(MemoryError):
            need_all(sizes)
    running = int(_threads._cells[_threads.RUNNING])
    _threads._cells[_threads.RUNNING] = 0
    assert running == 0
