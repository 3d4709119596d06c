"""What `fastreg info --timings` prints: how long kernels take to compile here, and how long a first penalty takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

from fastreg_kernels.cpu import jit
from rich.console import Console
from rich.table import Table

_FIRST_USE = """
import json, time
import keras
import tensorflow as tf
started = time.perf_counter()
import fastreg
imported = time.perf_counter() - started
from fastreg_kernels.cpu import jit

def step(penalty):
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = penalty(x)
    return tape.gradient(value, x)

x = tf.ones(100)
step(keras.regularizers.L2(0.1))  # what TensorFlow does once is not ours
started = time.perf_counter()
step(fastreg.L1L2(0.1, 0.1))
print(json.dumps([imported, time.perf_counter() - started, jit.timings()]))
"""


class FirstUse(NamedTuple):
    """Seconds that a new process spends.

    Attributes
    ----------
    imported : float
        On the import of fastreg, after TensorFlow and Keras.
    penalty : float
        On the first penalty and its gradient.
    compiled : dict of str to float
        Of these on compiling, by kernel.
    """

    imported: float
    penalty: float
    compiled: dict[str, float]


def run(console: Console) -> int:
    """Print a table of seconds: of this process, and of a first use where nothing is compiled and where all is."""
    here = jit.timings()
    with tempfile.TemporaryDirectory() as folder:
        cold = first_use(NUMBA_CACHE_DIR=folder)
    first_use()  # compiles what nobody used here yet
    warm = first_use()
    table = Table(title="Seconds", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("compiling, in this process", f"{sum(here.values()):.3f}")
    for name, seconds in here.items():
        table.add_row(f"  {name}", f"{seconds:.3f}")
    table.add_row("import of fastreg, after TensorFlow and Keras", f"{warm.imported:.3f}")
    table.add_row("first penalty and gradient, kernels compiled before", f"{warm.penalty:.3f}")
    table.add_row("first penalty and gradient, nothing compiled before", f"{cold.penalty:.3f}")
    for name, seconds in cold.compiled.items():
        table.add_row(f"  {name}", f"{seconds:.3f}")
    console.print(table)
    return 0


def first_use(**environment: Any) -> FirstUse:
    """Time a first penalty in a new process with these environment variables.

    Raises
    ------
    RuntimeError
        If it fails; the message has what it wrote on stderr.
    """
    completed = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", _FIRST_USE], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    if completed.returncode:
        raise RuntimeError(f"the process that was to be timed failed:\n{completed.stderr[-4000:]}")
    return FirstUse(*json.loads(completed.stdout.splitlines()[-1]))
