"""What the user set: the bridge, and the size from which kernels serve."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

NAMES = ("auto", "native", "py_function", "xla", "tensorflow")


class Settings:
    """The bridge that was chosen, and the crossover, or None."""

    def __init__(self) -> None:
        self.bridge = _checked_bridge(os.environ.get("FASTREG_BRIDGE", "auto"), "environment variable FASTREG_BRIDGE")
        self.crossover: int | None = None


def _checked_bridge(name: Any, where: str) -> str:
    if name not in NAMES:
        expected = ", ".join(repr(bridge) for bridge in NAMES)
        raise ValueError(f"Invalid value for {where}: expected one of {expected}. Received: {name!r}")
    return str(name)


settings = Settings()
"""Those of this process."""


def set_bridge(name: str) -> None:
    """Choose how penalties are computed from now on; functions that are traced already stay as they are.

    Parameters
    ----------
    name : {"auto", "native", "py_function", "xla", "tensorflow"}
        `"auto"`: the compiled kernels where they can run and are faster, TensorFlow's ops elsewhere, on GPUs as with
        `"xla"` for large tensors of known size. `"native"`: the kernels as ops of TensorFlow's wherever they can run.
        `"py_function"`: the same, by callbacks, which run wherever Numba does, and on GPUs. `"xla"`: TensorFlow's ops,
        each penalty compiled by XLA in programs that are not. `"tensorflow"`: TensorFlow's ops as they are.
        The tables of `fastreg.Embedding` use native ops with the first two, TensorFlow's with the others; on a GPU
        always what XLA compiles of these.

    Raises
    ------
    ValueError
        If there is no such bridge.
    """
    settings.bridge = _checked_bridge(name, "argument name")


def get_bridge() -> str:
    """The bridge that was chosen: `"auto"`, `"native"`, `"py_function"`, `"xla"` or `"tensorflow"`."""
    return settings.bridge


def set_crossover(n: int | None) -> None:
    """Use the kernels from `n` elements on; `None` restores the sizes that were measured.

    Raises
    ------
    ValueError
        If n is not a non-negative integer or None.
    """
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0):
        raise ValueError(f"Invalid value for argument n: expected a non-negative integer or None. Received: n={n!r}")
    # No tensor has more elements, and graphs compare with it.
    settings.crossover = None if n is None else min(int(n), int(tf.int64.max))


@contextlib.contextmanager
def using(name: str) -> Iterator[None]:
    """`set_bridge` for a `with` block."""
    previous = get_bridge()
    set_bridge(name)
    try:
        yield
    finally:
        set_bridge(previous)


_warned: set[str] = set()


def warn_once(obstacle: str) -> None:
    """Say that TensorFlow's ops serve because of this; the first time."""
    if obstacle not in _warned:
        _warned.add(obstacle)
        although = "" if settings.bridge == "auto" else f" although the bridge is set to {settings.bridge!r}"
        warnings.warn(f"fastreg uses TensorFlow's ops{although}: {obstacle}", RuntimeWarning, stacklevel=2)
