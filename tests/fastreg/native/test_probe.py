"""Where native ops cannot be had: other bridges serve, the results are right, and the reason is given."""

import json

import pytest

import fastreg

BREAKS = {
    "a missing symbol": "capi._EXTERNAL.append('TF_ThereIsNoSuchFunction')",
    "a missing symbol of Python's": "capi._FROM_PYTHON += (('TF_ThereIsNoSuchFunction', None),)",
    "no library": "tf.sysconfig.get_lib = lambda: '/nowhere'",
    "a kernel that is refused": "ops.GRADIENT.types = ('T', 'NoSuchAttribute')",
    "other numbers": "ops.VALUE = Other(ops.VALUE)",
    "an error of any kind": "ops.AHEAD.kernel = None",
    "another system": "sys.platform = 'win32'",
}
REASONS = {
    "a missing symbol": "does not export TF_ThereIsNoSuchFunction",
    "a missing symbol of Python's": "does not export TF_ThereIsNoSuchFunction",
    "no library": "not in the folder",
    "a kernel that is refused": "NoSuchAttribute",
    "other numbers": "the self-test gave [5.75, 6.75]",
    "an error of any kind": "TypeError",
    "another system": "Windows",
}

PROGRAM = """
    import json, sys, warnings
    import numpy as np, tensorflow as tf
    import fastreg
    from fastreg._bridges.native import capi, penalty_ops as ops, probe

    class Other:
        def __init__(self, op):
            self.define, self.prepare, self._op, self.name = op.define, op.prepare, op, op.name
        def __call__(self, *inputs):
            return self._op(*inputs) + 1.0

    exec(sys.argv[1])
    if sys.platform == "win32":
        obstacle = probe.obstacle()  # found out before anything else is told that this is another system
        sys.platform = "linux"
    x, results, warned = tf.constant([[3.0, -2.0, 0.0]]), [], []
    for bridge in ("auto", "native"):
        fastreg.set_bridge(bridge)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for function in (lambda f: f, tf.function):
                for turn in range(3):
                    with tf.GradientTape() as tape:
                        tape.watch(x)
                        value = function(fastreg.L1L2(0.5, 0.25))(x)
                    results.append([float(value), np.asarray(tape.gradient(value, x)).ravel().tolist()])
        warned.append([str(warning.message) for warning in caught if issubclass(warning.category, RuntimeWarning)])
    calls = fastreg.info()["kernel_calls"]
    fastreg.set_bridge("auto")
    fastreg.L2()(x)
    info = fastreg.info()
    calls = info["kernel_calls"] - calls
    print("RESULTS" + json.dumps([results, warned, info["native_obstacle"], info["choices"], calls]))
"""


@pytest.mark.parametrize("kind", BREAKS)
def test_callbacks_take_over(run_python, kind):
    results, warned, obstacle, choices, calls = json.loads(run_python(PROGRAM, BREAKS[kind]).split("RESULTS")[1])
    for value, slope in results:
        assert value == 5.75
        assert slope == [2.0, -1.5, 0.0]
    assert REASONS[kind] in obstacle
    assert warned[0] == []
    assert len(warned[1]) == 1
    assert warned[1][0] == f"fastreg uses TensorFlow's ops although the bridge is set to 'native': {obstacle}"
    assert {choice["bridge"] for choice in choices} == {"py_function", "tensorflow"}
    assert calls == 1  # an eager callback, on "auto"


def test_no_obstacle_here():
    """Where this suite runs, native ops can be had: else most of it would test something else."""
    assert fastreg.info()["native_obstacle"] is None


def test_the_self_test_counts_no_kernel_call_and_leaves_no_guess(run_python):
    printed = run_python(
        """
        import sys
        import numpy as np, fastreg
        guesses = sys.modules["fastreg._bridges.native.penalty_kernels"]._guesses.view(float)
        print(fastreg.info()["kernel_calls"], fastreg.info()["native_obstacle"], np.isnan(guesses).sum())
        """
    )
    calls, obstacle, guesses = printed.split()
    assert (calls, obstacle) == ("0", "None")
    assert int(guesses) >= 2 * (1 << 14) - 2
