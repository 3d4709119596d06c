"""The native ops of lazily regularised tables: their definitions and gradients, and the memory of variables."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from fastreg._bridges import slices
from fastreg._bridges.native import messages, shapes
from fastreg._bridges.native import table_kernels as kernels
from fastreg._bridges.native.op import FLOATS, VARIANT, VARIANT_TYPES, Op

_TABLE = (
    "table_handle: resource",
    "table: T",
    "stamps_handle: resource",
    "stamps: float",
    "history: double",
    "numbers: double",
)
_IDS = "I: {int32, int64}"
_NAME = f"{messages.NAME}: string"
_ARITHMETIC = "A: {float, double}"

LOOKUP = Op(
    "FastregLookup",
    (*_TABLE, "ids: I"),
    ("rows: T",),
    shapes.looked_up,
    kernels.lookup,
    attributes=(FLOATS, _IDS, _NAME),
    types=("T", "I"),
    stateful=True,
    create=messages.keep_name,
    delete=messages.give_name_back,
)
SUM_BAGS = Op(
    "FastregSumBags",
    (*_TABLE, "ids: I", "splits: int64", "weights: A"),
    ("sums: A",),
    shapes.unknown,
    kernels.sum_bags,
    attributes=(FLOATS, _IDS, _ARITHMETIC, _NAME),
    types=("T", "I"),
    stateful=True,
    create=messages.keep_name,
    delete=messages.give_name_back,
)
UPDATE = Op(
    "FastregUpdate",
    (
        *_TABLE,
        "slot_0_handle: resource",
        "slot_0: A",
        "slot_1_handle: resource",
        "slot_1: A",
        "ids: I",
        "gradient: A",
        "rate: double",
        "scale: double",
        "factors: double",
        "settings: double",
        "step: int64",
        "splits: int64",
        "weights: A",
    ),
    (),
    shapes.nothing,
    kernels.update,
    attributes=(FLOATS, _IDS, _ARITHMETIC, VARIANT_TYPES, _NAME),
    types=("T", "I", VARIANT),
    stateful=True,
    create=messages.keep_name,
    delete=messages.give_name_back,
)
WRITE_ROWS = Op(
    "FastregWriteRows",
    (*_TABLE, "ids: I", "values: T"),
    (),
    shapes.nothing,
    kernels.write_rows,
    attributes=(FLOATS, _IDS, _NAME),
    types=("T", "I"),
    stateful=True,
    create=messages.keep_name,
    delete=messages.give_name_back,
)
FLUSH = Op("FastregFlush", _TABLE, (), shapes.nothing, kernels.flush, attributes=(FLOATS,), stateful=True)
WEIGHTS = Op(
    "FastregWeights",
    _TABLE,
    ("weights: T",),
    shapes.like_second_input,
    kernels.weights,
    attributes=(FLOATS,),
    stateful=True,
)
PENALTY = Op(
    "FastregTablePenalty",
    (*_TABLE, "factors: double", "every: int64"),
    ("penalty: T",),
    shapes.scalar,
    kernels.penalty,
    attributes=(FLOATS,),
    stateful=True,
)
COUNT_ZEROS = Op(
    "FastregCountZeros",
    _TABLE,
    ("count: int64",),
    shapes.scalar,
    kernels.count_zeros,
    attributes=(FLOATS,),
    stateful=True,
)
SUM_DUPLICATES = Op(
    "FastregSumDuplicates",
    ("values: A", "ids: I"),
    ("sums: A", "unique: I"),
    shapes.unknown,
    kernels.sum_duplicates,
    attributes=(_ARITHMETIC, _IDS),
    types=("A", "I"),
)
OPS = (LOOKUP, SUM_BAGS, UPDATE, WRITE_ROWS, FLUSH, WEIGHTS, PENALTY, COUNT_ZEROS, SUM_DUPLICATES)


def memory(variable: tf.Variable) -> tuple[tf.Tensor, tf.Tensor]:
    """A variable as a native op takes it: the resource, and a tensor that shares its memory.

    A sparse op of TensorFlow's makes the variable one that is copied when it is read; reading without a copy is what
    undoes that, so that the op never writes to a copy.
    """
    with record.stop_recording():
        tf.raw_ops.DisableCopyOnRead(resource=variable.handle)
    return variable.handle, shared(variable)


def shared(variable: tf.Variable) -> tf.Tensor:
    """A tensor that shares the memory of a variable that no sparse op ever takes."""
    with record.stop_recording():  # a tape would keep the tensor
        tensor = tf.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)
    tensor.set_shape(variable.shape)
    return tensor


@LOOKUP.gradient
def _gradient_of_lookup(op: Any, upstream: tf.Tensor) -> Any:
    """Rows of the table: with respect to the resource, as of TensorFlow's own lookup."""
    return slices.of_lookup(upstream, op.inputs[shapes.OF_TABLE], op.inputs[1].shape.as_list()), *[
        None
    ] * shapes.OF_TABLE


@SUM_BAGS.gradient
def _gradient_of_sum_bags(op: Any, upstream: tf.Tensor) -> Any:
    """Rows of the table, from those of the bags; and of the weights, if there are any, and if somebody asks: an op that
    reads a table runs in a graph that updates it, whether its result is used or not.
    """
    *table, ids, splits, weights = op.inputs
    gradient = slices.of_bags(upstream, ids, splits, weights, table[1])
    of_weights = None
    if weights.shape != [0] and shapes.OF_TABLE + 2 not in (getattr(op, "skip_input_indices", None) or ()):
        LOOKUP.prepare(table[1].dtype, ids.dtype)
        with record.stop_recording():
            rows = LOOKUP(*table, ids, **{messages.NAME: op.get_attr(messages.NAME)})
        of_bags = tf.repeat(upstream, splits[1:] - splits[:-1], axis=0)
        of_weights = tf.reduce_sum(tf.cast(rows, upstream.dtype) * of_bags, axis=1)
    return gradient, *[None] * (shapes.OF_TABLE + 1), of_weights


@PENALTY.gradient
def _gradient_of_penalty(op: Any, upstream: tf.Tensor) -> Any:
    """The weight of the penalty in the loss, on its way to the optimizer: with respect to the resource too."""
    return slices.of_penalty(upstream, op.inputs[1].shape.as_list()), *[None] * (shapes.OF_TABLE + 1)


for _op in (UPDATE, WRITE_ROWS, FLUSH, COUNT_ZEROS, SUM_DUPLICATES):
    _op.has_no_gradient()


@WEIGHTS.gradient
def _gradient_of_weights(op: Any, upstream: tf.Tensor) -> Any:
    """All rows of the table: with respect to the resource."""
    upstream = tf.ensure_shape(upstream, op.inputs[1].shape)
    return slices.of_all(upstream), *[None] * (shapes.OF_TABLE - 1)
