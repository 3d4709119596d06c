"""Which threads run a kernel, such that no combination of threading layer, calling thread and fork ends the process.

Numba runs `prange` on one of three threading layers. What each does when it is used in a way it does not support:

=========== ============================== ============================
layer       several threads launch at once launch in a forked child
=========== ============================== ============================
`tbb`       works                          works only after a fork from the main thread
`omp`       works                          GNU OpenMP ends the process
`workqueue` ends the process               works
=========== ============================== ============================

So `tbb` is preferred (the wheel from PyPI is a dependency where there is one, and is loaded from there), and kernels
run serially, with the same bits, under `workqueue` and in a child that was forked after the threads had started.

Where there is no memory for the threads, GNU OpenMP ends the process, and TBB does or waits for ever. So it is tried
out before a layer is loaded; until it succeeds, kernels run serially.
"""

from __future__ import annotations

import ctypes
import operator
import os
import sys
import threading
import warnings
from pathlib import Path

import numba
from llvmlite import binding

from fastreg_kernels import _shared

WORDS, ALLOWED, RUNNING, PARALLEL_FOR, GET_NUMBER, SET_NUMBER = 5, 0, 1, 2, 3, 4
"""What compiled code knows of threads: how many a kernel may use, how many kernels run that may use several, and the
addresses of three functions of Numba's threading layer: the one that runs loops, and those for the calling thread's own
number of threads."""

_cells = _shared.region("fastreg_threads", WORDS)
_lock = _shared.lock_for_forks(threading.Lock())
_layer: str | None = None
_limit: int | None = None
_forked_with_threads = False


def set_num_threads(n: int) -> None:
    """Use at most `n` threads for each kernel call, whichever thread it is called from.

    Parameters
    ----------
    n : int
        From 1 to the number of threads that Numba has (`NUMBA_NUM_THREADS`, by default the number of cores).

    Raises
    ------
    TypeError
        If `n` is not an integer.
    ValueError
        If `n` is out of range.
    """
    global _limit
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"Invalid type for argument n: expected an integer. Received: n={n!r}") from None
    most = numba.config.NUMBA_NUM_THREADS
    if not 1 <= count <= most:
        raise ValueError(f"Invalid value for argument n: expected 1 to {most} threads. Received: n={n}")
    _limit = count
    if _layer is not None:
        _publish()


def get_num_threads() -> int:
    """The number of threads that the next kernel call may use, 1 where it has to run serially."""
    if _forked_with_threads or threading_layer() in ("workqueue", "none"):
        return 1
    return numba.config.NUMBA_NUM_THREADS if _limit is None else _limit


def threading_layer() -> str:
    """The threading layer in use: `"tbb"`, `"omp"` or `"workqueue"`; starts the threads if nobody has yet.

    `"none"` while there is no memory to start them.
    """
    global _layer
    if _layer is None:
        with _lock:
            if _layer is None and (_threads_started() or _there_is_memory()):
                _layer = _start()
                _publish()
    return _layer or "none"


def serial_reason() -> str | None:
    """Why kernels run serially although more than one thread was asked for, or None."""
    if _forked_with_threads:
        return "this process was forked from one whose kernel threads had started"
    if threading_layer() == "none":
        return "there is no memory to start threads"
    if threading_layer() == "workqueue":
        return "Numba's workqueue threading layer ends the process when two threads use it at once"
    return None


def _there_is_memory() -> bool:
    """Whether as many threads can exist at the same time as a layer starts."""
    end, threads = threading.Event(), []
    try:
        for _ in range(numba.config.NUMBA_NUM_THREADS - 1):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        return False
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return True


def _start() -> str:
    if not _threads_started():
        _load_tbb_wheel()
        numba.get_num_threads()  # the public call that starts the threads without running anything on them
    layer: str = numba.threading_layer()
    if layer != "workqueue" and not _forked_with_threads:
        _start_workers()
    if layer == "workqueue":
        warnings.warn(
            "fastreg runs its kernels on one thread: Numba's workqueue threading layer ends the process when two "
            "threads use it at once. Install tbb (`pip install tbb`) or libgomp, or unset NUMBA_THREADING_LAYER.",
            RuntimeWarning,
            stacklevel=2,
        )
    return layer


def _start_workers() -> None:
    """Have a layer that starts threads when a loop needs them start them now, while there is memory for them.

    By a loop over a function of C's that takes no time, with what it does not look at.
    """
    if not hasattr(_shared.libc, "sched_yield"):
        return
    threads, nothing = numba.config.NUMBA_NUM_THREADS, ctypes.cast(_shared.libc.sched_yield, ctypes.c_void_p)
    parallel_for = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 5, *[ctypes.c_ssize_t] * 3)(
        binding.address_of_symbol("numba_parallel_for")
    )
    sizes, empty = (ctypes.c_ssize_t * 1)(threads), (ctypes.c_ssize_t * 1)()
    own = numba.get_num_threads()
    parallel_for(nothing, empty, sizes, empty, None, 0, 0, threads)
    numba.set_num_threads(own)


def _publish() -> None:
    """Tell compiled code."""
    functions = ((PARALLEL_FOR, "numba_parallel_for"), (GET_NUMBER, "get_num_threads"), (SET_NUMBER, "set_num_threads"))
    for cell, name in functions:
        _cells[cell] = binding.address_of_symbol(name)
    _cells[ALLOWED] = get_num_threads()


def _threads_started() -> bool:
    try:
        numba.threading_layer()
    except ValueError:  # Numba's answer while there is no layer yet
        return False
    return True


def _load_tbb_wheel() -> None:
    """Load libtbb from where pip puts it, where the system's linker does not look; Numba then finds it by name."""
    if not sys.platform.startswith("linux"):
        return
    library = Path(sys.prefix) / "lib" / "libtbb.so.12"
    if library.exists():
        try:
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        except OSError:
            return  # Numba goes on to the next layer, which `threading_layer()` names


def _after_fork_in_child() -> None:
    global _forked_with_threads
    _forked_with_threads = _forked_with_threads or _threads_started()
    _cells[: RUNNING + 1] = 1, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
