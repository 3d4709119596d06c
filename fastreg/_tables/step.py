"""One training step of an optimizer with lazily regularised tables among its variables."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from fastreg._bridges import saving
from fastreg._tables import gradients, rules
from fastreg._tables.table import LazyTable, check_one_device

Pairs = list[tuple[Any, Any]]

_LARGEST = float(np.finfo(np.float64).max)


def take(optimizer: Any, rule: rules.Rule, grads: Sequence[Any], variables: Sequence[Any]) -> None:
    """Update tables by a rule, and other variables by an optimizer, which need not be the one whose rule it is.

    Errors are those of `fastreg.LazyRegularization.apply`.
    """
    if saving.is_saving():
        tables = ", ".join(repr(variable.path) for variable in variables if isinstance(variable, LazyTable))
        raise ValueError(
            f"A training step of the lazily regularised tables {tables} cannot be saved, for it needs fastreg. Take "
            "the function that trains out of what is saved, or save the model that fastreg.to_keras(model) returns."
        )
    _check_tables(rule, variables)
    rule.warn_of_decoupling([variable for variable in variables if isinstance(variable, LazyTable)])
    pairs = _present(grads, variables)
    dense = [(gradient, variable) for gradient, variable in pairs if not isinstance(variable, LazyTable)]
    sparse = [(_taken_apart(gradient, table), table) for gradient, table in pairs if isinstance(table, LazyTable)]
    of_tables = rule.optimizer
    if of_tables is optimizer:
        dense, sparse = _scaled_and_clipped(optimizer, optimizer.loss_scale_factor, dense, sparse)
    else:  # the other clips for itself
        _, sparse = _scaled_and_clipped(of_tables, optimizer.loss_scale_factor, [], sparse)
    # Both as they are before the optimizer counts this step.
    rate = tf.cast(tf.convert_to_tensor(of_tables.learning_rate), tf.float64)
    number = tf.cast(tf.convert_to_tensor(of_tables.iterations), tf.int64)
    one = tf.ones((), tf.float64)
    with tf.control_dependencies(_checks(rate, number, sparse)):
        for gradient, table in sparse:
            scale = one if isinstance(gradient.scale, float) else gradient.scale
            table.update(gradient, rule.step(table, rate, scale, number))
        if dense:
            with _of_one_replica(optimizer):
                optimizer.apply(*zip(*dense, strict=True))
        else:  # Keras's optimizers would not count a step that concerns none of their variables
            optimizer._iterations.assign_add(1)
        if of_tables is not optimizer:
            of_tables._iterations.assign_add(1)


def _check_tables(rule: rules.Rule, variables: Sequence[Any]) -> None:
    rule.check()
    check_one_device()
    for table in variables:
        if isinstance(table, LazyTable) and not rule.knows(table):
            raise ValueError(
                f"Unknown table {table.path!r}: expected those that the optimizer was built with. After layers were "
                "added or thawed, compile with a new fastreg.LazyRegularization."
            )


def _present(grads: Sequence[Any], variables: Sequence[Any]) -> Pairs:
    """Gradients and their variables; as in Keras's optimizers, an error if there is none, and a warning of those that
    are missing.
    """
    pairs = list(zip(grads, variables, strict=True))
    missing = [getattr(variable, "path", variable.name) for gradient, variable in pairs if gradient is None]
    if len(missing) == len(pairs):
        raise ValueError("No gradients provided for any variable.")
    if missing:
        warnings.warn(
            f"Gradients do not exist for variables {missing} when minimizing the loss. If using `model.compile()`, did "
            "you forget to provide a `loss` argument?",
            stacklevel=2,
        )
    return [(gradient, variable) for gradient, variable in pairs if gradient is not None]


def _taken_apart(gradient: Any, table: LazyTable) -> gradients.TableGradient:
    found: gradients.TableGradient = gradients.of_variable(gradient, table)
    if found.weight is None:
        table.warn_of_missing_penalty()
    return found


def _scaled_and_clipped(optimizer: Any, loss_scale: float | None, dense: Pairs, sparse: Pairs) -> tuple[Pairs, Pairs]:
    """What the optimizer asks of gradients, done to those of tables, and of others so far as these count in it."""
    fixed = 1.0 / (loss_scale or 1.0)
    if fixed != 1.0:
        sparse = [(gradient.scaled(fixed), table) for gradient, table in sparse]
    if not sparse or not (optimizer.clipnorm or optimizer.clipvalue or optimizer.global_clipnorm):
        return dense, sparse
    # What is asked of a gradient is asked of the sum for each row; else the update sums by itself.
    sparse = [(gradient.summed(table), table) for gradient, table in sparse]
    if not optimizer.global_clipnorm:
        return dense, [(gradient.clipped(optimizer), table) for gradient, table in sparse]
    unscaled = [gradients.scaled(gradient, fixed) for gradient, _ in dense]
    clip = gradients.joint_scale([*unscaled, *(gradient for gradient, _ in sparse)], optimizer.global_clipnorm)
    dense = [(gradients.scaled(gradient, clip), variable) for gradient, variable in dense]
    return dense, [(gradient._replace(scale=clip), table) for gradient, table in sparse]


def _checks(rate: tf.Tensor, number: tf.Tensor, sparse: Pairs) -> list[tf.Operation]:
    """That the learning rate and the weights of penalties are non-negative numbers, without which there is no shrink;
    one check for all tables.
    """
    received = tf.stack([rate, *(gradient.weight for gradient, _ in sparse if gradient.weight is not None)])
    valid = tf.reduce_all((received >= 0.0) & (received <= _LARGEST))
    tables = ", ".join(repr(table.path) for _, table in sparse)
    message = (
        f"Invalid learning rate, or weight of a penalty in the loss, for the tables {tables}: expected non-negative "
        "numbers. Received, in this step and with the learning rate first:"
    )
    # The op itself, without the branch around it that `tf.debugging.Assert` makes, and which takes longer.
    return [tf.raw_ops.Assert(condition=valid, data=[message, number, received], summarize=100)]


@contextmanager
def _of_one_replica(optimizer: Any) -> Iterator[None]:
    """Have an optimizer take gradients as they are, if there is nothing to sum them over: TensorFlow would register a
    gradient of that sum with every trace, for good, and so keep the graph and the memory of the model's variables.
    """
    if tf.distribute.has_strategy():
        yield
        return
    optimizer._all_reduce_sum_gradients = list
    try:
        yield
    finally:  # another thread may have been first
        vars(optimizer).pop("_all_reduce_sum_gradients", None)
