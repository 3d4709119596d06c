"""Ctrl-C at any moment: what was interrupted ends with an exception, and what comes after it is right."""

import json

INTERRUPTED = """
    import _thread, json, os, random, signal, threading
    import keras, numpy as np, tensorflow as tf
    import fastreg, fastreg_kernels

    SENDERS = (
        lambda: os.kill(os.getpid(), signal.SIGINT),
        _thread.interrupt_main,
        lambda: signal.raise_signal(signal.SIGINT),
    )
    random.seed(0)

    def interrupt(function, turn, most=0.01):
        # Call it again and again, until an interrupt has come through: Python drops those that meet a finalizer.
        stop = threading.Event()

        def send():
            stop.wait(random.uniform(0.0, most))
            while not stop.is_set():
                SENDERS[turn % len(SENDERS)]()
                stop.wait(0.2)

        sender = threading.Thread(target=send)
        try:
            sender.start()
            while True:
                function()
        # The others where one comes while TensorFlow calls back into Python.
        except (KeyboardInterrupt, SystemError, tf.errors.OpError) as error:
            kind = type(error).__name__
        while sender.is_alive():
            try:
                stop.set()
                sender.join()
            except KeyboardInterrupt:
                pass
        return kind

    size, counts = 1 << 18, {}
    x, array = tf.fill([size], 3.0), np.full(size, 3.0, np.float32)

    def slope():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = fastreg.L1L2(0.5, 0.25)(x)
        return value, tape.gradient(value, x)

    def kernels():
        sums, gradient = fastreg_kernels.forward_backward(array, 0.5, 0.25)
        return 0.5 * sums[0] + 0.25 * sums[1], gradient

    def check(result):
        value, gradient = result
        assert float(value) == size * 3.75
        assert (np.asarray(gradient) == 2.0).all()

    calls = {"kernels": (None, kernels)}
    for bridge in ("native", "py_function", "tensorflow"):
        calls |= {f"{bridge}, eager": (bridge, slope), f"{bridge}, graph": (bridge, tf.function(slope))}
    for name, (bridge, call) in calls.items():
        if bridge:
            fastreg.set_bridge(bridge)
        check(call())
        counts[name] = 0
        for turn in range(12):
            interrupt(call, turn)
            check(call())
            counts[name] += 1

    x_data, y_data = np.random.default_rng(0).integers(0, 50, (64, 4)), np.ones((64, 1))

    def compiled():
        keras.utils.set_random_seed(1)
        table = fastreg.Embedding(50, 8, embeddings_regularizer=fastreg.L1L2(1e-4, 1e-3))
        dense = keras.layers.Dense(1, kernel_regularizer=fastreg.L1L2(1e-4, 1e-3))
        model = keras.Sequential([keras.Input((4,)), table, keras.layers.Flatten(), dense])
        model.compile(fastreg.LazyRegularization(keras.optimizers.SGD(0.1)), "mse")
        return model

    def fit(model, **options):
        return model.fit(x_data, y_data, batch_size=16, shuffle=False, verbose=0, **options).history["loss"]

    for bridge in ("native", "py_function"):
        fastreg.set_bridge(bridge)
        fastreg.set_crossover(0)
        model, quiet = compiled(), compiled()
        start = quiet.get_weights()
        expected = fit(quiet)
        fit(model)
        counts[f"{bridge}, fit"] = 0
        for turn in range(8):
            interrupt(lambda: fit(model, epochs=1000), turn, 0.05)
            weights = model.layers[0].embeddings.numpy().astype(np.float64)
            penalty = 1e-4 * np.abs(weights).sum() + 1e-3 * np.square(weights).sum()
            np.testing.assert_allclose(model.layers[0].penalty(), penalty, rtol=1e-5)
            model.set_weights(start)
            np.testing.assert_allclose(fit(model), expected, rtol=1e-5)
            counts[f"{bridge}, fit"] += 1
    print("RESULTS" + json.dumps(counts))
"""


def test_interrupts_at_random_moments(run_script):
    counts = json.loads(run_script(INTERRUPTED).split("RESULTS")[1])
    assert len(counts) == 9
    assert set(counts.values()) == {8, 12}
