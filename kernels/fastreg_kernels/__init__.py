"""Compiled penalty kernels on plain arrays; needs NumPy and Numba only."""

from fastreg_kernels._arrays import DTYPES
from fastreg_kernels._threads import get_num_threads, set_num_threads, threading_layer
from fastreg_kernels.cpu import backward, forward, forward_backward, shrink
from fastreg_kernels.cpu.dense import update_dense
from fastreg_kernels.cpu.jit import load_numba
from fastreg_kernels.cpu.rows import lookup_rows, sum_rows, update_rows

load_numba()

__all__ = [
    "DTYPES",
    "backward",
    "forward",
    "forward_backward",
    "get_num_threads",
    "lookup_rows",
    "set_num_threads",
    "shrink",
    "sum_rows",
    "threading_layer",
    "update_dense",
    "update_rows",
]
