"""Native ops need no lock of Python's, run beside each other, and use as many threads as are allowed."""

import ctypes
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from fastreg_kernels import _threads

import fastreg
from fastreg._bridges import counters

PENALTIES = 60
SIZE = 1 << 20
HELD_S = 1.0


@pytest.fixture
def patient_interpreter():
    """Threads of Python's keep its lock until they wait for something."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(60)
    yield
    sys.setswitchinterval(before)


def calls_while_the_lock_is_held(name):
    """Kernel calls of one step when another thread took the lock, when it let go of it, and in all."""
    fastreg.set_bridge(name)
    variables = [tf.Variable(tf.fill([SIZE], float(i))) for i in range(3)]

    @tf.function
    def step():
        total = tf.constant(0.0)
        for turn in range(PENALTIES):
            with tf.GradientTape() as tape:
                value = fastreg.L1L2(0.1, 0.2)(variables[turn % 3])
            total += tf.reduce_sum(tape.gradient(value, variables[turn % 3])[:1])
        return total

    expected = float(step())
    step()
    step()
    started, seen, sleep = threading.Event(), [], ctypes.PyDLL(None).usleep

    def hold():
        started.wait()  # until the step has been started, which lets go of the lock
        seen.append(counters.kernel_calls())
        sleep(int(HELD_S * 1e6))  # which does not let go of it
        seen.append(counters.kernel_calls())

    holder = threading.Thread(target=hold)
    holder.start()
    before = counters.kernel_calls()
    started.set()
    result = float(step())
    holder.join()
    assert result == expected
    return seen[0] - before, seen[1] - before, counters.kernel_calls() - before


def test_a_step_finishes_while_another_thread_holds_the_lock(patient_interpreter):
    """One kernel call for each penalty, as the gradients are computed ahead; callbacks would wait."""
    attempts = [calls_while_the_lock_is_held("native") for _ in range(3)]
    assert all(total == PENALTIES for _, _, total in attempts)
    assert any(first < PENALTIES / 2 and last == PENALTIES for first, last, _ in attempts), attempts


def test_callbacks_wait_for_the_lock(patient_interpreter):
    """The same measurement can fail."""
    first, last, total = calls_while_the_lock_is_held("py_function")
    assert first == last < total


def most_at_once(step):
    """The most kernels that were seen at work at one time while a step ran."""
    done, most = threading.Event(), 0

    def work():
        for _ in range(30):
            step()
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.wait(0.0005):
        most = max(most, int(_threads._cells[_threads.RUNNING]))
    worker.join()
    return most


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core runs one op at a time")
def test_two_ops_of_a_graph_run_at_once():
    fastreg.set_bridge("native")
    one, two = (tf.Variable(tf.ones(1 << 24)) for _ in range(2))
    first, second = fastreg.L2(0.5), fastreg.L1(0.5)

    @tf.function
    def beside():
        return first(one), second(two)

    @tf.function
    def after():
        value = first(one)
        with tf.control_dependencies([value]):
            return value, second(two)

    for step in (beside, after):
        step()
    allowed = fastreg.info()["threads"]
    fastreg.set_num_threads(1)  # so that one op leaves a core to the other
    try:
        assert any(most_at_once(beside) >= 2 for _ in range(10))
        assert most_at_once(after) == 1
    finally:
        fastreg.set_num_threads(allowed)
    assert _threads._cells[_threads.RUNNING] == 0


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core runs one op at a time")
def test_the_ops_of_two_tables_run_at_once():
    """Lookups and updates: an op waits for its own table only."""
    fastreg.set_bridge("native")
    layers = [fastreg.Embedding(200_000, 64, embeddings_regularizer=fastreg.L1L2(1e-6, 1e-6)) for _ in range(2)]
    for layer in layers:
        layer.build()
    tables = [layer.embeddings for layer in layers]
    optimizer = fastreg.LazyRegularization("adagrad")
    optimizer.build(tables)
    ids = tf.random.uniform([100_000], maxval=200_000, dtype=tf.int32)
    gradient = tf.IndexedSlices(tf.ones((100_000, 64)), ids, (200_000, 64))
    lookup = tf.function(lambda: [tf.reduce_sum(layer(ids)[0]) for layer in layers])
    update = tf.function(lambda: optimizer.apply([gradient, gradient], tables))
    allowed = fastreg.info()["threads"]
    fastreg.set_num_threads(1)
    try:
        for step in (lookup, update):
            step()
            assert any(most_at_once(step) >= 2 for _ in range(10))
    finally:
        fastreg.set_num_threads(allowed)
    assert _threads._cells[_threads.RUNNING] == 0


def test_threads_of_python_call_at_once(in_threads):
    """Eager calls let go of the lock as well; each gets its own numbers."""
    fastreg.set_bridge("native")
    inputs = [tf.fill([300_000], float(number)) for number in range(4)]

    def work(number):
        for _ in range(50):
            with tf.GradientTape() as tape:
                tape.watch(inputs[number])
                value = fastreg.L2(0.5)(inputs[number])
            assert float(value) == 150_000.0 * number**2
            assert (tape.gradient(value, inputs[number]).numpy() == number).all()

    in_threads(work)
    assert _threads._cells[_threads.RUNNING] == 0


THREADS = """
    import json, os, sys
    import tensorflow as tf
    import fastreg
    fastreg.set_bridge("native")
    x = tf.ones(1 << 23)
    shares = []

    def used():
        found = {}
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/schedstat") as file:
                found[thread] = int(file.read().split()[0])
        return found

    def slope():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = fastreg.L1L2(0.1, 0.2)(x)
        return tape.gradient(value, x)

    def work():
        for _ in range(3):
            slope()
        before = used()
        for _ in range(40):
            slope()
        spent = {thread: time - before.get(thread, 0) for thread, time in used().items()}
        own = spent.pop(str(os.getpid()))
        return sum(spent.values()) / (sum(spent.values()) + own)

    fastreg.L2()(x)
    for threads in (1, 2, 1):
        fastreg.set_num_threads(threads)
        # On a busy machine the caller may have done all before another thread of its own gets to run.
        shares.append(max(work() for _ in range(5 if threads == 2 else 1)))
    print("RESULTS" + json.dumps(shares))
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="Linux tells what each thread used")
def test_the_number_of_threads_is_honoured(run_python):
    """With one, no thread but the caller's works; with two, another does a good part."""
    one, two, again = json.loads(run_python(THREADS, NUMBA_NUM_THREADS="2").split("RESULTS")[1])
    assert one < 0.05
    assert again < 0.05
    assert two > 0.1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit_in_graphs(gradient, dtype):
    fastreg.set_bridge("native")
    x = tf.cast(tf.constant(np.random.default_rng(0).normal(size=700_001)), dtype)
    function = tf.function(lambda x: gradient(fastreg.L1L2(0.1, 0.2), x))
    before, results = fastreg.info()["threads"], []
    try:
        for threads in range(1, before + 1):
            fastreg.set_num_threads(threads)
            results += [function(x) for _ in range(3)]
    finally:
        fastreg.set_num_threads(before)
    for value, slope in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(slope, results[0][1])
