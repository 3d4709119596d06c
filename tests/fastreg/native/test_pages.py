"""Variables that are read again and again are moved to huge pages, and keep their bits."""

import ctypes
import mmap
import sys

import pytest

MOVE = """
import sys
import numpy as np
import tensorflow as tf
import fastreg
from fastreg._bridges import pages

wanted, elements = sys.argv[1] == "wanted", int(sys.argv[2])
if not wanted:
    pages._wanted[0] = 0
fastreg.set_bridge("native")
x = tf.Variable(np.random.default_rng(0).normal(size=elements).astype("float32"))
address = np.from_dlpack(x.value()).ctypes.data


def kilobytes():
    found, inside = None, False
    for line in open("/proc/self/smaps"):
        first = line.split()[0]
        if "-" in first:
            begin, end = (int(number, 16) for number in first.split("-"))
            inside = begin <= address < end
        elif inside and first == "AnonHugePages:":
            found = int(line.split()[1])
    return found


@tf.function
def slope():
    with tf.GradientTape() as tape:
        value = fastreg.L1L2(0.1, 0.2)(x)
    return value, tape.gradient(value, x)


before = kilobytes()
results = [slope() for _ in range(2 * pages.PARTS)]
for value, gradient in results:
    assert value == results[0][0]
    np.testing.assert_array_equal(gradient, results[0][1])
assert np.from_dlpack(x.value()).ctypes.data == address
print("MOVED", kilobytes() - before)
"""
HUGE = 2 << 20


def _can_move():
    if not sys.platform.startswith("linux"):
        return False
    memory = mmap.mmap(-1, 2 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"1" * len(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CDLL(None).madvise(ctypes.c_void_p(-(-start // HUGE) * HUGE), ctypes.c_size_t(HUGE), 25) == 0


@pytest.mark.skipif(not _can_move(), reason="this system does not move memory to huge pages when it is asked to")
@pytest.mark.parametrize(("wanted", "mebibytes", "least"), [("wanted", 32, 28), ("off", 32, 0), ("wanted", 4, 0)])
def test_a_variable_that_is_read_again_and_again(run_python, wanted, mebibytes, least):
    moved = int(run_python(MOVE, wanted, str(mebibytes << 18)).split("MOVED")[1])
    assert moved >= least << 10
    assert moved == 0 or least
