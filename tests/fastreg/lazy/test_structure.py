"""What the traced train step does to a table: it gathers and updates rows, and nothing of the table's size is moved."""

import keras
import pytest
import tensorflow as tf
from tensorflow.python.ops.handle_data_util import get_resource_handle_data

import fastreg

ROWS, WIDTH = 10_007, 3  # numbers that nothing else in the graph has

ROW_OPS = {"ResourceGather", "ResourceScatterUpdate", "ResourceScatterSub", "EagerPyFunc", "VariableShape"}
ROW_OPS |= {"Identity", "IdentityN"}  # of the handle


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
    """Whether the operation takes or gives a tensor with a row for every row of the table."""
    tensors = [*operation.inputs, *operation.outputs]
    return any(ROWS in (tensor.shape.as_list() if tensor.shape.rank is not None else []) for tensor in tensors)


def of_a_table(tensor):
    """Whether a resource is a variable with a row for every row of the table."""
    data = get_resource_handle_data(tensor)
    return any(dimension.size == ROWS for entry in data.shape_and_type for dimension in entry.shape.dim)


def whole_table_operations(function):
    found = []
    for graph in graphs(function):
        for operation in graph.get_operations():
            if table_sized(operation):
                found.append(operation.type)
            resources = [tensor for tensor in operation.inputs if tensor.dtype == tf.resource and of_a_table(tensor)]
            if resources and operation.type not in ROW_OPS | {"If", "StatefulPartitionedCall", "PartitionedCall"}:
                found.append(operation.type)
    return found


@pytest.mark.parametrize("penalty", [fastreg.L2(1e-3), fastreg.L1L2(1e-3, 1e-3)])
@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise", "adam"])
@pytest.mark.parametrize("clip", [{}, {"global_clipnorm": 1.0}, {"clipnorm": 1.0}])
def test_the_step_moves_rows_only(lazy, kind, penalty, clip):
    optimizer = lazy.optimizer(kind, 0.1, **clip)
    assert whole_table_operations(train_step(optimizer, fastreg.Embedding, penalty)[2]) == []


def test_with_loss_scaling(lazy):
    scaler = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    _, _, function = train_step(fastreg.LazyRegularization(scaler), fastreg.Embedding, fastreg.L2(1e-3))
    branches = list(graphs(function, branches=True))[1:]
    assert whole_table_operations(function) == []
    for graph in branches:  # the update is in a branch here, beside the flush, which is a callback
        for operation in graph.get_operations():
            resources = [tensor for tensor in operation.inputs if tensor.dtype == tf.resource]
            assert operation.type in ROW_OPS | {"If"} or not any(map(of_a_table, resources))
            assert not table_sized(operation)


def test_the_flush_is_a_branch(lazy):
    """Callbacks outside branches take the touched rows; those that take the whole table are in branches."""
    _, _, function = train_step(lazy.optimizer("sgd"), fastreg.Embedding, fastreg.L2(1e-3))
    hot = list(graphs(function))
    tables = [t for graph in hot for o in graph.get_operations() for t in o.inputs if t.dtype == tf.resource]
    assert any(map(of_a_table, tables))
    cold = [graph for graph in graphs(function, branches=True) if graph not in hot]
    assert any(operation.type == "EagerPyFunc" for graph in cold for operation in graph.get_operations())


def test_a_plain_layer_does_not_read_the_table(lazy):
    assert whole_table_operations(train_step(keras.optimizers.SGD(0.1), fastreg.Embedding, None)[2]) == []


def test_the_test_can_fail(lazy):
    """Keras's own layers do what must not be done."""
    assert "ReadVariableOp" in whole_table_operations(
        train_step(keras.optimizers.SGD(0.1), keras.layers.Embedding, None)[2]
    )
    penalty = keras.regularizers.L2(1e-3)
    assert whole_table_operations(train_step(keras.optimizers.SGD(0.1), keras.layers.Embedding, penalty)[2])
    assert whole_table_operations(train_step(keras.optimizers.Adam(0.1), fastreg.Embedding, None)[2])
