"""Optimizer steps of tables, and passes over whole tables, against NumPy in float64."""

import functools

import fastreg_kernels
import numpy as np
import pytest
from fastreg_kernels import _arrays, _threads
from fastreg_kernels.cpu import rows, tables, updates
from fastreg_kernels.cpu.jit import jit
from hypothesis import given, settings
from hypothesis import strategies as st

ROWS, NOW = 1000, 50
EPSILON = 1e-7
ADAM, RMSPROP = np.array([0.9, 0.999, EPSILON]), np.array([0.75, EPSILON])
FTRL = {"l1": 0.5, "l2": 0.25, "shrinkage": 0.125, "beta": 0.0625}
SETTINGS = {
    **dict.fromkeys((updates.ADAM, updates.ROWWISE_ADAM), ADAM),
    **dict.fromkeys((updates.RMSPROP, updates.CENTERED_RMSPROP), RMSPROP),
    updates.FTRL: np.array(list(FTRL.values())),
}
TOLERANCE = {"float32": 1e-4, "float64": 1e-13, "float16": 2e-2, "bfloat16": 1e-1}
RULES = {
    "sgd": updates.SGD,
    "adagrad": updates.ADAGRAD,
    "rowwise": updates.ROWWISE_ADAGRAD,
    "adam": updates.ADAM,
    "rowwise adam": updates.ROWWISE_ADAM,
    "rmsprop": updates.RMSPROP,
    "centered rmsprop": updates.CENTERED_RMSPROP,
    "ftrl": updates.FTRL,
}
ADAMS, RMSPROPS = (updates.ADAM, updates.ROWWISE_ADAM), (updates.RMSPROP, updates.CENTERED_RMSPROP)

fastreg_kernels.threading_layer()


@jit
def distinct(ids):
    unique, positions = np.empty(ids.size, ids.dtype), np.empty(ids.size, np.int32)
    return updates.distinct(ids, np.full(updates.slots(ids.size), -1, np.int32), unique, positions), positions


@functools.cache
def step_of(rule):
    """What a native op does between its inputs and outputs; returns how the sums change."""

    @jit
    def step(x, stamps, ids, values, state, measured, width, scale):
        where, positions = distinct(ids)
        gradient = updates.summed(values, positions, where.size, scale, width)
        changes = np.empty((rows.groups(where.size), rows.CHANGES))
        updates.apply(rule, x, stamps, where, gradient, state, measured, changes, width)
        return changes

    return step


@jit
def write(x, stamps, out, kind, width):
    tables.write(x, stamps, out, kind, width)


@jit
def measure(x, stamps, kind, width):
    return tables.measure(x, stamps, kind, width)


class Table:
    """A table with stamps, slots and the gradient of a lookup, and what a step should make of them."""

    def __init__(self, dtype, width, count, rule, seed=0):
        import ml_dtypes  # noqa: F401 - names bfloat16

        generator = np.random.default_rng(seed)
        self.dtype, self.rule, self.width = np.dtype(dtype), rule, width
        kind = _arrays.arithmetic_dtype(self.dtype)
        self.x = generator.normal(size=(ROWS, width)).astype(self.dtype)
        self.history = np.stack([generator.uniform(1, 2, NOW + 1), generator.uniform(0, 0.01, NOW + 1)], axis=1)
        self.history[NOW] = 0.9, 0.02
        self.stamps = generator.integers(0, NOW, ROWS).astype(np.float32)
        self.ids = ((generator.zipf(1.3, count) - 1) % ROWS).astype(np.int32)
        self.values = generator.normal(size=(count, width)).astype(kind)
        per_row = 1 if rule == updates.ROWWISE_ADAGRAD else width
        start = 0.0 if rule in ADAMS else 0.125
        self.first = np.full((ROWS, per_row), start, kind)
        self.second = np.zeros((ROWS, 1 if rule == updates.ROWWISE_ADAM else width), kind)

    def written(self):
        """P and S of the step in which each row was last written."""
        return self.history[self.stamps.astype(int)]

    def run(self, number=0, scale=1.0, measured=0.02):
        """One step in place: the sums of what changed."""
        settings = SETTINGS.get(self.rule, np.array([EPSILON]))
        return step_of(self.rule)(
            _arrays.stored(self.x.reshape(-1)),
            (self.stamps, self.history, NOW),
            self.ids,
            self.values.reshape(-1),
            ((self.first.reshape(-1), self.second.reshape(-1)), 0.25, settings, number),
            measured,
            self.width,
            scale,
        ).sum(axis=0)

    def expected(self, number=0, scale=1.0):
        """Weights and slots after a step, and the shrunk rows before it, in float64."""
        x, first, second = (array.astype(np.float64) for array in (self.x, self.first, self.second))
        shrunk = _shrunk(x, self.written())
        dense = np.zeros_like(x)
        np.add.at(dense, self.ids, self.values.astype(np.float64))
        rows = np.unique(self.ids)
        g = dense[rows] * scale
        if self.rule == updates.SGD:
            taken = 0.25 * g
        elif self.rule in ADAMS:
            squares = g**2 if self.rule == updates.ADAM else (g**2).mean(axis=1, keepdims=True)
            first[rows] += (g - first[rows]) * (1 - 0.9)
            second[rows] += (squares - second[rows]) * (1 - 0.999)
            alpha = 0.25 * np.sqrt(1 - 0.999 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            taken = alpha * first[rows] / (np.sqrt(second[rows]) + EPSILON)
        elif self.rule in RMSPROPS:
            first[rows] = 0.75 * first[rows] + 0.25 * g**2
            variance = first[rows]
            if self.rule == updates.CENTERED_RMSPROP:
                second[rows] = 0.75 * second[rows] + 0.25 * g
                variance = variance - second[rows] ** 2
            taken = 0.25 * g / np.sqrt(variance + EPSILON)
        elif self.rule == updates.FTRL:
            w, n = shrunk[rows], first[rows] + g**2
            second[rows] += g + 2 * FTRL["shrinkage"] * w - (np.sqrt(n) - np.sqrt(first[rows])) / 0.25 * w
            first[rows] = n
            z = second[rows]
            quadratic = np.sqrt(n) / 0.25 + 2 * (FTRL["l2"] + FTRL["beta"] / (2 * 0.25))
            taken = w - (np.clip(z, -FTRL["l1"], FTRL["l1"]) - z) / quadratic
        else:
            squares = g**2 if self.rule == updates.ADAGRAD else (g**2).mean(axis=1, keepdims=True)
            first[rows] += squares
            taken = 0.25 * g / np.sqrt(first[rows] + EPSILON)
        after = x.copy()
        after[rows] = shrunk[rows] - taken
        if self.rule == updates.FTRL and g.size > 100:  # so that some become zero
            assert (np.abs(z) <= FTRL["l1"]).any()
        return after, first, second, shrunk


def _shrunk(x, written):
    a, b = 0.9 / written[:, :1], 0.9 * (0.02 - written[:, 1:])
    return np.sign(x) * np.maximum(0, a * np.abs(x) - b)


@pytest.mark.parametrize("width", [1, 5, 16, 33])
@pytest.mark.parametrize("count", [0, 7, 3000])
@pytest.mark.parametrize("dtype", fastreg_kernels.DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_a_step(rule, dtype, count, width):
    """Sums that were measured now change from the shrunk rows; others, from rows that go on shrinking below zero if
    they were not zero when the sums were measured."""
    table = Table(dtype, width, count, RULES[rule])
    for number, scale, measured in ((0, 1.0, 0.02), (1, 0.5, 0.005)):
        after, first, second, shrunk = table.expected(number, scale)
        before, written = table.stamps.copy(), table.written()
        start = table.x.astype(np.float64)
        changes = table.run(number, scale, measured)
        tolerance = TOLERANCE[dtype]
        np.testing.assert_allclose(table.x.astype(np.float64), after, rtol=tolerance, atol=10 * tolerance)
        np.testing.assert_allclose(table.first, first, rtol=max(1e-13, min(tolerance, 1e-4)), atol=1e-5)
        np.testing.assert_allclose(table.second, second, rtol=1e-4, atol=1e-6 * max(1.0, np.abs(second).max()))
        touched = np.unique(table.ids)
        idle = np.setdiff1d(np.arange(ROWS), touched)
        np.testing.assert_array_equal(table.stamps[idle], before[idle])
        np.testing.assert_array_equal(table.stamps[touched], np.full(len(touched), NOW))
        new, old, marks = (np.abs(rows[touched]) for rows in (table.x.astype(np.float64), start, written))
        was_there = old > marks[:, :1] * np.maximum(0, measured - marks[:, 1:])
        old = np.where(was_there, 0.9 / marks[:, :1] * old - 0.9 * (0.02 - marks[:, 1:]), 0)
        if measured == 0.02:
            np.testing.assert_allclose(old, np.abs(shrunk[touched]), rtol=1e-12, atol=1e-15)
        squares = [np.square(rows).sum() for rows in (old, new)]
        expected = [(new - old).sum(), squares[1] - squares[0], np.sum(new > 0) - was_there.sum(), sum(squares)]
        np.testing.assert_allclose(changes, expected, rtol=1e-6, atol=1e-6)
        table.stamps[:] = before


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [3, 64])
def test_threads_change_no_bits(rule, width):
    before, results = fastreg_kernels.get_num_threads(), []
    try:
        for threads in range(1, before + 1):
            fastreg_kernels.set_num_threads(threads)
            assert _threads._cells[_threads.ALLOWED] == threads
            table = Table("float32", width, 60_000, RULES[rule])
            changes = table.run().tobytes()
            results.append((table.x.tobytes(), table.first.tobytes(), table.second.tobytes(), changes))
    finally:
        fastreg_kernels.set_num_threads(before)
    assert len(set(results)) == 1
    assert _threads._cells[_threads.RUNNING] == 0


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.integers(0, 30) | st.integers(0, 2**31 - 1), max_size=60), wide=st.booleans())
def test_distinct_ids(ids, wide):
    ids = np.array(ids, np.int64 if wide else np.int32)
    where, positions = distinct(ids)
    assert list(where) == list(dict.fromkeys(ids.tolist()))
    np.testing.assert_array_equal(where[positions], ids)


@pytest.mark.parametrize("width", [1, 7, 16, 20_000])
@pytest.mark.parametrize("dtype", fastreg_kernels.DTYPES)
def test_passes_over_whole_tables(dtype, width):
    table = Table(dtype, width, 0, updates.SGD)
    table.x[3] = 0
    rows = max(2, min(ROWS, 200_000 // width))
    x, stamps, written = table.x[:rows], table.stamps[:rows], table.written()[:rows]
    stamps = (stamps, table.history, NOW)
    flat, of = _arrays.stored(np.ascontiguousarray(x).reshape(-1)), np.empty(0, _arrays.arithmetic_dtype(table.dtype))
    out = np.empty_like(flat)
    write(flat, stamps, out, of, width)
    expected = _shrunk(x.astype(np.float64), written)
    true = out.view(table.dtype).reshape(rows, width).astype(np.float64)
    np.testing.assert_allclose(true, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    found = measure(flat, stamps, of, width)
    np.testing.assert_allclose(found[:2], [np.abs(true).sum(), np.square(true).sum()], rtol=1e-12)
    assert found[2] == (true != 0).sum() < true.size
    in_place = flat.copy()
    write(in_place, stamps, in_place, of, width)
    np.testing.assert_array_equal(in_place, out)
