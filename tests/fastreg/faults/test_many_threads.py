"""Sixty-four threads at once, each of which gets its own numbers."""

THREADS = """
    import sys, threading
    import numpy as np, tensorflow as tf
    import fastreg, fastreg_kernels
    from fastreg_kernels import _threads

    COUNT, SIZE = 64, 20_000  # of which some are shared out to the kernels' threads
    layer = fastreg.Embedding(500, 16, embeddings_regularizer=fastreg.L2(0.1))
    layer.build()
    optimizer = fastreg.LazyRegularization("sgd")
    optimizer.build(layer.trainable_weights)
    with tf.GradientTape() as tape:
        loss = sum(layer.losses)
    optimizer.apply(tape.gradient(loss, layer.trainable_weights[:1]), layer.trainable_weights)  # a shrink is to come
    expected_rows = None

    def penalty(number, turn):
        x = tf.fill([SIZE * (1 + number % 8)], float(number))
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = fastreg.L2(0.5)(x)
        assert float(value) == 0.5 * number**2 * x.shape[0]
        assert (tape.gradient(value, x, tf.constant(float(turn + 1))).numpy() == number * (turn + 1)).all()

    def lookup(number, turn):
        ids = np.random.default_rng(number + 64 * turn).integers(0, 500, 40)
        assert (layer(tf.constant(ids)).numpy() == expected_rows[ids]).all()

    def kernels(number, turn):
        x = np.full(SIZE * (1 + number % 8), float(number))
        sums, gradient = fastreg_kernels.forward_backward(x, 0.0, 0.5)
        assert sums.tolist() == [number * x.size, number**2 * x.size]
        assert (gradient == number).all()

    def all_at_once(work, turns=3):
        barrier, errors, done = threading.Barrier(COUNT), [], []
        def run(number):
            try:
                barrier.wait()
                for turn in range(turns):
                    work(number, turn)
                done.append(number)
            except BaseException as error:
                errors.append((number, repr(error)))
        threads = [threading.Thread(target=run, args=(number,)) for number in range(COUNT)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(done) == COUNT
        assert _threads._cells[_threads.RUNNING] == 0

    sys.setswitchinterval(1e-5)
    for bridge in ("native", "py_function", "auto"):
        fastreg.set_bridge(bridge)
        all_at_once(penalty)
        expected_rows = layer(tf.range(500)).numpy()
        all_at_once(lookup)
    all_at_once(kernels)
    traced = tf.function(fastreg.L1(0.5), reduce_retracing=True)

    def graph(number, turn):
        assert float(traced(tf.fill([100 + number], 2.0))) == 100.0 + number

    all_at_once(graph)
    print("done")
"""


def test_sixty_four_threads(run_script):
    assert run_script(THREADS) == "done\n"
