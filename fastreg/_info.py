"""What this process uses and did."""

from __future__ import annotations

import argparse
import platform
from typing import Any

import fastreg_kernels
import keras
import numba
import numpy as np
import tensorflow as tf
from fastreg_kernels import _threads
from fastreg_kernels.cpu import jit
from llvmlite import binding
from rich.console import Console
from rich.table import Table

from fastreg._bridges import buffers, choose, cluster, counters, native
from fastreg._bridges.callback import device
from fastreg._bridges.settings import get_bridge
from fastreg._version import __version__

_GRAPH = choose.Place(tf.float32, eager=False)
_SHOWN = frozenset({"sse2", "avx", "avx2", "avx512f", "f16c", "fma", "neon"})


def info() -> dict[str, Any]:
    """What fastreg uses here, why, and what it did so far.

    Returns
    -------
    dict
        `versions`; `cpu`, `cpu_features` (those that matter to the kernels), `gpus`; `threading_layer`, `threads`,
        `serial_reason` (why kernels run on one thread, or None); `bridge` (as set), `native_obstacle` (why native ops
        cannot serve, or None), `crossover` (elements, for `native` ops, and for callbacks in a `graph` and `eager`);
        `gpu_crossover` (the same for tensors on a GPU: for `xla`, and for CUDA kernels by `py_function`),
        `xla_obstacle` and `gpu_obstacle` (why XLA, and why the CUDA kernels cannot serve, as far as is known, or None);
        `choices` (how often which bridge was chosen, and why: once per trace of a graph, once per call when eager);
        `kernel_calls` (how often a kernel ran through TensorFlow); `buffer_bytes` (held for gradients); `kernel_cache`
        (folder of compiled kernels, or None where none is writable).
    """
    return {
        "versions": {
            "fastreg": __version__,
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numba": numba.__version__,
            "numpy": np.__version__,
        },
        "cpu": binding.get_host_cpu_name(),
        "cpu_features": sorted(name for name, has in binding.get_host_cpu_features().items() if has and name in _SHOWN),
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
        "threading_layer": fastreg_kernels.threading_layer(),
        "threads": fastreg_kernels.get_num_threads(),
        "serial_reason": _threads.serial_reason(),
        "bridge": get_bridge(),
        "native_obstacle": native.obstacle(),
        "crossover": {
            "native": choose.crossover("native", _GRAPH),
            "graph": choose.crossover("py_function", _GRAPH),
            "eager": choose.crossover("py_function", _GRAPH._replace(eager=True)),
        },
        "gpu_crossover": {name: choose.crossover(name, _GRAPH._replace(gpu=True)) for name in ("xla", "py_function")},
        "xla_obstacle": cluster.obstacle(),
        "gpu_obstacle": device.obstacle(),
        "choices": [
            {"bridge": choice.bridge, "reason": choice.reason, "count": count}
            for choice, count in counters.choices.most_common()
        ],
        "kernel_calls": counters.kernel_calls(),
        "buffer_bytes": buffers.nbytes(),
        "kernel_cache": None if jit.cache_folder() is None else str(jit.cache_folder()),
    }


DESCRIPTION = "show versions, threads, processor, and which bridge serves from which size"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `fastreg info`."""
    parser.add_argument(
        "--cuda-audit",
        action="store_true",
        help="compile all CUDA kernels and show registers, occupancy and memory instructions; needs no GPU",
    )

    parser.add_argument(
        "--timings",
        action="store_true",
        help="time compiling: in this process, and in new ones that use a penalty for the first time",
    )


def run(options: argparse.Namespace) -> int:
    """Print `info()` as a table, and that of timings if asked for, or the table of compiled CUDA kernels."""
    if options.cuda_audit:
        from fastreg import _audit

        return _audit.run(Console())
    table = Table(title="fastreg", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in info().items():
        table.add_row(name.replace("_", " "), _readable(value))
    Console().print(table)
    if options.timings:
        from fastreg import _timings

        return _timings.run(Console())
    return 0


def _readable(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_readable(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "\n".join(_readable(entry) for entry in value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
