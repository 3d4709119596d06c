"""`fastreg bench --device gpu`: the kernels alone, and penalties and training through TensorFlow, on a GPU."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import replace
from pathlib import Path

import tensorflow as tf
from rich.console import Console

from fastreg.cli import UsageError
from fastreg_benchmarks import environment, report, results
from fastreg_benchmarks.cases import DTYPES
from fastreg_benchmarks.check import WRONG
from fastreg_benchmarks.environment import Environment
from fastreg_benchmarks.gpu import kernels, penalties, tables, training
from fastreg_benchmarks.gpu.rows import GpuRow

SIZES = (1 << 24, 1 << 26, 1 << 28)
QUICK_SIZES = (1 << 20, 1 << 24)
OTHER_DTYPES_SIZE = 1 << 26
"""Dtypes but float32 are measured at this size alone."""


def run(options: argparse.Namespace) -> int:
    """Measure and print everything; 1 if a result was wrong."""
    from fastreg_benchmarks.command import QUICK_SECONDS, SECONDS, parse_size

    if importlib.util.find_spec("numba_cuda") is None:
        raise UsageError("--device gpu needs numba-cuda: pip install 'fastreg-keras[cuda]'")
    use_gpu()
    sizes: tuple[int, ...] = QUICK_SIZES if options.quick else SIZES
    if options.sizes:
        sizes = tuple(parse_size(text) for text in options.sizes)
    seconds = options.seconds or (QUICK_SECONDS if options.quick else SECONDS)
    dtypes = tuple(options.dtypes) if options.dtypes else DTYPES
    return measure(sizes, dtypes, seconds, _csv(options), report.console())


def use_gpu() -> None:
    """Have TensorFlow use a GPU and leave memory there to others.

    Raises
    ------
    UsageError
        If TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        raise UsageError("--device gpu: TensorFlow sees no GPU (pip install 'tensorflow[and-cuda]', and a driver)")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)


def measure(sizes: tuple[int, ...], dtypes: tuple[str, ...], seconds: float, csv: Path | None, console: Console) -> int:
    """Measure the kernels, the penalties and the training, in this order."""
    where = describe()
    console.print(f"fastreg {where.fastreg} ({where.commit}) · {where.device} · TensorFlow {where.tensorflow}")
    cases = [(size, "float32") for size in sizes if "float32" in dtypes]
    cases += [(min(OTHER_DTYPES_SIZE, max(sizes)), dtype) for dtype in dtypes if dtype != "float32"]
    rows: list[GpuRow] = []
    for size, dtype in cases:
        for part in (kernels.measure, penalties.measure):
            measured = part(size, dtype, seconds, where)
            console.print(tables.table(measured))
            rows += measured
    if "float32" in dtypes:
        measured = training.measure(max(1, max(sizes) // training.FRACTION), seconds, where)
        console.print(tables.table(measured))
        rows += measured
    console.print(tables.targets(rows))
    if csv is not None:
        results.append(csv, rows)
        console.print(f"rows: {csv}")
    return 1 if any(row.check == WRONG for row in rows) else 0


def describe() -> Environment:
    """The environment, with the GPU for a device."""
    gpus = tf.config.list_physical_devices("GPU")
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "a GPU") if gpus else "no GPU"
    return replace(environment.describe(), device=str(name))


def _csv(options: argparse.Namespace) -> Path | None:
    path: Path | None = options.csv
    if path is None:
        root = environment.checkout()
        if root is None or options.quick:
            return None
        path = root / "benchmarks" / "results" / "gpu.csv"
    results.prepare(path, GpuRow)
    return path
