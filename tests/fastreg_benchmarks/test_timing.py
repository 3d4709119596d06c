from collections import Counter
from contextlib import contextmanager

import numpy as np
from fastreg_benchmarks import timing
from fastreg_benchmarks.timing import Run


def test_warm_up_calls_often_enough_and_returns_the_last_result():
    results = iter(range(100))
    assert timing.warm_up(Run(lambda: next(results))) == timing.WARM_UP_CALLS - 1
    assert timing.WARM_UP_CALLS >= 4


def test_every_run_is_in_every_round():
    counts = Counter()
    runs = [Run(lambda name=name: counts.update([name])) for name in "ab"]
    timings = timing.measure(runs, 1e-9)
    assert [samples.shape for samples in timings.samples] == [(timing.MIN_ROUNDS,)] * 2
    assert all((samples > 0).all() for samples in timings.samples)
    for name, calls in zip("ab", timings.calls, strict=True):
        assert calls > 1  # such short calls are repeated
        assert counts[name] >= calls * timing.MIN_ROUNDS


def test_more_time_gives_more_rounds():
    assert timing.measure([Run(lambda: None)], 0.05).samples[0].size > timing.MIN_ROUNDS


def test_runs_take_turns():
    order = []
    timing.measure([Run(lambda name=name: order.append(name)) for name in "abc"], 1e-9, flush=True)
    rounds = np.reshape(order, (timing.MIN_ROUNDS, 3))
    assert all(sorted(row) == list("abc") for row in rounds)


def test_cold_samples_are_single_calls():
    assert timing.measure([Run(lambda: None)], 1e-9, flush=True).calls == [1]


def test_calls_happen_in_their_scope():
    inside = []

    @contextmanager
    def scope():
        inside.append(True)
        yield
        inside.pop()

    def call():
        assert inside == [True]

    run = Run(call, scope)
    timing.warm_up(run)
    timing.measure([run], 1e-9)
    assert inside == []


def test_batches_take_turns():
    run = timing.in_turns(lambda batch: batch + 1, [10, 20, 30])
    assert [run.call() for _ in range(4)] == [11, 21, 31, 11]


def test_a_run_with_a_clock_is_not_timed_here():
    asked = []

    def clock(calls):
        asked.append(calls)
        return 3e-4

    timings = timing.measure([Run(lambda: None, clock=clock)], 1e-9)
    assert (timings.samples[0] == 3e-4).all()
    assert asked == [1, 1] + timings.calls * timing.MIN_ROUNDS
    assert timings.calls == [4]  # until a millisecond is full
