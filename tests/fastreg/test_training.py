"""Fit parity: steps with fastreg's regularizers lead where they lead with Keras's own."""

import numpy as np
import pytest

import fastreg

NAMES = ["sequential", "large", "custom", "activity", "lora", "subclassed"]


@pytest.mark.parametrize("name", [*NAMES, "embedding", "lstm", "convolution", "shared"])
def test_fit_in_a_graph(bridge, trainer, assert_same_weights, name):
    expected, losses = trainer.reference(name, jit_compile=False)
    model, history = trainer.fit(name, fastreg, jit_compile=False)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert bridge.kernel_calls() >= 56  # every step uses a kernel, as native ops serve weights of any size


@pytest.mark.parametrize("name", ["sequential", "large"])
def test_fit_without_native_ops(without_native_ops, trainer, assert_same_weights, name):
    """Callbacks serve the weight that is worth it, TensorFlow's ops the rest."""
    fastreg.set_bridge("auto")
    before = fastreg.info()["kernel_calls"]
    expected, losses = trainer.reference(name, jit_compile=False)
    model, history = trainer.fit(name, fastreg, jit_compile=False)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    calls = fastreg.info()["kernel_calls"] - before
    assert calls >= 56 if name == "large" else calls == 0


@pytest.mark.parametrize("name", NAMES)
def test_fit_eagerly(bridge, trainer, assert_same_weights, name):
    expected, losses = trainer.reference(name, run_eagerly=True)
    model, history = trainer.fit(name, fastreg, run_eagerly=True)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert bridge.kernel_calls() >= 16


# TensorFlow's ops serve whatever the bridge, so that each model needs no more than one of them.
@pytest.mark.parametrize(
    ("bridge", "name"),
    [("native", "sequential"), ("py_function", "activity"), ("auto", "subclassed")],
    indirect=["bridge"],
)
def test_fit_under_xla(bridge, trainer, assert_same_weights, name):
    expected, losses = trainer.reference(name, jit_compile=True)
    with bridge.falls_back("XLA"):
        model, history = trainer.fit(name, fastreg, jit_compile=True)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert bridge.kernel_calls() == 0
