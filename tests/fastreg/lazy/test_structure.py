"""What the traced train step does to a table: it gathers and updates rows, and nothing of the table's size is moved."""

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.ops.handle_data_util import get_resource_handle_data

import fastreg
from fastreg._bridges.native.table_ops import memory

pytestmark = pytest.mark.parametrize("way", ["auto"], indirect=True)

ROWS, WIDTH = 10_007, 3  # numbers that nothing else in the graph has

NATIVE = {"FastregLookup", "FastregUpdate", "FastregTablePenalty"}
"""What works on a table: its rows, and all of it now and then, in an update that flushes and a penalty that is old."""

ON_RESOURCES = {
    *NATIVE,
    "DisableCopyOnRead",
    "Identity",
    "IdentityN",
    "If",
    "StatefulPartitionedCall",
    "PartitionedCall",
}


def graphs(function, branches=False):
    """The graph of a concrete function and of those it calls; those of `tf.cond` only if asked for."""
    seen, queue = set(), [function.graph]
    while queue:
        graph = queue.pop()
        yield graph
        for operation in graph.get_operations():
            rare = operation.type in ("If", "StatelessIf")
            for name in operation.node_def.attr:
                value = operation.get_attr(name) if operation.node_def.attr[name].HasField("func") else None
                called = value.name if value is not None else None
                if called is None or called in seen or (rare and not branches):
                    continue
                seen.add(called)
                queue.append(graph._get_function(called).graph)


def train_step(optimizer, embedding, penalty, **options):
    ids = keras.Input((4,), dtype="int32")
    layer = embedding(ROWS, WIDTH, embeddings_regularizer=penalty)
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids))))
    model.compile(optimizer, "mse", **options)
    step = tf.function(lambda x, y: model.train_step((x, y)))
    specs = tf.TensorSpec((None, 4), tf.int32), tf.TensorSpec((None, 1), tf.float32)
    return model, layer, step.get_concrete_function(*specs)


def table_sized(operation):
    """Whether the operation takes or gives a tensor with a row for every row of the table, or of its stamps."""
    tensors = [*operation.inputs, *operation.outputs]
    return any({ROWS} & set(t.shape.as_list() if t.shape.rank is not None else []) for t in tensors)


def of_a_table(tensor):
    """Whether a resource is a variable with a row for every row of the table."""
    data = get_resource_handle_data(tensor)
    sizes = {dimension.size for entry in data.shape_and_type for dimension in entry.shape.dim}
    return bool({ROWS} & sizes)


def lends(operation):
    """Whether it is a read, without a copy, for native ops and nobody else."""
    if operation.type != "ReadVariableOp" or {c.type for o in operation.outputs for c in o.consumers()} - NATIVE:
        return False
    return any(before.type == "DisableCopyOnRead" for before in operation.control_inputs)


def whole_table_operations(function, branches=False):
    found = []
    for graph in graphs(function, branches):
        for operation in graph.get_operations():
            if lends(operation):
                continue
            if table_sized(operation) and operation.type not in NATIVE:
                found.append(operation.type)
            resources = [tensor for tensor in operation.inputs if tensor.dtype == tf.resource and of_a_table(tensor)]
            if resources and operation.type not in ON_RESOURCES:
                found.append(operation.type)
    return found


@pytest.mark.parametrize("penalty", [fastreg.L2(1e-3), fastreg.L1L2(1e-3, 1e-3)])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise", "adam"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 1.0}, {"clipnorm": 1.0}])
def test_the_step_moves_rows_only(lazy, kind, penalty, clip):
    optimizer = lazy.optimizer(kind, 0.1, **clip)
    assert whole_table_operations(train_step(optimizer, fastreg.Embedding, penalty)[2]) == []


@pytest.mark.parametrize("outside", [False, True])
def test_with_loss_scaling(lazy, outside):
    """In the wrapper, and around it, where Keras's `compile` puts it."""
    if outside:
        optimizer = keras.optimizers.LossScaleOptimizer(lazy.optimizer("sgd"))
    else:
        optimizer = fastreg.LazyRegularization(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    _, _, function = train_step(optimizer, fastreg.Embedding, fastreg.L2(1e-3))
    assert whole_table_operations(function, branches=True) == []  # the update is in a branch here
    assert any(o.type == "FastregUpdate" for graph in graphs(function, branches=True) for o in graph.get_operations())


def test_the_step_has_no_callback(lazy):
    _, _, function = train_step(lazy.optimizer("adagrad"), fastreg.Embedding, fastreg.L1L2(1e-3, 1e-3))
    used = [operation.type for graph in graphs(function, branches=True) for operation in graph.get_operations()]
    assert not {"EagerPyFunc", "PyFunc", "PyFuncStateless"} & set(used)
    assert [used.count(name) for name in sorted(NATIVE)] == [1, 1, 1]


def of(operation, name):
    """An input by its name."""
    return dict(zip((argument.name for argument in operation.op_def.input_arg), operation.inputs, strict=True))[name]


def test_the_update_takes_the_gradient_of_the_lookup_as_it_is(lazy):
    """Not concatenated with what the penalty adds to it, and taken apart again."""
    _, _, function = train_step(lazy.optimizer("adagrad"), fastreg.Embedding, fastreg.L1L2(1e-3, 1e-3))
    operations = [operation for graph in graphs(function, branches=True) for operation in graph.get_operations()]
    (update,) = (operation for operation in operations if operation.type == "FastregUpdate")
    (lookup,) = (operation for operation in operations if operation.type == "FastregLookup")
    ids, gradient = of(update, "ids"), of(update, "gradient")
    assert ids is of(lookup, "ids")
    assert gradient.op.type == "Reshape"
    (joined,) = (consumer for consumer in gradient.consumers() if consumer is not update)
    assert joined.type == "ConcatV2"
    assert joined.outputs[0].consumers() == []  # so that nobody computes it


def test_the_memory_stays(lazy):
    """No step, no error and no sparse op of TensorFlow's moves or copies the table, whose memory is that of its ops."""
    plan = lazy.plan(3)
    layer, optimizer = plan.layer(fastreg.L1L2(0.01, 0.25)), lazy.optimizer("adagrad")
    before = address(layer)
    plan.train(layer, optimizer, graph=False)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        layer(tf.constant([-1]))
    plan.train(layer, optimizer)
    assert caught.tb is not None  # it refers to what the failing call had in its hands
    assert address(layer) == before
    del caught
    gc.collect()  # then nobody else holds the memory, and there is no reason to copy it
    tf.raw_ops.ResourceGather(resource=layer.embeddings.handle, indices=[1], dtype=tf.float64)
    plan.train(layer, optimizer)
    layer.flush()
    assert address(layer) == before


def address(layer):
    return np.asarray(memory(layer.embeddings._value)[1]).__array_interface__["data"][0]


def test_a_plain_layer_does_not_read_the_table(lazy):
    found = whole_table_operations(train_step(keras.optimizers.SGD(0.1), fastreg.Embedding, None)[2])
    assert set(found) == {"ResourceGather", "ResourceScatterSub"}


def test_the_test_can_fail(lazy):
    """Keras's own layers do what must not be done."""
    plain = train_step(keras.optimizers.SGD(0.1), keras.layers.Embedding, None)[2]
    assert "ReadVariableOp" in whole_table_operations(plain)
    penalty = keras.regularizers.L2(1e-3)
    assert whole_table_operations(train_step(keras.optimizers.SGD(0.1), keras.layers.Embedding, penalty)[2])
    assert whole_table_operations(train_step(keras.optimizers.Adam(0.1), fastreg.Embedding, None)[2])
