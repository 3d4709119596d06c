"""Kernels in forked children: right results and a clean end, whatever had started, and whichever thread forked."""

import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.mark.parametrize("started_by", ["check()", "their_own(x)"], ids=["the kernels", "the user"])
@pytest.mark.parametrize("thread", ["main", "other"])
def test_fork_after_threads_have_started(run_on, layer, started_by, thread):
    code = f"""
def child():
    check()
    print(kernels.get_num_threads(), _threads.serial_reason() is not None, flush=True)
    fork(check, os._exit)  # a grandchild


{started_by}
if {thread == "main"}:
    fork(child)
else:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(fork, child, os._exit).result()
check()
print(kernels.get_num_threads(), _threads.serial_reason() is not None)
"""
    # Numba finds the wheel of tbb where the kernels have loaded it, else where the linker looks.
    lines = run_on(layer, code, LD_LIBRARY_PATH=Path(sys.prefix) / "lib").splitlines()
    assert lines[0] == "1 True"
    assert lines[1] == ("1 True" if layer == "workqueue" else "4 False")


def test_fork_before_threads_have_started(run_on, layer):
    code = """
def child():
    check()
    print(kernels.get_num_threads(), flush=True)


fork(child)
fork(child)
check()
"""
    assert run_on(layer, code).split() == ["1" if layer == "workqueue" else "4"] * 2


@pytest.mark.parametrize("warm", [True, False])
def test_forked_workers(run_on, layer, warm):
    code = f"""
import multiprocessing


def work(_):
    check()
    return os.getpid()


if {warm}:
    check()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert os.getpid() not in pool.map(work, range(8))
    pool.close()
    pool.join()
check()
print("done")
"""
    assert run_on(layer, code).splitlines()[-1] == "done"


def test_fork_while_other_threads_call(run_on, layer):
    code = """
check()
stop = threading.Event()


def call():
    while not stop.is_set():
        check()


with ThreadPoolExecutor(2) as pool:
    calls = [pool.submit(call) for _ in range(2)]
    try:
        for _ in range(5):
            fork(check)
    finally:
        stop.set()
    for result in calls:
        result.result()
print("done")
"""
    assert run_on(layer, code).splitlines()[-1] == "done"
