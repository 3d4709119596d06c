"""Shape functions: what TensorFlow calls to infer the shapes of an op's outputs."""

from __future__ import annotations

from fastreg_kernels.cpu.jit import inner
from numba import types

from fastreg._bridges.native import capi
from fastreg._bridges.native.compiler import callback

INFER = types.void(types.uintp, types.uintp)
"""Of the context of the inference, and a status."""

OF_TABLE = 6
"""How many inputs a table is, with which its ops begin."""


@inner
def _scalar(context, i, status):
    shape = capi.ScalarShape(context)
    capi.SetShapeOfOutput(context, i, shape, status)
    capi.DeleteShape(shape)


@inner
def _vector(context, i, size, status):
    shape = capi.VectorShape(context, size)
    capi.SetShapeOfOutput(context, i, shape, status)
    capi.DeleteShape(shape)


@inner
def _like_input(context, i, source, status):
    shape = capi.NewShape()
    capi.ShapeOfInput(context, source, shape, status)
    capi.SetShapeOfOutput(context, i, shape, status)
    capi.DeleteShape(shape)


@callback(INFER)
def scalar(context, status):
    """One output, a scalar."""
    _scalar(context, 0, status)


@callback(INFER)
def like_first_input(context, status):
    """One output, of the shape of the first input."""
    _like_input(context, 0, 0, status)


@callback(INFER)
def value_and_gradient(context, status):
    """A scalar, a tensor of the shape of the first input, and two numbers."""
    _scalar(context, 0, status)
    _like_input(context, 1, 0, status)
    _vector(context, 2, 2, status)


@callback(INFER)
def like_second_input(context, status):
    """One output, of the shape of the second input."""
    _like_input(context, 0, 1, status)


@callback(INFER)
def looked_up(context, status):
    """The shape of the input behind a table, ids, and behind it that of a row of the table, the second input."""
    ids, table, row, both = capi.NewShape(), capi.NewShape(), capi.NewShape(), capi.NewShape()
    capi.ShapeOfInput(context, OF_TABLE, ids, status)
    capi.ShapeOfInput(context, 1, table, status)
    capi.SubShape(context, table, 1, 2, row, status)
    capi.Concatenate(context, ids, row, both, status)
    capi.SetShapeOfOutput(context, 0, both, status)
    for shape in (ids, table, row, both):
        capi.DeleteShape(shape)


@callback(INFER)
def nothing(context, status):
    """No outputs."""


@callback(INFER)
def unknown(context, status):
    """Of outputs whose sizes hang on values."""
    capi.SetUnknownShape(context, status)
