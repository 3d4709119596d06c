"""How the kernels are compiled: flags, and where compiled code is kept between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.registry import cpu_target

_FLAGS = {"nogil": True, "error_model": "numpy"}
"""`nogil`: other Python threads run while a kernel does. No `fastmath`: it would let the compiler reorder sums and
contract products, so that results would depend on the processor."""


def jit(function: Callable[..., Any]) -> Any:
    """Compile a function that runs on the calling thread."""
    return _compile(function)


def parallel_jit(function: Callable[..., Any]) -> Any:
    """Compile a function whose `prange` loops run on Numba's threads."""
    return _compile(function, parallel=True)


def load_numba() -> None:
    """Have Numba load what it otherwise loads in the middle of the first kernel call."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, or None where no folder is writable and every process compiles anew."""
    return _CACHE_FOLDER


def _compile(function: Callable[..., Any], **flags: Any) -> Any:
    if _CACHE_FOLDER is None:
        return numba.njit(**_FLAGS, **flags)(function)
    # Numba's own choice of folder fails at decoration in a read-only install without a home, and its key is one source
    # file, though our kernels span several. Naming the folder ourselves mends both.
    previous = config.CACHE_DIR
    config.CACHE_DIR = str(_CACHE_FOLDER)
    try:
        dispatcher = numba.njit(cache=True, **_FLAGS, **flags)(function)
    finally:
        config.CACHE_DIR = previous
    _tolerate_full_disk(dispatcher)
    return dispatcher


def _tolerate_full_disk(dispatcher: Any) -> None:
    """Have a kernel that was compiled run even if it cannot be kept for the next process, which Numba fails on."""
    save = dispatcher._cache.save_overload

    def save_overload(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except OSError as error:
            warnings.warn(
                f"fastreg cannot keep compiled kernels in {_CACHE_FOLDER}: {error.strerror}. The next process will "
                "compile them anew.",
                RuntimeWarning,
                stacklevel=2,
            )

    dispatcher._cache.save_overload = save_overload


def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.parent.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def _candidates() -> list[Path]:
    folders = []
    if config.CACHE_DIR:
        folders.append(Path(config.CACHE_DIR) / "fastreg")
    if "XDG_CACHE_HOME" in os.environ:
        folders.append(Path(os.environ["XDG_CACHE_HOME"]) / "fastreg")
    with contextlib.suppress(RuntimeError):  # no HOME, and no such user either
        folders.append(Path.home() / ".cache" / "fastreg")
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    with contextlib.suppress(FileNotFoundError):  # no folder for temporary files
        folders.append(Path(tempfile.gettempdir()) / f"fastreg-{owner}")
    return folders


def _usable(folder: Path) -> bool:
    """Whether this process can write there and nobody else can: cached code is executed when it is loaded."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            return False
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _choose_folder() -> Path | None:
    for folder in _candidates():
        if _usable(folder):
            return folder / _fingerprint()
    return None


_CACHE_FOLDER = _choose_folder()
