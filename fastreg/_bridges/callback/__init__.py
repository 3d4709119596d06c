"""Callbacks: the kernels through `tf.py_function` in graphs, and called directly when eager. The portable way."""

from fastreg._bridges.callback.penalty import penalty

__all__ = ["penalty"]
