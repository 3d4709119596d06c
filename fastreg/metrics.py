"""The penalty apart from the rest of the loss, in what `fit` and `evaluate` log."""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from fastreg._tables.table import not_converted


@keras.saving.register_keras_serializable(package="fastreg")
class PenaltyMetric(keras.metrics.Mean):  # type: ignore[misc]
    """The mean of what a model's layers added to the loss: `loss` minus the loss that `compile` was given.

    These are penalties of weights and of activities, by whichever regularizer, with the tracked value of lazily
    regularised tables, and what layers hand to `add_loss`. Nothing is computed for it: it takes the sum of the tensors
    that Keras has added up for the loss of the step. Like `loss` it is a mean of batches, weighted by their sizes.

    Parameters
    ----------
    name : str, default "penalty"
    dtype : str, optional
        Of the mean; float32 by default.

    Raises
    ------
    ValueError
        When it is updated, if no `compute_loss` of Keras's came before in the step, as in a `train_step` that adds up
        `model.losses` itself. Use a `keras.metrics.Mean` of that sum there.

    Examples
    --------
    >>> model.compile(fastreg.LazyRegularization("adagrad"), "mse", metrics=[fastreg.PenaltyMetric()])
    """

    def __init__(self, name: str = "penalty", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        _watch()
        _alive.add(self)

    @not_converted
    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:  # noqa: ARG002
        """Take the penalty of the step, for so many examples as `y_pred` has."""
        step = _Step() if in_symbolic_scope() else _steps().get(threading.get_ident())  # of shapes only
        if step is None or self in step.taken_by:
            raise ValueError(
                f"The metric {self.name!r} has no penalty to take: expected a step whose loss Keras's compute_loss "
                "computes. Where a train_step or compute_loss of your own adds up model.losses, update a "
                "keras.metrics.Mean with that sum."
            )
        step.taken_by.add(self)
        losses = [tf.cast(loss, self.dtype) for loss in step.losses]
        penalty = tf.add_n(losses) if losses else tf.zeros((), self.dtype)
        super().update_state(penalty, sample_weight=tf.shape(y_pred)[0] if len(y_pred.shape) else 1)


class _Step:
    """What was added to the loss of a step, in the order of the additions.

    Attributes
    ----------
    losses : list of tf.Tensor
    taken_by : weakref.WeakSet
        Metrics that have counted them.
    """

    def __init__(self) -> None:
        self.losses: list[tf.Tensor] = []
        self.taken_by: weakref.WeakSet[PenaltyMetric] = weakref.WeakSet()


_alive: weakref.WeakSet[PenaltyMetric] = weakref.WeakSet()
_eager = threading.local()


def _steps() -> dict[int, _Step]:
    """The steps under way, by their threads: replicas have one each. Those of a graph are kept by it, for their tensors
    keep it.
    """
    holder: Any = _eager if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    if not hasattr(holder, "_fastreg_steps"):
        holder._fastreg_steps = {}
    found: dict[int, _Step] = holder._fastreg_steps
    return found


@functools.cache
def _watch() -> None:
    """Have models keep what they add to their loss, from when there is a metric of it."""
    compute_loss, aggregate = keras.Model._compute_loss, keras.Model._aggregate_additional_loss
    compute_metrics = keras.Model.compute_metrics

    @functools.wraps(compute_loss)
    def computed(model: keras.Model, *arguments: Any, **options: Any) -> Any:
        if _alive:
            _steps()[threading.get_ident()] = _Step()
        return compute_loss(model, *arguments, **options)

    @functools.wraps(aggregate)
    def aggregated(model: keras.Model, loss: Any) -> Any:
        if _alive and (step := _steps().get(threading.get_ident())) is not None:
            step.losses.append(keras.ops.sum(loss))
        return aggregate(model, loss)

    @functools.wraps(compute_metrics)
    def metrics_computed(model: keras.Model, *arguments: Any, **options: Any) -> Any:
        try:
            return compute_metrics(model, *arguments, **options)
        finally:
            _steps().pop(threading.get_ident(), None)

    keras.Model._compute_loss, keras.Model._aggregate_additional_loss = computed, aggregated
    keras.Model.compute_metrics = metrics_computed
