"""The optimizer wrapper that trains lazily regularised tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from fastreg._bridges import support
from fastreg._changes import Changes
from fastreg._tables import loss_scaling, rules, step
from fastreg._tables.forwarding import forward
from fastreg._tables.table import LazyTable, not_converted

loss_scaling.keep_gradients_sparse()


@keras.saving.register_keras_serializable(package="fastreg")
class LazyRegularization(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Optimizer that updates the tables of `fastreg.Embedding` row by row, and everything else as it did before.

    Dense variables, and their regularizers, are the wrapped optimizer's business. A lazily regularised table gets, at
    every step, the shrink of its penalty (see `fastreg.Embedding`) and then, for the rows that the step looked up, the
    wrapped optimizer's update with the same learning rate, schedule, clipping and other options. Slots of rows that are
    not looked up stay as they are.

    Parameters
    ----------
    optimizer : str, dict or keras.optimizers.Optimizer, default "sgd"
        SGD or RMSprop without momentum, Adagrad, Adam or AdamW without `amsgrad`, or Ftrl; without moving averages and
        gradient accumulation. Or a `LossScaleOptimizer` around one of these, by which the loss is then scaled.
    rowwise : bool, default False
        With Adagrad, Adam and AdamW: for the tables, one number per row that follows the mean of the row's squared
        gradients, where the optimizer has one per weight.
    implicit : bool, default False
        Whether the step of the penalty is the proximal one, `sign(w) · max(0, |w| − η·l1) / (1 + 2·η·l2)`, in the place
        of `sign(w) · max(0, (1 − 2·η·l2)·|w| − η·l1)`. It differs by (2·η·l2)² of a weight at most, and takes any l2,
        where the other is an error from 2·η·l2 = 1 on.
    name : str, optional
    tables : str, dict or keras.optimizers.Optimizer, optional
        What the tables are updated by, one of those named above, not yet used; then `optimizer`, which updates the
        rest, can be any. It has a learning rate or schedule, and clipping, of its own; `optimizer` is the one that
        scales the loss, and whose learning rate callbacks read and set.

    Attributes
    ----------
    inner_optimizer : keras.optimizers.Optimizer
        The one that is wrapped. Its options can be read and set on the wrapper too.
    tables_optimizer : keras.optimizers.Optimizer or None
        The other.

    Raises
    ------
    ValueError
        If the optimizer, or one of its options, has no row-wise form.

    Notes
    -----
    With SGD and L2 the weights are those of Keras's dense training, up to rounding. Weight decay is the optimizer's
    own, of all rows at every step, and as lazy: an l2 of half of it (also where that is implicit), which is in no loss.
    Ftrl has penalties of its own, for which the rows that are looked up pay; a table that it trains can have no other.
    The shrink follows the loss, as
    Keras's does: of half the penalty it is half, and where the loss leaves the penalty out there is none. The data
    gradient is clipped, the penalty is not. A step that loss scaling skips shrinks nothing; a step that looks up no row
    of a table shrinks it; a frozen table, and one without a gradient, is left alone.

    Keras's `compile` scales the loss as it would with the wrapped optimizer: `mixed_float16` puts a
    `LossScaleOptimizer` around this one. In a `MultiOptimizer` the wrapper stands inside, around the optimizers that
    tables are assigned to.

    Examples
    --------
    >>> model.compile(fastreg.LazyRegularization("adagrad", rowwise=True), "mse")
    """

    built: bool

    def __new__(cls, optimizer: Any = "sgd", *arguments: Any, **options: Any) -> Any:  # noqa: ARG004
        """Of a class that Keras knows as one that scales the loss, if it does."""
        scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or (
            isinstance(optimizer, dict) and optimizer.get("class_name") == "LossScaleOptimizer"
        )
        return super().__new__(LossScaledLazyRegularization if scales and cls is LazyRegularization else cls)

    def __init__(
        self,
        optimizer: Any = "sgd",
        rowwise: bool = False,
        implicit: bool = False,
        name: str | None = None,
        tables: Any = None,
    ) -> None:
        inner = keras.optimizers.get(optimizer)
        if isinstance(unscaled(inner), LazyRegularization):
            raise ValueError("Invalid value for argument optimizer: expected one that is not wrapped already.")
        of_tables = None if tables is None else _of_tables(tables, inner)
        rule = rules.rule_of(of_tables or unscaled(inner), rowwise, implicit, unscaled(inner))
        keras.optimizers.Optimizer.__init__(self, learning_rate=0.0, name=name)
        self.inner_optimizer, self.tables_optimizer = inner, of_tables
        self.rowwise, self.implicit, self._rule = rowwise, implicit, rule

    def build(self, variables: Sequence[Any]) -> None:
        """Make the slots: of tables here, of other variables in the wrapped optimizer."""
        if self.built:
            return
        with Changes() as changes:
            self._build(list(variables), changes)
        if not self.inner_optimizer.built:
            self.inner_optimizer.build([variable for variable in variables if not isinstance(variable, LazyTable)])

    def take_over(self, changes: Changes) -> None:
        """Go on where the wrapped optimizer stopped, if it was built: what it keeps for tables becomes this one's."""
        inner = unscaled(self.inner_optimizer)
        if not inner.built:
            return
        variables = list(inner._trainable_variables)
        if self.built:
            self._add_tables(variables, changes)
        else:
            self._build(variables, changes)

    @not_converted
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Update variables by their gradients.

        Raises
        ------
        ValueError
            If there is no gradient, or not one for each variable; if a table is new to the optimizer, or has a dense
            gradient; if an option that was set since has no row-wise form.
        tf.errors.InvalidArgumentError
            At run time, if the learning rate, or the weight of a penalty in the loss, is negative or not finite.
        """
        grads = list(grads)
        if not grads:
            return  # as Keras's optimizers
        variables = self._variables_of(grads, trainable_variables)
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(variables)
        if any(isinstance(variable, LazyTable) for variable in variables):
            self._apply(grads, variables)
        else:
            self.inner_optimizer.apply(grads, variables)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """As Keras's optimizers, at the end of `fit`; raises what went wrong in a step that XLA compiled.

        Raises
        ------
        tf.errors.InvalidArgumentError
            If a table was given an id that is none of its rows, or a shrink that would turn weights around.
        """
        for variable in var_list:
            if isinstance(variable, LazyTable):
                variable.raise_fault()
        super().finalize_variable_values(var_list)

    def scale_loss(self, loss: Any) -> Any:
        """The loss times the loss scale, if there is one."""
        return self.inner_optimizer.scale_loss(loss)

    @property
    def variables(self) -> list[keras.Variable]:
        """The state: what the wrapped optimizer would have, in its order, with the slots of tables where it would have
        them. Files therefore go into an optimizer for which other variables are tables, or none, and the reverse.
        """
        inner = self.inner_optimizer
        of_others = [] if unscaled(inner) is inner else list(inner._variables)
        if self.tables_optimizer is not None:
            of_others += unscaled(inner).variables
        return of_others + self._rule.in_order(self._trainable_variables)

    @property
    def learning_rate(self) -> Any:
        """The wrapped optimizer's."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner_optimizer.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """The wrapped optimizer's steps."""
        return self.inner_optimizer.iterations

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """As Keras's optimizers, of the wrapped one, and of that of the tables."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)
        if self.tables_optimizer is not None:
            self.tables_optimizer.exclude_from_weight_decay(var_list, var_names)

    def stateless_apply(self, optimizer_variables: Any, grads: Any, trainable_variables: Any) -> Any:
        """Not with TensorFlow, as Keras's optimizers."""
        return keras.optimizers.Optimizer.stateless_apply(self, optimizer_variables, grads, trainable_variables)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state, of `variables`, also to that of versions that counted the model's variables in.

        Raises
        ------
        ValueError
            If the number of weights is another.
        """
        if len(weights) == len(self.variables):
            for variable, weight in zip(self.variables, weights, strict=True):
                variable.assign(weight)
        elif not self._load_indexed(weights):
            raise ValueError(
                f"Invalid value for argument weights: expected {len(self.variables)} arrays. Received: {len(weights)}"
            )

    def load_own_variables(self, store: Any) -> None:
        """As Keras's optimizers, also of files of versions that counted the model's variables in."""
        names = list(store.keys())
        if len(names) == len(self.variables) or not self._load_indexed(
            [store[name] for name in sorted(names, key=int)]
        ):
            super().load_own_variables(store)

    def get_config(self) -> dict[str, Any]:
        """What the constructor takes."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        config = {"optimizer": inner, "rowwise": self.rowwise, "implicit": self.implicit, "name": self.name}
        if self.tables_optimizer is not None:
            config["tables"] = keras.saving.serialize_keras_object(self.tables_optimizer)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> LazyRegularization:
        """The reverse of `get_config`, also of files of versions that scaled the loss themselves."""
        config = dict(config)
        optimizer = keras.saving.deserialize_keras_object(config.pop("optimizer"), custom_objects=custom_objects)
        scale, growth = config.pop("initial_scale", None), config.pop("dynamic_growth_steps", 2000)
        if scale is not None:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=scale, dynamic_growth_steps=growth)
        return cls(optimizer, **config)

    def _variables_of(self, grads: Sequence[Any], variables: Sequence[Any] | None) -> list[Any]:
        if variables is None and not self.built:
            raise ValueError(
                "Missing argument trainable_variables: expected variables, for the optimizer is not built."
            )
        variables = list(self._trainable_variables if variables is None else variables)
        if len(grads) != len(variables):
            raise ValueError(
                f"Invalid value for argument grads: expected one for each of {len(variables)} variables. "
                f"Received: {len(grads)} gradients"
            )
        return variables

    def _build(self, variables: list[Any], changes: Changes) -> None:
        self._rule.check()
        self._add_tables(variables, changes)
        keras.optimizers.Optimizer.build(self, variables)

    def _add_tables(self, variables: Sequence[Any], changes: Changes) -> None:
        """Make the slots of the tables among these variables; what the wrapped optimizer has for them goes over."""
        tables = [variable for variable in variables if isinstance(variable, LazyTable)]
        changes.callback(rules.set_variables, self, list(self._variables))
        for table in tables:
            self._rule.build(table, self._add_slot, changes)
        if self._rule.optimizer.built:
            self._rule.release(tables, changes)

    def _add_slot(
        self, table: LazyTable, name: str, shape: tuple[int, ...], initializer: Any, dtype: str
    ) -> keras.Variable:
        with keras.name_scope(self.name, caller=self), support.beside(table._value):
            slot = rules.Slot(
                initializer,
                shape=shape,
                dtype=dtype,
                trainable=False,
                name=f"{table.path.replace('/', '_')}_{name}",
            )
        self._track_variable(slot)
        return slot

    def _load_indexed(self, values: Sequence[Any]) -> bool:
        """Load what versions stored that counted the model's variables in, if these are such values: iteration and
        learning rate, step counter and scale where they scaled the loss, the model's variables, slots of tables, and
        the wrapped optimizer's.
        """
        kept = [*self._rule.slots, *unscaled(self.inner_optimizer).variables]
        first = len(values) - len(kept)
        of_scale = first - 2 - len(self._trainable_variables)
        if of_scale not in (0, 2):
            return False
        if of_scale and isinstance(self, LossScaledLazyRegularization):
            self.step_counter.assign(values[2])
            self.dynamic_scale.assign(values[3])
        for variable, value in zip(kept, values[first:], strict=True):
            variable.assign(value)
        return True

    def _apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        """A step with a table among the variables."""
        step.take(unscaled(self.inner_optimizer), self._rule, grads, variables)


@keras.saving.register_keras_serializable(package="fastreg")
class LossScaledLazyRegularization(LazyRegularization, keras.optimizers.LossScaleOptimizer):  # type: ignore[misc]
    """What `LazyRegularization` is around a `LossScaleOptimizer`, which scales the loss, and whose settings and state
    are read and set here too.
    """

    @property
    def loss_scale_factor(self) -> None:
        """None, for the scale is dynamic."""

    @loss_scale_factor.setter
    def loss_scale_factor(self, value: Any) -> None:
        if value is not None:
            raise ValueError(
                "Invalid value for attribute loss_scale_factor: expected None, for a LossScaleOptimizer scales the "
                f"loss. Received: loss_scale_factor={value!r}"
            )

    def _apply(self, grads: Sequence[Any], variables: Sequence[Any]) -> None:
        loss_scaling.apply(self.inner_optimizer, grads, variables, super()._apply)


def _of_tables(optimizer: Any, inner: Any) -> Any:
    """The optimizer of tables, which is not the one that is wrapped and does not scale the loss.

    Raises
    ------
    ValueError
        If it is none such.
    """
    found = keras.optimizers.get(optimizer)
    scales = isinstance(found, keras.optimizers.LossScaleOptimizer) or found.loss_scale_factor
    wraps = isinstance(found, LazyRegularization) or found in (inner, unscaled(inner))
    if scales or wraps or found.built:
        raise ValueError(
            "Invalid value for argument tables: expected an optimizer apart from the other, that does not scale the "
            f"loss and was not used before. Received: {found}"
        )
    return found


def unscaled(optimizer: Any) -> Any:
    """The optimizer in a `LossScaleOptimizer`, or the optimizer."""
    is_scaler = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    return optimizer.inner_optimizer if is_scaler and not isinstance(optimizer, LazyRegularization) else optimizer


def unwrapped(optimizer: Any) -> Any:
    """The optimizer within a `LossScaleOptimizer` and a `LazyRegularization`, in either order, or the optimizer."""
    inside = unscaled(optimizer)
    return unscaled(inside.inner_optimizer) if isinstance(inside, LazyRegularization) else inside


forward(LazyRegularization, rules.OPTIONS, unscaled)
forward(
    LossScaledLazyRegularization,
    ("initial_scale", "dynamic_growth_steps", "dynamic_scale", "step_counter"),
    lambda scaler: scaler,
)
