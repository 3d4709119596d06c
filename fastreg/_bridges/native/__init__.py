"""Native ops: kernels inside of TensorFlow's graphs, defined through its C API, without Python when they run."""

from fastreg._bridges.native.penalty_ops import penalty
from fastreg._bridges.native.probe import obstacle, penalty_obstacle, table_obstacle, write_obstacle

__all__ = ["obstacle", "penalty", "penalty_obstacle", "table_obstacle", "write_obstacle"]
