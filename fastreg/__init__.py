"""Compiled L1 and L2 penalties for Keras on TensorFlow."""

from fastreg._version import __version__

__all__ = ["__version__"]
