"""What the CUDA kernels become: PTX, machine code, and the figures that decide whether memory is the limit. Needs no
GPU.

Numba compiles to PTX for any compute capability, pip's `ptxas` assembles that as the driver does on a GPU, and pip's
`nvdisasm` lists the machine code.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from numba import cuda

from fastreg_kernels.cuda import variants
from fastreg_kernels.cuda.accumulators import accumulator_name
from fastreg_kernels.cuda.jit import REGISTERS_PER_MULTIPROCESSOR, SIMULATED, THREADS, registers_of
from fastreg_kernels.cuda.lanes import PACK_BYTES
from fastreg_kernels.cuda.variants import Variant

RESIDENT_THREADS = {
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1536,
    (8, 9): 1536,
    (9, 0): 2048,
    (10, 0): 2048,
    (12, 0): 1536,
}
"""Threads that are resident on a multiprocessor at most, of the compute capabilities that are looked at: T4, A100, A10
and the GeForce RTX 30 series, L4 and the 40 series, H100, B200, the 50 series.
"""

_SHARED = 64 * 1024
"""Bytes of shared memory per multiprocessor, the least that these compute capabilities have."""

_FLOAT64 = re.compile(r"\s(?:D(?:ADD|MUL|FMA|SETP|MNMX)|F2F\.F64|F2F\.F32\.F64|I2F\.F64)\b")
_GLOBAL = re.compile(r"\s(LDG|STG)\.E(?:\.([\w.]+))?\s")


class ToolError(RuntimeError):
    """A tool is missing or failed."""


@dataclass(frozen=True)
class Audit:
    """Figures of one kernel.

    Attributes
    ----------
    variant : Variant
    compute_capability : tuple of int
    registers : int
        Per thread.
    shared, spilled : int
        Bytes of shared memory per block, and bytes of local memory that registers were written to.
    occupancy : float
        Share of the threads that a multiprocessor can hold.
    wide_loads, wide_stores, narrow : int
        128-bit loads, 128-bit stores and other accesses to global memory in the loop that most elements go through.
    in_flight : int
        Bytes that the resident threads of a multiprocessor have asked for before one of them stores.
    float64 : int
        Float64 instructions there, conversions included.
    listing : str
        The machine code.
    """

    variant: Variant
    compute_capability: tuple[int, int]
    registers: int
    shared: int
    spilled: int
    occupancy: float
    wide_loads: int
    wide_stores: int
    narrow: int
    in_flight: int
    float64: int
    listing: str


def ptx(variant: Variant, compute_capability: tuple[int, int]) -> str:
    """The kernel as PTX."""
    if SIMULATED:
        raise ToolError("Numba's simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM")
    return str(cuda.compile_ptx(variant.kernel.py_func, variant.signature, cc=compute_capability)[0])


def audit(variant: Variant, compute_capability: tuple[int, int]) -> Audit:
    """Compile, assemble and list a kernel for a compute capability.

    Raises
    ------
    ToolError
        If `ptxas` or `nvdisasm` is missing or fails.
    """
    arch = f"sm_{compute_capability[0]}{compute_capability[1]}"
    limit = variant.kernel.targetoptions["max_registers"]
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx(variant, compute_capability))
        options = ["-v", f"-arch={arch}", f"--maxrregcount={limit}", "-o", str(binary), str(source)]
        report = _run("ptxas", options)[1]
        listing = _run("nvdisasm", ["-c", str(binary)])[0]
    loop = main_loop(listing)
    accesses = [match.groups() for match in map(_GLOBAL.search, loop) if match]
    wide = [kind for kind, width in accesses if width and width.startswith("128")]
    ahead = wide.index("STG") if "STG" in wide else len(wide)
    registers, shared = _number(r"Used (\d+) registers", report), _number(r"(\d+) bytes smem", report)
    resident = occupancy(registers, shared, compute_capability)
    return Audit(
        variant=variant,
        compute_capability=compute_capability,
        registers=registers,
        shared=shared,
        spilled=_number(r"(\d+) bytes spill stores", report) + _number(r"(\d+) bytes stack frame", report),
        occupancy=resident,
        wide_loads=wide.count("LDG"),
        wide_stores=wide.count("STG"),
        narrow=len(accesses) - len(wide),
        in_flight=round(resident * RESIDENT_THREADS[compute_capability]) * PACK_BYTES * ahead,
        float64=sum(bool(_FLOAT64.search(line)) for line in loop),
        listing=listing,
    )


def every(compute_capabilities: Sequence[tuple[int, int]] = tuple(RESIDENT_THREADS)) -> Iterator[Audit]:
    """All kernels for all dtypes, each with the accumulator that serves it there."""
    for capability in compute_capabilities:
        registers = registers_of(RESIDENT_THREADS[capability])
        for variant in variants.every(lambda dtype: accumulator_name(dtype, capability), registers):  # noqa: B023
            yield audit(variant, capability)


def occupancy(registers: int, shared: int, compute_capability: tuple[int, int]) -> float:
    """Share of a multiprocessor's threads that are resident; registers are given out by eights per thread."""
    threads = RESIDENT_THREADS[compute_capability]
    by_registers = REGISTERS_PER_MULTIPROCESSOR // (-(-registers // 8) * 8 * THREADS)
    blocks = min(threads // THREADS, by_registers, _SHARED // (shared + 1024))
    return blocks * THREADS / threads


def main_loop(listing: str) -> list[str]:
    """The instructions of the first loop that loads 128 bits, the one for whole packs; empty if there is none."""
    lines = listing.splitlines()
    labels = {line.strip()[:-1]: number for number, line in enumerate(lines) if re.match(r"^\.L_\w+:", line.strip())}
    loops = []
    for number, line in enumerate(lines):
        match = re.search(r"\bBRA\b.*`\((\.L_\w+)\)", line)
        start = labels.get(match[1], number) if match else number
        if any("LDG.E.128" in instruction for instruction in lines[start:number]):
            loops.append((start, number + 1))
    return lines[slice(*min(loops))] if loops else []


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def _run(name: str, arguments: list[str]) -> tuple[str, str]:
    finished = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    if finished.returncode != 0:
        raise ToolError(f"{name} failed: {finished.stderr.strip()}")
    return finished.stdout, finished.stderr


def tool(name: str) -> str:
    """Where one of NVIDIA's command-line tools is: in a package from PyPI, or on the path."""
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for candidate in sorted(Path(folder).glob(f"*/bin/{name}")):
            return str(candidate)
    found = shutil.which(name)
    if found is None:
        raise ToolError(f"{name} is missing: pip install nvidia-cuda-nvdisasm 'numba-cuda[cu12]'")
    return found
