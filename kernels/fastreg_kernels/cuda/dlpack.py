"""What a DLPack capsule says: the address, shape and dtype of memory that somebody else owns.

A capsule points to a C structure whose layout DLPack fixes (https://dmlc.github.io/dlpack/latest/c_api.html). It is
read here with ctypes and never renamed to "used": whoever holds the capsule keeps the memory, and Python gives it back
when the capsule goes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
"""Kinds of device, as DLPack numbers them."""

_NAMES = {(2, 16): "float16", (2, 32): "float32", (2, 64): "float64", (4, 16): "bfloat16"}


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Description:
    """Memory of a tensor.

    Attributes
    ----------
    address : int
    shape : tuple of int
    strides : tuple of int or None
        In elements; None for C order.
    dtype : str
        A name, or what DLPack says of a dtype that has no kernels.
    device_type : int
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: str
    device_type: int


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def describe(capsule: Any) -> Description:
    """Read a capsule named "dltensor", without consuming it.

    Raises
    ------
    ValueError
        If it is no such capsule, or used already.
    """
    tensor = _Tensor.from_address(_get_pointer(capsule, b"dltensor"))
    kind, count = tensor.dtype, tensor.ndim
    known = _NAMES.get((kind.code, kind.bits)) if kind.lanes == 1 else None
    return Description(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=tuple(tensor.shape[:count]),
        strides=tuple(tensor.strides[:count]) if tensor.strides else None,
        dtype=known or f"dtype code {kind.code} of {kind.bits} bits x {kind.lanes}",
        device_type=tensor.device_type,
    )
