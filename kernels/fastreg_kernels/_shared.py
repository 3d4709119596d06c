"""Memory that Python and compiled code share: found by name, atomic where threads meet, guarded by mutexes.

Compiled code is kept between processes, so it cannot hold the address of an array of this one. It names a symbol
instead, which is resolved when the code is loaded.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, TypeVar

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

MUTEX_WORDS = 8
"""Of 8 bytes: the size of a `pthread_mutex_t` on every platform that has one (64 bytes on macOS, fewer elsewhere)."""

_mutexes: list[int] = []
_Lock = TypeVar("_Lock")


def region(name: str, words: int) -> NDArray[np.int64]:
    """Zeroed memory of this process of so many words of 8 bytes, under a name that `address` knows.

    It is never freed, since compiled code may use it as long as the process lives. Whoever asks for a name again, as a
    module does that is imported twice, gets the same memory.
    """
    known = binding.address_of_symbol(name)
    if known is None:
        memory = (ctypes.c_int64 * words)()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
        known = ctypes.addressof(memory)
        binding.add_symbol(name, known)
    return np.ctypeslib.as_array((ctypes.c_int64 * words).from_address(known))


def mutex(words: NDArray[np.int64]) -> None:
    """Make a mutex of the first `MUTEX_WORDS` words of a region, unlocked, in forked children too."""
    address = words.ctypes.data
    _mutexes.append(address)
    if not words[:MUTEX_WORDS].any():  # else an earlier import made one, which somebody may hold
        _unlock(address)


def _unlock(address: int) -> None:
    if hasattr(libc, "pthread_mutex_init"):
        ctypes.memset(address, 0, 8 * MUTEX_WORDS)
        libc.pthread_mutex_init(ctypes.c_void_p(address), None)


def _after_fork_in_child() -> None:
    """What another thread held when the process was forked, nobody would ever unlock."""
    for address in _mutexes:
        _unlock(address)


def lock_for_forks(lock: _Lock) -> _Lock:
    """The lock of `threading`, which a forked child finds free, whichever thread of its parent held it."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock


libc = ctypes.CDLL(None) if sys.platform != "win32" else object()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def address(name: str) -> Any:
    """A compiled function without arguments that gives the address of the region of this name, as a void pointer."""

    @intrinsic
    def address_of_region(typingctx):
        def codegen(context, builder, signature, args):
            # Declared as a function, which the linker resolves wherever it lies. Of data it expects to be near.
            known = builder.module.globals.get(name)
            symbol = known or ir.Function(builder.module, ir.FunctionType(ir.VoidType(), []), name)
            return builder.bitcast(symbol, ir.IntType(8).as_pointer())

        return types.voidptr(), codegen

    return address_of_region


@intrinsic
def atomic_add(typingctx, words, i, number):
    """Add to `words[i]`, in one piece for all threads, and return what was there before."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [args[1]]), args[2], "seq_cst")

    return types.int64(words, types.intp, types.int64), codegen


lock = types.ExternalFunction("pthread_mutex_lock", types.int32(types.voidptr))
"""Wait for the mutex at an address, and take it."""

unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.voidptr))
"""Let go of the mutex at an address."""

malloc = types.ExternalFunction("malloc", types.uintp(types.uintp))
"""The address of so many bytes of memory, or 0 if there are none."""

free = types.ExternalFunction("free", types.void(types.uintp))
"""Give memory from `malloc` back."""
