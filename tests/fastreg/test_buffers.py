"""Gradient buffers: aligned, reused, and never handed out while anybody still holds them."""

import gc
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

import fastreg
from fastreg._bridges import buffers
from fastreg._bridges.callback import exchange

DTYPES = [np.dtype(name) for name in ("float16", "float32", "float64")]
SHAPES = [(0,), (), (1,), (7,), (3, 5), (1000,), (257, 133), (40_000,), (4, 0, 2)]
SIZE = 100_000
"""Elements, of float32 as a rule: enough for memory to be kept."""


def fresh_pool():
    """The pool of the process, without what others left there."""
    buffers.clear()
    return buffers


def address(array):
    return array.__array_interface__["data"][0]


@given(shape=st.lists(st.integers(0, 40), max_size=3).map(tuple), dtype=st.sampled_from(DTYPES))
def test_shape_dtype_and_alignment(shape, dtype):
    pool = fresh_pool()
    arrays = [pool.array(shape, dtype) for _ in range(3)]
    for array in arrays:
        assert (array.shape, array.dtype) == (shape, dtype)
        assert array.size == 0 or address(array) % buffers.ALIGNMENT == 0
        assert array.flags.c_contiguous
        assert array.flags.writeable


class Holders(RuleBasedStateMachine):
    """Any sequence of taking, viewing, handing to TensorFlow and letting go."""

    held = Bundle("held")

    def __init__(self):
        super().__init__()
        self.pool, self.live, self.next = fresh_pool(), {}, 0

    def hold(self, holder, base):
        """Remember who holds memory, and which number it must go on to show."""
        self.next += 1
        self.live[self.next] = (holder, base)
        return self.next

    @rule(target=held, shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES))
    def take(self, shape, dtype):
        array = self.pool.array(shape, dtype)
        mark = self.next % 1000
        array.fill(mark)
        return self.hold(array, mark)

    @rule(target=held, key=held, kind=st.sampled_from(["slice", "bytes", "memoryview", "tensor", "slice of tensor"]))
    def share(self, key, kind):
        if key not in self.live:
            return multiple()
        holder, mark = self.live[key]
        array = np.asarray(holder)
        if array.size == 0 or not array.flags.c_contiguous:
            return multiple()
        if kind == "slice":
            shared = array.reshape(-1)[: array.size // 2 + 1]
        elif kind == "bytes":
            shared = array.reshape(-1).view(np.uint8).view(array.dtype)
        elif kind == "memoryview":
            shared = memoryview(array)
        elif array.flags.writeable:
            shared = exchange.tensor(array)
            if kind == "slice of tensor":
                shared = np.asarray(shared).reshape(-1)[-1:]
        else:
            return multiple()
        return self.hold(shared, mark)

    @rule(key=consumes(held))
    def drop(self, key):
        self.live.pop(key, None)

    @rule()
    def clear(self):
        self.pool.clear()

    @invariant()
    def nothing_was_overwritten(self):
        for holder, mark in self.live.values():
            assert (np.asarray(holder) == mark).all()


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_released_memory_is_reused():
    pool = fresh_pool()
    for hold in (
        lambda array: array,
        lambda array: array.reshape(-1)[::2],
        lambda array: array.view(np.uint8),
        exchange.tensor,
        lambda array: tf.identity(exchange.tensor(array)),
        lambda array: exchange.tensor(array).__dlpack__(),
    ):
        first = pool.array((SIZE,), DTYPES[1])
        place, holder = address(first), hold(first)
        del first
        second = pool.array((SIZE,), DTYPES[1])
        assert address(second) != place
        del holder
        assert address(pool.array((SIZE,), DTYPES[1])) == place
        pool.clear()


def test_smaller_requests_are_served_too():
    """A ragged last batch reuses the buffer of the others, something much smaller does not."""
    pool = fresh_pool()
    place = address(pool.array((SIZE,), DTYPES[1]))
    assert address(pool.array((SIZE * 9 // 10,), DTYPES[1])) == place
    assert address(pool.array((SIZE // 5,), DTYPES[1])) != place
    assert address(pool.array((SIZE // 4, 4), DTYPES[1])) == place
    assert address(pool.array((SIZE // 2,), DTYPES[2])) == place


def test_small_pieces_are_left_to_the_c_library():
    pool = fresh_pool()
    small, least = (pool.array((size,), np.dtype(np.uint8)) for size in (buffers.SMALLEST - 1, buffers.SMALLEST))
    assert small.nbytes < least.nbytes <= pool.nbytes() < small.nbytes + least.nbytes


def test_the_best_fit_is_chosen():
    pool = fresh_pool()
    large, small = pool.array((SIZE * 6 // 5,), DTYPES[1]), pool.array((SIZE,), DTYPES[1])
    place = address(small)
    del large, small
    assert address(pool.array((SIZE,), DTYPES[1])) == place


def test_idle_buffers_go_back():
    pool = fresh_pool()
    del (large := [pool.array((10 * SIZE,), DTYPES[1])])[:]
    assert pool.nbytes() >= 40 * SIZE
    for _ in range(buffers.IDLE_REQUESTS + 2):
        pool.array((SIZE // 5,), DTYPES[1])
    assert large == []
    assert pool.nbytes() < SIZE


def test_buffers_in_use_are_not_idle():
    pool = fresh_pool()
    kept = pool.array((SIZE,), DTYPES[1])
    kept.fill(5)
    for _ in range(2 * buffers.IDLE_REQUESTS):
        pool.array((SIZE,), DTYPES[1]).fill(6)
    assert (kept == 5).all()


def test_clear_gives_back_and_leaves_values():
    pool = fresh_pool()
    kept = pool.array((SIZE,), DTYPES[1])
    kept.fill(5)
    pool.array((2 * SIZE,), DTYPES[1])
    pool.clear()
    assert pool.nbytes() == 0
    for _ in range(5):
        pool.array((SIZE,), DTYPES[1]).fill(6)
    assert (kept == 5).all()


def test_clear_follows_the_owner():
    """Once a penalised variable is collected, the buffers of its gradients go back to the system."""
    gc.collect()  # variables of other tests, which are owners too
    pool, owner = fresh_pool(), tf.Variable(1.0)
    pool.clear_after(owner)
    pool.clear_after(owner)
    pool.array((SIZE,), DTYPES[1])
    gc.collect()
    assert pool.nbytes() > 0
    del owner
    gc.collect()
    pool.array((SIZE // 5,), DTYPES[1])
    assert pool.nbytes() < SIZE


@pytest.fixture
def eager_switching():
    """Let the interpreter switch threads as often as it can, so that a race that can happen does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_never_share(in_threads, eager_switching):
    pool = fresh_pool()

    def work(number):
        held = []
        for turn in range(3000):
            array = pool.array((17_000 + turn % 2,), DTYPES[1])
            mark = 10_000.0 * number + turn
            array.fill(mark)
            held.append((exchange.tensor(array) if turn % 50 == 0 else array, mark))
            del array
            if turn % 500 == 499 and number == 0:
                pool.clear()
            if len(held) > 3:
                assert all((np.asarray(kept) == mark).all() for kept, mark in held)
                held.clear()

    in_threads(work)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_gradients_that_are_kept_keep_their_values(forced, gradient, dtype, graph):
    """Over many steps, with the pool cleared and idle buffers dropped while gradients are alive."""
    function = tf.function(lambda x: gradient(fastreg.L2(0.5), x)[1])
    if not graph:
        function = lambda x: gradient(fastreg.L2(0.5), x)[1]  # noqa: E731
    kept = []
    for step in range(60):
        x = tf.cast(tf.fill((40, 1000), step), dtype)
        slope = function(x)
        if step % 4:
            kept.append((slope if step % 2 else tf.reshape(slope, (-1,))[3:], step))
        if step % 20 == 19:
            fastreg.clear_buffers()
    for slope, step in kept:
        assert (tf.cast(slope, tf.float64).numpy() == step).all()


def test_gradients_share_no_memory_with_their_input(forced, gradient):
    variable = tf.Variable(tf.fill((SIZE,), 3.0))
    with tf.GradientTape() as tape:
        value = fastreg.L2(0.5)(variable)
    slope = tape.gradient(value, variable)
    variable.assign(tf.fill((SIZE,), 7.0))
    assert (slope.numpy() == 3.0).all()
    variable.assign_sub(slope)
    assert (variable.numpy() == 4.0).all()
    assert (slope.numpy() == 3.0).all()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 300), min_size=3, max_size=12))
def test_training_reuses_its_buffers(forced, gradient, sizes):
    """Steps whose gradients are dropped need no more buffers than the largest number alive at once."""
    fastreg.clear_buffers()
    for size in sizes:
        for _ in range(4):
            gradient(fastreg.L2(0.5), tf.ones(size * 1024))
    distinct = len(set(sizes))
    assert fastreg.info()["buffer_bytes"] <= 2 * distinct * (max(sizes) * 4096 + buffers.ALIGNMENT)
    fastreg.clear_buffers()
    assert fastreg.info()["buffer_bytes"] == 0
