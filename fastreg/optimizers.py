"""The optimizer wrapper that trains lazily regularised tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from fastreg._bridges import support
from fastreg._changes import Changes
from fastreg._tables import gradients, rules
from fastreg._tables.table import LazyTable, not_converted


@keras.saving.register_keras_serializable(package="fastreg")
class LazyRegularization(keras.optimizers.LossScaleOptimizer):  # type: ignore[misc]
    """Optimizer that updates the tables of `fastreg.Embedding` row by row, and everything else as it did before.

    Dense variables, and their regularizers, are the wrapped optimizer's business. A lazily regularised table gets, at
    every step, the shrink of its penalty (see `fastreg.Embedding`) and then, for the rows that the step looked up, the
    wrapped optimizer's update with the same learning rate, schedule, clipping and other options. Slots of rows that are
    not looked up stay as they are.

    Parameters
    ----------
    optimizer : str, dict or keras.optimizers.Optimizer, default "sgd"
        SGD without momentum, Adagrad or Adam without `amsgrad`; without weight decay, moving averages and gradient
        accumulation. A `LossScaleOptimizer` around one of these is unwrapped, and its settings and state are kept.
    rowwise : bool, default False
        With Adagrad: one accumulator per row, of the mean of the row's squared gradients, for the tables.
    initial_scale, dynamic_growth_steps
        Of dynamic loss scaling, as in `keras.optimizers.LossScaleOptimizer`. An `initial_scale` of None, the default,
        means 2**15 under the policy `mixed_float16`, where Keras too would scale the loss by itself, and no scaling
        elsewhere or if the optimizer has a `loss_scale_factor`.
    name : str, optional

    Raises
    ------
    ValueError
        If the optimizer, or one of its options, has no row-wise form.

    Notes
    -----
    With SGD and L2 the weights are those of Keras's dense training, up to rounding. The data gradient is clipped, the
    penalty is not. A step that loss scaling skips shrinks nothing; a step that looks up no row of a table shrinks it; a
    frozen table is left alone.

    It derives from Keras's `LossScaleOptimizer` because it does that class's work: Keras's own check for finite
    gradients would make the sparse gradient dense.

    Examples
    --------
    >>> model.compile(fastreg.LazyRegularization("adagrad", rowwise=True), "mse")
    """

    built: bool

    def __init__(
        self,
        optimizer: Any = "sgd",
        rowwise: bool = False,
        initial_scale: float | None = None,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
    ) -> None:
        inner = keras.optimizers.get(optimizer)
        if isinstance(inner, LazyRegularization):
            raise ValueError("Invalid value for argument optimizer: expected one that is not wrapped already.")
        scaling = None
        if isinstance(inner, keras.optimizers.LossScaleOptimizer):
            initial_scale, dynamic_growth_steps = inner.initial_scale, inner.dynamic_growth_steps
            scaling, inner = inner, inner.inner_optimizer
        rule, fixed = rules.rule_of(inner, rowwise), inner.loss_scale_factor
        if initial_scale is None and fixed is None and keras.config.dtype_policy().name == "mixed_float16":
            initial_scale = 2.0**15
        super().__init__(inner, initial_scale=initial_scale, dynamic_growth_steps=dynamic_growth_steps, name=name)
        if initial_scale is None:
            inner.loss_scale_factor = fixed  # which the class above takes away, to scale by itself
        self.rowwise, self._rule = rowwise, rule
        if initial_scale is not None:  # at once, for the first trace scales the loss before it builds the optimizer
            self.step_counter = self.add_variable((), dtype="int", name="step_counter")
            scale = keras.initializers.Constant(initial_scale)
            self.dynamic_scale = self.add_variable((), scale, dtype="float32", name="dynamic_scale")
            if scaling is not None and scaling.built:
                self.step_counter.assign(scaling.step_counter)
                self.dynamic_scale.assign(scaling.dynamic_scale)

    def build(self, variables: Sequence[Any]) -> None:
        """Make the slots: of tables here, of other variables in the wrapped optimizer."""
        if self.built:
            return
        with Changes() as changes:
            self._build(list(variables), changes)
        self.inner_optimizer.build([variable for variable in variables if not isinstance(variable, LazyTable)])

    @property
    def variables(self) -> list[keras.Variable]:
        """Its own and the wrapped optimizer's, with the slots of tables where that one would have them."""
        inner = self._rule.in_order(self._trainable_variables)
        others = {id(variable) for variable in inner}
        return [variable for variable in self._variables if id(variable) not in others] + inner

    def take_over(self, changes: Changes) -> None:
        """Go on where the wrapped optimizer stopped, if it was built: what it keeps for tables becomes this one's."""
        if not self.inner_optimizer.built:
            return
        variables = list(self.inner_optimizer._trainable_variables)
        if self.built:
            self._add_tables(variables, changes)
        else:
            self._build(variables, changes)

    def _build(self, variables: list[Any], changes: Changes) -> None:
        rules.set_list(self, "_trainable_variables", variables)
        self._add_tables(variables, changes)
        self.built = True

    def _add_tables(self, variables: Sequence[Any], changes: Changes) -> None:
        """Make the slots of the tables among these variables; what the wrapped optimizer has for them goes over."""
        tables = [variable for variable in variables if isinstance(variable, LazyTable)]
        changes.callback(rules.set_variables, self, list(self._variables))
        for table in tables:
            self._rule.build(table, self._add_slot, changes)
        if self.inner_optimizer.built:
            self._rule.release(tables, changes)

    @not_converted
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Update variables by their gradients.

        Raises
        ------
        NotImplementedError
            While tracing for XLA, if there is a table.
        ValueError
            If a table is new to the optimizer.
        """
        if trainable_variables is None:
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        pairs = list(zip(grads, variables, strict=True))
        dense = [(gradient, variable) for gradient, variable in pairs if not isinstance(variable, LazyTable)]
        sparse = [(gradient, table) for gradient, table in pairs if isinstance(table, LazyTable)]
        if sparse:
            self._check(sparse)
            sparse = [(None if g is None else gradients.sparse(g, table), table) for g, table in sparse]
        inner = self.inner_optimizer
        if self.initial_scale is not None or inner.clipnorm or inner.clipvalue or inner.global_clipnorm:
            # What is asked of a gradient is asked of the sum for each row; else the update sums by itself.
            sparse = [(None if g is None else gradients.summed(g, table), table) for g, table in sparse]
        if self.initial_scale is None:
            self._apply(dense, sparse, 1.0 / (inner.loss_scale_factor or 1.0), 1.0)
            return
        finite = gradients.all_finite([gradient for gradient, _ in (*dense, *sparse)])
        keras.ops.cond(finite, lambda: self._apply_scaled(dense, sparse), self._stateful_handle_non_finite_grads)

    def scale_loss(self, loss: Any) -> Any:
        """The loss times the loss scale, if there is one."""
        return self.inner_optimizer.scale_loss(loss) if self.initial_scale is None else loss * self.dynamic_scale

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        return {
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "rowwise": self.rowwise,
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LazyRegularization:
        """The reverse of `get_config`."""
        optimizer = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects=custom_objects)
        return cls(**{**config, "optimizer": optimizer})

    def _add_slot(
        self, table: LazyTable, name: str, shape: tuple[int, ...], initializer: Any, dtype: str
    ) -> keras.Variable:
        with keras.name_scope(self.name, caller=self):
            slot = rules.Slot(
                initializer,
                shape=shape,
                dtype=dtype,
                trainable=False,
                name=f"{table.path.replace('/', '_')}_{name}",
            )
        self._track_variable(slot)
        return slot

    def _check(self, sparse: Sequence[tuple[Any, LazyTable]]) -> None:
        if support.in_xla():
            raise NotImplementedError(
                "Lazily regularised tables cannot be trained in code that XLA compiles. "
                "Compile the model with jit_compile=False."
            )
        for _, table in sparse:
            if not self._rule.knows(table):
                raise ValueError(f"Unknown table {table.path!r}: expected those that the optimizer was built with.")

    def _apply_scaled(self, dense: Sequence[tuple[Any, Any]], sparse: Sequence[tuple[Any, LazyTable]]) -> None:
        factor = 1.0 / self.dynamic_scale
        self._apply(dense, sparse, factor, factor)
        full = self.step_counter >= self.dynamic_growth_steps - 1
        self.dynamic_scale.assign(tf.where(full, self.dynamic_scale * 2.0, self.dynamic_scale))
        self.step_counter.assign(tf.where(full, tf.zeros_like(self.step_counter.value), self.step_counter + 1))

    def _apply(
        self, dense: Sequence[tuple[Any, Any]], sparse: Sequence[tuple[Any, LazyTable]], of_tables: Any, of_others: Any
    ) -> None:
        """Apply gradients that are to be multiplied by these scales; those of others once more by the wrapped
        optimizer's own `loss_scale_factor`, if it has one.
        """
        inner = self.inner_optimizer
        scale = tf.cast(of_tables, tf.float64)
        if not isinstance(of_others, float):
            dense = [(gradients.scaled(gradient, of_others), variable) for gradient, variable in dense]
        if inner.global_clipnorm and inner.global_clipnorm > 0 and any(gradient is not None for gradient, _ in sparse):
            fixed = 1.0 / (inner.loss_scale_factor or 1.0)
            unscaled = [gradients.scaled(gradient, fixed) for gradient, _ in dense]
            unscaled += [gradients.scaled(gradient, scale) for gradient, _ in sparse]
            clip = gradients.joint_scale(unscaled, inner.global_clipnorm)
            dense = [(gradients.scaled(gradient, clip), variable) for gradient, variable in dense]
            scale *= clip
        elif inner.clipnorm or inner.clipvalue:
            sparse = [
                (None if g is None else gradients.clipped(gradients.scaled(g, scale), inner), t) for g, t in sparse
            ]
            scale = tf.ones((), tf.float64)
        # Both as they are before the wrapped optimizer counts this step.
        rate = tf.cast(tf.convert_to_tensor(inner.learning_rate), tf.float64)
        number = tf.cast(tf.convert_to_tensor(inner.iterations), tf.int64)
        for gradient, table in sparse:
            table.update(gradient, self._rule.step(table, rate, scale, number))
        if any(gradient is not None for gradient, _ in dense):
            inner.apply(*zip(*dense, strict=True))
        else:  # Keras's optimizers would not count a step that concerns none of their variables
            inner._iterations.assign_add(1)
