"""A whole training step of a dense weight in one pass: the penalty's gradient, an optimizer's update, and the penalty
sums of what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from fastreg_kernels import _arrays
from fastreg_kernels.cpu.jit import inner, jit
from fastreg_kernels.cpu.launch import blocks, run, sharing
from fastreg_kernels.cpu.penalty import accumulate, block_bounds, coefficients_of, derivative, folded
from fastreg_kernels.cpu.vector import (
    LANES,
    keep_nan,
    load_part,
    signed,
    square_root,
    store_part,
    total,
    zeros,
)

RULES = {
    "sgd": ((), ()),
    "momentum": (("momentum",), ("momentum",)),
    "nesterov": (("momentum",), ("momentum",)),
    "adam": (("momentum", "velocity"), ("beta_1", "beta_2", "epsilon")),
    "adagrad": (("accumulator",), ("epsilon",)),
    "rmsprop": (("velocity",), ("rho", "epsilon")),
    "lion": (("momentum",), ("beta_1", "beta_2")),
}
"""Slots and hyper-parameters of each rule, in their order."""


def update_dense(
    rule: str,
    x: NDArray[Any],
    gradient: NDArray[Any],
    slots: Sequence[NDArray[Any]],
    learning_rate: float,
    settings: Sequence[float] = (),
    step: int = 0,
    l1: float = 0.0,
    l2: float = 0.0,
    weight_decay: float = 0.0,
) -> NDArray[np.float64]:
    """One training step of a weight, in place, with the gradient of `l1 * sum(|x|) + l2 * sum(x²)` added to its own.

    With g the whole gradient, of the weights before the step, η the learning rate and λ the weight decay, x first
    becomes `x - λ·η·x`, and then

    - sgd: `x - η·g`
    - momentum: `m ← μ·m - η·g`, `x + m`; nesterov: with the same m, `x + μ·m - η·g`
    - adam: `m ← m + (g - m)·(1 - β1)`, `v ← v + (g² - v)·(1 - β2)`,
      `x - η·sqrt(1 - β2^t) / (1 - β1^t) · m / (sqrt(v) + ε)` with t the number of this step, from 1
    - adagrad: `n ← n + g²`, `x - η·g / sqrt(n + ε)`
    - rmsprop: `v ← ρ·v + (1 - ρ)·g²`, `x - η·g / sqrt(v + ε)`
    - lion: `x - η·sign(β1·m + (1 - β1)·g)`, then `m ← β2·m + (1 - β2)·g`

    as Keras's optimizers of these names do, in float32 for the half types.

    Parameters
    ----------
    rule : str
        One of these.
    x : ndarray of float32, float64, float16 or bfloat16
        Any contiguous shape; writable.
    gradient : ndarray
        Of the rest of the loss: shape, dtype and layout of `x`.
    slots : sequence of ndarray
        Those that the rule has, as `gradient`, and writable.
    learning_rate : float
        Non-negative.
    settings : sequence of float
        μ; β1, β2, ε; ε; ρ, ε; β1, β2.
    step : int
        Steps before this one; adam asks for it.
    l1, l2, weight_decay : float
        Non-negative factors; one of zero skips its term.

    Returns
    -------
    ndarray of float64, shape (2,)
        `[sum(|x|), sum(x²)]` of the new weights, with the bits of `forward`.

    Raises
    ------
    TypeError, ValueError
        If an argument has another type, dtype, shape, layout or range, or if arrays overlap.

    Notes
    -----
    Each array is read once, and x and the slots are written once: with float32, 12 bytes per weight for sgd, 20 with
    one slot and 28 with two.
    """
    if rule not in RULES:
        raise ValueError(f"Invalid value for argument rule: expected one of {tuple(RULES)}. Received: rule={rule!r}")
    names, of_settings = RULES[rule]
    if len(slots) != len(names):
        raise ValueError(f"Invalid value for argument slots: expected {len(names)} for {rule}. Received: {len(slots)}")
    if len(settings) != len(of_settings):
        raise ValueError(
            f"Invalid value for argument settings: expected {of_settings} for {rule}. Received: {settings}"
        )
    flat = _arrays.stored(_arrays.in_place(x, "x").reshape(-1, order="A"))
    dtype = _arrays.arithmetic_dtype(x.dtype)
    others = [_arrays.beside(x, gradient, "gradient", False)]
    others += [_arrays.beside(x, slot, f"slots[{i}]", True) for i, slot in enumerate(slots)]
    _arrays.check_apart([flat, *others], ["x", "gradient", *(f"slots[{i}]" for i in range(len(slots)))])
    rate = _arrays.factor(learning_rate, "learning_rate")
    numbers = [_arrays.scalar(number, name) for number, name in zip(settings, of_settings, strict=True)]
    kind = dtype.type
    terms = coefficients_of(x, l1, l2, 1.0)
    decay = _arrays.factor(weight_decay, "weight_decay") * rate
    arrays = (flat, others[0], (*others[1:], *[flat] * (2 - len(slots))))
    of_rule = tuple(kind(number) for number in _coefficients(rule, rate, numbers, int(step)))
    shrinking = None if decay == 0.0 else kind(decay)
    result: NDArray[np.float64] = run(_KERNELS[rule], flat.size, *arrays, *terms, shrinking, of_rule)
    return result


def _coefficients(rule: str, rate: float, settings: list[float], step: int) -> tuple[float, ...]:
    """What the formula of a rule multiplies by, in float64."""
    if rule == "adam":
        beta_1, beta_2, epsilon = settings
        alpha = rate * np.sqrt(1.0 - beta_2 ** (step + 1)) / (1.0 - beta_1 ** (step + 1))
        return alpha, 1.0 - beta_1, 1.0 - beta_2, epsilon
    if rule == "rmsprop":
        return rate, settings[0], 1.0 - settings[0], settings[1]
    if rule == "lion":
        return rate, settings[0], 1.0 - settings[0], settings[1], 1.0 - settings[1]
    return rate, *settings


# Each takes the weights, decayed, and their gradient, updates the slots, and returns the new weights.


@inner
def _sgd(w, g, slots, i, count, c):
    return w - c[0] * g


@inner
def _momentum(w, g, slots, i, count, c):
    m = c[1] * load_part(slots[0], i, count) - c[0] * g
    store_part(slots[0], i, m, count)
    return w + m


@inner
def _nesterov(w, g, slots, i, count, c):
    m = c[1] * load_part(slots[0], i, count) - c[0] * g
    store_part(slots[0], i, m, count)
    return w + (c[1] * m - c[0] * g)


@inner
def _adam(w, g, slots, i, count, c):
    alpha, rest_1, rest_2, epsilon = c
    m, v = load_part(slots[0], i, count), load_part(slots[1], i, count)
    m, v = m + (g - m) * rest_1, v + (g * g - v) * rest_2
    store_part(slots[0], i, m, count)
    store_part(slots[1], i, v, count)
    return w - alpha * m / (square_root(v) + epsilon)


@inner
def _adagrad(w, g, slots, i, count, c):
    n = load_part(slots[0], i, count) + g * g
    store_part(slots[0], i, n, count)
    return w - c[0] * g / square_root(n + c[1])


@inner
def _rmsprop(w, g, slots, i, count, c):
    rate, rho, rest, epsilon = c
    v = rho * load_part(slots[0], i, count) + rest * (g * g)
    store_part(slots[0], i, v, count)
    return w - rate * g / square_root(v + epsilon)


@inner
def _lion(w, g, slots, i, count, c):
    rate, beta_1, rest_1, beta_2, rest_2 = c
    m = load_part(slots[0], i, count)
    direction = beta_1 * m + rest_1 * g
    store_part(slots[0], i, beta_2 * m + rest_2 * g, count)
    return w - keep_nan(signed(rate, direction), direction)


def _whole(g, w, l1, l2):
    """The gradient with the penalty's; coefficients of None skip their terms."""
    raise NotImplementedError  # compiled code only


@overload(_whole)
def _whole_gradient(g, w, l1, l2):
    if isinstance(l1, types.NoneType) and isinstance(l2, types.NoneType):
        return lambda g, w, l1, l2: g
    return lambda g, w, l1, l2: g + derivative(w, l1, l2)


def _decayed(w, decay):
    raise NotImplementedError  # compiled code only


@overload(_decayed)
def _decayed_or_not(w, decay):
    if isinstance(decay, types.NoneType):
        return lambda w, decay: w
    return lambda w, decay: w - decay * w


def _on_blocks(take: Any) -> Any:
    """A function that shares the blocks of a weight out, on which a rule's step is taken."""

    @inner
    def advance(x, gradient, slots, i, count, l1, l2, decay, c, sum_abs, sum_sq):
        w = load_part(x, i, count)
        g = _whole(load_part(gradient, i, count), w, l1, l2)
        store_part(x, i, take(_decayed(w, decay), g, slots, i, count, c), count)
        return accumulate(load_part(x, i, count), sum_abs, sum_sq)  # what was stored, after its rounding

    @inner
    def task(first, last, x, gradient, slots, l1, l2, decay, c, partials):
        for block in range(first, last):
            start, tail, stop = block_bounds(block, x.size)
            sum_abs, sum_sq = zeros(), zeros()
            for i in range(start, tail, LANES):
                sum_abs, sum_sq = advance(x, gradient, slots, i, LANES, l1, l2, decay, c, sum_abs, sum_sq)
            if tail < stop:
                sum_abs, sum_sq = advance(x, gradient, slots, tail, stop - tail, l1, l2, decay, c, sum_abs, sum_sq)
            partials[block, 0] = total(sum_abs)
            partials[block, 1] = total(sum_sq)

    return sharing(task)


_share_sgd, _share_momentum, _share_nesterov = _on_blocks(_sgd), _on_blocks(_momentum), _on_blocks(_nesterov)
_share_adam, _share_adagrad = _on_blocks(_adam), _on_blocks(_adagrad)
_share_rmsprop, _share_lion = _on_blocks(_rmsprop), _on_blocks(_lion)


@inner
def _step(share, x, gradient, slots, l1, l2, decay, c):
    partials = np.empty((blocks(x.size), 2))
    share(blocks(x.size), x.size, (x, gradient, slots, l1, l2, decay, c, partials))
    return folded(partials)


# Each by its name, since compiled code is kept by names.


@jit
def step_sgd(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by SGD."""
    return _step(_share_sgd, x, gradient, slots, l1, l2, decay, c)


@jit
def step_momentum(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by SGD with momentum."""
    return _step(_share_momentum, x, gradient, slots, l1, l2, decay, c)


@jit
def step_nesterov(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by SGD with Nesterov's momentum."""
    return _step(_share_nesterov, x, gradient, slots, l1, l2, decay, c)


@jit
def step_adam(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by Adam."""
    return _step(_share_adam, x, gradient, slots, l1, l2, decay, c)


@jit
def step_adagrad(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by Adagrad."""
    return _step(_share_adagrad, x, gradient, slots, l1, l2, decay, c)


@jit
def step_rmsprop(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by RMSprop."""
    return _step(_share_rmsprop, x, gradient, slots, l1, l2, decay, c)


@jit
def step_lion(x, gradient, slots, l1, l2, decay, c):
    """`update_dense` by Lion."""
    return _step(_share_lion, x, gradient, slots, l1, l2, decay, c)


_KERNELS = {
    "sgd": step_sgd,
    "momentum": step_momentum,
    "nesterov": step_nesterov,
    "adam": step_adam,
    "adagrad": step_adagrad,
    "rmsprop": step_rmsprop,
    "lion": step_lion,
}
