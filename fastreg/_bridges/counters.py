"""What this process did, for `fastreg.info()`: which bridge was chosen, why, and how often a kernel ran."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from fastreg_kernels import _shared
from fastreg_kernels.cpu.jit import jit
from numba import carray


class Choice(NamedTuple):
    """Which bridge serves a call, and why. `bridge` is `"dynamic"` where the size is known at run time only."""

    bridge: str
    reason: str


choices: Counter[Choice] = Counter()
_lock = _shared.lock_for_forks(threading.Lock())
_cells = _shared.region("fastreg_counters", 1)
_address = _shared.address("fastreg_counters")


def count_choice(choice: Choice) -> None:
    """Count that a bridge was chosen."""
    with _lock:
        choices[choice] += 1


@jit
def count_kernel_call():
    """Count that a kernel ran; of compiled code and of Python."""
    _shared.atomic_add(carray(_address(), 1, np.int64), 0, 1)


def kernel_calls() -> int:
    """How often a kernel ran."""
    return int(_cells[0])


@contextlib.contextmanager
def not_counted() -> Iterator[None]:
    """Forget the kernel calls of a `with` block."""
    before = kernel_calls()
    try:
        yield
    finally:
        _cells[0] = before
