"""No combination of threading layer, calling thread and fork ends the process, and results stay right.

What could end it does so in processes of its own.
"""

import sys
import threading
from pathlib import Path

import fastreg_kernels
import numba
import numpy as np
import pytest
from fastreg_kernels import _threads

FOUR_CALLERS = """
start = threading.Barrier(4)


def call(_):
    start.wait()  # the first calls of all, at once
    for _ in range(60):
        check()


with ThreadPoolExecutor(4) as pool:
    list(pool.map(call, range(4)))
print(kernels.threading_layer(), kernels.get_num_threads())
"""


def test_several_threads_call_at_once(run_on, layer):
    chosen, threads = run_on(layer, FOUR_CALLERS).split()
    assert layer in ("default", chosen)
    assert threads == ("1" if chosen == "workqueue" else "4")


BESIDE_THEIR_OWN = """
stop = threading.Event()


def use_numba():
    calls = 0
    while not stop.is_set():
        assert (their_own(x) == 2 * x).all()
        calls += 1
    return calls


check()
their_own(x)
with ThreadPoolExecutor(4) as pool:
    user = pool.submit(use_numba)
    try:
        for result in [pool.submit(lambda: [check() for _ in range(60)]) for _ in range(3)]:
            result.result()
    finally:
        stop.set()
    assert user.result() > 0
"""


def test_users_own_parallel_function_runs_at_the_same_time(run_on, layer):
    run_on(layer, BESIDE_THEIR_OWN)


def test_workqueue_runs_serially_and_says_so_once(run_python):
    code = """
import warnings
import numpy as np
import fastreg_kernels as kernels
from fastreg_kernels import _threads

x = np.ones(200_000)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        assert kernels.forward(x).tolist() == [200_000.0, 200_000.0]
        kernels.backward(x, 0.1, 0.2)
        kernels.threading_layer()
print([(w.category.__name__, "one thread" in str(w.message)) for w in caught])
print(kernels.get_num_threads(), kernels.threading_layer(), "workqueue" in _threads.serial_reason())
kernels.set_num_threads(3)
print(kernels.get_num_threads())
"""
    lines = run_python(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS=4).splitlines()
    assert lines == ["[('RuntimeWarning', True)]", "1 workqueue True", "1"]


@pytest.mark.skipif(not (Path(sys.prefix) / "lib" / "libtbb.so.12").exists(), reason="there is no wheel of tbb")
def test_the_tbb_wheel_is_found_where_the_linker_does_not_look(run_python):
    code = "import fastreg_kernels as k; print(k.threading_layer())"
    for layer in (None, "tbb"):
        assert run_python(code, NUMBA_THREADING_LAYER=layer, LD_LIBRARY_PATH=None).strip() == "tbb"


def test_without_the_tbb_wheel(run_on):
    code = """
_threads._load_tbb_wheel = lambda: None
check()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: [check() for _ in range(20)], range(4)))
print(kernels.threading_layer())
"""
    assert run_on("default", code).splitlines()[-1] in ("omp", "tbb", "workqueue")


def test_a_tbb_library_that_does_not_load(run_on, tmp_path):
    """Such as one for another processor."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libtbb.so.12").write_bytes(b"not a library")
    code = f"""
sys.prefix = {str(tmp_path)!r}
check()
print(kernels.threading_layer())
"""
    assert run_on("default", code).splitlines()[-1] in ("omp", "tbb", "workqueue")


LITTLE_MEMORY = """
import resource
import sys
import numpy as np
import fastreg_kernels as kernels
from fastreg_kernels import _threads

x = np.ones(1 << 20, np.float32)
kernels.forward(x[:100])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (int(sys.argv[1]) << 20), resource.RLIM_INFINITY))
assert kernels.forward(x).tolist() == [1 << 20, 1 << 20]
print(kernels.threading_layer(), kernels.get_num_threads(), _threads.serial_reason())
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert kernels.forward(x).tolist() == [1 << 20, 1 << 20]
print(kernels.threading_layer())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by its addresses")
@pytest.mark.parametrize("mebibytes", [4, 8])
def test_no_memory_for_threads(run_python, mebibytes):
    """Where layers end the process or wait for ever; and it is tried again."""
    lines = run_python(LITTLE_MEMORY, str(mebibytes), NUMBA_NUM_THREADS="8").splitlines()
    assert lines[0] == "none 1 there is no memory to start threads"
    assert lines[1] in ("omp", "tbb", "workqueue")


NUMBER_OF_THREADS = """
from fastreg_kernels.cpu.jit import inner
from fastreg_kernels.cpu.launch import BLOCK, sharing


@inner
def mark(first, last, parts):
    parts[first] = 1


share = sharing(mark)


@numba.njit
def share_out(size, parts):
    share(parts.size, size, (parts,))


seen = []


def call(own=None, blocks=16):
    if own is not None:
        numba.set_num_threads(own)
    before = numba.get_num_threads()
    parts = np.zeros(64, np.int64)
    share_out(blocks * BLOCK, parts)
    kernels.forward(x)
    seen.append(int(parts.sum()))
    assert numba.get_num_threads() == before


call()
kernels.set_num_threads(3)
call()
call(own=2)
for own in (None, 1):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(call, own).result()
call()
kernels.set_num_threads(1)
call()
kernels.set_num_threads(4)
call(blocks=3)  # too little to share out
call()
print(seen)
assert numba.get_num_threads() == 2
"""


def test_number_of_threads_holds_in_every_calling_thread_and_leaves_numbas_own(run_on):
    code = "if kernels.threading_layer() == 'workqueue': sys.exit(0)\n" + NUMBER_OF_THREADS
    output = run_on("default", code).strip()
    if not output:
        pytest.skip("Numba has no other layer than workqueue")
    assert output == str([4, 3, 3, 3, 3, 3, 1, 1, 4])


@pytest.fixture
def limit(monkeypatch):
    """The number of threads as it was, after the test."""
    monkeypatch.setattr(_threads, "_limit", None)


@pytest.mark.parametrize("n", [0, -1, 10**6])
def test_number_of_threads_out_of_range(limit, n):
    most = numba.config.NUMBA_NUM_THREADS
    with pytest.raises(ValueError, match=rf"argument n: expected 1 to {most} threads\. Received: n={n}"):
        fastreg_kernels.set_num_threads(n)
    assert _threads._limit is None


@pytest.mark.parametrize("n", [1.5, 1.0, "2", None, [1], np.float32(1)], ids=repr)
def test_number_of_threads_that_is_no_integer(limit, n):
    with pytest.raises(TypeError, match="argument n: expected an integer"):
        fastreg_kernels.set_num_threads(n)
    assert _threads._limit is None


@pytest.mark.parametrize("n", [1, np.int64(1), np.uint8(1)], ids=repr)
def test_number_of_threads(limit, n):
    fastreg_kernels.set_num_threads(n)
    assert fastreg_kernels.get_num_threads() == 1
    assert type(fastreg_kernels.get_num_threads()) is int
    results = []
    caller = threading.Thread(target=lambda: results.append(fastreg_kernels.get_num_threads()))
    caller.start()
    caller.join()
    assert results == [1]
