"""Properties that hold for all numbers, searched for counterexamples."""

import math

import numpy as np
import pytest
from fastreg_kernels import DTYPES, backward, forward, reference, shrink
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

ROUNDING = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 2.0**-149, "float64": 5e-324, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# So that no gradient leaves the range of the dtype.
LARGEST = {"float32": 2.0**100, "float64": 2.0**400, "float16": 2.0**8, "bfloat16": 2.0**100}

search = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
every_dtype = pytest.mark.parametrize("dtype", DTYPES)
factors = st.floats(0.0, 16.0)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def arrays(draw, dtype):
    """Up to five vectors in up to three dimensions."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, max_side=80).filter(lambda shape: math.prod(shape) <= 80))
    width = 64 if dtype == "float64" else 32
    numbers = st.floats(-LARGEST[dtype], LARGEST[dtype], width=width)
    return draw(hnp.arrays(f"float{width}", shape, elements=numbers)).astype(dtype)


@every_dtype
@search
@given(data=st.data(), l1=factors, l2=factors, upstream=st.floats(-4.0, 4.0))
def test_gradient_is_that_of_float64(dtype, data, l1, l2, upstream):
    x = data.draw(arrays(dtype))
    expected = reference.backward(x, l1, l2, upstream)
    allowed = ROUNDING[dtype] + 5 * ROUNDING["float64" if dtype == "float64" else "float32"]
    # A coefficient that is subnormal in its dtype has fewer digits, and they are multiplied by x.
    lost = SMALLEST["float64" if dtype == "float64" else "float32"] * (1 + np.abs(x.astype(float)))
    difference = np.abs(backward(x, l1, l2, upstream).astype(float) - expected)
    assert (difference <= allowed * np.abs(expected) + lost + SMALLEST[dtype]).all()


@every_dtype
@search
@given(data=st.data())
def test_sums_are_those_of_float64(dtype, data):
    x = data.draw(arrays(dtype))
    wide = x.astype(float).ravel()
    np.testing.assert_allclose(forward(x), [math.fsum(np.abs(wide)), math.fsum(wide * wide)], rtol=1e-14)


@every_dtype
@search
@given(data=st.data(), seed=seeds)
def test_sums_do_not_depend_on_the_order(dtype, data, seed):
    x = data.draw(arrays(dtype)).ravel()
    np.testing.assert_allclose(forward(np.random.default_rng(seed).permutation(x)), forward(x), rtol=1e-12, atol=0)


@every_dtype
@search
@given(data=st.data(), l1=factors, l2=factors)
def test_penalty_is_even_and_its_gradient_odd(dtype, data, l1, l2):
    x = data.draw(arrays(dtype))
    mirrored = np.asarray(-x)  # NumPy makes a scalar of an array without dimensions
    np.testing.assert_array_equal(forward(mirrored), forward(x))
    np.testing.assert_array_equal(backward(mirrored, l1, l2), -backward(x, l1, l2))


@every_dtype
@search
@given(data=st.data(), scale=st.floats(0.0, 1.0), threshold=factors)
def test_shrinking_never_grows_a_magnitude(dtype, data, scale, threshold):
    x = data.draw(arrays(dtype))
    result = shrink(x, scale, threshold)
    assert (np.abs(result) <= np.abs(x)).all()
    assert ((result == 0) | (np.sign(result) == np.sign(x))).all()
    wide = np.float64 if dtype == "float64" else np.float32
    vanished = wide(scale) * np.abs(x.astype(wide)) <= wide(threshold)
    assert (result[vanished] == 0).all()
    assert not np.signbit(result[vanished]).any()  # only what a half type is too coarse for may be -0


@every_dtype
@search
@given(data=st.data(), scale=factors, threshold=factors)
def test_shrunk_numbers_are_those_of_float64(dtype, data, scale, threshold):
    x = data.draw(arrays(dtype))
    terms = scale * np.abs(x.astype(float)) + threshold
    allowed = ROUNDING[dtype] + 5 * ROUNDING["float64" if dtype == "float64" else "float32"]
    lost = SMALLEST["float64" if dtype == "float64" else "float32"] * (1 + np.abs(x.astype(float)))
    difference = np.abs(shrink(x, scale, threshold).astype(float) - reference.shrink(x, scale, threshold))
    assert (difference <= allowed * terms + lost + SMALLEST[dtype]).all()


@every_dtype
@search
@given(data=st.data(), seed=seeds)
def test_rows_shrink_as_they_would_alone(dtype, data, seed):
    x = np.atleast_1d(data.draw(arrays(dtype)))
    rng = np.random.default_rng(seed)
    scale, threshold = rng.random(x.shape[0]), rng.random(x.shape[0])
    together = shrink(x, scale, threshold)
    for row, a, b, expected in zip(x, scale, threshold, together, strict=True):
        np.testing.assert_array_equal(shrink(np.ascontiguousarray(row), a, b).reshape(row.shape), expected)
