"""TensorFlow's C API for ops and kernels, as compiled code and Python call it.

The one place where the API is named. Its functions stand in `tensorflow/c/ops.h`, `kernels.h`, `tf_tensor.h` and
`tf_status.h` of TensorFlow's headers, and its wheels export them. Compiled code refers to them by name, so that it can
be kept between processes.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import tensorflow as tf
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

INVALID_ARGUMENT, RESOURCE_EXHAUSTED = 3, 8
"""Status codes."""


class UnavailableError(RuntimeError):
    """Native ops cannot be had in this process; the message says why."""


def _external(name: str, result: Any, *arguments: Any) -> Any:
    _EXTERNAL.append(name)
    return types.ExternalFunction(name, result(*arguments))


_EXTERNAL: list[str] = []

# Handles are addresses, as whole numbers; what points to memory that we read or write is a pointer.
_handle, _pointer, _int, _long, _nothing = types.uintp, types.voidptr, types.int32, types.int64, types.void

GetInput = _external("TF_GetInput", _nothing, _handle, _int, _pointer, _handle)
TensorData = _external("TF_TensorData", _pointer, _handle)
TensorElementCount = _external("TF_TensorElementCount", _long, _handle)
NumDims = _external("TF_NumDims", _int, _handle)
Dim = _external("TF_Dim", _long, _handle, _int)
NewTensor = _external("TF_NewTensor", _handle, _int, _pointer, _int, _pointer, types.uintp, _pointer, types.uintp)
DeleteTensor = _external("TF_DeleteTensor", _nothing, _handle)
AllocateOutput = _external("TF_AllocateOutput", _handle, _handle, _int, _int, _pointer, _int, types.uintp, _handle)
SetOutput = _external("TF_SetOutput", _nothing, _handle, _int, _handle, _handle)
NewStatus = _external("TF_NewStatus", _handle)
DeleteStatus = _external("TF_DeleteStatus", _nothing, _handle)
GetCode = _external("TF_GetCode", _int, _handle)
SetStatus = _external("TF_SetStatus", _nothing, _handle, _int, _pointer)
Failure = _external("TF_OpKernelContext_Failure", _nothing, _handle, _handle)
GetAttrInt64 = _external("TF_OpKernelConstruction_GetAttrInt64", _nothing, _handle, _pointer, _pointer, _handle)
GetAttrSize = _external("TF_OpKernelConstruction_GetAttrSize", _nothing, _handle, _pointer, _pointer, _pointer, _handle)
GetAttrString = _external(
    "TF_OpKernelConstruction_GetAttrString", _nothing, _handle, _pointer, _pointer, types.uintp, _handle
)

NewShape = _external("TF_NewShapeHandle", _handle)
DeleteShape = _external("TF_DeleteShapeHandle", _nothing, _handle)
ShapeOfInput = _external("TF_ShapeInferenceContextGetInput", _nothing, _handle, _int, _handle, _handle)
SetShapeOfOutput = _external("TF_ShapeInferenceContextSetOutput", _nothing, _handle, _int, _handle, _handle)
ScalarShape = _external("TF_ShapeInferenceContextScalar", _handle, _handle)
VectorShape = _external("TF_ShapeInferenceContextVectorFromSize", _handle, _handle, types.uintp)
SubShape = _external("TF_ShapeInferenceContextSubshape", _nothing, _handle, _handle, _long, _long, _handle, _handle)
Concatenate = _external(
    "TF_ShapeInferenceContextConcatenateShapes", _nothing, _handle, _handle, _handle, _handle, _handle
)
SetUnknownShape = _external("TF_ShapeInferenceContextSetUnknownShape", _nothing, _handle, _handle)


@intrinsic
def pointer(typingctx, address):
    """An address as a pointer."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.uintp), codegen


@intrinsic
def address(typingctx, pointer):
    """A pointer as an address."""

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.uintp(types.voidptr), codegen


@intrinsic
def memory(typingctx, array):
    """The memory of an array as a pointer."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.bitcast(data, ir.IntType(8).as_pointer())

    return types.voidptr(array), codegen


@intrinsic
def word(typingctx):
    """A pointer to a word on the stack of the function that asks, which is zero: memory that cannot be missing."""

    def codegen(context, builder, signature, args):
        cell = cgutils.alloca_once(builder, ir.IntType(64))
        builder.store(ir.IntType(64)(0), cell)
        return builder.bitcast(cell, ir.IntType(8).as_pointer())

    return types.voidptr(), codegen


def text(message: str) -> Any:
    """A compiled function without arguments that gives a pointer to this text."""

    @intrinsic
    def pointer_to_text(typingctx):
        def codegen(context, builder, signature, args):
            return context.insert_const_string(builder.module, message)

        return types.voidptr(), codegen

    return pointer_to_text


@functools.cache
def library() -> Any:
    """TensorFlow's shared library, to call from Python; compiled code finds its functions from here on.

    Raises
    ------
    UnavailableError
        If it is not there, or does not export what is needed.
    """
    folder = Path(tf.sysconfig.get_lib())
    found = sorted([*folder.glob("libtensorflow_framework.so*"), *folder.glob("libtensorflow_framework*.dylib")])
    if not found:
        raise UnavailableError("TensorFlow's shared library is not in the folder that it names")
    llvm.load_library_permanently(str(found[0]))
    loaded = ctypes.CDLL(str(found[0]))
    for name in _EXTERNAL:
        if not hasattr(loaded, name):
            raise UnavailableError(f"TensorFlow's shared library does not export {name}")
    for name, result, *arguments in _FROM_PYTHON:
        function = getattr(loaded, name, None)
        if function is None:
            raise UnavailableError(f"TensorFlow's shared library does not export {name}")
        function.restype, function.argtypes = result, arguments
    return loaded


_p, _s = ctypes.c_void_p, ctypes.c_char_p
_FROM_PYTHON = (
    ("TF_NewStatus", _p),
    ("TF_DeleteStatus", None, _p),
    ("TF_GetCode", ctypes.c_int, _p),
    ("TF_Message", _s, _p),
    ("TF_NewOpDefinitionBuilder", _p, _s),
    ("TF_OpDefinitionBuilderAddAttr", None, _p, _s),
    ("TF_OpDefinitionBuilderAddInput", None, _p, _s),
    ("TF_OpDefinitionBuilderAddOutput", None, _p, _s),
    ("TF_OpDefinitionBuilderSetIsStateful", None, _p, ctypes.c_bool),
    ("TF_OpDefinitionBuilderSetShapeInferenceFunction", None, _p, _p),
    ("TF_RegisterOpDefinition", None, _p, _p),
    ("TF_NewKernelBuilder", _p, _s, _s, _p, _p, _p),
    ("TF_KernelBuilder_TypeConstraint", None, _p, _s, ctypes.c_int, _p),
    ("TF_RegisterKernelBuilder", None, _s, _p, _p),
)


class _Status:
    """A status object of the C API for the calls within a `with` block, checked at its end."""

    def __enter__(self) -> int:
        self._status = library().TF_NewStatus()
        return int(self._status)

    def __exit__(self, *error: object) -> None:
        code, message = library().TF_GetCode(self._status), library().TF_Message(self._status).decode()
        library().TF_DeleteStatus(self._status)
        if code:
            raise UnavailableError(f"TensorFlow refused: {message}")


def define(name: str, attributes: Any, inputs: Any, outputs: Any, shapes: int, stateful: bool) -> None:
    """Register the definition of an op.

    Parameters
    ----------
    name : str
        CamelCase, not taken yet: TensorFlow ends the process over a second definition.
    attributes, inputs, outputs : sequence of str
        As in TensorFlow's own definitions: `"T: {float, double}"`, `"x: T"`.
    shapes : int
        Address of the compiled function that infers the outputs' shapes.
    stateful : bool
    """
    c = library()
    builder = c.TF_NewOpDefinitionBuilder(name.encode())
    for attribute in attributes:
        c.TF_OpDefinitionBuilderAddAttr(builder, attribute.encode())
    for tensor in inputs:
        c.TF_OpDefinitionBuilderAddInput(builder, tensor.encode())
    for tensor in outputs:
        c.TF_OpDefinitionBuilderAddOutput(builder, tensor.encode())
    if stateful:  # the call takes no notice of what it is called with
        c.TF_OpDefinitionBuilderSetIsStateful(builder, True)
    c.TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, shapes)
    with _Status() as status:
        c.TF_RegisterOpDefinition(builder, status)


def register(name: str, constraints: Any, create: int, compute: int, delete: int) -> None:
    """Register a kernel of an op for the CPU.

    Parameters
    ----------
    name : str
        Of the op.
    constraints : dict of str to tf.DType
        The type attributes that it is for.
    create, compute, delete : int
        Addresses of the compiled functions, which must stay for the life of the process.
    """
    c = library()
    builder = c.TF_NewKernelBuilder(name.encode(), b"CPU", create, compute, delete)
    for attribute, dtype in constraints.items():
        with _Status() as status:
            c.TF_KernelBuilder_TypeConstraint(builder, attribute.encode(), dtype.as_datatype_enum, status)
    with _Status() as status:
        label = "".join([name, *(dtype.name for dtype in constraints.values())])
        c.TF_RegisterKernelBuilder(label.encode(), builder, status)
