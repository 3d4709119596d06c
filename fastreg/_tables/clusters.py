"""The ops of tables on a GPU, in code that XLA does not compile: each is a cluster that it does compile, kept with the
variable, so that a step launches a few kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from fastreg._bridges.factors import Factors
from fastreg._tables import plain


def lookup(variable: Any, ids: tf.Tensor) -> tf.Tensor:
    """See `TableVariable.lookup`."""
    return plain.lookup(variable, ids, functools.partial(_run, plain.looked_up))


def weights(variable: Any) -> tf.Tensor:
    """A copy of the true weights, with the gradient of a whole read."""
    return plain.weights(variable, functools.partial(_run, plain.true_rows))


def update(variable: Any, gradient: Any, step: Any, factors: tf.Tensor) -> None:
    """See `TableVariable.update`."""

    def of_tensors(variable: Any, ids: tf.Tensor, gradient: tf.Tensor, factors: tf.Tensor, *tensors: tf.Tensor) -> None:
        rate, scale, number = tensors
        plain.update_rows(variable, ids, gradient, step._replace(rate=rate, scale=scale, number=number), factors)

    key = (step.rule, step.settings, tuple(map(id, step.slots)))
    _run(
        of_tensors,
        variable,
        gradient.ids,
        gradient.values,
        factors,
        step.rate,
        step.scale,
        step.number,
        key=key,
    )


def flush(variable: Any) -> None:
    """See `TableVariable.flush`."""
    _run(plain.flush, variable)


def penalty(variable: Any, factors: Factors, every: int) -> tf.Tensor:
    """See `TableVariable.penalty`."""
    return plain.penalty(variable, factors, every, functools.partial(_run, plain.penalty_value, every=every))


def count_zeros(variable: Any) -> tf.Tensor:
    """See `TableVariable.count_zeros`."""
    return _run(plain.count_zeros, variable)


def sum_duplicates(variable: Any, values: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sums of the rows that have the same id, and the ids, each once, with zeros, of no row, in between."""
    sums: tuple[tf.Tensor, tf.Tensor] = _run(plain.sum_duplicates, variable, values, ids)
    return sums


def _run(function: Callable[..., Any], variable: Any, *tensors: tf.Tensor, key: Any = None, **options: Any) -> Any:
    """Run a function of a variable and of tensors as a cluster; those of one name, options and key are the same."""
    key = (function.__name__, key, *options.items())
    if key not in variable.clusters:
        of_tensors = functools.partial(function, variable, **options)
        variable.clusters[key] = tf.function(of_tensors, jit_compile=True, autograph=False)
    with record.stop_recording():  # gradients are the callers'
        return variable.clusters[key](*tensors)
