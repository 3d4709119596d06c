"""Native ops in processes of every kind: forked, with other threading layers, without GPUs, imported twice."""

import os

import pytest

START = """
    import os, sys, warnings
    warnings.filterwarnings("ignore", message=".*workqueue", category=RuntimeWarning)
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    import numpy as np
    import tensorflow as tf
    import fastreg

    numbers = np.arange(-150_000.0, 150_001.0)
    small, large = (tf.constant(values, tf.float64) for values in (numbers[:5], numbers))

    def check(package=None, bridge="native", function=lambda f: f):
        package = package or fastreg
        package.set_bridge(bridge)
        before = package.info()["kernel_calls"]
        for x in (small, large):
            values = x.numpy()
            for turn in range(3):
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    value = function(package.L1L2(0.5, 0.25))(x)
                assert float(value) == 0.5 * np.abs(values).sum() + 0.25 * np.square(values).sum()
                assert (np.asarray(tape.gradient(value, x)) == 0.5 * np.sign(values) + 0.5 * values).all()
        assert package.info()["kernel_calls"] > before
        assert package.info()["native_obstacle"] is None
"""

LAYERS = ["tbb", "omp", "workqueue"]


@pytest.fixture(params=LAYERS)
def layer(request, run_python):
    probe = """
        from fastreg_kernels import threading_layer
        try:
            print(threading_layer())
        except ValueError as error:
            print("missing", error)
    """
    found = run_python(probe, NUMBA_THREADING_LAYER=request.param)
    if found.startswith("missing"):
        pytest.skip(found)
    return request.param


def test_threading_layers(run_python, layer):
    printed = run_python(
        START
        + """
    check()
    check(function=tf.function)
    print(fastreg.info()["threading_layer"], fastreg.info()["threads"])
        """,
        NUMBA_THREADING_LAYER=layer,
        NUMBA_NUM_THREADS="2",
    )
    assert printed.split() == [layer, "1" if layer == "workqueue" else "2"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("warm", [True, False], ids=["kernels ran", "nothing ran"])
def test_forked_children(run_python, layer, warm):
    """Eager penalties, small and large, with gradients; graphs would need TensorFlow's own threads, which are gone."""
    if not warm:
        code = START.replace("small, large = ", "make = lambda: ")
        code += """
    def child():
        global small, large
        small, large = make()
        check()
        """
    else:
        code = (
            START
            + """
    check()
    check(function=tf.function)
    child = check
        """
        )
    code += """
    process = os.fork()
    if process == 0:
        try:
            child()
            print("CHILD", fastreg.info()["threads"], flush=True)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    if "make" in globals():
        small, large = make()
    check()
    print("done")
    """
    printed = run_python(code, NUMBA_THREADING_LAYER=layer, NUMBA_NUM_THREADS="2")
    assert f"CHILD {1 if warm or layer == 'workqueue' else 2}\n" in printed
    assert printed.endswith("done\n")


def test_without_visible_gpus(run_python):
    printed = run_python(
        START.replace("import fastreg\n", 'import fastreg\n    tf.config.set_visible_devices([], "GPU")\n', 1)
        + """
    check()
    check(bridge="auto")
    check(function=tf.function)
    print(fastreg.info()["choices"][0]["bridge"])
        """
    )
    assert printed == "native\n"


@pytest.mark.parametrize("kernels_too", [False, True], ids=["fastreg", "fastreg and its kernels"])
def test_imported_twice(run_python, kernels_too):
    """As by a reloading notebook: TensorFlow keeps the ops of the first import, and the second finds them."""
    names = ("fastreg", "fastreg_kernels") if kernels_too else ("fastreg",)
    printed = run_python(
        START
        + f"""
    check()
    traced = tf.function(lambda x: fastreg.L2(0.5)(x))
    assert float(traced(tf.ones(4))) == 2.0
    first = fastreg
    for name in [name for name in sys.modules if name.split(".")[0] in {names!r}]:
        del sys.modules[name]
    import fastreg
    assert fastreg is not first
    check(first)
    check(fastreg)
    check(fastreg, function=tf.function)
    check(first, function=tf.function)
    with tf.GradientTape() as tape:
        x = tf.ones(4)
        tape.watch(x)
        value = traced(x)
    assert tape.gradient(value, x).numpy().tolist() == [1.0] * 4
    import keras
    for package in (first, fastreg):
        package.set_bridge("native")
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=package.L2(0.1))])
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(np.ones((8, 3)), np.ones((8, 2)), batch_size=2, verbose=0)
    print("done")
        """
    )
    assert printed == "done\n"


def test_first_uses_in_several_threads_at_once(run_python):
    """Ops are defined once: a second definition would end the process."""
    printed = run_python(
        """
        import threading
        import fastreg, tensorflow as tf
        fastreg.set_bridge("native")
        x, barrier, values = tf.constant([3.0, -2.0]), threading.Barrier(8), []

        def work():
            barrier.wait()
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = fastreg.L1L2(0.5, 0.25)(x)
            values.append((float(value), tape.gradient(value, x).numpy().tolist()))

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(len(values), len(set(map(str, values))), values[0], fastreg.info()["native_obstacle"])
        """
    )
    assert printed.split() == ["8", "1", "(5.75,", "[2.0,", "-1.5])", "None"]
