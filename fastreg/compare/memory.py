"""Memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")


def reset_peak() -> int | None:
    """Let `peak` start anew from the resident memory of now, and return that in bytes.

    None where the system cannot (it is not Linux): `peak` then covers the whole process.
    """
    try:
        _CLEAR.write_text("5", encoding="ascii")
        return status("VmRSS")
    except OSError:
        return None


def peak() -> int:
    """Largest resident memory so far, in bytes."""
    try:
        # Preferred to ru_maxrss, which on Linux starts from the memory of the process that started this one.
        return status("VmHWM")
    except OSError:
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


def status(name: str, process: int | str = "self") -> int:
    """A figure that Linux keeps of a process, in bytes.

    Parameters
    ----------
    name : str
    process : int or "self", default "self"
        Its id.

    Raises
    ------
    OSError
        If the system has none of that name.
    """
    path = Path(f"/proc/{process}/status")
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in {path}")
