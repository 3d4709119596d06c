"""The four calls against the kernels of `cpu`, whose bits the elementwise ones share, and against NumPy in float64."""

import math

import numpy as np
import pytest
from fastreg_kernels import cpu, cuda
from fastreg_kernels.cuda import arrays, devices
from fastreg_kernels.cuda.lanes import ITEMSIZES
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cuda as numba_cuda

# Beyond 32 threads times two packs of 8 elements, every loop is entered.
DTYPES = tuple(ITEMSIZES)
SIZES = [0, 1, 7, 8, 31, 100, 600]
FACTORS = [(0.3, 0.0), (0.0, 0.7), (0.3, 0.7), (0.0, 0.0)]
SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, -2.0, 2.0]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities, in Python's arithmetic


def assert_same(actual, expected):
    """Same dtype, shape and bits; any NaN equals any other."""
    actual = actual.copy_to_host()
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    nan = np.isnan(expected.astype(float))
    assert (np.isnan(actual.astype(float)) == nan).all()
    bits = f"u{expected.dtype.itemsize}"
    np.testing.assert_array_equal(actual.view(bits)[~nan], expected.view(bits)[~nan])


def assert_sums(sums, x):
    """To n * 2^-48 for the n elements of a thread, of which there are fewer than 256 here."""
    sums = sums.copy_to_host()
    assert sums.dtype == np.float64
    assert sums.shape == (2,)
    wide = x.astype(np.float64).ravel()
    np.testing.assert_allclose(sums, [math.fsum(np.abs(wide)), math.fsum(wide * wide)], rtol=2.0**-40)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sums(at, numbers, accumulator, size, dtype):
    x = numbers(size, dtype)
    assert_sums(cuda.forward(at(x, offset=ITEMSIZES[dtype])), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_both_at_once(at, numbers, accumulator, size, dtype):
    x = numbers(size, dtype)
    device = at(x, offset=16 - ITEMSIZES[dtype])
    sums, gradient = cuda.forward_backward(device, 0.3, 0.7, -1.5)
    assert_sums(sums, x)
    assert_same(gradient, cpu.backward(x, 0.3, 0.7, -1.5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("l1", "l2"), FACTORS)
def test_gradient(at, numbers, l1, l2, dtype):
    x = np.concatenate([numbers(150, dtype), np.array(SPECIAL, dtype)])
    assert_same(cuda.backward(at(x), l1, l2, 3.3), cpu.backward(x, l1, l2, 3.3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offsets", [(0, 0), (8, 8), (8, 0), (0, 8)], ids=str)
def test_where_x_and_out_start(at, numbers, offsets, dtype):
    x = numbers(77, dtype)
    source, target = at(x, offsets[0]), at(np.full(79, 7, dtype), offsets[1])
    inner = at(np.full(77, 7, dtype), offsets[1])
    assert cuda.backward(source, 0.3, 0.7, out=inner) is inner
    assert_same(inner, cpu.backward(x, 0.3, 0.7))
    assert_same(source, x)
    assert (target.copy_to_host() == 7).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place(at, numbers, accumulator, dtype):
    x = numbers(90, dtype)
    device = at(x, 8)
    sums, gradient = cuda.forward_backward(device, 0.3, 0.7, out=device)
    assert gradient is device
    assert_sums(sums, x)
    assert_same(device, cpu.backward(x, 0.3, 0.7))
    device = at(x)
    cuda.shrink(device, 0.9, 0.1, out=device)
    assert_same(device, cpu.shrink(x, 0.9, 0.1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("scale", "threshold"), [(1.0, 0.0), (0.9, 0.5), (0.5, 1.0)])
def test_shrink(at, numbers, scale, threshold, dtype):
    x = np.concatenate([numbers(60, dtype), np.array(SPECIAL, dtype)])
    assert_same(cuda.shrink(at(x, 8), scale, threshold), cpu.shrink(x, scale, threshold))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_shrink_by_zero(at, threshold, dtype):
    """Zero times infinity is skipped; NaN stays NaN."""
    result = cuda.shrink(at(np.array(SPECIAL * 3, dtype)), 0.0, threshold).copy_to_host().astype(float)
    np.testing.assert_array_equal(result, [0.0, 0.0, np.nan, 0.0, 0.0, 0.0, 0.0] * 3)
    assert not np.signbit(result[result == 0]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 5), (3, 16), (40, 1), (1, 40), (5, 2, 3), (9, 11), (6, 8)], ids=str)
def test_shrink_by_rows(at, numbers, shape, dtype):
    x = numbers(shape, dtype)
    scale, threshold = np.linspace(0.1, 1, shape[0]), np.linspace(0.5, 0, shape[0])
    expected = cpu.shrink(x, scale, threshold)
    assert_same(cuda.shrink(at(x, 8), scale, threshold), expected)
    on_device = [numba_cuda.to_device(values) for values in (scale, threshold)]
    assert_same(cuda.shrink(at(x), *on_device), expected)
    assert_same(cuda.shrink(at(x), scale, 0.25), cpu.shrink(x, scale, 0.25))


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_on_the_device(at, numbers, dtype):
    x = numbers(40, dtype)
    for kind in (dtype, "float64", "float32"):
        upstream = at(np.array(-0.5, kind))
        assert_same(cuda.backward(at(x), 0.3, 0.7, upstream), cpu.backward(x, 0.3, 0.7, -0.5))
    assert_same(cuda.shrink(at(x), at(np.array(0.5)), at(np.array(0.25))), cpu.shrink(x, 0.5, 0.25))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([np.nan, 1.0], [np.nan, np.nan]),
        ([np.inf, 1.0], [np.inf, np.inf]),
        ([-np.inf, np.nan], [np.nan, np.nan]),
        ([-0.0, -0.0], [0.0, 0.0]),
    ],
)
def test_sums_of_special_values(at, accumulator, values, expected, dtype):
    x = at(np.array(values * 9, dtype))
    np.testing.assert_array_equal(cuda.forward(x).copy_to_host(), expected)
    np.testing.assert_array_equal(cuda.forward_backward(x, 0.0, 0.0)[0].copy_to_host(), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("values", [[1e30, 1.0], [1e-25], [1e-30, 1e-3], [1e-38], [3e38]], ids=str)
def test_squares_that_float32_cannot_hold(at, accumulator, values, dtype):
    x = np.array(values * 40, dtype)
    assert_sums(cuda.forward(at(x)), x)
    assert_sums(cuda.forward_backward(at(x), 0.5, 0.5)[0], x)


def test_equal_values_do_not_pile_errors_up(at, accumulator):
    x = np.full(3000, 0.1, np.float32)
    assert_sums(cuda.forward(at(x)), x)


def test_the_same_bits_every_time(at, numbers, accumulator):
    x = at(numbers(600, "float32"))
    assert len({cuda.forward(x).copy_to_host().tobytes() for _ in range(3)}) == 1


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (1, 1), (3, 7), (2, 3, 4), (0, 3)], ids=str)
def test_shapes_and_orders(at, numbers, shape, order):
    x = np.array(numbers(shape, "float32"), order=order)
    gradient = cuda.backward(at(x, order=order), 0.3, 0.7)
    np.testing.assert_array_equal(gradient.copy_to_host(), cpu.backward(x, 0.3, 0.7))
    assert gradient.is_f_contiguous() == x.flags.f_contiguous
    assert_sums(cuda.forward(at(x, order=order)), x)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=40),
    l1=st.floats(0, 1e3),
    l2=st.floats(0, 1e3),
    upstream=st.floats(-1e3, 1e3),
)
def test_any_values(values, l1, l2, upstream):
    x = np.array(values, np.float32)
    device = numba_cuda.to_device(x)
    sums, gradient = cuda.forward_backward(device, l1, l2, upstream)
    assert_sums(sums, x)
    assert_same(gradient, cpu.backward(x, l1, l2, upstream))


@pytest.mark.parametrize("x", [np.zeros(3), [1.0], None, 1.0], ids=["numpy", "list", "None", "float"])
def test_what_is_on_no_device(x):
    with pytest.raises(TypeError, match="Invalid type for argument x: expected an array on a GPU"):
        cuda.forward(x)


@pytest.mark.parametrize("dtype", ["int32", "complex64", "uint16", "int16"])
def test_dtypes_without_kernels(dtype):
    with pytest.raises(TypeError, match=f"Invalid dtype for argument x: expected .* Received: {dtype}"):
        cuda.forward(numba_cuda.to_device(np.zeros(3, dtype)))


def test_layouts_that_are_not_contiguous():
    with pytest.raises(ValueError, match=r"Invalid layout for argument x: expected a contiguous array"):
        cuda.forward(numba_cuda.to_device(np.zeros((4, 4)))[:, :2])


def test_outputs_that_do_not_fit(at):
    x = at(np.zeros((4, 3), np.float32))
    for out in (np.zeros((3, 4), np.float32), np.zeros((4, 3))):
        with pytest.raises(ValueError, match="Invalid value for argument out: expected an array of shape"):
            cuda.backward(x, 0.1, 0.1, out=at(out))
    with pytest.raises(ValueError, match="memory layout"):
        cuda.backward(x, 0.1, 0.1, out=at(np.zeros((4, 3), np.float32), order="F"))
    flat = numba_cuda.to_device(np.zeros(10, np.float32))
    with pytest.raises(ValueError, match="overlap"):
        cuda.shrink(flat[:8], 1.0, 0.0, out=flat[2:])


ON_ANOTHER_GPU = {
    "out": [
        ((3, 2), lambda x, other: cuda.backward(x, 0.1, 0.1, out=other)),
        ((3, 2), lambda x, other: cuda.forward_backward(x, 0.1, 0.1, out=other)),
        ((3, 2), lambda x, other: cuda.shrink(x, 1.0, 0.0, out=other)),
    ],
    "upstream": [
        ((1,), lambda x, other: cuda.backward(x, 0.1, 0.1, other)),
        ((), lambda x, other: cuda.forward_backward(x, 0.1, 0.1, other)),
    ],
    "scale": [((3,), lambda x, other: cuda.shrink(x, other, 0.0)), ((), lambda x, other: cuda.shrink(x, other, 0.0))],
    "threshold": [
        ((3,), lambda x, other: cuda.shrink(x, 1.0, other)),
        ((1,), lambda x, other: cuda.shrink(x, 1.0, other)),
    ],
}


@pytest.mark.parametrize("name", ON_ANOTHER_GPU)
def test_arrays_on_another_gpu(at, monkeypatch, name):
    """A kernel would fail there, or read and write over the bus; memory that all GPUs share is none of these."""
    message = f"Invalid device for argument {name}: expected an array on GPU 0, where x is. Received: one on GPU 1"
    for shape, call in ON_ANOTHER_GPU[name]:
        x, other = at(np.ones((3, 2), np.float32)), at(np.ones(shape, np.float32))
        address = arrays.view(other, name, 0).address
        monkeypatch.setattr(devices, "only_reader_of", {address: 1}.get)
        with pytest.raises(ValueError, match=message):
            call(x, other)
        monkeypatch.setattr(devices, "only_reader_of", {address: None}.get)
        call(x, other)


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_factors_out_of_range(at, value):
    x = at(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="Invalid value for argument l2: expected a non-negative float"):
        cuda.backward(x, 0.1, value)
    with pytest.raises(ValueError, match="Invalid value for argument threshold"):
        cuda.shrink(x, 1.0, value)
    with pytest.raises(ValueError, match="Invalid value for argument scale"):
        cuda.shrink(x, [value, 1.0, 1.0], 0.0)


def test_factors_of_the_wrong_shape(at):
    x = at(np.zeros((3, 2), np.float32))
    with pytest.raises(ValueError, match="one value for each of the 3 rows"):
        cuda.shrink(x, at(np.ones(4)), 0.0)
    with pytest.raises(ValueError, match="without rows"):
        cuda.shrink(at(np.float32(1.0)), [1.0], 0.0)
    with pytest.raises(TypeError, match="Invalid type for argument upstream"):
        cuda.backward(x, 0.1, 0.1, at(np.ones(2)))
    with pytest.raises(ValueError, match="rows in C order"):
        cuda.shrink(at(np.zeros((3, 2), np.float32), order="F"), [1.0, 1.0, 1.0], 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_read_and_written_as_numpy_does(dtype):
    """Bit patterns of all kinds through the stand-ins of the conversions."""
    from fastreg_kernels.cuda import simulated

    stored = np.arange(1 << 16, dtype=np.uint16)
    kind = np.uint16 if dtype == "float16" else np.int16
    values = stored.view(dtype).astype(np.float32)
    for index in range(0, 1 << 16, 37):
        bits = stored.view(kind)[index]
        decoded = simulated._decode(bits)
        assert decoded == values[index] or np.isnan(values[index])
        assert simulated._encode(decoded, np.dtype(kind)) == bits or np.isnan(values[index])
