"""The interpreter ends while kernels, ops and training are at work: with the exit code it was given, and in time."""

import os

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases share what was imported, by forking")

# Each case is a child that was forked before TensorFlow had started anything, and ends as a process does by itself.
ENDINGS = """
    import atexit, os, signal, sys, threading, time
    import keras, numpy as np, tensorflow as tf
    import fastreg, fastreg_kernels

    x, array = None, np.ones(1 << 20, np.float32)

    def slope():
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = fastreg.L1L2(0.5, 0.25)(x)
        return tape.gradient(value, x)

    def kernels():
        fastreg_kernels.forward_backward(array, 0.5, 0.25)

    def at_work(*steps):
        # Daemon threads, each of which has done a step and goes on.
        started = [threading.Event() for _ in steps]
        def work(step, event):
            while True:
                step()
                event.set()
        for step, event in zip(steps, started):
            threading.Thread(target=work, args=(step, event), daemon=True).start()
        for event in started:
            event.wait()

    def model_of(*layers, optimizer="sgd"):
        model = keras.Sequential([*layers, keras.layers.Dense(1, kernel_regularizer=fastreg.L2(0.1))])
        model.compile(optimizer, "mse", jit_compile=False)
        return model

    def fitting(model, inputs):
        started = threading.Event()
        def begun(batch, logs):
            started.set()
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=begun)
        options = {"epochs": 10**9, "verbose": 0, "callbacks": [callback]}
        arguments = (inputs, np.ones((len(inputs), 1)))
        threading.Thread(target=model.fit, args=arguments, kwargs=options, daemon=True).start()
        started.wait()

    def of_kernels():
        at_work(kernels, kernels)
        sys.exit(3)

    def of_ops(bridge):
        global x
        x = tf.ones(1 << 18)
        fastreg.set_bridge(bridge)
        at_work(slope, tf.function(slope))
        sys.exit(3)

    def of_training():
        fitting(model_of(keras.layers.Dense(64, kernel_regularizer=fastreg.L1L2(0.5, 0.25))), np.ones((64, 8)))
        sys.exit(3)

    def of_a_table():
        layer = fastreg.Embedding(1000, 16, embeddings_regularizer=fastreg.L2(1e-3))
        model = model_of(layer, keras.layers.Flatten(), optimizer=fastreg.LazyRegularization("sgd"))
        fitting(model, np.arange(512).reshape(128, 4))
        sys.exit(3)

    def in_a_callback():
        def leave(batch, logs):
            sys.exit(3)
        atexit.register(lambda: print("at exit", float(fastreg.L2(0.5)(tf.ones(100_000))), flush=True))
        model = model_of(keras.layers.Dense(64, kernel_regularizer=fastreg.L1L2(0.5, 0.25)))
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=leave)
        model.fit(np.ones((64, 8)), np.ones((64, 1)), batch_size=8, callbacks=[callback], verbose=0)

    def at_exit():
        atexit.register(lambda: at_work(kernels))
        sys.exit(3)

    def by_an_error():
        at_work(kernels)
        raise SystemError("as expected")

    CASES = {
        "kernels": (of_kernels, 3),
        "native": (lambda: of_ops("native"), 3),
        "py_function": (lambda: of_ops("py_function"), 3),
        "fit": (of_training, 3),
        "table": (of_a_table, 3),
        "callback": (in_a_callback, 3),
        "atexit": (at_exit, 3),
        "error": (by_an_error, 1),
    }
    for name, (case, expected) in CASES.items():
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            case()
            os._exit(9)  # no case comes here
        ended, deadline = 0, time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if not ended:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError(f"{name}: the process did not end")
        code = os.waitstatus_to_exitcode(status)
        if code != expected:
            raise RuntimeError(f"{name}: exit code {code}")
        print(name)
"""


def test_endings_with_work_in_flight(run_script):
    printed = run_script(ENDINGS, seconds=280)
    assert printed.splitlines() == [
        *("kernels", "native", "py_function", "fit", "table", "at exit 50000.0", "callback", "atexit", "error")
    ]
