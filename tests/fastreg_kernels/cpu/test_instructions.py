"""The instructions that the kernels become: whole registers, stores past the caches, and fused multiply-add only where
the product is exact, so that no bit depends on it."""

import platform

import pytest
from fastreg_kernels import DTYPES

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="looks for the instructions of x86-64"
)

# Compiles for a processor that need not be this one, and runs nothing.
ASSEMBLY = """
import re
import sys
from numba import types
from fastreg_kernels.cpu import penalty
from fastreg_kernels.cpu.jit import jit
from fastreg_kernels.cpu.shrink import _shrink

name = sys.argv[1]
factor = types.float64 if name == "float64" else types.float32
element = {"float16": types.uint16, "bfloat16": types.int16}.get(name, factor)
x, out = types.Array(element, 1, "C", readonly=True), types.Array(element, 1, "C")
partials = types.Array(types.float64, 2, "C")
ends = (types.intp, types.intp)
kernels = {
    "sums": (penalty._sums, (*ends, x, partials)),
    "gradient": (penalty._gradient, (*ends, x, out, types.boolean, factor, factor)),
    "both": (penalty._both, (*ends, x, partials, out, types.boolean, factor, factor)),
    "shrink": (_shrink, (*ends, x, out, types.boolean, factor, factor)),
    "unstreamed": (penalty._gradient, (*ends, x, out, types.none, factor, factor)),
}
for label, (function, signature) in kernels.items():
    kernel = jit(function)
    kernel.compile(signature)
    code = kernel.inspect_asm(kernel.signatures[-1])
    streamed = len(re.findall(r"\\bv?movnt", code))
    fused = "".join(sorted(set(re.findall(r"\\bvfn?m(?:add|sub)\\w*(p[sd])", code)))) or "none"
    fences = len(re.findall(r"\\bmfence|\\block\\s+or", code))
    packed = set(re.findall(r"%([xyz]mm)", code))
    print(label, streamed > 0, fences > 0, fused, max(packed))
"""


PROCESSORS = [("nehalem", "", "xmm"), ("haswell", "+fma,+f16c", "ymm"), ("skylake-avx512", "+fma,+f16c", "zmm")]
# What is fused hangs on the dtype, and how wide registers are on the processor: each dtype on one processor, and two
# on each. The first of them does not convert float16.
CASES = [
    *((*PROCESSORS[0], dtype) for dtype in ("float32", "bfloat16")),
    *((*PROCESSORS[1], dtype) for dtype in DTYPES),
    *((*PROCESSORS[2], dtype) for dtype in ("float64", "float16")),
]


@pytest.mark.parametrize(("processor", "features", "register", "dtype"), CASES)
def test_each_kernel(run_python, tmp_path, processor, features, register, dtype):
    variables = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": tmp_path}
    lines = [line.split() for line in run_python(ASSEMBLY, dtype, **variables).splitlines()]
    # Squares of what is narrower than float64, and nothing else: no product of the gradient.
    squares = "pd" if "+fma" in features and dtype != "float64" else "none"
    assert lines == [
        ["sums", "False", "False", squares, register],
        ["gradient", "True", "True", "none", register],
        ["both", "True", "True", squares, register],
        ["shrink", "True", "True", "none", register],
        ["unstreamed", "False", "False", "none", register],
    ]
