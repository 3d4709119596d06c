"""The proximal step: scalars and factors per row, what vanishes, special values."""

import numpy as np
import pytest
from fastreg_kernels import DTYPES, reference, shrink
from fastreg_kernels.cpu.launch import BLOCK, PARALLEL_MIN_BLOCKS

# Relative to the largest term, for the difference cancels.
TOLERANCE = {"float32": 2e-7, "float64": 5e-16, "float16": 2.0**-11 + 2e-7, "bfloat16": 2.0**-8 + 2e-7}
SIZES = [0, 1, 15, 16, 17, 31, BLOCK - 1, BLOCK, BLOCK + 1, PARALLEL_MIN_BLOCKS * BLOCK + 2 * BLOCK + 37]
SHAPES = [
    (1,),
    (40,),
    (5, 1),
    (1, 5),
    (7, 16),
    (7, 17),
    (33, 3),
    (4, 3, 5),
    (3, BLOCK + 1),
    (2 * BLOCK + 3, 1),
    (BLOCK, 7),
    (500, 333),
    (PARALLEL_MIN_BLOCKS * BLOCK + 9,),
    (2, 3 * BLOCK),
]


def assert_shrunk(result, x, scale, threshold):
    assert result.dtype == x.dtype
    assert result.shape == x.shape
    wide = x.astype(np.float64)
    rows = (-1,) + (1,) * (x.ndim - 1)
    a, b = (np.asarray(v, float) if np.ndim(v) == 0 else np.reshape(v, rows) for v in (scale, threshold))
    limit = TOLERANCE[x.dtype.name] * (a * np.abs(wide) + b)
    expected = np.sign(wide) * np.maximum(a * np.abs(wide) - b, 0.0)
    assert (np.abs(result.astype(float) - expected) <= limit).all()
    assert (np.abs(result.astype(float) - reference.shrink(x, scale, threshold)) <= limit).all()
    assert not np.signbit(result[result == 0]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "threshold"), [(0.9, 0.5), (1.0, 0.0), (1, 2), (0.0, 0.0), (0.0, 0.5), (2.5, 1e-3)])
@pytest.mark.parametrize("size", SIZES)
def test_scalars(numbers, size, scale, threshold, dtype):
    x = numbers(size, dtype)
    assert_shrunk(shrink(x, scale, threshold), x, scale, threshold)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factors_per_row(numbers, shape, dtype):
    x = numbers(shape, dtype)
    scale, threshold = np.linspace(0.0, 2.0, shape[0]), np.linspace(1.0, 0.0, shape[0])
    for a, b in ((scale, threshold), (scale, 0.25), (0.5, threshold), (scale.astype(np.float32), np.array(1))):
        assert_shrunk(shrink(x, a, b), x, a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_factors_per_row_have_the_bits_of_the_scalars(numbers, assert_same_bits, shape, dtype):
    x = numbers(shape, dtype)
    assert_same_bits(shrink(x, np.full(shape[0], 0.9), np.full(shape[0], 0.5)), shrink(x, 0.9, 0.5))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 2)], ids=str)
def test_nothing_to_shrink(shape):
    x = np.empty(shape, np.float32)
    assert shrink(x, np.ones(shape[0]), 0.5).shape == shape
    assert shrink(x, 1.0, 0.5).shape == shape


def test_no_dimension_and_fortran_order(numbers):
    single = np.array(-3.0)
    np.testing.assert_array_equal(shrink(single, 0.5, 1.0), -0.5)
    x = numbers((30, 20), "float32", order="F")
    result = shrink(x, 0.9, 0.5)
    assert_shrunk(result, x, 0.9, 0.5)
    assert result.flags.f_contiguous


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_rows", [False, True])
def test_factors_are_rounded_once_to_the_arithmetic_dtype(numbers, by_rows, dtype):
    x = numbers((300, 5), dtype)
    arithmetic = np.float64 if dtype == "float64" else np.float32
    magnitude = arithmetic(0.1) * np.abs(x.astype(arithmetic)) - arithmetic(0.07)
    expected = np.where(magnitude <= 0, 0, np.copysign(magnitude, x.astype(arithmetic))).astype(dtype)
    np.testing.assert_array_equal(shrink(x, np.full(300, 0.1) if by_rows else 0.1, 0.07), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize(
    ("scale", "threshold", "expected"),
    [
        (1.0, 0.0, [0.0, 0.0, np.nan, np.inf, -np.inf, -2.0, 2.0]),
        (0.5, 0.5, [0.0, 0.0, np.nan, np.inf, -np.inf, -0.5, 0.5]),
        (0.5, 1.0, [0.0, 0.0, np.nan, np.inf, -np.inf, 0.0, 0.0]),
        (0.0, 0.0, [0.0, 0.0, np.nan, 0.0, 0.0, 0.0, 0.0]),
        (0.0, 0.5, [0.0, 0.0, np.nan, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_special_values(scale, threshold, expected, by_rows, dtype):
    """NaN stays NaN; a scale of zero skips its term, even for infinities; what vanishes is +0."""
    x = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, -2.0, 2.0] * 3, dtype).reshape(3, 7)
    factors = (np.full(3, scale), np.full(3, threshold)) if by_rows else (scale, threshold)
    result = shrink(x, *factors)
    np.testing.assert_array_equal(result.astype(float), [expected] * 3)
    assert not np.signbit(result[result == 0]).any()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name not in ("float32", "float64")])
@pytest.mark.parametrize(("scale", "threshold"), [(1.0, 0.0), (0.5, 1e-3), (0.0, 0.0), (3.0, 0.0)])
def test_every_nan_of_half_types_stays_one(scale, threshold, dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    result = shrink(x, scale, threshold)
    with np.errstate(invalid="ignore"):  # NumPy remarks on signalling NaN
        np.testing.assert_array_equal(np.isnan(result), np.isnan(x))


def test_a_row_of_scale_zero_does_not_touch_its_neighbours():
    x = np.full((4, 19), 3.0, np.float32)
    result = shrink(x, [1.0, 0.0, 2.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    np.testing.assert_array_equal(result, np.repeat([[2.0], [0.0], [6.0], [0.0]], 19, axis=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_by_rows(numbers, assert_same_bits, dtype):
    x = numbers((500, 333), dtype)
    scale, threshold = np.linspace(0, 2, 500), np.linspace(1, 0, 500)
    expected = shrink(x, scale, threshold)
    assert shrink(x, scale, threshold, out=x) is x
    assert_same_bits(x, expected)


def test_subnormal_results_are_kept():
    x = np.array([2.0**-126, -(2.0**-126)], np.float32)
    np.testing.assert_array_equal(shrink(x, 1.0, 2.0**-127), [2.0**-127, -(2.0**-127)])
    np.testing.assert_array_equal(shrink(x, 2.0**-23, 0.0), [2.0**-149, -(2.0**-149)])
