"""The native ops of penalties: their definitions, gradients, and how a penalty becomes one of them."""

from __future__ import annotations

import itertools
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from fastreg._bridges import plain
from fastreg._bridges.factors import Factors
from fastreg._bridges.native import penalty_kernels as kernels
from fastreg._bridges.native import shapes
from fastreg._bridges.native.op import FLOATS, VARIANT, VARIANT_TYPES, VARIANTS, Op
from fastreg._bridges.support import in_xla, on_host, tape_is_active

VALUE = Op(
    "FastregPenalty", ("x: T", "factors: double"), ("value: T",), shapes.scalar, kernels.value, attributes=(FLOATS,)
)
AHEAD = Op(
    "FastregPenaltyAhead",
    ("x: T", "factors: double"),
    ("value: T", "ahead: T", "assumed: double"),
    shapes.value_and_gradient,
    kernels.value_and_gradient,
    attributes=(FLOATS, VARIANT_TYPES, "site: int"),
    create=kernels.site,
    types=("T", VARIANT),
)
GRADIENT = Op(
    "FastregPenaltyGradient",
    ("x: T", "factors: double", "upstream: T", "ahead: T", "assumed: double"),
    ("gradient: T",),
    shapes.like_first_input,
    kernels.gradient,
    attributes=(FLOATS, VARIANT_TYPES, "site: int"),
    create=kernels.site,
    types=("T", VARIANT),
)
OPS = (VALUE, AHEAD, GRADIENT)

_sites = itertools.count()


def penalty(x: tf.Tensor, factors: Factors) -> tf.Tensor:
    """The penalty of x by a native op.

    In training, value and gradient are computed in one read of x: the forward writes the gradient as well, for the
    upstream gradient of the last two backwards, and the backward hands it over if it has the same. If not, it computes
    its own. Where no tape records, no gradient will be asked for, and none is written.
    """
    with on_host():
        vector = factors.vector()
        if not tape_is_active():
            VALUE.prepare(x.dtype)
            return VALUE(x, vector)
        terms = terms_of(factors)
        AHEAD.prepare(x.dtype, terms)
        GRADIENT.prepare(x.dtype, terms)
        if tf.executing_eagerly():
            return _recorded(x, vector, factors, VARIANTS[terms])
        return AHEAD(x, vector, **_attributes(VARIANTS[terms], next(_sites)))[0]


def _attributes(variant: tf.DType, site: int) -> dict[str, Any]:
    return {VARIANT: variant, "site": site % kernels.SITES}


def terms_of(factors: Factors) -> int:
    """The variant of the ops that write a gradient."""
    if factors.tensors:
        return kernels.ANY
    return kernels.L1_L2 if factors.has(0) and factors.has(1) else kernels.L1 if factors.has(0) else kernels.L2


def _recorded(x: tf.Tensor, vector: tf.Tensor, factors: Factors, variant: tf.DType) -> tf.Tensor:
    """The penalty of an eager tensor, recorded as an operation with one output.

    For outputs that nobody uses, as the gradient that is computed ahead, a tape would make zeros of their size.
    """
    # Nothing is known of a penalty, by which it is recognised in the next step, but what is penalised.
    site = hash((x.shape.rank, x.shape.num_elements(), x.dtype))
    with record.stop_recording():
        value, ahead, assumed = AHEAD(x, vector, **_attributes(variant, site))

    def backward(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        slope = _slope(x, vector, upstream, ahead, assumed, variant, site)
        return slope, _of_vector(plain.of_factors, vector, x, upstream) if factors.tensors else None

    record.record_operation(AHEAD.name, [value], [x, vector], backward)
    return value


@VALUE.gradient
def _gradient_of_value(op: Any, upstream: tf.Tensor) -> Any:
    variant = VARIANTS[terms_of(_of_tensor(op.inputs[1]))]
    return _gradient(op, upstream, op.inputs[0], tf.zeros(2, tf.float64), variant, next(_sites))


@AHEAD.gradient
def _gradient_of_value_and_gradient(op: Any, upstream: tf.Tensor, *ignored: Any) -> Any:
    del ignored  # of the gradient that is computed ahead, and of what it assumes: no results
    if upstream is None:
        return None, None
    return _gradient(op, upstream, op.outputs[1], op.outputs[2], op.get_attr(VARIANT), op.get_attr("site"))


def _gradient(op: Any, upstream: tf.Tensor, ahead: tf.Tensor, assumed: tf.Tensor, variant: tf.DType, site: int) -> Any:
    x, vector = op.inputs
    of_factors = None if _is_unneeded(op, 1) else _of_vector(plain.of_factors, vector, x, upstream)
    return _slope(x, vector, upstream, ahead, assumed, variant, site), of_factors


def _slope(
    x: tf.Tensor,
    vector: tf.Tensor,
    upstream: tf.Tensor,
    ahead: tf.Tensor,
    assumed: tf.Tensor,
    variant: tf.DType,
    site: int,
) -> tf.Tensor:
    """The gradient with respect to x."""
    if in_xla():  # though the forward was not
        return plain.gradient(x, upstream, _of_tensor(vector))
    GRADIENT.prepare(x.dtype, VARIANTS.index(variant))
    with on_host():
        return GRADIENT(x, vector, upstream, ahead, assumed, **_attributes(variant, site))


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
