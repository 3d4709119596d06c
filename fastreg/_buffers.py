"""Reusable gradient buffers: aligned, on huge pages, never handed out while anyone still holds them.

TensorFlow maps fresh pages for every large tensor and gives them back when it is freed; at the sizes this library is
for, those page faults take longer than the gradient itself. Buffers from here keep their pages.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes; what TensorFlow requires of memory it is given, and what non-temporal stores require."""

SMALLEST = 1 << 16
"""Bytes from which memory is kept. Smaller pieces the C library keeps itself, and models have so many of them that
looking for a free one would take longer than it saves."""

MAX_SLACK = 1.25
"""A buffer serves requests down to its size divided by this, so that a ragged last batch finds one."""

IDLE_REQUESTS = 256
"""A buffer that so many requests passed by goes back to the system."""

_Block = NDArray[np.uint8]


class BufferPool:
    """Blocks of memory whose reference counts tell whether they are in use.

    Every array and tensor made of a block holds a reference to it, directly or through TensorFlow's DLPack import, and
    NumPy points all views at the array that owns the memory. So a block to which only the pool refers is free, and one
    to which anything else refers is not: nothing has to be returned, and nothing can be handed out twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[_Block] = []
        self._last_used: list[int] = []
        self._requests = 0
        self._owners: dict[int, weakref.finalize[Any, Any]] = {}
        self._clear_due = False

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialised, C-contiguous array of this shape and dtype that starts at a multiple of `ALIGNMENT`."""
        size = math.prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return _aligned(_new_block(size), size, shape, dtype)
        with self._lock:
            self._requests += 1
            block = self._find(size + ALIGNMENT)
            if block is None:
                block = _new_block(size)
                self._blocks.append(block)
                self._last_used.append(self._requests)
            # The view is made under the lock: from here on the block counts as held.
            result = _aligned(block, size, shape, dtype)
            if self._clear_due:
                self._forget_all()
            return result

    def clear(self) -> None:
        """Give the memory of all free blocks back. Blocks in use go when their last holder does."""
        with self._lock:
            self._forget_all()

    def clear_after(self, owner: Any) -> None:
        """Clear the pool when `owner`, a variable that is penalised, is garbage-collected: its model is gone.

        What other models still need they ask for again.
        """
        known = self._owners.get(id(owner))
        if known is None or not known.alive:
            self._owners[id(owner)] = finalizer = weakref.finalize(owner, self._owner_is_gone, id(owner))
            finalizer.atexit = False

    def nbytes(self) -> int:
        """Bytes held for reuse, in use or not."""
        with self._lock:
            return sum(block.nbytes for block in self._blocks)

    def _owner_is_gone(self, key: int) -> None:
        self._owners.pop(key, None)
        # The garbage collector may call this anywhere, also where this very thread holds the lock: then whoever holds
        # it clears.
        if self._lock.acquire(blocking=False):
            try:
                self._forget_all()
            finally:
                self._lock.release()
        else:
            self._clear_due = True

    def _forget_all(self) -> None:
        self._clear_due = False
        self._blocks.clear()
        self._last_used.clear()

    def _find(self, size: int) -> _Block | None:
        best = None
        for index in reversed(range(len(self._blocks))):
            if not self._is_free(index):
                continue
            if self._requests - self._last_used[index] > IDLE_REQUESTS:
                del self._blocks[index], self._last_used[index]
                best = None if best is None else best - 1
            elif size <= self._blocks[index].nbytes <= size * MAX_SLACK and (
                best is None or self._blocks[index].nbytes < self._blocks[best].nbytes
            ):
                best = index
        if best is None:
            return None
        self._last_used[best] = self._requests
        return self._blocks[best]

    def _is_free(self, index: int) -> bool:
        return sys.getrefcount(self._blocks[index]) <= _UNSHARED


def _new_block(size: int) -> _Block:
    return np.empty(size + ALIGNMENT, np.uint8)  # NumPy asks for huge pages


def _aligned(block: _Block, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The first `size` aligned bytes of a block as an array."""
    start = -block.ctypes.data % ALIGNMENT
    return block[start : start + size].view(dtype).reshape(shape)


def _unshared_count() -> int:
    """What `sys.getrefcount` says of a list's element that nobody else refers to, in this interpreter."""
    elements = [np.empty(1, np.uint8)]
    return sys.getrefcount(elements[0])


_UNSHARED = _unshared_count()

pool = BufferPool()
"""The pool of this process."""


def clear_buffers() -> None:
    """Give the memory of all gradient buffers that are not in use back to the system."""
    pool.clear()
