"""Compiled code only: one optimizer step of a lazily regularised table, from the gradient of a lookup to the written
rows.

Duplicates are summed in the order of the lookup, clipped by a scale, turned into a step by the rule of the optimizer,
whose slots are updated in place, and subtracted from the shrunk rows (`rows.update`). The bits do not depend on the
number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from fastreg_kernels.cpu import launch, rows
from fastreg_kernels.cpu.jit import inner
from fastreg_kernels.cpu.shrink import shrunk
from fastreg_kernels.cpu.vector import (
    LANES,
    add_squares,
    in_order,
    load_part,
    soft_threshold,
    square_root,
    store_part,
    total,
    zeros,
)

SGD, ADAGRAD, ROWWISE_ADAGRAD, ADAM, ROWWISE_ADAM, RMSPROP, CENTERED_RMSPROP, FTRL = range(8)
"""Rules. With g the summed gradient, η the learning rate and t the number of this step, from 1:

- SGD: `η · g`
- Adagrad: `n ← n + g²`, then `η · g / sqrt(n + ε)`, with an accumulator per weight
- row-wise Adagrad: `n ← n + mean(g²)` over the row, then `η · g / sqrt(n + ε)`, with an accumulator per row
- Adam: `m ← m + (g − m)·(1 − β1)`, `v ← v + (g² − v)·(1 − β2)`, then
  `η · sqrt(1 − β2^t) / (1 − β1^t) · m / (sqrt(v) + ε)`
- row-wise Adam: the same, with `v ← v + (mean(g²) − v)·(1 − β2)`, a v per row
- RMSprop: `v ← ρ·v + (1 − ρ)·g²`, then `η · g / sqrt(v + ε)`
- centred RMSprop: with `a ← ρ·a + (1 − ρ)·g` besides, `η · g / sqrt(v − a² + ε)`
- Ftrl, which knows no shrink: `z ← z + g + 2·λs·w − (sqrt(n + g²) − sqrt(n)) / η · w`, `n ← n + g²`, and the new weight
  is `−sign(z) · max(0, |z| − λ1) / ((sqrt(n) + β) / η + 2·λ2)`
"""


@inner
def slots(count):
    """How many slots `distinct` needs for so many ids."""
    size = 16
    while size < 2 * count:
        size *= 2
    return size


@inner
def distinct(ids, slots, unique, positions):
    """The distinct ids in the order of their first occurrence; `positions` becomes the position of each id among them.

    The memory is the caller's: `unique` and `positions`, of the size of the ids, and `slots` of int32, all -1. What an
    inner function has, when it finds no more, nobody gives back.
    """
    return unique[: rows.unique_ids(ids, slots, unique, positions)]


@inner
def summed(values, positions, count, scale, width):
    """The sums of the rows of `values` that have the same position, times a scale, as an array of `count` rows."""
    sums = np.zeros(count * width, values.dtype)
    _share_sum_range(count, values.size, (values, positions, sums, width))
    _multiply(sums, scale)
    return sums


@inner
def summed_of_bags(values, splits, weights, positions, count, scale, width):
    """The same where each row of `values` is that of a bag of positions, and counts for each with its weight; see
    `rows.sum_bags`.
    """
    sums = np.zeros(count * width, values.dtype)
    _share_sum_bags_range(count, positions.size * width, (values, splits, weights, positions, sums, width))
    _multiply(sums, scale)
    return sums


@inner
def _multiply(sums, scale):
    if scale != 1.0:
        factor = sums.dtype.type(scale)
        for i in range(sums.size):
            sums[i] *= factor


@inner
def _sum_range(first, last, values, positions, sums, width):
    """Of the positions from `first` to before `last`: each is one thread's, so that the order of additions is one."""
    for i in range(positions.size):
        if first <= positions[i] < last:
            source, target = i * width, positions[i] * width
            for column in range(0, width, LANES):
                count = min(LANES, width - column)
                total_so_far = load_part(sums, target + column, count)
                store_part(sums, target + column, total_so_far + load_part(values, source + column, count), count)


_share_sum_range = launch.sharing(_sum_range)


@inner
def _sum_bags_range(first, last, values, splits, weights, positions, sums, width):
    for bag in range(splits.size - 1):
        source = bag * width
        for i in range(splits[bag], splits[bag + 1]):
            if first <= positions[i] < last:
                target = positions[i] * width
                weight = weights[i] if weights.size else values.dtype.type(1)
                for column in range(0, width, LANES):
                    count = min(LANES, width - column)
                    added = weight * load_part(values, source + column, count)
                    store_part(sums, target + column, load_part(sums, target + column, count) + added, count)


_share_sum_bags_range = launch.sharing(_sum_bags_range)


@inner
def _sgd(first, last, table, gradient, where, width, slots, rate, settings, step):
    eta = gradient.dtype.type(rate)
    for i in range(first * width, last * width, LANES):
        count = min(LANES, last * width - i)
        store_part(gradient, i, eta * load_part(gradient, i, count), count)


@inner
def _adagrad(first, last, table, gradient, where, width, slots, rate, settings, step):
    accumulator, eta, small = slots[0], gradient.dtype.type(rate), gradient.dtype.type(settings[0])
    for k in range(first, last):
        source, target = k * width, where[k] * width
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            g = load_part(gradient, source + column, count)
            n = load_part(accumulator, target + column, count) + g * g
            store_part(accumulator, target + column, n, count)
            store_part(gradient, source + column, eta * g / square_root(n + small), count)


@inner
def _rowwise_adagrad(first, last, table, gradient, where, width, slots, rate, settings, step):
    accumulator, kind = slots[0], gradient.dtype.type
    for k in range(first, last):
        source = k * width
        accumulator[where[k]] += kind(_mean_of_squares(gradient, source, width))
        factor = kind(rate) / np.sqrt(accumulator[where[k]] + kind(settings[0]))
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            store_part(gradient, source + column, factor * load_part(gradient, source + column, count), count)


@inner
def _mean_of_squares(gradient, source, width):
    """Of a row, in float64."""
    squares = zeros()
    for column in range(0, width, LANES):
        squares = add_squares(squares, load_part(gradient, source + column, min(LANES, width - column)))
    return total(squares) / width


@inner
def _adam(first, last, table, gradient, where, width, slots, rate, settings, step):
    kind = gradient.dtype.type
    rest_1, rest_2, small = kind(1.0 - settings[0]), kind(1.0 - settings[1]), kind(settings[2])
    alpha = kind(_rate_of_adam(rate, settings, step))
    for k in range(first, last):
        source, target = k * width, where[k] * width
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            g = load_part(gradient, source + column, count)
            m, v = load_part(slots[0], target + column, count), load_part(slots[1], target + column, count)
            m, v = m + (g - m) * rest_1, v + (g * g - v) * rest_2
            store_part(slots[0], target + column, m, count)
            store_part(slots[1], target + column, v, count)
            store_part(gradient, source + column, alpha * m / (square_root(v) + small), count)


@inner
def _rate_of_adam(rate, settings, step):
    return rate * np.sqrt(1.0 - settings[1] ** (step + 1)) / (1.0 - settings[0] ** (step + 1))


@inner
def _rowwise_adam(first, last, table, gradient, where, width, slots, rate, settings, step):
    kind = gradient.dtype.type
    rest_1, rest_2 = kind(1.0 - settings[0]), kind(1.0 - settings[1])
    for k in range(first, last):
        source, target = k * width, where[k] * width
        v = slots[1][where[k]]
        v += (kind(_mean_of_squares(gradient, source, width)) - v) * rest_2
        slots[1][where[k]] = v
        factor = kind(_rate_of_adam(rate, settings, step)) / (np.sqrt(v) + kind(settings[2]))
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            m = load_part(slots[0], target + column, count)
            m = m + (load_part(gradient, source + column, count) - m) * rest_1
            store_part(slots[0], target + column, m, count)
            store_part(gradient, source + column, factor * m, count)


@inner
def _rmsprop(first, last, table, gradient, where, width, slots, rate, settings, step):
    kind = gradient.dtype.type
    rho, rest, eta, small = kind(settings[0]), kind(1.0 - settings[0]), kind(rate), kind(settings[1])
    for k in range(first, last):
        source, target = k * width, where[k] * width
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            g = load_part(gradient, source + column, count)
            v = rho * load_part(slots[0], target + column, count) + rest * (g * g)
            store_part(slots[0], target + column, v, count)
            store_part(gradient, source + column, eta * g / square_root(v + small), count)


@inner
def _centered_rmsprop(first, last, table, gradient, where, width, slots, rate, settings, step):
    kind = gradient.dtype.type
    rho, rest, eta, small = kind(settings[0]), kind(1.0 - settings[0]), kind(rate), kind(settings[1])
    for k in range(first, last):
        source, target = k * width, where[k] * width
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            g = load_part(gradient, source + column, count)
            v = rho * load_part(slots[0], target + column, count) + rest * (g * g)
            a = rho * load_part(slots[1], target + column, count) + rest * g
            store_part(slots[0], target + column, v, count)
            store_part(slots[1], target + column, a, count)
            store_part(gradient, source + column, eta * g / square_root(v - a * a + small), count)


@inner
def _ftrl(first, last, table, gradient, where, width, slots, rate, settings, number):
    x, stamps = table
    kind = gradient.dtype.type
    l1, twice_l2, pull = kind(settings[0]), kind(2.0 * settings[1]), kind(2.0 * settings[2])
    beta, inverse = kind(settings[3]), kind(1.0 / rate)
    for k in range(first, last):
        source, target = k * width, where[k] * width
        scale, threshold = rows.shrink_of(stamps, where[k])
        a, b = kind(scale), kind(threshold)
        for column in range(0, width, LANES):
            count = min(LANES, width - column)
            g = load_part(gradient, source + column, count)
            w = in_order(x, shrunk(load_part(x, target + column, count), a, b))
            n = load_part(slots[0], target + column, count)
            grown = n + g * g
            root = square_root(grown)
            z = load_part(slots[1], target + column, count) + g + pull * w - inverse * (root - square_root(n)) * w
            store_part(slots[0], target + column, grown, count)
            store_part(slots[1], target + column, z, count)
            # What makes of the weight the new one: of a new zero it is w itself, and w − w is +0.
            step = w + soft_threshold(abs(z) - l1, z) / (inverse * (root + beta) + twice_l2)
            store_part(gradient, source + column, step, count)


def apply(rule, x, stamps, where, gradient, state, measured, changes, width):
    """Update the rows `where`, each of which occurs once; `gradient` is theirs, and is written over.

    Parameters
    ----------
    rule : int
        Known when this is compiled.
    x, stamps, measured, changes, width
        As in `rows.update`; `changes` is empty where they are not wanted.
    state : tuple
        What the rule needs: a tuple of two slots, which are flat arrays in the dtype of the gradient, empty where the
        rule has fewer; the learning rate; an array of float64, `[ε]` of the Adagrads, `[β1, β2, ε]` of the Adams,
        `[ρ, ε]` of the RMSprops, `[λ1, λ2, λs, β]` of Ftrl; and the number of steps before this one.
    """
    raise NotImplementedError  # compiled code only


@overload(apply, prefer_literal=True)
def _apply_rule(rule, x, stamps, where, gradient, state, measured, changes, width):
    share = _SHARES[rule.literal_value]

    def shared(rule, x, stamps, where, gradient, state, measured, changes, width):
        share(
            rows.groups(where.size),
            gradient.size,
            (x, stamps, where, gradient, state, measured, changes, width),
        )

    return shared


def _applying(take_step: Any) -> Any:
    """The task of a rule; the step is its function."""

    @inner
    def task(first, last, x, stamps, where, gradient, state, measured, changes, width):
        for group in range(first, last):
            start, stop = group * rows.GROUP, min((group + 1) * rows.GROUP, where.size)
            take_step(start, stop, (x, stamps), gradient, where, width, *state)
            if changes.size:
                rows.update(group, x, stamps, where, gradient, measured, changes, width)
            else:
                rows.update(group, x, stamps, where, gradient, measured, None, width)

    return task


_STEPS = {
    SGD: _sgd,
    ADAGRAD: _adagrad,
    ROWWISE_ADAGRAD: _rowwise_adagrad,
    ADAM: _adam,
    ROWWISE_ADAM: _rowwise_adam,
    RMSPROP: _rmsprop,
    CENTERED_RMSPROP: _centered_rmsprop,
    FTRL: _ftrl,
}
_SHARES = {rule: launch.sharing(_applying(take_step)) for rule, take_step in _STEPS.items()}
