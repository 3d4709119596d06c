"""A whole training step of a dense weight, against NumPy in float64."""

import fastreg_kernels
import ml_dtypes
import numpy as np
import pytest
from fastreg_kernels.cpu.dense import RULES
from hypothesis import given, settings
from hypothesis import strategies as st

TOLERANCES = {"float64": 1e-13, "float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}
DTYPES = [name for name in TOLERANCES if name in fastreg_kernels.DTYPES]
SETTINGS = {
    "sgd": (),
    "momentum": (0.75,),
    "nesterov": (0.75,),
    "adam": (0.875, 0.9375, 2.0**-10),
    "adagrad": (2.0**-10,),
    "rmsprop": (0.875, 2.0**-10),
    "lion": (0.875, 0.9375),
}
RATE = 0.25


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def expected(rule, x, g, slots, step, l1, l2, decay):
    """New weights and slots, by the formulas of Keras's optimizers."""
    g = g + l1 * np.sign(x) + 2 * l2 * x
    w, c = x - decay * RATE * x, SETTINGS[rule]
    if rule == "sgd":
        return w - RATE * g, []
    if rule in ("momentum", "nesterov"):
        m = c[0] * slots[0] - RATE * g
        return w + (m if rule == "momentum" else c[0] * m - RATE * g), [m]
    if rule == "adam":
        m = c[0] * slots[0] + (1 - c[0]) * g
        v = c[1] * slots[1] + (1 - c[1]) * g**2
        m_hat, v_scale = m / (1 - c[0] ** (step + 1)), np.sqrt(1 - c[1] ** (step + 1))
        return w - RATE * v_scale * m_hat / (np.sqrt(v) + c[2]), [m, v]
    if rule == "adagrad":
        n = slots[0] + g**2
        return w - RATE * g / np.sqrt(n + c[0]), [n]
    if rule == "rmsprop":
        v = c[0] * slots[0] + (1 - c[0]) * g**2
        return w - RATE * g / np.sqrt(v + c[1]), [v]
    return w - RATE * np.sign(c[0] * slots[0] + (1 - c[0]) * g), [c[1] * slots[0] + (1 - c[1]) * g]


def arrays(rule, dtype, size, seed=0):
    generator = np.random.default_rng(seed)
    x, g = (generator.normal(size=size).astype(dtype) for _ in range(2))
    return x, g, [generator.uniform(0.125, 1, size).astype(dtype) for _ in RULES[rule][0]]


def run(rule, x, g, slots, step=0, l1=0.0, l2=0.0, decay=0.0):
    return fastreg_kernels.update_dense(rule, x, g, slots, RATE, SETTINGS[rule], step, l1, l2, decay)


PENALTIES = [(0.0, 0.0), (0.125, 0.0), (0.0, 0.25), (0.125, 0.25)]
BOTH = PENALTIES[3]


@pytest.mark.parametrize(
    ("rule", "penalty", "decay"),
    [
        *(("sgd", penalty, decay) for penalty in PENALTIES for decay in (0.0, 0.5)),
        *((rule, *changes) for rule in RULES if rule != "sgd" for changes in ((PENALTIES[0], 0.0), (BOTH, 0.5))),
    ],
)
def test_float32(rule, penalty, decay):
    for size in (0, 1, 15, 16, 17, 40_003, (70, 1000)):
        check(rule, "float32", size, penalty, decay)


@pytest.mark.parametrize(
    ("rule", "name"),
    [*((rule, "float64") for rule in RULES), *((rule, name) for rule in ("sgd", "adam") for name in DTYPES[2:])],
)
def test_other_dtypes(rule, name):
    for size in ((), 33, 40_003):
        check(rule, name, size, BOTH, 0.5)


def check(rule, name, size, penalty, decay):
    x, g, slots = arrays(rule, dtype_of(name), size)
    for step in (0, 3):
        inputs = [array.astype(np.float64) for array in (x, g, *slots)]
        weights, new = expected(rule, inputs[0], inputs[1], inputs[2:], step, *penalty, decay)
        sums = run(rule, x, g, slots, step, *penalty, decay)
        for ours, theirs in zip((x, *slots), (weights, *new), strict=True):
            np.testing.assert_allclose(ours.astype(np.float64), theirs, rtol=TOLERANCES[name], atol=TOLERANCES[name])
        np.testing.assert_array_equal(g.astype(np.float64), inputs[1])
        np.testing.assert_array_equal(sums, fastreg_kernels.forward(x))


@pytest.mark.parametrize("rule", RULES)
def test_nan_and_infinity(rule):
    """What is not finite stays so; zeros of L1 have no gradient."""
    x, g, slots = arrays(rule, np.float32, 40)
    g[:4] = np.nan, np.inf, -np.inf, 0.0
    x[4], x[5], g[5] = np.nan, 0.0, 0.0
    for slot in slots:
        slot[5] = 0.0
    run(rule, x, g, slots, 0, *BOTH, 0.5)
    assert np.isnan(x[[0, 4]]).all()
    assert not np.isfinite(x[1:3]).any() or rule in ("adagrad", "rmsprop", "adam", "lion")
    assert x[5] == 0
    assert np.isfinite(x[6:]).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(list(RULES)), st.integers(0, 300_000), st.integers(0, 2**31))
def test_threads_leave_the_bits_alone(rule, size, seed):
    results, most = [], fastreg_kernels.get_num_threads()
    try:
        for threads in (1, most):
            fastreg_kernels.set_num_threads(threads)
            x, g, slots = arrays(rule, np.float32, size, seed)
            sums = run(rule, x, g, slots, 2, *BOTH, 0.5)
            results.append((x, *slots, sums))
    finally:
        fastreg_kernels.set_num_threads(most)
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_memory_layouts():
    x, g, (slot,) = arrays("momentum", np.float64, (6, 7))
    in_c = run("momentum", x.copy(), g, [slot.copy()])
    other = np.asfortranarray(x)
    in_f = run("momentum", other, np.asfortranarray(g), [np.asfortranarray(slot)])
    run("momentum", x, g, [slot])
    np.testing.assert_array_equal(other, x)
    np.testing.assert_allclose(in_c, in_f, rtol=1e-14)


X = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rule": "adamax"}, ValueError, "argument rule: expected one of .*adam.*adamax"),
        ({"x": [1.0]}, TypeError, "argument x"),
        ({"x": np.ones((4, 3), np.int32)}, TypeError, "argument x"),
        ({"gradient": np.ones((4, 3))}, ValueError, "argument gradient"),
        ({"gradient": np.ones((3, 4), np.float32)}, ValueError, "argument gradient"),
        ({"gradient": np.asfortranarray(X)}, ValueError, "argument gradient.*layout"),
        ({"slots": []}, ValueError, "argument slots: expected 1 for momentum"),
        ({"slots": [np.ones((4, 3))]}, ValueError, r"argument slots\[0\]"),
        ({"settings": ()}, ValueError, "argument settings"),
        ({"settings": ("a",)}, TypeError, "argument momentum"),
        ({"learning_rate": -1.0}, ValueError, "argument learning_rate"),
        ({"l1": np.nan}, ValueError, "argument l1"),
        ({"weight_decay": -1.0}, ValueError, "argument weight_decay"),
    ],
)
def test_errors(change, error, message):
    arguments = {"rule": "momentum", "x": X.copy(), "gradient": X.copy(), "slots": [X.copy()], "learning_rate": 0.5}
    with pytest.raises(error, match=message):
        fastreg_kernels.update_dense(**arguments | {"settings": (0.9,)} | change)
    np.testing.assert_array_equal(arguments["x"], X)


@pytest.mark.parametrize("name", ["x", "slots"])
def test_what_is_read_only_or_overlaps(name):
    memory = np.ones(100, np.float32)
    x, gradient, slot = memory[:40], memory[40:80], np.ones(40, np.float32)
    frozen = x if name == "x" else slot
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=f"{name}.*writable"):
        fastreg_kernels.update_dense("momentum", x, gradient, [slot], 0.5, (0.9,))
    frozen.flags.writeable = True
    fastreg_kernels.update_dense("momentum", x, gradient, [slot], 0.5, (0.9,))
    with pytest.raises(ValueError, match="argument gradient: expected memory apart from x"):
        fastreg_kernels.update_dense("momentum", x, memory[39:79], [slot], 0.5, (0.9,))
