"""XLA's compiler for GPUs, in an environment of its own: TensorFlow and jax want other versions of what they share."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastreg.cli import UsageError
from fastreg_benchmarks.child import TIMEOUT_SECONDS

SCRIPT = Path(__file__).with_name("compile_for_h100.py")

PACKAGES = "jax==0.10.2 jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12"
"""The last brings ptxas."""

HOW = (
    "--suite xla-gpu needs --jax-python PATH, the Python of an environment with jax and its CUDA plug-in: "
    f"python3 -m venv jax-venv && jax-venv/bin/pip install {PACKAGES}"
)


def interpreter(path: Path | None) -> Path:
    """The Python that the user names.

    Raises
    ------
    UsageError
        If there is none.
    """
    if path is None:
        raise UsageError(HOW)
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise UsageError(f"no Python at {path}; {HOW}")
    return path


def describe(python: Path | None) -> str:
    """What is compiled for, and by what."""
    return str(_run(python, [])["target"])


def compile_all(python: Path | None, jobs: Sequence[tuple[str, str]]) -> list[str]:
    """Optimised HLO of each pair of HLO and who computes matrix products, "cuBLAS" or "Triton"."""
    modules: list[str] = _run(python, jobs)["modules"]
    return modules


def _run(python: Path | None, jobs: Sequence[tuple[str, str]]) -> Any:
    finished = subprocess.run(
        [interpreter(python), SCRIPT],
        input=json.dumps(jobs),
        # Not the packages of this environment; the plug-in is loaded by hand, by itself jax would look for a GPU.
        env={**os.environ, "PYTHONPATH": "", "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        last = (finished.stderr.strip() or f"it ended with {finished.returncode}").splitlines()[-1]
        raise UsageError(f"{python} cannot compile for a GPU: {last}; {HOW}")
    return json.loads(finished.stdout)
