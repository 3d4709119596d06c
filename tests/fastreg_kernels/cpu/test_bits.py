"""Results have the same bits on any number of threads and any vector width, and sums are exact to the last digits."""

import math
import platform

import llvmlite.binding as llvm
import numpy as np
import pytest
from fastreg_kernels import DTYPES, backward, forward, forward_backward
from fastreg_kernels.cpu.launch import BLOCK, PARALLEL_MIN_BLOCKS
from fastreg_kernels.cpu.vector import LANES

SIZE = (PARALLEL_MIN_BLOCKS + 9) * BLOCK + 37

# Prints a line for each number of threads and dtype; its argument is the most threads.
DIGESTS = f"""
import hashlib, sys
import ml_dtypes
import numpy as np
import fastreg_kernels as kernels

rng = np.random.default_rng(0)
normal = rng.normal(size={SIZE})
values = rng.normal(size={SIZE}) * 10.0 ** rng.integers(-45, 30, {SIZE})
values[::97] = 0.0
values[5::1013] = np.inf
for threads in range(1, int(sys.argv[1]) + 1):
    kernels.set_num_threads(threads)
    for dtype in kernels.DTYPES:
        with np.errstate(over="ignore"):
            x = values.astype(dtype)
            finite = normal.astype(dtype)
        rows = x[: x.size // 1000 * 1000].reshape(1000, -1)
        scales = np.linspace(0.001, 2.0, 1000)
        results = [
            kernels.forward(x),
            kernels.forward(finite),
            kernels.backward(x, 0.3, 0.7, -1.5),
            *kernels.forward_backward(finite, 0.3, 0.7),
            kernels.shrink(x, 0.9, 0.1),
            kernels.shrink(rows, scales, 0.1),
        ]
        digest = hashlib.sha256(b"".join(result.tobytes() for result in results))
        print(dtype, kernels.forward(finite)[0].hex(), digest.hexdigest(), flush=True)
"""


@pytest.fixture(scope="module")
def digests(run_python):
    """The lines that a process with the given environment prints, in pairs of dtype and the rest."""

    def of(threads=1, **environment):
        return [tuple(line.split(maxsplit=1)) for line in run_python(DIGESTS, threads, **environment).splitlines()]

    return of


@pytest.fixture(scope="module")
def expected(digests):
    lines = digests(threads=1)
    assert [dtype for dtype, _ in lines] == list(DTYPES)
    return dict(lines)


def test_any_number_of_threads(digests, expected):
    lines = digests(threads=7, NUMBA_NUM_THREADS=7, NUMBA_THREADING_LAYER=None)
    assert len(lines) == 7 * len(DTYPES)
    assert set(lines) == set(expected.items())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86-64 processors")
@pytest.mark.parametrize(
    ("processor", "features"),
    [
        ("generic", ""),
        ("sandybridge", "+avx"),
        ("haswell", "+avx2,+fma,+f16c"),
        ("skylake-avx512", "+avx512f,+avx512vl,+avx512bw,+avx512dq,+fma,+f16c"),
    ],
)
def test_any_vector_width(digests, expected, processor, features):
    here = llvm.get_host_cpu_features()
    missing = [name for name in features.replace("+", "").split(",") if name and not here.get(name)]
    if missing:
        pytest.skip(f"this processor lacks {missing}")
    lines = dict(digests(NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES=features))
    assert {"float32", "float64", "bfloat16"} <= lines.keys()
    assert lines == {dtype: expected[dtype] for dtype in lines}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors always convert float16")
def test_no_float16_where_the_processor_cannot_convert_it(run_python):
    code = """
    import numpy as np
    import fastreg_kernels as kernels
    assert "float16" not in kernels.DTYPES
    try:
        kernels.forward(np.ones(3, np.float16))
    except TypeError as error:
        print(error)
    """
    message = run_python(code, NUMBA_CPU_NAME="generic", NUMBA_CPU_FEATURES="")
    assert "argument x: expected float32 or float64 or bfloat16. Received: float16" in message


def _alternating(rng, dtype):
    return np.tile([1.0, -1.0], SIZE // 2) * rng.random(SIZE - SIZE % 2)


def _huge_range(rng, dtype):
    largest = 18 if dtype == "float32" else 150
    return rng.normal(size=SIZE) * 10.0 ** rng.uniform(-largest, largest, SIZE)


def _one_large_among_tiny(rng, dtype):
    values = np.full(SIZE, 1e-9)
    values[SIZE // 2] = 1e9
    return values


def _subnormal(rng, dtype):
    return rng.integers(-9, 10, SIZE) * np.finfo(dtype).smallest_subnormal.astype(float)


def _ascending(rng, dtype):
    return np.sort(rng.lognormal(0.0, 8.0, SIZE))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [_alternating, _huge_range, _one_large_among_tiny, _subnormal, _ascending])
def test_sums_of_difficult_numbers(make, dtype):
    """Within the bound of what is done: each lane adds one element after the other, then lanes, then blocks."""
    x = make(np.random.default_rng(0), dtype).astype(dtype)
    assert np.isfinite(x).all()
    assert np.count_nonzero(x) > 0.9 * x.size
    wide = x.astype(np.float64)
    expected = [math.fsum(np.abs(wide)), math.fsum(wide * wide)]
    additions = BLOCK // LANES + LANES + -(-x.size // BLOCK)
    for sums in (forward(x), forward_backward(x, 0.3, 0.7)[0]):
        np.testing.assert_allclose(sums, expected, rtol=additions * 2.0**-53, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_small_integers_are_exact(dtype):
    x = np.resize(np.arange(-128.0, 129.0), SIZE).astype(dtype)
    values = x.astype(int)
    np.testing.assert_array_equal(forward(x), [np.abs(values).sum(), (values * values).sum()])


def test_subnormal_gradients_are_kept():
    x = np.resize(np.array([2.0**-126, -(2.0**-149)], np.float32), 100)
    np.testing.assert_array_equal(backward(x, 0.0, 0.25), 0.5 * x)
    np.testing.assert_array_equal(backward(x, 2.0**-149, 0.0), 2.0**-149 * np.sign(x))
