"""Keras's L1, L2 and L1L2 regularizers on compiled kernels."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from fastreg import _validation
from fastreg.ops import l1_l2_penalty


class _Penalty(keras.regularizers.Regularizer):  # type: ignore[misc]
    """What the three regularizers share: the penalty of whatever Keras hands to one."""

    factors: tuple[str, ...]
    """Names of the factors that a class has: attributes, and keys of its configuration."""

    def _penalty(self, x: Any, l1: Any, l2: Any) -> Any:
        if isinstance(x, keras.KerasTensor):  # a symbol without values: Keras infers shape and dtype only
            return _symbolic_penalty(x, l1, l2)
        return l1_l2_penalty(x, l1, l2)

    def get_config(self) -> dict[str, float]:
        """The factors as they are now, under the keys that Keras's own class uses."""
        return {name: _validation.known_factor(getattr(self, name), name) for name in self.factors}

    def __repr__(self) -> str:
        factors = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.factors)
        return f"fastreg.{type(self).__name__}({factors})"


@keras.saving.register_keras_serializable(package="fastreg")
class L1(_Penalty):
    """L1 penalty `l1 * sum(|x|)`, a drop-in for `keras.regularizers.L1`.

    Parameters
    ----------
    l1 : float, variable, scalar tensor or callable, default 0.01
        Non-negative factor; None means the default. What is no number gives the factor of each step, as for
        `l1_l2_penalty`; a configuration then has its value of the moment.

    Raises
    ------
    ValueError
        If the factor is a number that is negative or not finite, or something else that is no scalar.

    Notes
    -----
    The gradient is `l1 * sign(x)` with sign(0) = 0. The kernels accumulate in float64 and round the result to the
    dtype of x, where Keras accumulates in that dtype. Keras rounds the factor to float32 even for float64 weights;
    fastreg does not.

    Examples
    --------
    >>> layer = keras.layers.Dense(8, kernel_regularizer=fastreg.L1(1e-4))
    """

    factors = ("l1",)

    l1: Any

    def __init__(self, l1: Any = 0.01) -> None:
        self.l1 = _validation.factor_or_source(0.01 if l1 is None else l1, "l1")

    def __call__(self, x: Any) -> tf.Tensor:
        """The penalty of x: a scalar tensor of x's dtype."""
        return self._penalty(x, self.l1, 0.0)


@keras.saving.register_keras_serializable(package="fastreg")
class L2(_Penalty):
    """L2 penalty `l2 * sum(x²)`, a drop-in for `keras.regularizers.L2`.

    Parameters
    ----------
    l2 : float, variable, scalar tensor or callable, default 0.01
        Non-negative factor; None means the default. What is no number gives the factor of each step, as for
        `l1_l2_penalty`; a configuration then has its value of the moment.

    Raises
    ------
    ValueError
        If the factor is a number that is negative or not finite, or something else that is no scalar.

    Notes
    -----
    The gradient is `2 * l2 * x`. For accumulation and rounding see `L1`.

    Examples
    --------
    >>> layer = keras.layers.Embedding(1_000_000, 64, embeddings_regularizer=fastreg.L2(1e-6))
    """

    factors = ("l2",)

    l2: Any

    def __init__(self, l2: Any = 0.01) -> None:
        self.l2 = _validation.factor_or_source(0.01 if l2 is None else l2, "l2")

    def __call__(self, x: Any) -> tf.Tensor:
        """The penalty of x: a scalar tensor of x's dtype."""
        return self._penalty(x, 0.0, self.l2)


@keras.saving.register_keras_serializable(package="fastreg")
class L1L2(_Penalty):
    """Elastic-net penalty `l1 * sum(|x|) + l2 * sum(x²)`, a drop-in for `keras.regularizers.L1L2`.

    Parameters
    ----------
    l1, l2 : float, variable, scalar tensor or callable, default 0.0
        Non-negative factors, as for `L1`; None means the default.

    Raises
    ------
    ValueError
        If a factor is a number that is negative or not finite, or something else that is no scalar.

    Notes
    -----
    Both sums come from one read of x. The gradient is `l1 * sign(x) + 2 * l2 * x` with sign(0) = 0. For accumulation
    and rounding see `L1`.

    Examples
    --------
    >>> layer = keras.layers.Dense(8, kernel_regularizer=fastreg.L1L2(l1=1e-5, l2=1e-4))
    """

    factors = ("l1", "l2")

    l1: Any
    l2: Any

    def __init__(self, l1: Any = 0.0, l2: Any = 0.0) -> None:
        self.l1 = _validation.factor_or_source(0.0 if l1 is None else l1, "l1")
        self.l2 = _validation.factor_or_source(0.0 if l2 is None else l2, "l2")

    def __call__(self, x: Any) -> tf.Tensor:
        """The penalty of x: a scalar tensor of x's dtype."""
        return self._penalty(x, self.l1, self.l2)


REPLACEMENTS = {keras.regularizers.L1: L1, keras.regularizers.L2: L2, keras.regularizers.L1L2: L1L2}
"""fastreg's class for each of Keras's. Subclasses of Keras's are other regularizers, and have none."""


def l1(l: float = 0.01) -> L1:  # noqa: E741 - the classic name of the argument
    """An `L1` regularizer, in Keras's classic spelling."""
    return L1(l)


def l2(l: float = 0.01) -> L2:  # noqa: E741 - the classic name of the argument
    """An `L2` regularizer, in Keras's classic spelling."""
    return L2(l)


def l1_l2(l1: float = 0.01, l2: float = 0.01) -> L1L2:
    """An `L1L2` regularizer, in Keras's classic spelling and with its defaults.

    In Keras 3 `keras.regularizers.l1_l2` is the class itself, whose factors default to zero.
    """
    return L1L2(l1=l1, l2=l2)


def replaced(regularizer: Any) -> _Penalty:
    """Fastreg's regularizer in the place of one of Keras's, with the same factors, which may be variables.

    Keras's constructors take numbers only, but its regularizers compute with whatever their attributes are set to.
    """
    replacement = REPLACEMENTS[type(regularizer)]
    return replacement(**{name: getattr(regularizer, name) for name in replacement.factors})


def _symbolic_penalty(x: keras.KerasTensor, l1: Any, l2: Any) -> Any:
    terms = []
    for name, factor, magnitude in (("l1", l1, keras.ops.absolute), ("l2", l2, keras.ops.square)):
        factor = _validation.called_factor(factor, name)
        if not isinstance(factor, float):  # read when the model runs; of another dtype perhaps
            terms.append(keras.ops.cast(keras.ops.multiply(factor, keras.ops.sum(magnitude(x))), x.dtype))
        elif factor != 0.0:
            terms.append(factor * keras.ops.sum(magnitude(x)))
    return sum(terms[1:], terms[0]) if terms else keras.ops.zeros((), x.dtype)
