"""Functions with a gradient of their own, made of TensorFlow's ops or of callbacks. Native ops register theirs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `tf.custom_gradient` makes of a function of tensors, but with gradients that go when their graph goes.

    TensorFlow registers the gradient of each traced call by a name of its own, for good, and so keeps whatever it
    refers to: the graph and, by what the graph captures, the memory of every variable of the model. Here the graph
    keeps it.
    """
    with_gradient = tf.custom_gradient(function)

    def call(*inputs: tf.Tensor) -> Any:
        # A gradient that refers to a tensor of a graph further out cannot be traced inside of nested control flow.
        outputs = with_gradient(*(x if tf.executing_eagerly() else tf.identity(x) for x in inputs))
        if not tf.executing_eagerly():
            _hand_to_graph(tf.nest.flatten(outputs)[0].op)
        return outputs

    return call


def register_gradient(name: str) -> Callable[..., Any]:
    """As `tf.RegisterGradient`, but of several imports of a module the last counts."""
    ops.gradient_registry._registry.pop(name, None)
    return tf.RegisterGradient(name)  # type: ignore[no-any-return]


def _hand_to_graph(op: tf.Operation) -> None:
    """Have the graph of an operation keep the operation's gradient, and the registry refer to it weakly."""
    registered = ops.gradient_registry._registry
    name = op.get_attr("_gradient_op_type").decode()
    gradient = registered[name]["type"]
    if not hasattr(op.graph, "_fastreg_gradients"):
        op.graph._fastreg_gradients = []
    op.graph._fastreg_gradients.append(gradient)
    registered[name]["type"] = weakref.proxy(gradient)
    weakref.finalize(gradient, registered.pop, name, None).atexit = False
