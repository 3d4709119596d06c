"""The vector operations one by one, through small compiled functions."""

import numba
import numpy as np
import pytest
from fastreg_kernels import DTYPES, _arrays
from fastreg_kernels.cpu import vector
from fastreg_kernels.cpu.vector import LANES

BITS = {"float32": np.uint32, "float64": np.uint64, "float16": np.uint16, "bfloat16": np.uint16}
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0, -1.0, 2.5, -2.5, 1e-3, -1e-3, 300.0, -300.0, 0.5, -0.5, 7.0]

every_dtype = pytest.mark.parametrize("dtype", DTYPES)
arithmetic_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@numba.njit
def _copy(x, out, i, j):
    vector.store(out, j, vector.load(x, i))


@numba.njit
def _copy_first(x, out, i, j, count):
    vector.store_first(out, j, vector.load(x, i), count)


@numba.njit
def _fill_up(x, out, i, count):
    vector.store(out, 0, vector.load_first(x, i, count))


@numba.njit
def _stream(x, out, i):
    vector.stream(out, i, vector.load(x, i))
    vector.fence()


@numba.njit
def _add(x, y, out):
    vector.store(out, 0, vector.load(x, 0) + vector.load(y, 0))


@numba.njit
def _subtract(x, y, out):
    vector.store(out, 0, vector.load(x, 0) - vector.load(y, 0))


@numba.njit
def _multiply(x, y, out):
    vector.store(out, 0, vector.load(x, 0) * vector.load(y, 0))


@numba.njit
def _affine(x, a, b, out):
    vector.store(out, 0, a * vector.load(x, 0) - b)


@numba.njit
def _magnitude(x, out):
    vector.store(out, 0, abs(vector.load(x, 0)))


@numba.njit
def _signed(a, x, out):
    vector.store(out, 0, vector.signed(a, vector.load(x, 0)))


@numba.njit
def _keep_nan(result, x, out):
    vector.store(out, 0, vector.keep_nan(vector.load(result, 0), vector.load(x, 0)))


@numba.njit
def _soft(x, y, out):
    vector.store(out, 0, vector.soft_threshold(vector.load(x, 0), vector.load(y, 0)))


@numba.njit
def _widen(x, out):
    vector.store(out, 0, vector.widen(vector.in_order(x, vector.load(x, 0))))


@numba.njit
def _total(x):
    return vector.total(vector.zeros() + vector.widen(vector.in_order(x, vector.load(x, 0))))


@numba.njit
def _sums(before, x, out):
    start = vector.load(before, 0)
    v = vector.load(x, 0)
    vector.store(out, 0, vector.in_order(x, vector.add(start, v)))
    vector.store(out, LANES, vector.in_order(x, vector.add_squares(start, v)))


@numba.njit
def _zeros(out):
    vector.store(out, 0, vector.zeros())


@numba.njit
def _copy_all(x, out):
    for i in range(0, x.size, LANES):
        vector.store(out, i, vector.as_if_of(out, vector.in_order(x, vector.load(x, i))))


def run(function, out, *arguments):
    """Call a function whose arrays may be of half types, `out` last."""
    plain = [_arrays.stored(a) if isinstance(a, np.ndarray) else a for a in (*arguments, out)]
    function(*plain)
    return out


def bits(array):
    return array.view(BITS[array.dtype.name])


@pytest.fixture
def ramp():
    def make(dtype, size=4 * LANES):
        return (np.arange(size) - size // 2 + 0.5).astype(dtype)

    return make


@every_dtype
@pytest.mark.parametrize(("i", "j"), [(0, 0), (16, 32), (1, 3), (48, 7)])
def test_load_and_store(ramp, dtype, i, j):
    x, out = ramp(dtype), np.zeros(4 * LANES, dtype)
    _copy(_arrays.stored(x), _arrays.stored(out), i, j)
    expected = np.zeros_like(out)
    expected[j : j + LANES] = x[i : i + LANES]
    np.testing.assert_array_equal(bits(out), bits(expected))


@every_dtype
@pytest.mark.parametrize("count", range(LANES + 1))
def test_load_first_and_store_first(ramp, dtype, count):
    x, out = ramp(dtype), np.zeros(4 * LANES, dtype)
    _copy_first(_arrays.stored(x), _arrays.stored(out), 5, 9, count)
    expected = np.zeros_like(out)
    expected[9 : 9 + count] = x[5 : 5 + count]
    np.testing.assert_array_equal(bits(out), bits(expected))

    out[:] = 1
    _fill_up(_arrays.stored(x), _arrays.stored(out), 5, count)
    expected = np.ones_like(out)
    expected[:LANES] = 0
    expected[:count] = x[5 : 5 + count]
    np.testing.assert_array_equal(bits(out), bits(expected))


@every_dtype
def test_stream(ramp, guarded, dtype):
    x, out = ramp(dtype), guarded(4 * LANES, dtype)
    for i in (0, 32):
        _stream(_arrays.stored(x), _arrays.stored(out.array), i)
        np.testing.assert_array_equal(bits(out.array[i : i + LANES]), bits(x[i : i + LANES]))
    assert out.bytes()[16 * x.itemsize : 32 * x.itemsize] == bytes([0x5A]) * (16 * x.itemsize)
    out.assert_untouched_around()


@arithmetic_dtypes
def test_operators(dtype):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=LANES).astype(dtype), rng.normal(size=LANES).astype(dtype)
    a, b = np.dtype(dtype).type(1.1), np.dtype(dtype).type(0.3)
    for function, expected in ((_add, x + y), (_subtract, x - y), (_multiply, x * y)):
        np.testing.assert_array_equal(run(function, np.empty_like(x), x, y), expected)
    np.testing.assert_array_equal(run(_affine, np.empty_like(x), x, a, b), a * x - b)


@arithmetic_dtypes
def test_abs(dtype):
    x = np.array(SPECIAL, dtype)
    np.testing.assert_array_equal(bits(run(_magnitude, np.empty_like(x), x)), bits(np.abs(x)))


@arithmetic_dtypes
@pytest.mark.parametrize("a", [0.1, -0.1, 0.0])
def test_signed(dtype, a):
    x, a = np.array(SPECIAL, dtype), np.dtype(dtype).type(a)
    result = run(_signed, np.empty_like(x), a, x)
    expected = a * np.sign(np.nan_to_num(x))
    np.testing.assert_array_equal(bits(result), bits(expected))


@arithmetic_dtypes
@pytest.mark.parametrize("a", [np.inf, -np.inf, np.nan])
def test_signed_by_what_is_not_finite(dtype, a):
    x = np.array([0.0, -0.0, 1.0, -1.0] * (LANES // 4), dtype)
    with np.errstate(invalid="ignore"):
        expected = np.dtype(dtype).type(a) * np.sign(x)
    np.testing.assert_array_equal(run(_signed, np.empty_like(x), np.dtype(dtype).type(a), x), expected)


@arithmetic_dtypes
def test_keep_nan(dtype):
    x, result = np.array(SPECIAL, dtype), np.arange(LANES).astype(dtype)
    np.testing.assert_array_equal(run(_keep_nan, np.empty_like(x), result, x), np.where(np.isnan(x), x, result))


@arithmetic_dtypes
def test_soft_threshold(dtype):
    magnitude = np.array([1.0, 1.0, 0.0, -0.0, -1.0, -1.0, np.nan, np.inf, np.inf, -np.inf, 2.0, 3.0, 0.0, 0.5, 1, 1])
    signs = np.array([3.0, -3.0, 1.0, -1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0, 0.0, -0.0, -0.0, -0.1, np.inf, -np.inf])
    expected = np.array([1.0, -1.0, 0, 0, 0, 0, np.nan, np.inf, -np.inf, 0, 2.0, -3.0, 0, -0.5, 1.0, -1.0])
    result = run(_soft, np.empty(LANES, dtype), magnitude.astype(dtype), signs.astype(dtype))
    np.testing.assert_array_equal(result, expected.astype(dtype))
    assert not np.signbit(result[result == 0]).any()


@every_dtype
def test_widen_and_total(dtype):
    x = np.random.default_rng(0).normal(size=LANES).astype(dtype)
    out = np.empty(LANES)
    _widen(_arrays.stored(x), out)
    np.testing.assert_array_equal(out, x.astype(np.float64))
    expected = 0.0
    for value in x.astype(float).tolist():
        expected += value
    assert _total(_arrays.stored(x)) == expected


@every_dtype
def test_add_and_add_squares(dtype):
    """Each rounded once, but for squares of float64 numbers."""
    x, before = np.array(SPECIAL, dtype), np.full(LANES, 1 / 3)
    wide = x.astype(np.float64)
    expected = np.concatenate([before + wide, before + wide * wide])
    np.testing.assert_array_equal(run(_sums, np.empty(2 * LANES), before, x), expected)


def test_total_goes_from_the_first_lane_to_the_last():
    x = np.array([1.0] + [2.0**-53] * (LANES - 1))
    assert _total(x) == 1.0  # each addition is rounded away
    assert _total(x[::-1].copy()) > 1.0


def test_zeros():
    out = np.ones(LANES)
    _zeros(out)
    np.testing.assert_array_equal(bits(out), 0)


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("float32", "float64")])
def test_all_numbers_of_half_types_come_back(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    wide, back = np.empty(x.size, np.float32), np.empty_like(x)
    _copy_all(_arrays.stored(x), wide)
    np.testing.assert_array_equal(wide, x.astype(np.float32))
    _copy_all(wide, _arrays.stored(back))
    number = ~np.isnan(wide)
    np.testing.assert_array_equal(bits(back)[number], bits(x)[number])
    assert np.isnan(back.astype(np.float32)[~number]).all()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("float32", "float64")])
def test_rounding_to_half_types(dtype):
    """To nearest, ties to even: random bits, halfway cases and their neighbours, and what is out of range."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, 2**16, dtype=np.uint32)
    halves = np.arange(2**16, dtype=np.uint16).view(dtype).astype(np.float32).view(np.uint32)
    halfway = halves + np.uint32(1 << (12 if dtype == "float16" else 15))
    x = np.concatenate([anything, halfway, halfway - np.uint32(1), halfway + np.uint32(1)]).view(np.float32)
    result = np.empty(x.size, dtype)
    _copy_all(x, _arrays.stored(result))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(dtype)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(bits(result)[number], bits(expected)[number])
    assert np.isnan(result.astype(np.float32)[~number]).all()
