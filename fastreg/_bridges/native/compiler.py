"""How what TensorFlow calls is compiled: as the kernels, and kept apart for each version of our sources."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastreg_kernels
from fastreg_kernels.cpu.jit import Compiler
from llvmlite import binding

_compiler = Compiler(Path(fastreg_kernels.__file__).parent, Path(__file__).parent.parent)


class Callback:
    """A function that TensorFlow calls by its address: compiled when that is first asked for, kept for good.

    Not before, because TensorFlow's library must be there to link with. And for the life of the process, even if this
    module is dropped, because TensorFlow goes on to call it.
    """

    def __init__(self, function: Callable[..., Any], signature: Any) -> None:
        self._function, self._signature = function, signature

    @functools.cached_property
    def address(self) -> int:
        """Where its code begins."""
        compiled = _compiler.cfunc(self._signature)(self._function)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(compiled))
        return int(compiled.address)

    def publish(self, name: str) -> None:
        """Let compiled code find it under a name, by `fastreg_kernels._shared.address`."""
        if binding.address_of_symbol(name) is None:
            binding.add_symbol(name, self.address)


def callback(signature: Any) -> Callable[[Callable[..., Any]], Callback]:
    """Decorate a function that TensorFlow calls."""
    return lambda function: Callback(function, signature)
