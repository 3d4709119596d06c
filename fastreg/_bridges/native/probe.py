"""Whether native ops can be had in this process: found out once, before the first use."""

from __future__ import annotations

import functools
import sys

import numpy as np
import tensorflow as tf

from fastreg._bridges import counters
from fastreg._bridges.native import capi, ops, table_ops


@functools.cache
def obstacle() -> str | None:
    """Why native ops cannot serve in this process, or None.

    Looks for the symbols, registers the ops, and computes a penalty and its gradient of known numbers.
    """
    if sys.platform == "win32":
        return "no native ops on Windows"
    try:
        with tf.init_scope(), counters.not_counted():
            capi.library()
            for op in (*ops.OPS, *table_ops.OPS):
                op.define()
            _self_test()
    except Exception as error:  # whatever it is, other bridges serve, and `info` says why
        return f"native ops cannot be used: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _self_test() -> None:
    """Compare a penalty and its gradient with numbers that are exact.

    Raises
    ------
    UnavailableError
        If they differ.
    """
    with tf.device("CPU:0"):
        x, factors = tf.constant([3.0, -2.0, 0.0]), tf.constant([0.5, 0.25], tf.float64)
        for op in ops.OPS:
            op.prepare(x.dtype)
        value, ahead, assumed = ops.AHEAD(x, factors, site=0)
        gradient = ops.GRADIENT(x, factors, tf.constant(2.0), ahead, assumed, site=0)
    found = (float(value), float(ops.VALUE(x, factors)), np.asarray(gradient).tolist())
    if found != (5.75, 5.75, [4.0, -3.0, 0.0]):
        raise capi.UnavailableError(f"the self-test gave {found}")
