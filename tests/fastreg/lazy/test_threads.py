"""Other threads look rows up, read and assign while a step writes: nothing that the step does gets lost."""

import threading

import fastreg_kernels
import numpy as np
import pytest
import tensorflow as tf

import fastreg

SECONDS = 0.2
"""Long enough for the other thread, were it not kept waiting."""


def recorded(layer):
    with tf.GradientTape() as tape:
        rows = layer(tf.constant([1, 2]))
    return tape.gradient(rows, layer.trainable_weights)


OTHERS = {
    "lookup": lambda layer: layer(tf.constant([1, 2])),
    "gradient": recorded,
    "graph": lambda layer: tf.function(recorded)(layer),
    "read": lambda layer: layer.embeddings.numpy(),
    "penalty": lambda layer: layer.penalty(),
    "sparsity": lambda layer: layer.sparsity(),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_a_step_is_not_disturbed(lazy, float64, monkeypatch, name, graph):
    plan, update_rows, threads = lazy.plan(4), fastreg_kernels.update_rows, []
    layer = plan.layer(fastreg.L1L2(0.01, 0.1))

    def disturbed(*arguments):
        """Starts in the middle of the update: rows are shrunk and stamped afterwards."""
        threads.append(threading.Thread(target=OTHERS[name], args=[layer]))
        threads[-1].start()
        threads[-1].join(SECONDS)
        return update_rows(*arguments)

    monkeypatch.setattr(fastreg_kernels, "update_rows", disturbed)
    plan.train(layer, lazy.optimizer("sgd"), graph=graph)
    for thread in threads:
        thread.join()
    assert len(threads) == 4
    expected = lazy.oracle(plan, "sgd", [0.25] * 4, 0.01, 0.1)
    assert lazy.error(layer.embeddings.numpy(), expected) < 1e-12
    np.testing.assert_allclose(
        layer.penalty(), 0.01 * np.abs(expected).sum() + 0.1 * np.square(expected).sum(), rtol=1e-12
    )


def test_an_error_lets_go_of_the_table(lazy):
    """Its traceback does not keep the memory: the next step would copy the table."""
    layer = lazy.plan(1).layer(fastreg.L2())

    def address():
        return np.asarray(layer.embeddings._value.read_value()).__array_interface__["data"][0]

    layer(tf.constant([1]))
    before = address()
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        layer(tf.constant([-1]))
    layer(tf.constant([1]))
    assert caught.tb is not None
    assert address() == before
