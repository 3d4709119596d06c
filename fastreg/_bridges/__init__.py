"""The ways to the kernels: native ops, callbacks, and TensorFlow's own ops where neither can run."""
