"""Other threads look rows up, read, flush and count while a step writes: nothing that the step does gets lost, and what
they see is true. And nothing that interrupts Python leaves a table between two states."""

import json
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import fastreg

pytestmark = pytest.mark.parametrize("way", ["auto"], indirect=True)


def recorded(layer):
    with tf.GradientTape() as tape:
        rows = layer(tf.constant([1, 2]))
    return tape.gradient(rows, layer.trainable_weights)


OTHERS = {
    "lookup": lambda layer: layer(tf.constant([1, 2])),
    "gradient": recorded,
    "read": lambda layer: layer.embeddings.numpy(),
    "variable": lambda layer: layer.embeddings.value.numpy(),
    "flush": lambda layer: layer.flush(),
    "penalty": lambda layer: layer.penalty(),
    "sparsity": lambda layer: layer.sparsity(),
}


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_steps_are_not_disturbed(lazy, float64, name, graph):
    """Another thread does one thing over and over, through 40 steps."""
    plan = lazy.plan(40)
    layer, stop, errors = plan.layer(fastreg.L1L2(0.01, 0.1)), threading.Event(), []
    done = [0]

    def disturb():
        try:
            while not stop.is_set():
                OTHERS[name](layer)
                done[0] += 1
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        plan.train(layer, lazy.optimizer("sgd"), graph=graph)
    finally:
        stop.set()
        thread.join()
    assert errors == []
    assert done[0] > 0
    expected = lazy.oracle(plan, "sgd", [0.25] * 40, 0.01, 0.1)
    assert lazy.error(layer.embeddings.numpy(), expected) < 1e-12
    penalty = 0.01 * np.abs(expected).sum() + 0.1 * np.square(expected).sum()
    np.testing.assert_allclose(layer.penalty(), penalty, rtol=1e-11)


def test_what_another_thread_sees_is_true(lazy):
    """Every row is looked up in every step, and all its weights shrink alike: half-written rows would show."""
    rows, width = 64, 4096
    layer = fastreg.Embedding(rows, width, "ones", embeddings_regularizer=fastreg.L2(0.01))
    layer.build()
    optimizer, seen, stop = fastreg.LazyRegularization(keras.optimizers.SGD(1.0)), [], threading.Event()
    optimizer.build(layer.trainable_weights)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = 0.0 * tf.reduce_sum(layer(tf.range(rows))) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)

    def watch():
        while not stop.is_set():
            seen.append(layer(tf.range(rows)).numpy())
            seen.append(layer.embeddings.numpy())

    layer(tf.range(rows)), layer.embeddings.numpy(), step()  # compiled, or found compiled, before threads meet
    thread = threading.Thread(target=watch)
    thread.start()
    for _ in range(59):
        looks = len(seen)
        step()
        while len(seen) < looks + 1:  # the other thread sees something of every step or two
            thread.join(0.0005)
    stop.set()
    thread.join()
    values = {tuple(np.unique(found)) for found in seen}
    assert len(values) > 2
    assert all(len(found) == 1 for found in values)
    np.testing.assert_allclose(layer.embeddings.numpy(), 0.98**60, rtol=1e-5)


def test_predict_while_fit_runs(lazy):
    x, y = lazy.data(n=512)
    quiet, disturbed = (lazy.compiled(fastreg.L2(1e-3), fastreg.LazyRegularization("adagrad")) for _ in range(2))
    stop, predictions = threading.Event(), []
    disturbed.predict(x, verbose=0)  # traced before the other thread begins

    def predict():
        while not stop.is_set():
            predictions.append(disturbed.predict_on_batch(x[:8]))

    thread = threading.Thread(target=predict)
    thread.start()
    for model in (disturbed, quiet):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    stop.set()
    thread.join()
    assert len(predictions) > 1
    assert np.isfinite(predictions).all()
    for ours, theirs in zip(disturbed.get_weights(), quiet.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Prints, for each of many alarms at random moments, where the first weight of the table ended, and where it should
# have.
INTERRUPTED = """
    import json, random, signal, sys
    import keras, numpy as np, tensorflow as tf
    import fastreg

    what, rows, width = sys.argv[1], 400_000, 16
    random.seed(1)

    def alarm(*arguments):
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, alarm)
    optimizer = fastreg.LazyRegularization(keras.optimizers.SGD(0.1))
    layer = fastreg.Embedding(rows, width, "ones", embeddings_regularizer=fastreg.L2(0.5))
    layer.build()
    optimizer.build(layer.trainable_weights)
    ids = tf.range(rows)
    with tf.GradientTape(persistent=True) as tape:
        penalty = sum(layer.losses)
        loss = 0.0 * tf.reduce_sum(layer(ids)) + penalty
    gradient, of_penalty = (tape.gradient(value, layer.embeddings) for value in (loss, penalty))

    def update():
        optimizer.apply([gradient], layer.trainable_weights)

    results, interrupted = [], 0
    update()
    layer.flush()
    for _ in range(60):
        layer.embeddings.assign(tf.ones((rows, width)))
        for _ in range(6):
            optimizer.apply([of_penalty], layer.trainable_weights)
        before, steps = int(optimizer.iterations), 6
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 0.02))
            while True:
                if what == "flush":
                    layer.flush()
                    layer.embeddings.numpy()
                    layer.get_weights()
                else:
                    update()
        except (KeyboardInterrupt, SystemError):  # the latter where one comes while TensorFlow makes a tensor
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        weights = layer.embeddings.numpy()
        results.append(sorted({round(float(w), 4) for w in (weights.min(), weights.max())}))
    print("RESULTS" + json.dumps([interrupted, results]))
"""


@pytest.mark.parametrize("what", ["flush", "update"])
def test_interruptions_at_random_moments(run_python, what):
    """An op is done whole or not at all: after any number of steps, all weights have shrunk that often."""
    interrupted, results = json.loads(run_python(INTERRUPTED, what).split("RESULTS")[1])
    assert interrupted == 60
    steps = {round(0.9**count, 4) for count in range(6, 300)}
    for found in results:
        assert len(found) == 1
        assert found[0] in ({round(0.9**6, 4)} if what == "flush" else steps)
