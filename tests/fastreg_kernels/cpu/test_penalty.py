"""Sums and gradients against NumPy in float64: sizes, shapes, layouts, special values, upstream gradients."""

import math

import numpy as np
import pytest
from fastreg_kernels import DTYPES, backward, forward, forward_backward, reference
from fastreg_kernels.cpu.launch import BLOCK, PARALLEL_MIN_BLOCKS

SERIAL_SIZES = [0, 1, 15, 16, 17, 31, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 37]
PARALLEL_SIZES = [PARALLEL_MIN_BLOCKS * BLOCK, PARALLEL_MIN_BLOCKS * BLOCK + 2 * BLOCK + 37]
SIZES = SERIAL_SIZES + PARALLEL_SIZES
FACTORS = [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7), (0.0, 0.0)]
UPSTREAMS = [0.0, -1.5, 65536.0, 1e30, -1e30]

# Relative: a rounding of the coefficient, of the product and of the sum; of the result alone for half types.
TOLERANCE = {"float32": 2e-7, "float64": 1e-15, "float16": 2.0**-11 + 2e-7, "bfloat16": 2.0**-8 + 2e-7}
SMALLEST = {"float32": 2.0**-149, "float64": 5e-324, "float16": 2.0**-24, "bfloat16": 2.0**-133}
SUMS_TOLERANCE = 1e-14

SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, -2.0]


def assert_sums(sums, x):
    assert sums.dtype == np.float64
    assert sums.shape == (2,)
    values = x.astype(np.float64).ravel()
    expected = [math.fsum(np.abs(values)), math.fsum(values * values)]
    np.testing.assert_allclose(sums, expected, rtol=SUMS_TOLERANCE, atol=0)
    np.testing.assert_allclose(sums, reference.forward(x), rtol=SUMS_TOLERANCE, atol=0)


def assert_gradient(gradient, x, l1, l2, upstream=1.0):
    assert gradient.dtype == x.dtype
    assert gradient.shape == x.shape
    wide = x.astype(np.float64)
    sign = (wide > 0).astype(float) - (wide < 0)
    name = x.dtype.name
    for expected in (upstream * l1 * sign + upstream * 2 * l2 * wide, reference.backward(x, l1, l2, upstream)):
        np.testing.assert_allclose(gradient.astype(float), expected, rtol=TOLERANCE[name], atol=SMALLEST[name] / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sums(numbers, size, dtype):
    x = numbers(size, dtype)
    assert_sums(forward(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("l1", "l2"), FACTORS)
@pytest.mark.parametrize("size", SIZES)
def test_gradient(numbers, size, l1, l2, dtype):
    x = numbers(size, dtype)
    assert_gradient(backward(x, l1, l2), x, l1, l2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("l1", "l2"), FACTORS)
@pytest.mark.parametrize("size", SIZES)
def test_both_at_once_have_the_bits_of_each_apart(numbers, assert_same_bits, size, l1, l2, dtype):
    x = numbers(size, dtype)
    sums, gradient = forward_backward(x, l1, l2, -1.5)
    assert_same_bits(sums, forward(x))
    assert_same_bits(gradient, backward(x, l1, l2, -1.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [31, PARALLEL_SIZES[-1]])
def test_gradient_is_rounded_as_documented(numbers, size, dtype):
    """Coefficients in float64, rounded once; then float32 arithmetic for half types, and no fused multiply-add."""
    x = numbers(size, dtype)
    arithmetic = np.float64 if dtype == "float64" else np.float32
    wide = x.astype(arithmetic)
    expected = arithmetic(3.3 * 0.1) * np.sign(wide) + arithmetic(3.3 * 2 * 0.7) * wide
    np.testing.assert_array_equal(backward(x, 0.1, 0.7, 3.3), expected.astype(dtype))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (1, 1), (3, 7), (7, 1), (2, 3, 5), (50, 2000)], ids=str)
def test_shapes_and_orders(numbers, assert_same_bits, shape, dtype, order):
    x = numbers(shape, dtype, order)
    assert_sums(forward(x), x)
    gradient = backward(x, 0.3, 0.7)
    assert_gradient(gradient, x, 0.3, 0.7)
    assert gradient.flags.c_contiguous == x.flags.c_contiguous
    assert gradient.flags.f_contiguous == x.flags.f_contiguous
    assert_same_bits(forward_backward(x, 0.3, 0.7)[1], gradient)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 4, 8, 36])
@pytest.mark.parametrize("size", [31, BLOCK + 5, PARALLEL_SIZES[-1]])
def test_inputs_that_start_anywhere(numbers, guarded, assert_same_bits, size, offset, dtype):
    x, shifted = numbers(size, dtype), guarded(size, dtype, offset)
    shifted.array[...] = x
    assert_same_bits(forward(shifted.array), forward(x))
    assert_same_bits(backward(shifted.array, 0.3, 0.7), backward(x, 0.3, 0.7))
    assert shifted.bytes() == x.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_read_only_inputs(numbers, assert_same_bits, dtype):
    x = numbers(1000, dtype)
    frozen = x.copy()
    frozen.flags.writeable = False
    sums, gradient = forward_backward(frozen, 0.3, 0.7)
    assert_same_bits(sums, forward(x))
    assert_same_bits(gradient, backward(x, 0.3, 0.7))
    assert gradient.flags.writeable
    assert not frozen.flags.writeable
    assert x.flags.writeable  # the kernels' read-only view of it is their own


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("repeat", [1, 7])  # in the tail of a block, and in whole vectors
@pytest.mark.parametrize(
    ("l1", "l2", "expected"),
    [
        (0.1, 0.0, [0.0, 0.0, np.nan, 0.1, -0.1, -0.1]),
        (0.0, 0.1, [0.0, -0.0, np.nan, np.inf, -np.inf, -0.4]),
        (0.1, 0.1, [0.0, 0.0, np.nan, np.inf, -np.inf, -0.5]),
        (0.0, 0.0, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_special_values(l1, l2, expected, repeat, dtype):
    x, expected = np.array(SPECIAL * repeat, dtype), np.array(expected * repeat)
    zero = x == 0
    for gradient in (backward(x, l1, l2), forward_backward(x, l1, l2)[1]):
        np.testing.assert_allclose(gradient.astype(float), expected, rtol=TOLERANCE[dtype])
        np.testing.assert_array_equal(np.signbit(gradient[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.nan, 1.0], [np.nan, np.nan]),
        ([np.inf, 1.0], [np.inf, np.inf]),
        ([-np.inf, np.inf], [np.inf, np.inf]),
        ([-np.inf, np.nan], [np.nan, np.nan]),
        ([-0.0, -0.0], [0.0, 0.0]),
    ],
)
def test_sums_of_special_values(values, expected, dtype):
    for x in (np.array(values, dtype), np.array(values * 17, dtype)):
        sums = forward(x)
        np.testing.assert_array_equal(sums, expected)
        assert not np.signbit(sums[sums == 0]).any()
        np.testing.assert_array_equal(forward_backward(x, 0.0, 0.0)[0], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize(("l1", "l2"), FACTORS)
def test_upstream_gradients(numbers, l1, l2, upstream, dtype):
    x = numbers(100, dtype)
    with np.errstate(over="ignore"):
        expected = reference.backward(x, l1, l2, upstream).astype(dtype).astype(float)
        for gradient in (backward(x, l1, l2, upstream), forward_backward(x, l1, l2, upstream)[1]):
            np.testing.assert_allclose(
                gradient.astype(float), expected, rtol=2 * TOLERANCE[dtype], atol=SMALLEST[dtype]
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("upstream", [np.inf, -np.inf, np.nan])
def test_upstream_gradients_that_are_not_finite(upstream, dtype):
    x = np.array([-2.0, 0.0, 3.0], dtype)
    for l1, l2 in FACTORS[:3]:
        expected = [-upstream, np.nan, upstream]  # infinity times zero is NaN
        np.testing.assert_array_equal(backward(x, l1, l2, upstream).astype(float), expected)
    np.testing.assert_array_equal(backward(x, 0.0, 0.0, upstream), np.zeros(3))


HALF_TYPES = [name for name in DTYPES if name not in ("float32", "float64")]


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize(("l1", "l2"), FACTORS)
def test_every_number_of_half_types(l1, l2, dtype):
    """All 65,536, among them every NaN: none becomes a number, and no number becomes one of them."""
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    gradient = backward(x, l1, l2)
    with np.errstate(over="ignore", invalid="ignore"):  # NumPy remarks on signalling NaN
        expected = reference.backward(x, l1, l2).astype(dtype)
        np.testing.assert_array_equal(np.isnan(gradient), np.isnan(expected))
        np.testing.assert_array_equal(np.isinf(gradient), np.isinf(expected))
    finite = np.isfinite(expected)
    np.testing.assert_allclose(
        gradient[finite].astype(float), expected[finite].astype(float), rtol=2 * TOLERANCE[dtype], atol=SMALLEST[dtype]
    )
    np.testing.assert_array_equal(forward_backward(x, l1, l2)[1].view(np.uint16), gradient.view(np.uint16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000, 0x7F800001], ids=hex)
def test_upstream_of_any_nan(bits, dtype):
    x, upstream = np.full(20, -2, dtype), np.array(bits, np.uint32).view(np.float32)
    for l1, l2 in FACTORS[:3]:
        assert np.isnan(backward(x, l1, l2, upstream)).all()


def test_coefficients_beyond_the_range_of_the_dtype_are_infinite_without_a_warning():
    with np.errstate(all="raise"):
        gradient = backward(np.array([-2.0, 3.0], np.float32), 1e200, 1e300, 1e300)
        np.testing.assert_array_equal(gradient, [-np.inf, np.inf])
        np.testing.assert_array_equal(backward(np.ones(2, np.float32), 1e-200, 0.0), [0.0, 0.0])


@pytest.mark.parametrize("upstream", [2, True, np.float32(0.5), np.array(0.5, np.float16), np.array(-3), np.array(0.1)])
def test_upstream_as_any_real_scalar(numbers, assert_same_bits, upstream):
    x = numbers(100, "float64")
    assert_same_bits(backward(x, 0.3, 0.7, upstream), backward(x, 0.3, 0.7, float(upstream)))
    assert_gradient(backward(x, 0.3, 0.7, upstream=upstream), x, 0.3, 0.7, float(upstream))


def test_large_upstream_does_not_overflow_an_intermediate():
    """The coefficient is formed first, in float64; upstream times x would be beyond float32."""
    x = np.array([1e20, -1e20], np.float32)
    np.testing.assert_allclose(backward(x, 0.0, 1e-30, 1e30), [2e20, -2e20], rtol=1e-6)


@pytest.mark.large
def test_more_elements_than_an_int32_counts():
    x = np.zeros(2**31 + 5, np.float32)
    x[[0, 2**30, 2**31 - 1, 2**31, -1]] = [1.0, -2.0, 4.0, -8.0, 16.0]
    np.testing.assert_array_equal(forward(x), [31.0, 341.0])


@pytest.mark.large
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name in ("float16", "bfloat16")])
def test_more_half_elements_than_an_int32_counts(dtype):
    """Both sums are far beyond what the dtype, or float32, could count up to; they are exact."""
    x = np.full(2**31 + 5, 3.0, dtype)
    x[-1] = -5.0
    np.testing.assert_array_equal(forward(x), [3.0 * (2**31 + 4) + 5.0, 9.0 * (2**31 + 4) + 25.0])
