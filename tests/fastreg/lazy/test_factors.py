"""Strengths that change while one traced step trains: tables take the factor of each step."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

FACTORS = [(0.0, 0.125), (0.02, 0.0), (0.0, 0.0), (0.01, 0.0625), (0.0, 0.25)]


@pytest.mark.parametrize("kind", ["keras", "tensorflow", "callable"])
@pytest.mark.parametrize("graph", [False, True])
def test_variables(lazy, float64, kind, graph):
    """Each step shrinks by its own factors, also rows that are looked up much later; one trace serves all."""
    make = tf.Variable if kind == "tensorflow" else keras.Variable
    variables = [make(0.0, dtype="float64", trainable=False) for _ in range(2)]
    given = [lambda v=v: v * 1.0 for v in variables] if kind == "callable" else variables
    plan = lazy.plan(40)
    layer, optimizer = plan.layer(fastreg.L1L2(*given)), lazy.optimizer("adagrad")
    expected, state, traces = plan.start, {}, []

    def before(step):
        for variable, value in zip(variables, FACTORS[step // 8], strict=True):
            variable.assign(value)

    original = layer.call
    layer.call = lambda ids: (traces.append(1), original(ids))[1]
    weights = plan.train(layer, optimizer, graph=graph, before=before)
    for number, (l1, l2) in enumerate(FACTORS):
        steps = range(8 * number, 8 * number + 8)
        expected = lazy.oracle(plan, "adagrad", [0.25] * 40, l1, l2, steps, expected, state=state)
    assert lazy.error(weights, expected) < 1e-12
    assert len(traces) == (1 if graph else 40)
    l1, l2 = FACTORS[-1]
    np.testing.assert_allclose(layer.penalty(), l2 * np.square(expected).sum(), rtol=1e-11)
    variables[0].assign(0.5)
    np.testing.assert_allclose(
        layer.penalty(), 0.5 * np.abs(expected).sum() + l2 * np.square(expected).sum(), rtol=1e-11
    )


def test_a_callback_of_fit(lazy):
    """A search or a schedule that sets the strength between batches: as a dense model whose factor is set so."""
    x, y = lazy.data()
    results = []
    for embedding, wrap in ((fastreg.Embedding, fastreg.LazyRegularization), (keras.layers.Embedding, lambda o: o)):
        strength = keras.Variable(0.0, trainable=False)

        class Schedule(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None, strength=strength):
                strength.assign(0.01 * (batch % 3))

        penalty = fastreg.L2(0.0)
        penalty.l2 = strength
        model = lazy.compiled(penalty, wrap(keras.optimizers.SGD(0.1)), embedding)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[Schedule()])
        results.append(model.get_weights())
    for ours, theirs in zip(*results, strict=True):
        assert lazy.error(ours, theirs) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["adagrad", "rowwise", "adam"])
def test_slots_of_half_types_are_float32(lazy, dtype, kind):
    """In which Adam's second moment of small gradients does not vanish."""
    plan = lazy.plan(30)
    layer, optimizer = plan.layer(fastreg.L2(0.01), dtype), lazy.optimizer(kind, 0.01)
    plan.train(layer, optimizer)
    slots = [v for v in optimizer.variables if v.shape.rank == 2 and v.shape[0] == 23 and v is not layer.embeddings]
    assert len(slots) == (2 if kind == "adam" else 1)
    assert {slot.dtype for slot in slots} == {"float32"}
    expected = lazy.oracle(plan, kind, [0.01] * 30, l2=0.01, start=tf.cast(plan.start, dtype))
    assert lazy.error(tf.cast(layer.embeddings.value, "float64"), expected) < 0.02


@pytest.mark.parametrize("way", ["auto"], indirect=True)
def test_checked_for_numbers_that_are_not_finite(way, run_python):
    """TensorFlow's debugger, which stops at the first tensor that has one, finds none in right training."""
    run_python(
        """
        import keras, numpy as np, tensorflow as tf, fastreg
        tf.debugging.enable_check_numerics()
        for bridge in ("auto", "tensorflow"):
            fastreg.set_bridge(bridge)
            for eager in (False, True):
                layer = fastreg.Embedding(50, 4, embeddings_regularizer=fastreg.L1L2(1e-3, 1e-3))
                model = keras.Sequential([layer, keras.layers.Flatten(), keras.layers.Dense(1)])
                optimizer = fastreg.LazyRegularization(keras.optimizers.Adam(0.01))
                model.compile(optimizer, "mse", run_eagerly=eager)
                x = np.random.default_rng(0).integers(0, 50, (8, 3))
                model.fit(x, np.ones((8, 1)), verbose=0, epochs=2)
                assert np.isfinite(model.evaluate(x, np.ones((8, 1)), verbose=0))
                layer.penalty(), layer.flush(), layer.sparsity()
        """
    )
