import numpy as np
import pytest
from fastreg_benchmarks import bandwidth, cases
from fastreg_benchmarks.cases import VALUE, VALUE_AND_GRADIENT, Case, Inputs


@pytest.mark.parametrize(
    ("dtype", "what", "expected"),
    [
        ("float32", VALUE, 4000),  # read x
        ("float32", VALUE_AND_GRADIENT, 8000),  # read x + write g
        ("float64", VALUE_AND_GRADIENT, 16000),
        ("bfloat16", VALUE, 2000),
        ("float16", VALUE_AND_GRADIENT, 4000),
    ],
)
def test_byte_model(dtype, what, expected):
    assert Case(1000, dtype, what).model_bytes == expected


def test_limit_follows_from_the_byte_model():
    machine = bandwidth.Bandwidth(read=1e9, copy=4e9, scale=7e9)
    assert machine.seconds(Case(1_000_000, "float32", VALUE)) == pytest.approx(4e-3)
    assert machine.seconds(Case(1_000_000, "float32", VALUE_AND_GRADIENT)) == pytest.approx(2e-3)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_inputs_are_fresh_normal_and_aligned(dtype):
    case = Case(100_000, dtype, VALUE)
    first, second = Inputs(case), Inputs(case)
    wide = first.x.astype(np.float64)
    assert first.x.dtype.name == dtype
    assert first.x.ctypes.data % cases.ALIGNMENT == 0
    assert first.out.ctypes.data % cases.ALIGNMENT == 0
    assert abs(wide.mean()) < 0.05
    assert abs(wide.std() - 1) < 0.05
    assert not np.array_equal(wide, second.x.astype(np.float64))


def test_inputs_longer_than_a_chunk_are_filled_and_summed_to_the_end():
    inputs = Inputs(Case((1 << 20) + 1001, "float32", VALUE))
    wide = inputs.x.astype(np.float64)
    assert (wide[-1000:] != 0).all()
    np.testing.assert_allclose(inputs.sums, [np.abs(wide).sum(), (wide**2).sum()], rtol=1e-12)


def test_factors_are_exact_in_every_dtype():
    for dtype in cases.DTYPES:
        for factor in (cases.L1, cases.L2):
            assert float(np.asarray(factor).astype(dtype)) == factor


def test_variable_holds_x():
    inputs = Inputs(Case(100, "bfloat16", VALUE))
    np.testing.assert_array_equal(np.asarray(inputs.variable.value), inputs.x)
