"""Where there is no memory, an exception says so, nothing has changed, and with memory again all goes on."""

import json
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory by its addresses")

UNBUFFERED = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
"""Have the C library give memory back when it is freed, so that a limit does not depend on what was before."""

LIMITED = """
    import json, resource, sys, threading
    import numpy as np, tensorflow as tf, keras
    import fastreg, fastreg_kernels

    # What no memory is found for can be a page of the stack too, which ends the process; a thread's is there already.
    def in_a_thread(function):
        errors = []
        def run():
            try:
                function()
            except BaseException as error:
                errors.append(error)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]

    NO_MEMORY = (MemoryError, tf.errors.ResourceExhaustedError)

    def limited(mebibytes, function):
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + (mebibytes << 20), resource.RLIM_INFINITY))
        try:
            return function()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

PENALTIES = (
    LIMITED
    + """
    size, failures = 1 << 22, {}
    x = tf.Variable(tf.fill([size], 3.0))
    array = np.full(size, 3.0, np.float32)

    def slope():
        with tf.GradientTape() as tape:
            value = fastreg.L1L2(0.5, 0.25)(x)
        return value, tape.gradient(value, x)

    def check(result):
        value, gradient = result
        assert float(value) == size * 3.75
        assert (np.asarray(gradient) == 2.0).all()

    def attempt(name, function):
        for _ in range(3):
            check(function())
        failures[name] = 0
        for mebibytes in (4, 10):  # of 16
            fastreg.clear_buffers()
            try:
                check(limited(mebibytes, function))
            except NO_MEMORY:
                failures[name] += 1
            check(function())

    def main():
        for bridge in ("native", "py_function", "tensorflow"):
            fastreg.set_bridge(bridge)
            attempt(f"{bridge}, eager", slope)
            attempt(f"{bridge}, graph", tf.function(slope))

        def kernels():
            sums, gradient = fastreg_kernels.forward_backward(array, 0.5, 0.25)
            assert (fastreg_kernels.backward(array, 0.5, 0.25) == gradient).all()
            return 0.5 * sums[0] + 0.25 * sums[1], gradient

        attempt("kernels", kernels)

        # Memory that is free for other gradients is given up for one that finds none.
        fastreg.set_bridge("native")
        fastreg.clear_buffers()
        other = tf.Variable(tf.fill([size * 2], 3.0))
        def of_other():
            with tf.GradientTape() as tape:
                value = fastreg.L1L2(0.5, 0.25)(other)
            return tape.gradient(value, other)
        for _ in range(3):
            of_other()
        check(limited(6, slope))
        print("RESULTS" + json.dumps(failures))

    in_a_thread(main)
"""
)


def test_gradients_that_find_no_memory(run_script):
    failures = json.loads(run_script(PENALTIES, fresh=True, **UNBUFFERED).split("RESULTS")[1])
    assert len(failures) == 7
    assert set(failures.values()) == {2}, failures


TABLES = (
    LIMITED
    + """
    fastreg.set_bridge(sys.argv[1])
    rows, width = 125_000, 16
    optimizer = fastreg.LazyRegularization(keras.optimizers.SGD(0.25))
    layer = fastreg.Embedding(rows, width, "ones", embeddings_regularizer=fastreg.L2(0.5))
    layer.build()
    optimizer.build(layer.trainable_weights)
    ids = tf.range(rows)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(ids)) * 0.5 + sum(layer.losses)
    gradient = tape.gradient(loss, layer.embeddings)
    del tape, loss

    def update():
        optimizer.apply([gradient], layer.trainable_weights)
        return 1.0 * 0.75 - 0.125

    def same(function):
        def call():
            function()
            return 1.0
        return call

    calls = {
        "lookup": same(lambda: layer(ids)),
        "update": update,
        "update, graph": tf.function(update),
        "flush": same(layer.flush),
        "read": same(lambda: layer.embeddings.value.value()),
        "penalty": same(layer.penalty),
        "sparsity": same(layer.sparsity),
        "sums": same(lambda: layer.embeddings.sum_duplicates(tf.ones((rows, width)), ids)),
    }
    def main():
        for call in calls.values():
            call()
            call()
        failures, messages = dict.fromkeys(calls, 0), set()
        for mebibytes in (2, 5, 9, 12, 15, 18):  # a table has 8
            for name, call in calls.items():
                layer.embeddings.assign(tf.ones((rows, width)))
                fastreg.clear_buffers()
                try:
                    expected = limited(mebibytes, call)
                except NO_MEMORY as error:
                    failures[name] += 1
                    messages.add("what a kernel needs" in str(error))
                    expected = 1.0
                weights = layer.embeddings.numpy()
                assert (weights == np.float32(expected)).all(), (name, mebibytes, np.unique(weights))
                np.testing.assert_allclose(layer.penalty(), 0.5 * rows * width * expected**2, rtol=1e-6)
        assert (update(), np.unique(layer.embeddings.numpy()).tolist())[1] == [expected * 0.75 - 0.125]
        print("RESULTS" + json.dumps([failures, True in messages]))

    in_a_thread(main)
"""
)


def test_tables_that_find_no_memory(run_script):
    """An op is done whole or not at all; and it says when it was not."""
    failures, in_kernels = json.loads(run_script(TABLES, "native", fresh=True, **UNBUFFERED).split("RESULTS")[1])
    assert in_kernels
    for name in ("lookup", "update", "update, graph", "read", "sums"):
        assert failures[name] > 0, failures
