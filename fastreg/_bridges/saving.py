"""What leaves the process: SavedModels, and functions that converters to other formats take, hold TensorFlow's ops."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.saved_model import save_context


def is_saving() -> bool:
    """Whether what is being traced will be saved, for processes that need not have fastreg."""
    return bool(save_context.in_save_context())


def keep_from_files(what: str) -> None:
    """Have TensorFlow refuse to save the graph that is being traced, and those around it, since it holds this."""
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if hasattr(graph, "mark_as_unsaveable"):
            graph.mark_as_unsaveable(
                f"It holds {what}, which no other process has. Save the tf.function instead of a concrete function: it "
                "is then traced anew, for other processes."
            )
        graph = getattr(graph, "outer_graph", None)


def trace_exports_for_files() -> None:
    """Have what Keras exports traced as what is saved, also for formats for which nothing is saved first; importing
    again replaces what the first import did.
    """
    archive = type(keras.export.ExportArchive())  # which is another class than its name, by the backend
    original = getattr(archive.add_endpoint, "_fastreg_original", archive.add_endpoint)

    @functools.wraps(original)
    def add_endpoint(self: Any, name: str, fn: Any, input_signature: Any = None, **options: Any) -> Any:
        if input_signature is not None and not isinstance(fn, tf.types.experimental.PolymorphicFunction):
            fn = _as_if_saving(fn)
        return original(self, name, fn, input_signature, **options)

    add_endpoint._fastreg_original = original  # type: ignore[attr-defined]
    archive.add_endpoint = add_endpoint


def _as_if_saving(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*arguments: Any, **options: Any) -> Any:
        if is_saving():
            return function(*arguments, **options)
        # TensorFlow's own context: functions that were traced outside of it are traced anew within.
        with save_context.save_context(tf.saved_model.SaveOptions()):
            return function(*arguments, **options)

    return traced
