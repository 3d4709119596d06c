"""Memory on huge pages: that of our buffers from the start, that of variables when they are read again and again.

TensorFlow keeps variables on pages of 4 KiB. To go over many of them, a processor spends as much time on finding the
pages as on reading them. Linux puts memory that is in use on pages of 2 MiB without anybody noticing, if asked.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fastreg_kernels import _shared
from fastreg_kernels.cpu.jit import inner
from numba import carray, types

SMALLEST = 8 << 20
"""Bytes of a variable from which its pages count."""

PARTS = 8
"""Calls that a variable is moved to huge pages in, so that no step waits long: moving takes longer than reading."""

_HUGE, _PAGE = 1 << 21, 4096
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25
_madvise = types.ExternalFunction("madvise", types.int32(types.uintp, types.uintp, types.int32))
_LINUX = sys.platform.startswith("linux")

WORDS, _ADDRESS, _DONE = 2, 0, 1
"""What is remembered of a place where memory is read: the address of the last time, and how many bytes are done."""


def _are_wanted() -> bool:
    """Whether the system has huge pages, and its administrator did not switch them off."""
    with contextlib.suppress(OSError):
        return "[never]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    return False


_wanted = _shared.region("fastreg_huge_pages", 1)
_wanted[0] = _are_wanted()
_address = _shared.address("fastreg_huge_pages")


@inner
def advise(start: Any, size: Any) -> None:
    """Have memory that was never written to come on huge pages."""
    if _LINUX and size >= 2 * _HUGE:
        page = -(-start // _PAGE) * _PAGE
        _madvise(page, start + size - page, _MADV_HUGEPAGE)


@inner
def gather(place: Any, start: Any, size: Any) -> None:
    """Move memory to huge pages, part by part, if it is read at the same place of a program as before.

    Parameters
    ----------
    place : array of `WORDS` int64
        Two threads may share it: that costs time, nothing else.
    start, size : int
        Address and bytes of the memory, which stays where it is.
    """
    if not _LINUX or size < SMALLEST or carray(_address(), 1, np.int64)[0] == 0:
        return
    if place[_ADDRESS] != start:
        place[_ADDRESS], place[_DONE] = start, 0
        return
    done = place[_DONE]
    if done >= size:
        return
    part = -(-max(size // PARTS, _HUGE) // _HUGE) * _HUGE
    first = -(-(start + done) // _HUGE) * _HUGE
    last = min(first + part, start + size)
    if first < last and _madvise(first, last - first, _MADV_COLLAPSE) != 0:
        part = size  # an older system, or no memory for it: not again
    place[_DONE] = done + part
