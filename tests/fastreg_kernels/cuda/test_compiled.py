"""What the CUDA kernels compile to, for GPUs that need not be here: 128-bit access, no spills, no float64."""

import functools
import re

import pytest
from fastreg_kernels.cuda import audit, launch, variants
from fastreg_kernels.cuda.accumulators import FAST_FLOAT64, accumulator_name
from fastreg_kernels.cuda.jit import registers_of

CAPABILITIES = [(8, 0), (9, 0), (8, 9)]
TIGHT = [
    *((name, "float64", (10, 0)) for name in ("forward", "backward", "forward_backward")),
    *((name, "float64", where) for name in ("forward", "forward_backward") for where in [(7, 5), (8, 6), (12, 0)]),
    ("forward_backward", "float64", (8, 9)),
    ("forward_backward", "float16", (7, 5)),
    ("shrink", "bfloat16", (12, 0)),
]
"""On the others, what needs the most registers: what spilled at some limit that had been tried."""

NAMES = ["forward", "backward", "forward_backward", "shrink", "shrink rows"]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
OCCUPANCY = {("shrink rows", dtype): 0.75 for dtype in DTYPES} | {("backward", "float64"): 0.75}  # the others: 1.0
IN_FLIGHT = 3.35e12 * 700e-9 / 132
"""Bytes that a multiprocessor of an H100 has to ask for ahead: bandwidth times latency over 132 multiprocessors."""


@functools.cache
def audited(name, dtype, capability):
    accumulator = accumulator_name(dtype, capability)
    build = getattr(variants, name.replace(" ", "_"))
    options = (accumulator,) if name.startswith("forward") else ()
    return audit.audit(build(dtype, *options, registers_of(audit.RESIDENT_THREADS[capability])), capability)


def everything():
    for capability in CAPABILITIES:
        for name in NAMES:
            for dtype in DTYPES:
                # On 8.9 only what is summed differs from 8.0.
                if capability in FAST_FLOAT64 or (name.startswith("forward") and dtype != "float64"):
                    yield pytest.param(name, dtype, capability, id=f"{name}-{dtype}-{capability[0]}.{capability[1]}")


@pytest.mark.parametrize(("name", "dtype", "capability"), list(everything()))
def test_machine_code(name, dtype, capability):
    kernel = audited(name, dtype, capability)
    assert kernel.wide_loads >= 1
    assert (kernel.wide_stores >= 1) == (name != "forward")
    assert kernel.spilled == 0
    assert "STL" not in kernel.listing
    assert "LDL" not in kernel.listing
    assert kernel.occupancy >= OCCUPANCY.get((name, dtype), 1.0)
    assert kernel.in_flight > IN_FLIGHT
    assert not re.search(r"\b(ATOM[GS]?|RED|SHFL)\b", kernel.listing)
    if name in ("backward", "shrink"):  # contracted, they would not have the bits that processors give
        assert not re.search(r"\b[DF]FMA\b", kernel.listing)
    assert kernel.shared == (2 * 256 * 8 if name.startswith("forward") else 0)
    # Two factors of a row, converted, and two more of the next where a pack straddles both.
    factors = 4 if name == "shrink rows" else 0
    assert kernel.narrow == factors
    if dtype != "float64" and not (name.startswith("forward") and capability in FAST_FLOAT64):
        assert kernel.float64 == factors


@pytest.mark.parametrize(("name", "dtype", "capability"), TIGHT)
def test_no_register_is_written_to_memory(name, dtype, capability):
    """Nor threads given up for it, but for what is known."""
    kernel = audited(name, dtype, capability)
    assert kernel.spilled == 0
    assert kernel.occupancy >= OCCUPANCY.get((name, dtype), 1.0)
    assert kernel.wide_loads >= 1


@pytest.mark.parametrize(("threads", "registers"), [(2048, 32), (1536, 40), (1024, 64)])
def test_registers_that_cost_no_thread(threads, registers):
    assert registers_of(threads) == registers
    assert registers * threads <= 65_536


def test_float64_sums_take_three_instructions_per_element():
    """Conversion, addition, fused multiply-add: what GPUs with half as many float64 units have time for."""
    kernel = audited("forward", "float32", (9, 0))
    assert kernel.float64 == 3 * 4 * kernel.wide_loads


def test_the_second_pass():
    kernel = audit.audit(variants.fold(), (8, 0))
    assert kernel.spilled == 0
    assert not re.search(r"\b(ATOM[GS]?|RED|SHFL)\b", kernel.listing)
    assert kernel.shared == 2 * 256 * 8


@pytest.mark.parametrize("terms", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("on_device", [True, False])
def test_gradients_of_fewer_terms(terms, on_device):
    kernel = audit.audit(variants.backward("float32", 32, *terms, upstream_on_device=on_device), (8, 0))
    assert kernel.spilled == kernel.narrow == 0
    assert "STG.E.128" in kernel.listing
    assert ("LDG.E.128" in kernel.listing) == any(terms)  # without a term there is nothing to read


def test_compensated_products_are_not_contracted():
    """A fused `high + v * v` would make the error of the sum wrong: each square is rounded, then added."""
    ptx = audit.ptx(variants.forward("float32", "compensated", 40), (8, 9))
    assert "mul.rn.f32" in ptx
    products = [line for line in ptx.splitlines() if "fma.rn.f32" in line]
    squares = [line for line in ptx.splitlines() if "mul.rn.f32" in line]
    assert len(products) == len(squares) > 0  # one fused multiply-add for the error of each square, and no other


def test_occupancy():
    assert audit.occupancy(32, 4096, (8, 0)) == 1.0
    assert audit.occupancy(33, 0, (8, 0)) == 0.75
    assert audit.occupancy(40, 0, (8, 9)) == 1.0
    assert audit.occupancy(255, 0, (9, 0)) == 0.125


def test_the_main_loop_is_the_first_that_loads_128_bits():
    listing = """.L_x_1:
 IADD3 R1 ;
 BRA `(.L_x_1) ;
.L_x_2:
 LDG.E.128 R4 ;
 @P0 BRA `(.L_x_2) ;
.L_x_3:
 LDG.E.128 R8 ;
 BRA `(.L_x_3) ;
 BRA `(.L_x_4) ;
.L_x_4:
"""
    assert audit.main_loop(listing) == listing.splitlines()[3:6]
    assert audit.main_loop(" EXIT ;") == []


def test_a_missing_tool_is_named(monkeypatch):
    monkeypatch.setattr(audit.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(audit.shutil, "which", lambda name: None)
    with pytest.raises(audit.ToolError, match="ptxas is missing: pip install"):
        audit.tool("ptxas")


def test_a_stream_of_numba_stays_itself():
    """Results hold on to the caller's stream; of a stream made from its handle the GPU would lose track."""
    from cuda.bindings.driver import CUstream
    from numba.cuda.cudadrv.driver import Stream

    stream = Stream(CUstream(64))
    assert launch.stream_of(stream) is stream
    assert launch.stream_of(None) == launch.stream_of(0) == 0
