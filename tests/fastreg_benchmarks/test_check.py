import ml_dtypes
import numpy as np
import pytest
from fastreg_benchmarks import check
from fastreg_benchmarks.cases import DTYPES, L1, L2, VALUE, VALUE_AND_GRADIENT, Case, Inputs
from fastreg_kernels import reference


@pytest.fixture(params=DTYPES)
def inputs(request):
    return Inputs(Case(5000, request.param, VALUE_AND_GRADIENT))


def correct(inputs):
    value = L1 * inputs.sums[0] + L2 * inputs.sums[1]
    return value, reference.backward(inputs.x, L1, L2).astype(inputs.x.dtype)


def test_the_right_result_is_ok(inputs):
    value, gradient = correct(inputs)
    verdict = check.check(inputs, value, gradient, accumulated_in_dtype=False)
    assert verdict.status == check.OK
    assert verdict.value_error == 0
    assert verdict.gradient_error <= ml_dtypes.finfo(inputs.x.dtype).eps


@pytest.mark.parametrize("change", [1.1, 0.0, -1.0, np.nan, np.inf])
def test_a_wrong_value_is_wrong(inputs, change):
    value, gradient = correct(inputs)
    for in_dtype in (False, True):
        assert check.check(inputs, change * value, gradient, in_dtype).status == check.WRONG


@pytest.mark.parametrize("index", [0, 4999])
@pytest.mark.parametrize("change", [1.1, 0.0, -1.0, np.nan, np.inf])
def test_one_wrong_element_of_the_gradient_is_wrong(inputs, index, change):
    value, gradient = correct(inputs)
    gradient[index] = gradient[index] * np.float32(change)
    assert check.check(inputs, value, gradient, accumulated_in_dtype=False).status == check.WRONG


def test_a_gradient_of_another_kind_is_wrong(inputs):
    value, gradient = correct(inputs)
    other = "float64" if inputs.x.dtype != "float64" else "float32"
    for bad in (None, gradient[:-1], gradient.reshape(50, 100), gradient.astype(other)):
        assert check.check(inputs, value, bad, accumulated_in_dtype=False).status == check.WRONG


def test_a_gradient_is_not_asked_for_with_the_value_alone():
    inputs = Inputs(Case(5000, "float32", VALUE))
    assert check.check(inputs, correct(inputs)[0], None, accumulated_in_dtype=False).status == check.OK


def test_roundings_may_pile_up_only_where_sums_have_the_dtype_of_x():
    inputs = Inputs(Case(5000, "float32", VALUE))
    value = correct(inputs)[0] * (1 + 1e-4)
    assert check.check(inputs, value, None, accumulated_in_dtype=False).status == check.WRONG
    assert check.check(inputs, value, None, accumulated_in_dtype=True).status == check.INEXACT
    assert check.check(inputs, value * 1.01, None, accumulated_in_dtype=True).status == check.WRONG


def test_sums_may_overflow_only_where_they_have_the_dtype_of_x():
    inputs = Inputs(Case(200_000, "float16", VALUE))  # the sums are beyond 65504, the penalty is not
    assert inputs.sums.min() > 65504 > correct(inputs)[0]
    assert check.check(inputs, np.inf, None, accumulated_in_dtype=True).status == check.OVERFLOW
    assert check.check(inputs, np.inf, None, accumulated_in_dtype=False).status == check.WRONG


def test_infinity_is_right_where_the_penalty_is_beyond_the_dtype():
    inputs = Inputs(Case(4_000_000, "float16", VALUE))
    assert check.check(inputs, np.inf, None, accumulated_in_dtype=False).status == check.OK
