"""The native ops: their definitions, and how Python calls one, eagerly and in graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import fastreg_kernels
import tensorflow as tf
from fastreg_kernels import _shared
from numba import types
from tensorflow.python import pywrap_tfe
from tensorflow.python.eager import context, core, execute
from tensorflow.python.framework import kernels, op_def_library, op_def_registry, ops

from fastreg._bridges import saving
from fastreg._bridges.custom_gradient import register_gradient
from fastreg._bridges.native import capi, tensors
from fastreg._bridges.native.compiler import callback

FLOATS = "T: {float, double, half, bfloat16}"

VARIANT = "kernel_variant"
VARIANTS = (tf.float32, tf.float64, tf.int32, tf.int64, tf.half, tf.bfloat16, tf.int16, tf.int8)
"""The types that stand for variants 0, 1, 2 and so on."""

VARIANT_TYPES = f"{VARIANT}: {{float, double, int32, int64, half, bfloat16, int16, int8}}"
"""The attribute's definition."""

_lock = _shared.lock_for_forks(threading.RLock())


@callback(types.uintp(types.uintp))
def _no_state(construction):  # noqa: ARG001
    return 0


@callback(types.void(types.uintp))
def _keep(state):
    pass


@dataclass
class Op:
    """An op of TensorFlow's whose kernels are ours.

    Attributes
    ----------
    name : str
    attributes, inputs, outputs : tuple of str
        As in TensorFlow's own definitions.
    shapes : compiled function
        Infers the outputs' shapes.
    kernel : callable
        Compiles the kernel for these dtypes, one for each of the type attributes `types`; of `VARIANT`, its number.
    create, delete : compiled functions
        Make a kernel's state of its attributes, and give it back.
    types : tuple of str
        Type attributes that kernels differ in. `VARIANT`, an attribute that no tensor has, is for kernels that differ
        in something else: the only way to have such of one op, so that a process compiles those that it uses.
    stateful : bool
        Whether it does more than its outputs tell.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Any
    kernel: Callable[..., Any]
    attributes: tuple[str, ...] = ()
    create: Any = _no_state
    delete: Any = _keep
    types: tuple[str, ...] = ("T",)
    stateful: bool = False
    _ready: set[tuple[Any, ...]] = field(default_factory=set)

    def define(self) -> None:
        """Register the definition, unless an earlier import of this module did."""
        with _lock:  # TensorFlow ends the process over a second definition
            if op_def_registry.get(self.name) is not None:
                return
            capi.define(self.name, self.attributes, self.inputs, self.outputs, self.shapes.address, self.stateful)

    def prepare(self, *key: Any) -> None:
        """Have a kernel for these dtypes, and for this number of a variant, compiled now if nobody needed it before."""
        if key in self._ready:
            return
        with _lock:
            if key in self._ready:
                return
            fastreg_kernels.threading_layer()  # starts the threads, which compiled code cannot
            tensors.publish()
            dtypes = (VARIANTS[part] if isinstance(part, int) else part for part in key)
            constraints = dict(zip(self.types, dtypes, strict=True))
            if not _has_kernel(self.name, constraints):
                kernel = self.kernel(*key)
                capi.register(self.name, constraints, self.create.address, kernel.address, self.delete.address)
            self._ready.add(key)

    def gradient(self, function: Callable[..., Any]) -> Any:
        """Decorate the op's gradient."""
        return register_gradient(self.name)(function)

    def has_no_gradient(self) -> None:
        """Register that tapes have nothing to ask of it."""
        ops.gradient_registry._registry.pop(self.name, None)
        tf.no_gradient(self.name)

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        """Run it now, or put it into the graph that is being traced; returns what TensorFlow's own ops would."""
        if tf.executing_eagerly():
            pairs = [part for pair in attributes.items() for part in pair]
            try:
                return pywrap_tfe.TFE_Py_FastPathExecute(context.context(), self.name, None, *inputs, *pairs)
            except core._NotOkStatusException as error:
                ops.raise_from_not_ok_status(error, None)
        saving.keep_from_files("native ops of fastreg's")
        names = (declaration.partition(":")[0] for declaration in self.inputs)
        keywords = dict(zip(names, inputs, strict=True)) | attributes
        # Not the operation's own outputs: a debugger may have put others in their place, which check for NaN.
        _, _, operation, outputs = op_def_library._apply_op_helper(self.name, **keywords)
        if execute.must_record_gradient():
            attrs = tuple(part for name in operation.node_def.attr for part in (name, operation.get_attr(name)))
            execute.record_gradient(self.name, operation.inputs, attrs, list(outputs) if self.outputs else [])
        return outputs[0] if len(self.outputs) == 1 else outputs


def _has_kernel(name: str, constraints: dict[str, tf.DType]) -> bool:
    wanted = {attribute: [dtype.as_datatype_enum] for attribute, dtype in constraints.items()}
    return any(
        {entry.name: list(entry.allowed_values.list.type) for entry in kernel.constraint} == wanted
        for kernel in kernels.get_registered_kernels_for_op(name).kernel
    )
