"""Rows of the tables of embedding layers: reading, writing, pruning and growing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from fastreg import _traces
from fastreg._bridges import support
from fastreg._changes import Changes
from fastreg._tables import rules
from fastreg._tables.table import LazyTable, exchange, with_rows
from fastreg.optimizers import unwrapped

_CHUNK = 1 << 22
"""Elements that are looked at together."""


def read(layer: Any, ids: Any) -> tf.Tensor:
    """See `fastreg.Embedding.read_rows`."""
    _refuse_adapted(layer)
    ids = _checked_ids(ids, layer.input_dim)
    table = layer._embeddings
    if isinstance(table, LazyTable):
        return tf.stop_gradient(table.lookup(ids, table.dtype))
    return tf.stop_gradient(tf.gather(table.value, ids))


def write(layer: Any, ids: Any, values: Any) -> None:
    """See `fastreg.Embedding.write_rows`."""
    if support.in_xla():
        raise RuntimeError("write_rows cannot be compiled by XLA, where a row that occurs twice has no last value.")
    _refuse_adapted(layer)
    ids = _checked_ids(ids, layer.input_dim)
    table, width = layer._embeddings, layer.output_dim
    values = tf.convert_to_tensor(values)
    if not (values.dtype.is_floating or values.dtype.is_integer):
        raise TypeError(f"Invalid type for argument values: expected real numbers. Received: {values.dtype.name}")
    shape = (*ids.shape, width) if ids.shape.rank is not None else None
    try:
        values = tf.broadcast_to(tf.cast(values, table.dtype), tf.concat([tf.shape(ids), [width]], 0))
    except (tf.errors.InvalidArgumentError, ValueError):
        raise ValueError(
            f"Invalid value for argument values: expected a shape that can be broadcast to {shape}, that of the ids "
            f"and of a row. Received: {tuple(values.shape)}"
        ) from None
    ids, values = _last_of_each(tf.reshape(ids, [-1]), tf.reshape(values, [-1, width]))
    if isinstance(table, LazyTable):
        table.write_rows(ids, values)
    else:
        table.value.scatter_update(tf.IndexedSlices(values, ids))


def empty(layer: Any) -> NDArray[np.int64]:
    """See `fastreg.Embedding.empty_rows`."""
    if tf.inside_function():
        raise RuntimeError("empty_rows cannot be traced by tf.function: call it between steps.")
    height = max(1, _CHUNK // max(1, layer.output_dim))
    found = []
    for start in range(0, layer.input_dim, height):
        rows = read(layer, tf.range(start, min(start + height, layer.input_dim), dtype=tf.int64))
        found.append(start + np.flatnonzero(~tf.reduce_any(rows != 0, axis=1).numpy()))
    return np.concatenate(found).astype(np.int64)


def resize(layer: Any, rows: int, initializer: Any) -> None:
    """See `fastreg.Embedding.resize`."""
    if isinstance(rows, bool) or not isinstance(rows, (int, np.integer)) or rows < 1:
        raise ValueError(f"Invalid value for argument rows: expected a positive integer. Received: rows={rows!r}")
    if tf.inside_function():
        raise RuntimeError("resize cannot be traced by tf.function: call it between steps.")
    _refuse_adapted(layer)
    if initializer is not None and not layer.built:
        raise ValueError(
            f"Invalid value for argument initializer: expected None, for the layer {layer.name!r} has no rows yet. "
            f"Received: initializer={initializer!r}"
        )
    initializer = keras.initializers.get(layer.embeddings_initializer if initializer is None else initializer)
    with Changes() as changes:
        if layer.built:
            table = layer._embeddings
            if isinstance(table, LazyTable):
                for rule in rules.of_table(table):
                    rule.resize(table, int(rows), changes)
                table.resize(int(rows), initializer, changes)
            else:
                _resize_variable(layer, table, int(rows), initializer, changes)
            _traces.forget_traces_of([layer], changes)
        changes.set(layer, "input_dim", int(rows))


def _resize_variable(layer: Any, variable: keras.Variable, rows: int, initializer: Any, changes: Changes) -> None:
    if support.distribution() is not None or isinstance(variable.value, tf.distribute.DistributedValues):
        raise ValueError(f"The layer {layer.name!r} cannot be resized under a distribution strategy.")
    for optimizer in _optimizers(layer):
        known = any(each is variable for each in optimizer._trainable_variables)
        if known and any(slot.shape == variable.shape for slot in optimizer.variables):
            raise ValueError(
                f"The layer {layer.name!r} cannot be resized, for the optimizer {optimizer.name!r} has a number for "
                "each of its weights. Compile the model with a new optimizer first. (Tables that "
                "fastreg.LazyRegularization trains can be resized at any time.)"
            )
    resized = with_rows(tf.convert_to_tensor(variable), rows, lambda shape: initializer(shape, dtype=variable.dtype))
    value = tf.Variable(resized, dtype=variable.dtype, trainable=variable.trainable, name=variable.name)
    exchange(variable, value, changes)


def _refuse_adapted(layer: Any) -> None:
    if layer.lora_enabled or layer.quantization_mode is not None:
        raise ValueError(
            f"Rows of the layer {layer.name!r} cannot be read, written or added, for it is quantized or adapted by "
            "LoRA."
        )


def _optimizers(layer: Any) -> list[keras.optimizers.Optimizer]:
    """Those of Keras's that models with this layer have, inside of wrappers."""
    held = (value for model in _traces.models_with([layer]) for value in vars(model).values())
    return [unwrapped(value) for value in held if isinstance(value, keras.optimizers.Optimizer)]


def _checked_ids(ids: Any, rows: int) -> tf.Tensor:
    """Ids as a tensor of int32 or int64, of any shape, of rows that there are.

    Raises
    ------
    TypeError
        If they are no integers.
    ValueError
        If one is none of the rows; in a graph `tf.errors.InvalidArgumentError`, when it runs.
    """
    ids = tf.convert_to_tensor(ids)
    if ids.shape.num_elements() == 0:
        ids = tf.cast(ids, tf.int64)  # an empty list is one of float32
    if not ids.dtype.is_integer:
        raise TypeError(f"Invalid type for argument ids: expected integers. Received: {ids.dtype.name}")
    if ids.dtype not in (tf.int32, tf.int64):
        ids = tf.cast(ids, tf.int64)
    valid = tf.reduce_all((ids >= 0) & (ids < tf.constant(rows, ids.dtype)))
    if tf.executing_eagerly():
        if not valid:
            raise ValueError(
                f"Invalid value for argument ids: expected 0 to {rows - 1}. "
                f"Received: {int(tf.reduce_min(ids))} to {int(tf.reduce_max(ids))}"
            )
        return ids
    message = f"Invalid value for argument ids: expected 0 to {rows - 1}. Received:"
    with tf.control_dependencies([tf.debugging.Assert(valid, [message, tf.reduce_min(ids), tf.reduce_max(ids)])]):
        return tf.identity(ids)


def _last_of_each(ids: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each id once, with the last of its values."""
    distinct, positions = tf.unique(ids)
    last = tf.math.unsorted_segment_max(tf.range(tf.size(ids)), positions, tf.size(distinct))
    return distinct, tf.gather(values, last)
