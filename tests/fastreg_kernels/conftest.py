"""What the kernel tests share: numbers to compute with, arrays at chosen addresses, and new processes."""

import os
import signal
import subprocess
import sys
import textwrap

import ml_dtypes  # noqa: F401 - NumPy learns the name bfloat16 from it
import numpy as np
import pytest

GUARD = 0x5A  # no kernel writes this byte throughout


class Guarded:
    """An array inside a buffer whose other bytes must stay as they are.

    It starts `offset` bytes after a multiple of 64.
    """

    def __init__(self, shape, dtype, offset=0, order="C", margin=256):
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape)) * dtype.itemsize
        self._buffer = np.full(nbytes + 2 * margin + 64, GUARD, np.uint8)
        self._start = margin + (-(self._buffer.ctypes.data + margin) % 64) + offset
        self._stop = self._start + nbytes
        self.array = np.ndarray(shape, dtype, self._buffer.data, self._start, order=order)
        assert self.array.ctypes.data % 64 == offset % 64

    def bytes(self):
        return self._buffer[self._start : self._stop].tobytes()

    def assert_untouched_around(self):
        assert (self._buffer[: self._start] == GUARD).all(), "bytes before the array were written"
        assert (self._buffer[self._stop :] == GUARD).all(), "bytes after the array were written"

    def assert_untouched(self):
        assert (self._buffer == GUARD).all()


@pytest.fixture(scope="session")
def guarded():
    return Guarded


@pytest.fixture(scope="session")
def numbers():
    """Normal numbers of any shape and dtype, the same each time; a few of them zero."""

    def make(shape, dtype, order="C", seed=0):
        values = np.random.default_rng(seed).normal(scale=3.0, size=shape)
        values = np.where(np.abs(values) < 0.05, 0.0, values)
        return np.array(values, dtype, order=order)

    return make


@pytest.fixture(scope="session")
def assert_same_bits():
    """Same dtype, shape and bits, so that -0 differs from 0 and a NaN equals itself."""

    def check(actual, expected):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        bits = f"u{actual.dtype.itemsize}"
        same = np.ascontiguousarray(actual).view(bits) == np.ascontiguousarray(expected).view(bits)
        assert same.all(), f"{np.count_nonzero(~same)} of {same.size} elements differ, the first at {np.argmin(same)}"

    return check


START = """
import os
import sys
import threading
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

warnings.filterwarnings("ignore", message=".*workqueue", category=RuntimeWarning)
warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)

import numba
import numpy as np
import fastreg_kernels as kernels
from fastreg_kernels import _threads

x = np.arange(-150_000.0, 150_001.0)  # all sums of it are exact
sums = [150_000 * 150_001, 150_000 * 150_001 * 300_001 / 3]
slope = 0.5 * np.sign(x) + 0.5 * x


def check():
    assert kernels.forward(x).tolist() == sums
    both, gradient = kernels.forward_backward(x, 0.5, 0.25)
    assert both.tolist() == sums
    assert (gradient == slope).all()


@numba.njit(parallel=True)
def their_own(values):
    result = np.empty_like(values)
    for i in numba.prange(values.size):
        result[i] = 2.0 * values[i]
    return result


def fork(work, leave=sys.exit):
    # Run it in a child: with `sys.exit`, exit code 0 says that the child came through its own end too.
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        leave(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the child ended with {code}"
"""

LAYERS = ["default", "tbb", "omp", "workqueue"]


class Process:
    """A new Python process that runs a piece of code."""

    def __init__(self, code, *arguments, **environment):
        variables = {k: v for k, v in os.environ.items() if environment.get(k, v) is not None}
        variables |= {k: str(v) for k, v in environment.items() if v is not None}
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            start_new_session=True,
        )

    def finish(self):
        """What the process printed on stdout, and on stderr; it must have ended well."""
        try:
            output, errors = self._process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # and the children that it forked
            output, errors = self._process.communicate()
            pytest.fail(f"the process did not end:\n{output}\n{errors[-4000:]}")
        assert self._process.returncode == 0, f"exit code {self._process.returncode}:\n{output}\n{errors[-4000:]}"
        return output, errors


@pytest.fixture(scope="session")
def start_python():
    """Start code in a new process. Keyword arguments are environment variables; None takes one away."""
    return Process


@pytest.fixture(scope="session")
def run_python():
    """Run code in a new process and return what it printed; arguments as for `start_python`."""

    def run(code, *arguments, **environment):
        return Process(code, *arguments, **environment).finish()[0]

    return run


@pytest.fixture(scope="session")
def run_on(run_python):
    """Run code after START on a threading layer; skip where Numba does not have the layer."""
    missing = {}

    def run(layer, code, **environment):
        variables = {"NUMBA_NUM_THREADS": 4, "NUMBA_THREADING_LAYER": None if layer == "default" else layer}
        if layer not in missing:
            probe = (
                "from fastreg_kernels import threading_layer\n"
                "try: print(threading_layer())\n"
                "except ValueError as error: print('missing', error)"
            )
            answer = run_python(probe, **variables)
            missing[layer] = answer if answer.startswith("missing") else None
        if missing[layer]:
            pytest.skip(missing[layer])
        return run_python(START + code, **variables | environment)

    return run


@pytest.fixture(params=LAYERS)
def layer(request):
    return request.param
