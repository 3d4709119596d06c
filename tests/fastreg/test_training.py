"""Fit parity: 56 steps with fastreg's regularizers lead where they lead with Keras's own."""

import numpy as np
import pytest

import fastreg

NAMES = ["sequential", "large", "custom", "activity", "lora", "subclassed"]


def check_kernel_calls(bridge, name, eager=False):
    """Forced and eager, every step uses a kernel; otherwise only where the weight is worth it."""
    if bridge.forced or eager or name == "large":
        assert bridge.kernel_calls() >= 56
    else:
        assert bridge.kernel_calls() == 0


@pytest.mark.parametrize("name", [*NAMES, "embedding", "lstm", "convolution", "shared"])
def test_fit_in_a_graph(bridge, trainer, assert_same_weights, name):
    expected, losses = trainer.reference(name, jit_compile=False)
    model, history = trainer.fit(name, fastreg, jit_compile=False)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    check_kernel_calls(bridge, name)


@pytest.mark.parametrize("name", NAMES)
def test_fit_eagerly(bridge, trainer, assert_same_weights, name):
    expected, losses = trainer.reference(name, run_eagerly=True)
    model, history = trainer.fit(name, fastreg, run_eagerly=True)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    check_kernel_calls(bridge, name, eager=True)


@pytest.mark.parametrize("name", ["sequential", "activity", "subclassed"])
def test_fit_under_xla(bridge, trainer, assert_same_weights, name):
    expected, losses = trainer.reference(name, jit_compile=True)
    with bridge.falls_back("XLA"):
        model, history = trainer.fit(name, fastreg, jit_compile=True)
    assert_same_weights(model.get_weights(), expected)
    np.testing.assert_allclose(history, losses, rtol=1e-5)
    assert bridge.kernel_calls() == 0
