"""Reusable gradient buffers: aligned, on huge pages, never handed out while anyone still holds them.

TensorFlow maps fresh pages for every large tensor and gives them back when it is freed; at the sizes this library is
for, those page faults take longer than the gradient itself. Buffers from here keep their pages.

The pool is a table in shared memory, so that native ops and Python take from the same one, and no lock of Python's is
needed. Native ops hand a buffer to TensorFlow together with `release`; Python's arrays release theirs when the last
view of it is gone.
"""

from __future__ import annotations

import ctypes
import functools
import math
import weakref
from typing import Any

import numpy as np
from fastreg_kernels import _shared
from fastreg_kernels.cpu.jit import cfunc, inner, jit
from numba import carray, types
from numpy.typing import NDArray

from fastreg._bridges import pages

ALIGNMENT = 64
"""Bytes; what TensorFlow requires of memory it is given, and what non-temporal stores require."""

SMALLEST = 1 << 16
"""Bytes from which memory is kept. Smaller pieces the C library keeps itself, and models have so many of them that
looking for a free one would take longer than it saves."""

SLACK = 4
"""A buffer serves requests down to its size without this fraction, so that a ragged last batch finds one."""

IDLE_REQUESTS = 256
"""A buffer that so many requests passed by goes back to the system."""

NONE = -1
"""In the place of a slot: no memory could be had from the pool."""

_SLOTS = 512
_REQUESTS, _USED, _BYTES = range(_shared.MUTEX_WORDS, _shared.MUTEX_WORDS + 3)
_FIRST = 16
_ADDRESS, _SIZE, _STATE, _LAST_USED = range(4)
_EMPTY, _FREE, _HELD, _LEAVING = range(4)
"""States of a slot. What is leaving is held, and goes back to the system when it is released."""

_WORDS = _FIRST + 4 * _SLOTS
_region = _shared.region("fastreg_buffers", _WORDS)
_shared.mutex(_region)
_address = _shared.address("fastreg_buffers")
_lock, _unlock, _malloc, _free = _shared.lock, _shared.unlock, _shared.malloc, _shared.free
_pointer_of = types.ExternalFunction("PyCapsule_GetPointer", types.uintp(types.uintp, types.uintp))


@jit
def take(size):
    """The slot of a buffer of at least `size` bytes, which is the caller's until `release`; `NONE` if there is none."""
    _lock(_address())
    slot = _take(carray(_address(), _WORDS, np.int64), size + ALIGNMENT)
    _unlock(_address())
    return slot


@jit
def data(slot):
    """The address of a slot's buffer, a multiple of `ALIGNMENT`."""
    start = carray(_address(), _WORDS, np.int64)[_FIRST + 4 * slot + _ADDRESS]
    return -(-start // ALIGNMENT) * ALIGNMENT


@jit
def release(slot):
    """Give a slot's buffer back to the pool, from any thread."""
    _lock(_address())
    table = carray(_address(), _WORDS, np.int64)
    if table[_FIRST + 4 * slot + _STATE] == _LEAVING:
        _drop(table, slot)
    else:
        table[_FIRST + 4 * slot + _STATE] = _FREE
    _unlock(_address())


@jit
def _clear():
    _lock(_address())
    table = carray(_address(), _WORDS, np.int64)
    _drop_free(table)
    for slot in range(table[_USED]):
        if table[_FIRST + 4 * slot + _STATE] == _HELD:
            table[_FIRST + 4 * slot + _STATE] = _LEAVING
            table[_BYTES] -= table[_FIRST + 4 * slot + _SIZE]
    _unlock(_address())


@inner
def _take(table, size):
    table[_REQUESTS] += 1
    best, empty = NONE, table[_USED]
    for slot in range(table[_USED]):
        at = _FIRST + 4 * slot
        if table[at + _STATE] == _FREE:
            have = table[at + _SIZE]
            if table[_REQUESTS] - table[at + _LAST_USED] > IDLE_REQUESTS:
                _drop(table, slot)
            elif size <= have <= size + size // SLACK and (best == NONE or have < table[_FIRST + 4 * best + _SIZE]):
                best = slot
        if table[at + _STATE] == _EMPTY and slot < empty:
            empty = slot
    if best == NONE:
        if empty == _SLOTS:
            return NONE
        start = _malloc(size)
        if start == 0:
            _drop_free(table)
            start = _malloc(size)
        if start == 0:
            return NONE
        pages.advise(start, size)
        best = empty
        table[_FIRST + 4 * best + _ADDRESS], table[_FIRST + 4 * best + _SIZE] = start, size
        table[_USED] = max(table[_USED], best + 1)
        table[_BYTES] += size
    table[_FIRST + 4 * best + _STATE] = _HELD
    table[_FIRST + 4 * best + _LAST_USED] = table[_REQUESTS]
    return best


@inner
def _drop_free(table):
    for slot in range(table[_USED]):
        if table[_FIRST + 4 * slot + _STATE] == _FREE:
            _drop(table, slot)


@inner
def _drop(table, slot):
    at = _FIRST + 4 * slot
    _free(table[at + _ADDRESS])
    if table[at + _STATE] == _FREE:
        table[_BYTES] -= table[at + _SIZE]
    table[at + _STATE] = _EMPTY


def array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialised, C-contiguous array of this shape and dtype that starts at a multiple of `ALIGNMENT`.

    All that is made of it refers to it: NumPy's views by `base`, TensorFlow's tensors by DLPack. Its memory is free
    again when the last of them is gone.
    """
    size = math.prod(shape) * dtype.itemsize
    slot = NONE if size < SMALLEST else take(size)
    if slot == NONE:
        block = np.empty(size + ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        return block[start : start + size].view(dtype).reshape(shape)
    return np.asarray(_Memory(slot, size)).view(dtype).reshape(shape)


class _Memory:
    """A slot's buffer as bytes, for NumPy; the slot is released with it."""

    def __init__(self, slot: int, size: int) -> None:
        self._capsule = _capsule()(slot + 1, None, _let_go().address)
        self.__array_interface__ = {"data": (data(slot), False), "shape": (size,), "typestr": "|u1", "version": 3}


@functools.cache
def _capsule() -> Any:
    """Makes an object of Python's whose end runs no Python, which an interrupt would end."""
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return prototype(("PyCapsule_New", ctypes.pythonapi))


@functools.cache
def _let_go() -> Any:
    @cfunc(types.void(types.uintp))
    def let_go(capsule):
        release(np.int64(_pointer_of(capsule, np.uintp(0))) - 1)

    return let_go


def clear() -> None:
    """Give the memory of all gradient buffers that are not in use back to the system. Others go when released."""
    _clear()


_owners: dict[int, weakref.finalize[Any, Any]] = {}


def clear_after(owner: Any) -> None:
    """Clear the pool when `owner`, a variable that is penalised, is garbage-collected: its model is gone.

    What other models still need they ask for again.
    """
    known = _owners.get(id(owner))
    if known is None or not known.alive:
        _owners[id(owner)] = finalizer = weakref.finalize(owner, _owner_is_gone, id(owner))
        finalizer.atexit = False


def _owner_is_gone(key: int) -> None:
    _owners.pop(key, None)
    _clear()


def nbytes() -> int:
    """Bytes held for reuse, in use or not."""
    return int(_region[_BYTES])
