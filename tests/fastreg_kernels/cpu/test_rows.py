"""The kernels for touched rows, against NumPy float64."""

import fastreg_kernels
import ml_dtypes
import numpy as np
import pytest
from fastreg_kernels import reference
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
DTYPES = [name for name in TOLERANCES if name in fastreg_kernels.DTYPES]
WIDTHS = [1, 7, 16, 17, 64]


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


NOW = 40
"""The number of the present step."""


def past(generator, count):
    """Stamps of rows, and P and S of each step."""
    history = np.stack([generator.uniform(0.5, 1, NOW + 3), generator.uniform(0, 0.5, NOW + 3)], axis=1)
    history[NOW] = 0.4, 0.6
    return generator.integers(0, NOW + 1, count).astype(np.float32), history


def due(stamps, history):
    """Scale and threshold of rows."""
    written = history[stamps.astype(int)]
    return 0.4 / written[:, 0], 0.4 * (0.6 - written[:, 1])


def arithmetic(name):
    return np.dtype("float64" if name == "float64" else "float32")


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("index", ["int32", "int64"])
def test_sum_rows(name, width, index):
    generator = np.random.default_rng(width)
    for n, count in ((0, 0), (0, 3), (1, 1), (50, 7), (5000, 11)):
        values = generator.normal(size=(n, width)).astype(dtype_of(name))
        positions = generator.integers(0, max(1, count), n).astype(index)
        expected = np.zeros((count, width))
        np.add.at(expected, positions, values.astype(np.float64))
        result = fastreg_kernels.sum_rows(values, positions, count)
        assert result.dtype == arithmetic(name)
        size = np.zeros((count, width))
        np.add.at(size, positions, np.abs(values.astype(np.float64)))
        assert (np.abs(result - expected) <= TOLERANCES[name] * size).all()
        out = np.full((count, width), np.nan, arithmetic(name))
        assert fastreg_kernels.sum_rows(values, positions, count, out=out) is out
        np.testing.assert_array_equal(out, result)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("touched", [0, 1, 30, 3000])
def test_update_rows(name, width, sums, touched):
    generator = np.random.default_rng(width)
    count = touched + 5
    x = generator.normal(size=(count, width)).astype(dtype_of(name))
    stamps, history = past(generator, count)
    rows = generator.permutation(count)[:touched].astype(np.int32)
    step = generator.normal(size=(touched, width)).astype(arithmetic(name))
    before, marks, steps = x.astype(np.float64), stamps.copy(), history.copy()
    shrunk = reference.shrink(before[rows], *due(stamps[rows], history))
    expected = before.copy()
    expected[rows] = shrunk - step
    change = fastreg_kernels.update_rows(x, stamps, history, NOW, rows, step, sums)
    after = x.astype(np.float64)
    np.testing.assert_allclose(after, expected, rtol=TOLERANCES[name], atol=TOLERANCES[name])
    untouched = np.setdiff1d(np.arange(count), rows)
    np.testing.assert_array_equal(after[untouched], before[untouched])
    marks[rows] = NOW
    np.testing.assert_array_equal(stamps, marks)
    np.testing.assert_array_equal(history, steps)
    exact = np.square(after[rows]).sum() - np.square(shrunk).sum()
    assert change == pytest.approx(exact if sums else 0, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("index", ["int32", "int64"])
@pytest.mark.parametrize("looked_up", [0, 1, 40, 5000])
def test_lookup_rows(name, width, index, looked_up):
    generator = np.random.default_rng(width)
    x = generator.normal(size=(300, width)).astype(dtype_of(name))
    stamps, history = past(generator, 300)
    ids = generator.integers(0, 300, looked_up).astype(index)
    before, marks, out = x.copy(), stamps.copy(), np.full((looked_up, width), 7, x.dtype)
    unique, positions = fastreg_kernels.lookup_rows(x, stamps, history, NOW, ids, out)
    expected = reference.shrink(x[ids], *due(stamps[ids], history))
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=TOLERANCES[name], atol=TOLERANCES[name])
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(stamps, marks)
    np.testing.assert_array_equal(unique, list(dict.fromkeys(ids.tolist())))
    assert unique.dtype == ids.dtype
    np.testing.assert_array_equal(unique[positions], ids)
    in_place = x.copy()  # the same bits as a flush gives
    fastreg_kernels.shrink(in_place, *due(stamps, history), out=in_place)
    np.testing.assert_array_equal(out, in_place[ids])


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31 - 2), max_size=300), st.sampled_from(["int32", "int64"]))
def test_ids_that_collide(ids, index):
    """Whatever the ids, as a hash table may put them in one place."""
    from fastreg_kernels.cpu.rows import unique_ids

    array = np.array(ids, index)
    slots = np.full(1 << max(4, (2 * len(ids)).bit_length()), -1, np.int32)
    unique, positions = np.empty_like(array), np.empty(len(ids), np.int32)
    count = unique_ids(array, slots, unique, positions)
    assert unique[:count].tolist() == list(dict.fromkeys(ids))
    np.testing.assert_array_equal(unique[positions], array)


def test_nan_infinity_and_zero():
    x = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 0.1]])
    stamps, history = np.zeros(1, np.float32), np.array([[1.0, 0.0], [0.5, 1.0]])
    fastreg_kernels.update_rows(x, stamps, history, 1, np.array([0]), np.zeros((1, 6)), True)
    np.testing.assert_array_equal(x, [[np.nan, np.inf, -np.inf, 0, 0, 0]])


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000, 0x7FC00000], ids=hex)
def test_a_step_of_any_nan_makes_nan(name, bits):
    x = np.ones((1, 20), dtype_of(name))
    step = np.full((1, 20), bits, np.uint32).view(np.float32).astype(arithmetic(name))
    fastreg_kernels.update_rows(x, np.zeros(1, np.float32), np.array([[1.0, 0.0]]), 0, np.array([0]), step, False)
    assert np.isnan(x).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 4000), st.integers(1, 40), st.integers(0, 2**31))
def test_threads_leave_the_bits_alone(width, n, count, seed):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(n, width)).astype(np.float32)
    positions = generator.integers(0, count, n)
    results = []
    most = fastreg_kernels.get_num_threads()
    try:
        for threads in (1, most):
            fastreg_kernels.set_num_threads(threads)
            x, (stamps, history) = values.copy(), past(np.random.default_rng(seed), n)
            rows, step = np.arange(n)[::-1].copy(), values[::-1].copy()
            change = fastreg_kernels.update_rows(x, stamps, history, NOW, rows, step, True)
            results.append((fastreg_kernels.sum_rows(values, positions, count), x, stamps, change))
    finally:
        fastreg_kernels.set_num_threads(most)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


X, STAMPS, HISTORY = np.ones((4, 3)), np.array([0, 1, 0, 1], np.float32), np.array([[1.0, 0.0], [0.5, 1.0]])
ROWS, STEP = np.array([1, 2]), np.ones((2, 3))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.ones(4)}, ValueError, "two dimensions"),
        ({"x": np.ones((4, 3), np.int32)}, TypeError, "dtype"),
        ({"x": np.asfortranarray(np.ones((4, 3)))}, ValueError, "C order"),
        ({"stamps": np.ones(3, np.float32)}, ValueError, "stamps"),
        ({"stamps": np.ones(4)}, ValueError, "stamps"),
        ({"stamps": np.array([0, 2, 0, 0], np.float32)}, ValueError, "stamps: expected 0 to 1"),
        ({"stamps": np.array([0, -1, 0, 0], np.float32)}, ValueError, "stamps: expected 0 to 1"),
        ({"stamps": np.array([0, np.nan, 0, 0], np.float32)}, ValueError, "stamps: expected 0 to 1"),
        ({"history": np.ones((2, 3))}, ValueError, "history"),
        ({"history": np.ones((2, 2), np.float32)}, ValueError, "history"),
        ({"now": 2}, ValueError, "now: expected 0 to 1"),
        ({"now": -1}, ValueError, "now: expected 0 to 1"),
        ({"rows": np.array([0, 4])}, ValueError, "0 to 3"),
        ({"rows": np.array([-1, 2])}, ValueError, "0 to 3"),
        ({"rows": np.array([1.0, 2.0])}, TypeError, "int32 or int64"),
        ({"rows": np.array([[1, 2]])}, ValueError, "step|rows"),
        ({"step": np.ones((3, 3))}, ValueError, "step"),
        ({"step": np.ones((2, 3), np.float32)}, ValueError, "step"),
    ],
)
def test_errors_of_update_rows(change, error, message):
    arguments = {"x": X.copy(), "stamps": STAMPS.copy(), "history": HISTORY, "now": 1, "rows": ROWS, "step": STEP}
    with pytest.raises(error, match=message):
        fastreg_kernels.update_rows(sums=False, **arguments | change)


@pytest.mark.parametrize("ids", [[0, 4], [-1], [[0, 1]], [0.5]])
def test_errors_of_lookup_rows(ids):
    array = np.array(ids)
    with pytest.raises((TypeError, ValueError), match="ids"):
        fastreg_kernels.lookup_rows(X, STAMPS, HISTORY, 1, array, np.empty((len(ids), 3)))
    with pytest.raises(ValueError, match="out"):
        fastreg_kernels.lookup_rows(X, STAMPS, HISTORY, 1, np.array([0, 1]), np.empty((3, 3)))


@pytest.mark.parametrize("name", ["x", "stamps"])
def test_what_is_read_only(name):
    arguments = {"x": X.copy(), "stamps": STAMPS.copy()}
    arguments[name].flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        fastreg_kernels.update_rows(history=HISTORY, now=1, rows=ROWS, step=STEP, sums=False, **arguments)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((np.ones(3), np.zeros(3, np.int64), 1), ValueError),
        ((np.ones((3, 2)), np.zeros(2, np.int64), 1), ValueError),
        ((np.ones((3, 2)), np.array([0, 1, 2]), 2), ValueError),
        ((np.ones((3, 2)), np.array([0, -1, 1]), 2), ValueError),
        ((np.ones((3, 2)), [0, 1, 1], 2), TypeError),
        ((np.ones((3, 2)), np.zeros(3, np.int64), 1, np.ones((2, 2))), ValueError),
        ((np.ones((3, 2)), np.zeros(3, np.int64), 1, np.ones((1, 2), np.float32)), ValueError),
    ],
)
def test_errors_of_sum_rows(arguments, error):
    with pytest.raises(error, match="Invalid"):
        fastreg_kernels.sum_rows(*arguments)
