"""Whether native ops can be had in this process: found out once, before the first use of each.

Symbols and registration are tried for all ops, each kernel by what it computes of known numbers; so a kernel is
compiled when it is to be used, and not before.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from fastreg_kernels import _shared
from fastreg_kernels.cpu import updates

from fastreg._bridges import counters, state, support
from fastreg._bridges.factors import Factors
from fastreg._bridges.native import capi, penalty_ops, table_ops
from fastreg._bridges.native.messages import NAME
from fastreg._bridges.native.op import VARIANT, VARIANTS
from fastreg._bridges.native.penalty_kernels import L1, L2

_found: list[str] = []
_lock = _shared.lock_for_forks(threading.RLock())


def obstacle() -> str | None:
    """Why native ops cannot serve in this process, as far as is known, or None."""
    return _registration() or (_found[0] if _found else None)


def penalty_obstacle(dtype: tf.DType, factors: Factors | None) -> str | None:
    """Why penalties of this dtype, with such factors, cannot be computed by native ops, or None."""
    return _registration() or (None if factors is None else _penalty(dtype, penalty_ops.terms_of(factors)))


def table_obstacle(dtype: tf.DType, rule: int | None = None) -> str | None:
    """Why tables of this dtype cannot be looked up, or updated by a rule, by native ops, or None."""
    return _registration() or (_lookup(dtype) if rule is None else _update(dtype, rule))


def write_obstacle(dtype: tf.DType, ids_dtype: tf.DType) -> str | None:
    """Why rows of tables of this dtype cannot be written by native ops, or None."""
    return _registration() or _write(dtype, ids_dtype)


def _probe(test: Callable[..., None]) -> Callable[..., str | None]:
    """Run a test once for all arguments, and keep what was wrong: whatever it is, other ways serve, and `info` says
    why.
    """

    @functools.cache
    def once(*arguments: Any) -> str | None:
        try:
            with tf.init_scope(), counters.not_counted(), tf.device("CPU:0"):
                test(*arguments)
        except Exception as error:
            reason = f"native ops cannot be used: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            _found.append(reason)
            return reason
        return None

    def run(*arguments: Any) -> str | None:
        with _lock:  # other threads wait for the first, instead of doing the same
            return once(*arguments)

    return run


@_probe
def _registration() -> None:
    if sys.platform == "win32":
        raise capi.UnavailableError("there are none on Windows")
    capi.library()
    for op in (*penalty_ops.OPS, *table_ops.OPS):
        op.define()


@_probe
def _penalty(dtype: tf.DType, terms: int) -> None:
    l1, l2 = (0.5, 0.0) if terms == L1 else (0.0, 0.25) if terms == L2 else (0.5, 0.25)
    x, vector = tf.constant([3.0, -2.0, 0.0], dtype), tf.constant([l1, l2], tf.float64)
    penalty_ops.VALUE.prepare(dtype)
    penalty_ops.AHEAD.prepare(dtype, terms)
    penalty_ops.GRADIENT.prepare(dtype, terms)
    options = {VARIANT: VARIANTS[terms], "site": 0}
    value, ahead, assumed = penalty_ops.AHEAD(x, vector, **options)
    gradient = penalty_ops.GRADIENT(x, vector, tf.constant(2.0, dtype), ahead, assumed, **options)
    expected = 5 * l1 + 13 * l2
    _compare([value, penalty_ops.VALUE(x, vector)], [expected, expected])
    _compare(gradient, [2 * l1 + 12 * l2, -2 * l1 - 8 * l2, 0.0])


@_probe
def _lookup(dtype: tf.DType) -> None:
    table_ops.LOOKUP.prepare(dtype, tf.int32)
    table = _table(dtype)
    _compare(
        table_ops.LOOKUP(*_inputs(table), tf.constant([1, 0]), **{NAME: "probe"}),
        [[0.5, 0.0], [1.0, -2.0]],
    )


@_probe
def _write(dtype: tf.DType, ids_dtype: tf.DType) -> None:
    table_ops.WRITE_ROWS.prepare(dtype, ids_dtype)
    table = _table(dtype)
    values = tf.constant([[4.0, -8.0]], dtype)
    table_ops.WRITE_ROWS(*_inputs(table), tf.constant([1], ids_dtype), values, **{NAME: "probe"})
    _compare(table[0].read_value(), [[1.0, -2.0], [4.0, -8.0]])
    _compare(table[1].read_value(), [1.0, 1.0])


@_probe
def _update(dtype: tf.DType, rule: int) -> None:
    """A learning rate of 1/4 with l2 of 1 halves weights; each rule then subtracts what it makes of a gradient of
    zero, and of slots that are 1; Ftrl makes new weights of these.
    """
    table_ops.UPDATE.prepare(dtype, tf.int32, rule)
    table = _table(dtype)
    arithmetic = support.arithmetic_dtype(dtype)
    slot = table_ops.memory(tf.Variable(tf.ones((2, 2), arithmetic), trainable=False))
    table_ops.UPDATE(
        *_inputs(table),
        *slot,
        *slot,
        tf.constant([0, 0]),
        tf.constant([[1.0, 0.0], [-1.0, 0.0]], arithmetic),
        *(tf.constant(number, tf.float64) for number in (0.25, 1.0, [0.0, 1.0])),
        tf.constant([0.9, 0.999, 1e-7, 0.0, 0.0], tf.float64),
        tf.constant(0, tf.int64),
        tf.zeros(0, tf.int64),
        tf.zeros(0, arithmetic),
        **{VARIANT: VARIANTS[rule], NAME: "probe"},
    )
    step = 0.25 * np.sqrt(1 - 0.999) / (1 - 0.9) * 0.9 / (np.sqrt(0.999) + 1e-7)
    row = [0.5 - step, -1.0 - step] if rule in (updates.ADAM, updates.ROWWISE_ADAM) else [0.5, -1.0]
    if rule == updates.FTRL:
        row = [(0.9 - 1.0) / (1.0 / 0.25 + 2 * 0.999)] * 2
    _compare(table[0].read_value(), [row, [1.0, 0.0]], rtol=1e-2)


def _table(dtype: tf.DType) -> tuple[tf.Variable, ...]:
    """Two rows, of which the second was last written when P was twice what it is, 1."""
    history = np.ones((state.STEPS, 2)) * state.FRESH
    history[0] = 2.0, 0.0
    numbers = np.array(state.INITIAL)
    numbers[state.STEP] = 1
    return (
        tf.Variable(tf.constant([[1.0, -2.0], [1.0, 0.0]], dtype), trainable=False),
        tf.Variable(tf.constant([1.0, 0.0], tf.float32), trainable=False),
        tf.Variable(tf.constant(history, tf.float64), trainable=False),
        tf.Variable(tf.constant(numbers, tf.float64), trainable=False),
    )


def _inputs(table: tuple[tf.Variable, ...]) -> tuple[tf.Tensor, ...]:
    rows, stamps, history, numbers = table
    of_rows = *table_ops.memory(rows), *table_ops.memory(stamps)
    return *of_rows, table_ops.shared(history), table_ops.shared(numbers)


def _compare(actual: Any, expected: Any, rtol: float = 1e-6) -> None:
    """Raise UnavailableError if numbers differ."""
    found = np.asarray(tf.cast(actual, tf.float64))
    if not np.allclose(found, expected, rtol=rtol, atol=0.0):
        raise capi.UnavailableError(f"the self-test gave {found.tolist()} for {expected}")
