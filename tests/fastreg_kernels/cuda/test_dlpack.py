"""Reading DLPack capsules, against NumPy's own."""

import gc

import numpy as np
import pytest
from fastreg_kernels.cuda import dlpack


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 2)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_what_numpy_exports(shape, dtype, order):
    x = np.zeros(shape, dtype, order=order)
    described = dlpack.describe(x.__dlpack__())
    assert (described.shape, described.dtype, described.device_type) == (shape, dtype, dlpack.CPU)
    if x.size:
        assert described.address == x.ctypes.data
        strides = tuple(stride // x.itemsize for stride in x.strides)
        assert described.strides in (strides, None if x.flags.c_contiguous else strides)


def test_views_start_where_they_start():
    x = np.arange(20.0).reshape(4, 5)[1:, 2:]
    described = dlpack.describe(x.__dlpack__())
    assert described.address == x.ctypes.data
    assert described.strides == (5, 1)


@pytest.mark.parametrize("dtype", ["int32", "uint16", "complex64", "bool"])
def test_dtypes_without_kernels(dtype):
    assert dlpack.describe(np.zeros(3, dtype).__dlpack__()).dtype.startswith("dtype code ")


def test_a_capsule_is_not_used_up_and_keeps_the_memory():
    x = np.full(1000, 7.0)
    capsule = x.__dlpack__()
    first = dlpack.describe(capsule)
    del x
    gc.collect()
    assert dlpack.describe(capsule) == first

    class Producer:
        def __dlpack__(self, **options):
            return capsule

        def __dlpack_device__(self):
            return (1, 0)

    assert (np.from_dlpack(Producer()) == 7.0).all()
    with pytest.raises(ValueError, match="PyCapsule"):
        dlpack.describe(capsule)  # used now


@pytest.mark.parametrize("thing", [None, 3, "capsule"])
def test_what_is_no_capsule(thing):
    with pytest.raises(ValueError, match="PyCapsule"):
        dlpack.describe(thing)
