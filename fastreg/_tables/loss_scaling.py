"""Dynamic loss scaling where there are lazily regularised tables.

Keras's `LossScaleOptimizer`, which `compile` puts around an optimizer under `mixed_float16`, checks that gradients are
finite by making the sparse ones dense. Where a table is among the variables, the step is therefore taken here: the same
step, with the scale, counter and settings of that optimizer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from fastreg._tables import gradients
from fastreg._tables.table import LazyTable


def apply(
    scaler: keras.optimizers.LossScaleOptimizer,
    grads: Sequence[Any],
    variables: Sequence[Any],
    inner: Callable[[Sequence[Any], Sequence[Any]], None],
) -> None:
    """Unscale gradients and apply them by `inner`, if they are finite, and adapt the scale."""
    grads = [gradients.of_variable(gradient, variable) for gradient, variable in zip(grads, variables, strict=True)]

    def take() -> None:
        inner([gradients.scaled(gradient, 1.0 / scaler.dynamic_scale) for gradient in grads], variables)
        full = scaler.step_counter >= scaler.dynamic_growth_steps - 1
        scaler.dynamic_scale.assign(tf.where(full, scaler.dynamic_scale * 2.0, scaler.dynamic_scale))
        scaler.step_counter.assign(tf.where(full, tf.zeros_like(scaler.step_counter.value), scaler.step_counter + 1))

    def skip() -> None:
        scaler.dynamic_scale.assign(scaler.dynamic_scale * 0.5)
        scaler.step_counter.assign(0)

    keras.ops.cond(gradients.all_finite(grads), take, skip)


def keep_gradients_sparse() -> None:
    """Have Keras's `LossScaleOptimizer` take its steps here where a table is among the variables; importing again
    replaces what the first import did.
    """
    original = getattr(keras.optimizers.LossScaleOptimizer.apply, "_fastreg_original", None)
    original = original or keras.optimizers.LossScaleOptimizer.apply

    @functools.wraps(original)
    def applied(self: Any, grads: Any, trainable_variables: Any = None) -> None:
        variables = self._trainable_variables if trainable_variables is None else list(trainable_variables)
        if not any(isinstance(variable, LazyTable) for variable in variables):
            original(self, grads, trainable_variables)
            return
        if isinstance(self.inner_optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "Invalid value for argument inner_optimizer: expected one that does not scale the loss. "
                f"Received: {type(self.inner_optimizer).__name__} in a LossScaleOptimizer"
            )
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        apply(self, list(grads), variables, self.inner_optimizer.apply)

    applied._fastreg_original = original  # type: ignore[attr-defined]
    keras.optimizers.LossScaleOptimizer.apply = applied
