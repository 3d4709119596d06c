"""Where a figure was measured: device, threads, versions, commit."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import fastreg_kernels
import keras
import numba
import numpy as np
import tensorflow as tf
from llvmlite import binding

import fastreg


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What every row of results says of its origin. `date` names the run: when it began, in UTC."""

    date: str
    device: str
    cores: int
    threads: int
    threading_layer: str
    fastreg: str
    commit: str
    python: str
    tensorflow: str
    keras: str
    numba: str
    numpy: str


def describe() -> Environment:
    """The environment of the process that asks; `date` is now."""
    return Environment(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        device=_device(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=fastreg_kernels.get_num_threads(),
        threading_layer=fastreg_kernels.threading_layer(),
        fastreg=fastreg.__version__,
        commit=_commit(),
        python=platform.python_version(),
        tensorflow=tf.__version__,
        keras=keras.__version__,
        numba=numba.__version__,
        numpy=np.__version__,
    )


def checkout() -> Path | None:
    """The root of the project's checkout if this package runs from one, else None."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "benchmarks" / "results").is_dir() and (root / "pyproject.toml").is_file() else None


def physical_memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def use_host_only() -> None:
    """Hide GPUs from TensorFlow: these benchmarks compare what runs on the processor."""
    with contextlib.suppress(RuntimeError):  # too late, something ran already
        tf.config.set_visible_devices([], "GPU")


def _device() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return str(binding.get_host_cpu_name())
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else str(binding.get_host_cpu_name())


def _commit() -> str:
    """The checked-out commit, marked where the files differ from it; empty outside a checkout."""
    root = checkout()
    if root is None:
        return ""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
