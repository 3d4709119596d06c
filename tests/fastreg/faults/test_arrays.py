"""Arrays whose memory lies anywhere, is somebody else's, or is not to be written to."""

import mmap

import numpy as np
import pytest
import tensorflow as tf
from fastreg_kernels import backward, forward, forward_backward, shrink, sum_rows

import fastreg

NUMBERS = np.arange(-2000.0, 2001.0) / 8  # exact in all dtypes but float16, in which they are rounded alike


def at_offset(values, offset):
    """In a bytearray, so many bytes after a multiple of 64."""
    memory = bytearray(values.nbytes + 128)
    start = -np.frombuffer(memory, np.uint8).ctypes.data % 64 + offset
    array = np.ndarray(values.shape, values.dtype, memory, start)
    array[...] = values
    return array


def of_mmap(values, tmp_path):
    array = np.frombuffer(mmap.mmap(-1, values.nbytes + 1), values.dtype, values.size, 1)
    array[...] = values
    return array


def of_file(values, tmp_path):
    values.tofile(tmp_path / "numbers")
    return np.memmap(tmp_path / "numbers", values.dtype, "r")


CONTIGUOUS = {
    "offset 1": lambda values, _: at_offset(values, 1),
    "offset 3": lambda values, _: at_offset(values, 3),
    "bytes": lambda values, _: np.frombuffer(values.tobytes(), values.dtype),
    "mmap": of_mmap,
    "file": of_file,
}
OTHERS = {
    "every other": lambda values: np.repeat(values, 2)[::2],
    "reversed": lambda values: values[::-1].copy()[::-1],
    "field": lambda values: np.rec.fromarrays([values, values > 0], names="number,flag")["number"],
    "byte order": lambda values: values.astype(values.dtype.newbyteorder()),
}


@pytest.fixture(params=["float32", "float64", "float16"])
def values(request):
    return NUMBERS.astype(request.param)


def expected(values):
    wide = values.astype(np.float64)
    return [np.abs(wide).sum(), np.square(wide).sum()], (0.5 * np.sign(wide) + 0.5 * wide).astype(values.dtype)


@pytest.mark.parametrize("kind", CONTIGUOUS)
def test_kernels(values, kind, tmp_path):
    x = CONTIGUOUS[kind](values, tmp_path)
    sums, slope = expected(values)
    assert forward(x).tolist() == sums
    out = at_offset(np.zeros_like(values), 1)
    for result in (backward(x, 0.5, 0.25), backward(x, 0.5, 0.25, out=out), forward_backward(x, 0.5, 0.25)[1], out):
        np.testing.assert_array_equal(result, slope)
    np.testing.assert_array_equal(shrink(x, 1.0, 0.0), values)
    if values.dtype != np.float16:
        rows = x[:4000].reshape(1000, 4)
        np.testing.assert_array_equal(sum_rows(rows, np.zeros(1000, np.int32), 1)[0], rows.astype("f8").sum(0))
    if not x.flags.writeable:
        with pytest.raises(ValueError, match="argument out: expected a writable array"):
            backward(values, 0.5, 0.25, out=x)
    np.testing.assert_array_equal(x, values)


@pytest.mark.parametrize("kind", [*CONTIGUOUS, *OTHERS])
def test_penalties(forced, gradient, values, kind, tmp_path):
    """TensorFlow makes tensors of all of them, of some without a copy."""
    x = CONTIGUOUS[kind](values, tmp_path) if kind in CONTIGUOUS else OTHERS[kind](values)
    sums, slope = expected(values)
    total = np.asarray(0.5 * sums[0] + 0.25 * sums[1], values.dtype)
    assert fastreg.L1L2(0.5, 0.25)(x) == total
    value, found = gradient(fastreg.L1L2(0.5, 0.25), tf.convert_to_tensor(x))
    assert value == total
    np.testing.assert_array_equal(found, slope)
    np.testing.assert_array_equal(x, values)


def test_tensors_that_share_the_memory_of_arrays(forced, gradient):
    """Nothing that was computed of one changes with the array, and the array not with what is computed."""
    x = at_offset(NUMBERS.astype("float32"), 0)
    tensor = tf.experimental.dlpack.from_dlpack(x.__dlpack__())
    for _ in range(3):
        _, found = gradient(fastreg.L2(0.5), tensor)
    before = found.numpy().copy()
    np.testing.assert_array_equal(before, x)
    x[:] = 7
    np.testing.assert_array_equal(found, before)
    assert fastreg.L2(0.5)(tensor) == 0.5 * 49 * x.size
    np.testing.assert_array_equal(gradient(fastreg.L2(0.5), tensor)[1], np.full(x.size, 7.0))
    assert (x == 7).all()
