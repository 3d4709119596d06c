"""Keras's L1, L2 and L1L2 regularizers on compiled kernels."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from fastreg import _validation
from fastreg.ops import l1_l2_penalty


class _Penalty(keras.regularizers.Regularizer):  # type: ignore[misc]
    """What the three regularizers share: the penalty of whatever Keras hands to one."""

    # Not in the dictionary of attributes, which is that of the regularizer that this one stands for.
    __slots__ = ("_stands_for",)

    factors: tuple[str, ...]
    """Names of the factors that a class has: attributes, and keys of its configuration."""

    def _penalty(self, x: Any, l1: Any, l2: Any) -> Any:
        original = getattr(self, "_stands_for", None)
        if original is not None and _is_refused(x):
            return original(x)  # of integers it is zero, and a model that trained goes on
        if isinstance(x, keras.KerasTensor):  # a symbol without values: Keras infers shape and dtype only
            return _symbolic_penalty(x, l1, l2)
        return l1_l2_penalty(x, l1, l2)

    def get_config(self) -> dict[str, float]:
        """The factors as they are now, under the keys that Keras's own class uses."""
        return {name: _validation.known_factor(getattr(self, name), name) for name in self.factors}

    def __repr__(self) -> str:
        factors = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.factors)
        own = type(self) in REPLACEMENTS.values()
        return f"{'fastreg.' if own else ''}{type(self).__name__}({factors})"


@keras.saving.register_keras_serializable(package="fastreg")
class L1(_Penalty, keras.regularizers.L1):  # type: ignore[misc]
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
class L2(_Penalty, keras.regularizers.L2):  # type: ignore[misc]
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
class L1L2(_Penalty, keras.regularizers.L1L2):  # type: ignore[misc]
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


def l1(l1: Any = None, *, l: Any = None) -> L1:  # noqa: E741 - the classic name of the argument
    """An `L1` regularizer, in Keras's lower-case spelling. `l` is the classic name of `l1`, by default 0.01."""
    return L1(_one_of(l1, l, "l1"))


def l2(l2: Any = None, *, l: Any = None) -> L2:  # noqa: E741 - the classic name of the argument
    """An `L2` regularizer, in Keras's lower-case spelling. `l` is the classic name of `l2`, by default 0.01."""
    return L2(_one_of(l2, l, "l2"))


def l1_l2(l1: float = 0.01, l2: float = 0.01) -> L1L2:
    """An `L1L2` regularizer, in Keras's classic spelling and with its defaults.

    In Keras 3 `keras.regularizers.l1_l2` is the class itself, whose factors default to zero.
    """
    return L1L2(l1=l1, l2=l2)


def _one_of(factor: Any, classic: Any, name: str) -> Any:
    if factor is not None and classic is not None:
        raise ValueError(
            f"Invalid value for argument l: expected none together with {name}, of which it is another name. "
            f"Received: l={classic!r}, {name}={factor!r}"
        )
    return factor if classic is None else classic


def replaced(regularizer: Any) -> _Penalty:
    """Fastreg's regularizer in the place of one of Keras's. Both have one set of attributes: what is set on one, the
    other has.

    Raises
    ------
    ValueError
        If a factor is a number that is negative or not finite, or something else that is no scalar.
    """
    cls = REPLACEMENTS[type(regularizer)]
    for name in cls.factors:  # Keras's constructors take numbers only, but they can be set to anything later
        _validation.factor_or_source(getattr(regularizer, name), name)
    replacement = cls.__new__(cls)
    replacement.__dict__ = regularizer.__dict__  # type: ignore[misc]
    replacement._stands_for = regularizer
    return replacement


def lazy_penalty(regularizer: Any, owner: str) -> _Penalty | None:
    """Fastreg's regularizer for one that a table shall be regularised by row by row; None for None.

    Parameters
    ----------
    regularizer : object
        Whatever `keras.regularizers.get` knows.
    owner : str
        What it was given as, for the error: "argument embeddings_regularizer".

    Raises
    ------
    ValueError
        If it cannot be applied row by row.
    """
    found = keras.regularizers.get(regularizer)
    if found is None:
        return None
    obstacle = lazy_obstacle(found)
    if obstacle is not None:
        raise ValueError(
            f"Invalid value for {owner}: expected fastreg.L1, L2 or L1L2, which can be applied row by row. "
            f"Received: {found!r}, {obstacle}. Use keras.layers.Embedding for it."
        )
    return found if isinstance(found, _Penalty) else replaced(found)


def lazy_obstacle(regularizer: Any) -> str | None:
    """Why a regularizer cannot be applied lazily, or None: a lazy table knows what it does by its factors alone."""
    cls: Any = type(regularizer)
    if cls in REPLACEMENTS:
        return None
    if not isinstance(regularizer, _Penalty):
        return "which is no L1, L2 or L1L2 of fastreg's or Keras's"
    base = next(base for base in cls.__mro__ if base in REPLACEMENTS.values())
    changed = [name for name in ("__call__", "_penalty", "factors") if getattr(cls, name) is not getattr(base, name)]
    # A factor that the class computes would be taken as it is when a step is traced.
    changed += [name for name in base.factors if inspect.getattr_static(cls, name, None) is not None]
    return f"which is a subclass of {base.__name__} with its own {' and '.join(changed)}" if changed else None


def _is_refused(x: Any) -> bool:
    """Whether there is no penalty of fastreg's for it: sparse tensors, and what is not floating."""
    return isinstance(x, tf.SparseTensor) or not keras.backend.is_float_dtype(getattr(x, "dtype", "float32"))


def _symbolic_penalty(x: keras.KerasTensor, l1: Any, l2: Any) -> Any:
    terms = []
    for name, factor, magnitude in (("l1", l1, keras.ops.absolute), ("l2", l2, keras.ops.square)):
        factor = _validation.called_factor(factor, name)
        if not isinstance(factor, float):  # read when the model runs; of another dtype perhaps
            terms.append(keras.ops.cast(keras.ops.multiply(factor, keras.ops.sum(magnitude(x))), x.dtype))
        elif factor != 0.0:
            terms.append(factor * keras.ops.sum(magnitude(x)))
    return sum(terms[1:], terms[0]) if terms else keras.ops.zeros((), x.dtype)
