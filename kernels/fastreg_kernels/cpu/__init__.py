"""Penalty kernels on host arrays: fused sums, their gradient, both at once, and soft-thresholding."""

from fastreg_kernels.cpu.penalty import backward, forward, forward_backward
from fastreg_kernels.cpu.shrink import shrink

__all__ = ["backward", "forward", "forward_backward", "shrink"]
