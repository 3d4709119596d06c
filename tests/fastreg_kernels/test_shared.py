"""Memory that compiled code and Python share."""

import os
import threading

import numpy as np
import pytest
from fastreg_kernels import _shared
from fastreg_kernels.cpu.jit import jit
from numba import carray

WORDS = 16
_region = _shared.region("fastreg_test", WORDS)
_shared.mutex(_region)
_address = _shared.address("fastreg_test")
_lock, _unlock, _add = _shared.lock, _shared.unlock, _shared.atomic_add


@jit
def add_atomically(times):
    cells = carray(_address(), WORDS, np.int64)
    for _ in range(times):
        _add(cells, 8, 1)


@jit
def add_under_the_lock(times):
    for _ in range(times):
        _lock(_address())
        cells = carray(_address(), WORDS, np.int64)
        cells[9] += 1
        _unlock(_address())


@pytest.mark.parametrize(("add", "cell"), [(add_atomically, 8), (add_under_the_lock, 9)])
def test_threads_lose_nothing(add, cell):
    add(0)
    _region[cell] = 0
    workers = [threading.Thread(target=add, args=[100_000]) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert _region[cell] == 400_000


def test_a_name_is_one_memory():
    again = _shared.region("fastreg_test", WORDS)
    again[10] = 7
    assert _region[10] == 7
    assert again.ctypes.data == _region.ctypes.data


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_finds_mutexes_unlocked(run_python):
    """What another thread holds at the fork, nobody in the child would give back."""
    code = """
    import ctypes, os
    from fastreg_kernels import _shared

    words = _shared.region("fastreg_test", 16)
    _shared.mutex(words)
    library, address = ctypes.CDLL(None), ctypes.c_void_p(words.ctypes.data)
    assert library.pthread_mutex_lock(address) == 0
    assert library.pthread_mutex_trylock(address) != 0
    child = os.fork()
    if child == 0:
        os._exit(7 if library.pthread_mutex_trylock(address) == 0 else 1)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), library.pthread_mutex_unlock(address))
    """
    assert run_python(code).split() == ["7", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_a_forked_child_finds_locks_free(run_python, kind):
    code = f"""
    import os, threading
    from fastreg_kernels import _shared

    lock = _shared.lock_for_forks(threading.{kind}())
    held, end = threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(7 if lock.acquire(timeout=10) else 8)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), lock.acquire(blocking=False))
    end.set()
    thread.join()
    """
    assert run_python(code).split() == ["7", "False"]
