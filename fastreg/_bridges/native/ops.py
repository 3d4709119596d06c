"""The native ops of penalties: their definitions, gradients, and how a penalty becomes one of them."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from fastreg._bridges import plain
from fastreg._bridges.factors import Factors
from fastreg._bridges.native import penalty as kernels
from fastreg._bridges.native import shapes
from fastreg._bridges.native.op import FLOATS, Op
from fastreg._bridges.support import in_xla, tape_is_active

VALUE = Op(
    "FastregPenalty", ("x: T", "factors: double"), ("value: T",), shapes.scalar, kernels.value, attributes=(FLOATS,)
)
AHEAD = Op(
    "FastregPenaltyAhead",
    ("x: T", "factors: double"),
    ("value: T", "ahead: T", "assumed: double"),
    shapes.value_and_gradient,
    kernels.value_and_gradient,
    attributes=(FLOATS, "site: int"),
    create=kernels.site,
)
GRADIENT = Op(
    "FastregPenaltyGradient",
    ("x: T", "factors: double", "upstream: T", "ahead: T", "assumed: double"),
    ("gradient: T",),
    shapes.like_first_input,
    kernels.gradient,
    attributes=(FLOATS, "site: int"),
    create=kernels.site,
)
OPS = (VALUE, AHEAD, GRADIENT)

_sites = itertools.count()


def penalty(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty of x by a native op.

    In training, value and gradient are computed in one read of x: the forward writes the gradient as well, for the
    upstream gradient of the last two backwards, and the backward hands it over if it has the same. If not, it computes
    its own. Where no tape records, no gradient will be asked for, and none is written.
    """
    with tf.device("CPU:0"):
        if not tape_is_active():
            VALUE.prepare(x.dtype)
            return VALUE(x, factors.vector())
        AHEAD.prepare(x.dtype)
        GRADIENT.prepare(x.dtype)
        if tf.executing_eagerly():
            return _recorded(x, factors)
        return AHEAD(x, factors.vector(), site=next(_sites) % kernels.SITES)[0]


def _recorded(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty, computed now, and for tapes an operation with one output.

    For outputs that nobody differentiates, here one of the size of x, a tape would make zeros.
    """
    vector = factors.vector()
    # There is nothing that one penalty is recognised by in the next step but what is penalised.
    site = hash((x.shape.rank, x.shape.num_elements(), x.dtype)) % kernels.SITES
    with record.stop_recording():
        value, ahead, assumed = AHEAD(x, vector, site=site)
    factors_count = bool(factors.tensors) and record.should_record_backprop(factors.tensors)

    def backward(upstream: tf.Tensor) -> Any:
        of_factors = _of_vector(plain.of_factors, vector, x, upstream) if factors_count else None
        return _of_x(x, vector, upstream, ahead, assumed, site), of_factors

    record.record_operation(AHEAD.name, [value], [x, vector], backward)
    return value


@VALUE.gradient
def _gradient_of_value(op: Any, upstream: tf.Tensor) -> Any:
    return _gradient(op, upstream, op.inputs[0], tf.zeros(2, tf.float64), next(_sites) % kernels.SITES)


@AHEAD.gradient
def _gradient_of_value_and_gradient(op: Any, upstream: tf.Tensor, *ignored: Any) -> Any:
    del ignored  # of the gradient that is computed ahead, and of what it assumes: no results
    if upstream is None:
        return None, None
    return _gradient(op, upstream, op.outputs[1], op.outputs[2], op.get_attr("site"))


def _gradient(op: Any, upstream: tf.Tensor, ahead: tf.Tensor, assumed: tf.Tensor, site: int) -> Any:
    x, vector = op.inputs
    of_factors = None if _is_unneeded(op, 1) else _of_vector(plain.of_factors, vector, x, upstream)
    return _of_x(x, vector, upstream, ahead, assumed, site), of_factors


def _of_x(
    x: tf.Tensor, vector: tf.Tensor, upstream: tf.Tensor, ahead: tf.Tensor, assumed: tf.Tensor, site: int
) -> tf.Tensor:
    if not tf.executing_eagerly() and in_xla():  # though the forward was not
        return plain.gradient(x, upstream, _of_tensor(vector))
    GRADIENT.prepare(x.dtype)
    with tf.device("CPU:0"):
        return GRADIENT(x, vector, upstream, ahead, assumed, site=site)


@GRADIENT.gradient
def _gradient_of_gradient(op: Any, v: tf.Tensor) -> Any:
    x, vector, upstream = op.inputs[:3]
    of_x, of_upstream = plain.second_order(x, upstream, v, _of_tensor(vector))
    unneeded = _is_unneeded(op, 1)
    of_factors = None if unneeded else _of_vector(plain.of_factors_of_gradient, vector, x, upstream, v)
    return of_x, of_factors, of_upstream, None, None


def _of_tensor(vector: tf.Tensor) -> Factors:
    value = tf.get_static_value(vector)
    return Factors(*tf.unstack(vector)) if value is None else Factors(*map(float, value))


def _of_vector(derivatives: Any, vector: tf.Tensor, *arguments: tf.Tensor) -> tf.Tensor:
    both = tf.unstack(vector)
    return tf.stack(derivatives(*arguments, both, Factors(*both)))


def _is_unneeded(op: Any, index: int) -> bool:
    """Whether nobody asks for the gradient with respect to this input."""
    if index in (getattr(op, "skip_input_indices", None) or ()):
        return True
    source = op.inputs[index]
    return not tf.executing_eagerly() and source.op.type == "Const"
