"""`out`: what is written where, past the caches or through them, and when nothing may be written."""

import numpy as np
import pytest
from fastreg_kernels import DTYPES, backward, forward, forward_backward, shrink
from fastreg_kernels.cpu import launch
from fastreg_kernels.cpu.launch import BLOCK, PARALLEL_MIN_BLOCKS

SIZES = [0, 1, 15, 16, 17, BLOCK + 31, PARALLEL_MIN_BLOCKS * BLOCK + 37]
OFFSETS = [0, 4, 8, 32, 60]

# Each is called with x and out; the results are what lands in out.
KERNELS = {
    "backward": lambda x, out: backward(x, 0.3, 0.7, -1.5, out=out),
    "forward_backward": lambda x, out: forward_backward(x, 0.3, 0.7, -1.5, out=out)[1],
    "backward without terms": lambda x, out: backward(x, 0.0, 0.0, out=out),
    "forward_backward without terms": lambda x, out: forward_backward(x, 0.0, 0.0, out=out)[1],
    "shrink": lambda x, out: shrink(x, 0.9, 0.2, out=out),
    "shrink by rows": lambda x, out: shrink(x, np.linspace(0, 1, x.shape[0]), 0.2, out=out),
}


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


@pytest.fixture(params=["through the caches", "past the caches"])
def writing(request, monkeypatch):
    """Non-temporal stores at every size, or at none."""
    monkeypatch.setattr(launch, "STREAM_MIN_BYTES", 0 if request.param == "past the caches" else 1 << 62)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_exactly_out_is_written(kernel, writing, numbers, guarded, assert_same_bits, size, dtype):
    x = numbers(size, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "STREAM_MIN_BYTES", 1 << 62)
        expected = kernel(x, None)
    for offset in OFFSETS:
        out = guarded(size, dtype, offset)
        assert kernel(x, out.array) is out.array
        assert_same_bits(out.array, expected)
        out.assert_untouched_around()
    assert_same_bits(x, numbers(size, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("size", SIZES)
def test_in_place(kernel, writing, numbers, guarded, assert_same_bits, size, offset, dtype):
    x = guarded(size, dtype, offset)
    x.array[...] = numbers(size, dtype)
    expected = kernel(x.array.copy(), None)
    assert kernel(x.array, x.array) is x.array
    assert_same_bits(x.array, expected)
    x.assert_untouched_around()


@pytest.mark.parametrize("factors", [(0.3, 0.7), (0.0, 0.0)])
def test_sums_are_those_of_x_before_it_is_overwritten(numbers, assert_same_bits, factors):
    x = numbers(1000, "float32")
    expected = forward(x)
    assert_same_bits(forward_backward(x, *factors, out=x)[0], expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 5), (3, 7), (2, 3, 5), (70, 1000)], ids=str)
def test_out_of_any_shape(writing, numbers, guarded, assert_same_bits, shape, order):
    x, out = numbers(shape, "float32", order), guarded(shape, "float32", order=order)
    assert backward(x, 0.3, 0.7, out=out.array) is out.array
    assert_same_bits(out.array, backward(x, 0.3, 0.7))
    out.assert_untouched_around()


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 5, 1)], ids=str)
def test_out_may_have_other_strides_where_the_layout_is_the_same(numbers, shape):
    """Strides of dimensions of length one mean nothing: such an array is in C and in F order."""
    x = numbers(shape, "float32")
    out = np.empty(shape[::-1], np.float32).T
    assert out.flags.c_contiguous
    np.testing.assert_array_equal(backward(x, 0.3, 0.7, out=out), backward(x, 0.3, 0.7))


def test_adjacent_memory_is_not_an_overlap(numbers, assert_same_bits):
    both = numbers(64, "float32")
    x, out = both[:32], both[32:]
    expected = backward(x, 0.3, 0.7)
    assert_same_bits(backward(x, 0.3, 0.7, out=out), expected)


def _strided(x):
    return np.zeros((x.shape[0], 2 * x.shape[1]), x.dtype)[:, ::2]


def _read_only(x):
    out = np.zeros_like(x)
    out.flags.writeable = False
    return out


REFUSED = {
    "a list": (lambda x: x.tolist(), TypeError, "out: expected a NumPy array"),
    "an integer array": (lambda x: np.zeros(x.shape, np.int32), TypeError, "dtype for argument out"),
    "another dtype": (lambda x: np.zeros(x.shape, np.float64), ValueError, r"out: .*dtype float32.*dtype float64"),
    "another shape": (lambda x: np.zeros(x.shape[::-1], x.dtype), ValueError, r"out: .*\(4, 6\).*\(6, 4\)"),
    "another length": (lambda x: np.zeros((5, 6), x.dtype), ValueError, r"out: .*\(4, 6\).*\(5, 6\)"),
    "another order": (lambda x: np.zeros(x.shape, x.dtype, order="F"), ValueError, "out: .*layout"),
    "strides": (_strided, ValueError, "layout for argument out: expected a contiguous array"),
    "read-only": (_read_only, ValueError, "out: expected a writable array"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_refused_outs_stay_as_they_are(kernel, numbers, refused):
    make, error, message = REFUSED[refused]
    x = numbers((4, 6), "float32")
    out = make(x)
    before = np.array(out)
    with pytest.raises(error, match=message):
        kernel(x, out)
    np.testing.assert_array_equal(out, before)
    np.testing.assert_array_equal(x, numbers((4, 6), "float32"))


@pytest.mark.parametrize("shift", [1, 5, 31, -1, -31])
def test_partial_overlap_is_refused_and_leaves_the_data(kernel, numbers, shift):
    buffer = numbers(100, "float32")
    x, out = buffer[32:64], buffer[32 + shift : 64 + shift]
    with pytest.raises(ValueError, match=r"argument out: .*overlap"):
        kernel(x, out)
    np.testing.assert_array_equal(buffer, numbers(100, "float32"))


@pytest.mark.parametrize("call", [backward, forward_backward, shrink])
def test_refused_factors_leave_out(guarded, numbers, call):
    out = guarded(100, "float32")
    for factors in ((-1.0, 0.0), (0.0, np.nan), ("1", 0.0)):
        with pytest.raises((TypeError, ValueError), match=r"argument (l1|l2|scale|threshold): "):
            call(numbers(100, "float32"), *factors, out=out.array)
    out.assert_untouched()


@pytest.mark.parametrize("dtype", DTYPES)
def test_only_aligned_outs_that_are_not_x_are_written_past_the_caches(guarded, monkeypatch, dtype):
    x = np.zeros(256, dtype)
    monkeypatch.setattr(launch, "STREAM_MIN_BYTES", x.nbytes)
    streamed = {offset: launch.written(guarded(256, dtype, offset).array, x)[1] for offset in (0, 32, 4, 64)}
    assert streamed == {0: True, 32: False, 4: False, 64: True}
    aligned = guarded(256, dtype).array
    assert launch.written(aligned, aligned)[1] is False
    monkeypatch.setattr(launch, "STREAM_MIN_BYTES", x.nbytes + 1)
    assert launch.written(aligned, x)[1] is False
