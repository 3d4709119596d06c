"""How the kernels are compiled: flags, and where compiled code is kept between processes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import secrets
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
from numba.core import config, event
from numba.core.bytecode import FunctionIdentity
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.extending import register_jitable

_FLAGS = {"nogil": True, "error_model": "numpy"}
"""`nogil`: other Python threads run while a kernel does. No `fastmath`: it would let the compiler reorder sums and
contract products, so that results would depend on the processor."""


# Numba numbers the functions that a process compiles, and has their numbers in the names by which code is linked. Code
# that two processes have kept may then use one name for two functions, of which a third process would run one for both.
FunctionIdentity._unique_ids = iter(functools.partial(secrets.randbits, 63), None)

inner = register_jitable(**_FLAGS, no_cfunc_wrapper=True)
"""Decorate a function that compiled code calls: it is compiled and kept together with that. Called from Python, it runs
as Python."""


class Compiler:
    """Compiles functions, and keeps them in a folder of their own.

    Parameters
    ----------
    *packages : Path
        Folders of the sources that compiled functions are inlined from. A hash of these names the folder.
    """

    def __init__(self, *packages: Path) -> None:
        sources = sorted(source for package in packages for source in package.rglob("*.py"))
        fingerprint = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
        self.folder = None if _ROOT is None else _ROOT / fingerprint
        """Where compiled code is kept, or None where no folder is writable and every process compiles anew."""

    def jit(self, function: Callable[..., Any]) -> Any:
        """Compile a function that Python calls."""
        return self._kept(numba.njit(**_FLAGS)(function))

    def cfunc(self, signature: Any) -> Callable[[Callable[..., Any]], Any]:
        """Compile a function now, to be called by its address, of C's calling convention. It must not raise."""

        def compiled(function: Callable[..., Any]) -> Any:
            callback = _Callback(
                function, (signature.args, signature.return_type), {}, {"nopython": True, "error_model": "numpy"}
            )
            self._kept(callback).compile()
            return callback

        return compiled

    def _kept(self, compiled: Any) -> Any:
        # Numba's own choice of folder fails at decoration in a read-only install without a home, and its key is one
        # source file, though our kernels span several. Naming the folder ourselves mends both.
        if self.folder is not None:
            previous = config.CACHE_DIR
            config.CACHE_DIR = str(self.folder)
            try:
                compiled.enable_caching()
            finally:
                config.CACHE_DIR = previous
            _seal(compiled._cache._cache_file)
            _tolerate_faults(compiled._cache, self.folder)
        return compiled


class _Callback(CFunc):
    """One whose compiling is an event, as that of other functions is."""

    def _compile_uncached(self) -> Any:
        details = {"dispatcher": SimpleNamespace(py_func=self._pyfunc)}  # type: ignore[attr-defined]
        with event.trigger_event("numba:compile", data=details):
            return super()._compile_uncached()  # type: ignore[misc]


def load_numba() -> None:
    """Have Numba load what it otherwise loads in the middle of the first kernel call."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def _seal(file: Any) -> None:
    """Have what is kept carry a checksum and what it was compiled for, of which Numba looks at neither.

    Machine code of which a byte is another would be executed. And when processes keep code of one function for two
    dtypes at once, Numba may put the one into the file that its index has for the other.
    """
    load, save = file.load, file.save

    def save_sealed(key: Any, data: Any) -> None:
        code = file._dump(data)
        save(key, (key, hashlib.sha256(code).digest(), code))

    def load_sealed(key: Any) -> Any:
        sealed = load(key)
        if sealed is None:
            return None
        kept_for, checksum, code = sealed
        if kept_for != key:
            return None
        if hashlib.sha256(code).digest() != checksum:
            raise ValueError("a checksum is wrong")
        return pickle.loads(code)  # noqa: S301 - `_usable` sees to whose folder it is

    file.load, file.save = load_sealed, save_sealed


def _tolerate_faults(cache: Any, folder: Path) -> None:
    """Have a kernel be compiled where what was kept is damaged, and run where it cannot be kept, both of which Numba
    fails on.
    """
    load, save = cache.load_overload, cache.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception as error:  # whatever becomes of unpickling anything
            if folder not in _damaged:
                _damaged.add(folder)
                warnings.warn(
                    f"fastreg compiles kernels anew, since files in {folder} are damaged "
                    f"({type(error).__name__}: {error}).",
                    RuntimeWarning,
                    stacklevel=2,
                )
            with contextlib.suppress(OSError):
                cache.flush()  # forgets what was kept for this function
            return None

    def save_overload(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except OSError as error:
            warnings.warn(
                f"fastreg cannot keep compiled kernels in {folder}: {error.strerror}. The next process will compile "
                "them anew.",
                RuntimeWarning,
                stacklevel=2,
            )

    cache.load_overload, cache.save_overload = load_overload, save_overload


_damaged: set[Path] = set()
"""Folders whose damage a warning has told of."""


class _Timings(event.Listener):  # type: ignore[misc]
    """Seconds that compiling took in this process, by kernel; a line on stderr if they are so many that one waits."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started: list[float] = []
        self._announced = False

    def on_start(self, event: Any) -> None:
        self._started.append(time.perf_counter())
        if not _is_ours(event.data["dispatcher"].py_func):
            return
        waited = sum(self.seconds.values()) + time.perf_counter() - self._started[0]
        if not self._announced and waited > _PATIENCE_S:
            self._announced = True
            where = "and keeps them for the next process" if _ROOT is not None else "which no folder can keep"
            print(f"fastreg compiles kernels for the first time here, {where}: a few seconds.", file=sys.stderr)

    def on_end(self, event: Any) -> None:
        seconds = time.perf_counter() - self._started.pop()
        function = event.data["dispatcher"].py_func
        if not self._started and _is_ours(function):  # what a kernel calls is compiled within it
            name = f"{function.__module__}.{function.__qualname__}"
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def _is_ours(function: Callable[..., Any]) -> bool:
    return function.__module__.startswith("fastreg")


def timings() -> dict[str, float]:
    """Seconds that compiling took in this process, by kernel; nothing where all were found compiled."""
    return dict(_timings.seconds)


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


def _choose_root() -> Path | None:
    return next(filter(_usable, _candidates()), None)


_ROOT = _choose_root()
_PATIENCE_S = 0.5

_timings = _Timings()
event.register("numba:compile", _timings)

_compiler = Compiler(Path(__file__).parent.parent)
jit, cfunc = _compiler.jit, _compiler.cfunc


def cache_folder() -> Path | None:
    """Where compiled kernels are kept, or None where no folder is writable and every process compiles anew."""
    return _compiler.folder
