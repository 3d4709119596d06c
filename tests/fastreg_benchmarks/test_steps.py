import keras
import numpy as np
import pytest
from fastreg_benchmarks import child
from fastreg_benchmarks.limits.lines import FAIL, INFORMATION, PASS, UNCLEAR
from fastreg_benchmarks.steps import memory, models, threads

import fastreg

VERDICTS = {PASS, FAIL, UNCLEAR}


def test_many_layers(settings, monkeypatch):
    monkeypatch.setattr(models, "MODELS", {"small": lambda: models.perceptron(2, 8)})
    (line,) = models.many_layers(settings)
    assert line.verdict in VERDICTS
    assert "without penalties" in line.measured


def test_every_kernel_is_regularized():
    """The same loss by both, and one that the penalties are really part of."""
    keras.utils.set_random_seed(1)
    plain = models.perceptron(2, 8)
    weights = plain.get_weights()
    losses = {}
    for name, change in (("keras", models._regularized), ("fastreg", models._accelerated)):
        model = change(models.perceptron(2, 8))
        model.set_weights(weights)
        losses[name] = float(sum(model.losses))
        assert len(fastreg.inspect(model)) == 3
    assert losses["keras"] == pytest.approx(models.FACTOR * sum(np.square(w).sum() for w in weights), rel=1e-5)
    assert losses["fastreg"] == pytest.approx(losses["keras"], rel=1e-6)


def test_residual_model_has_the_size_of_resnet_50():
    assert 23e6 < models.residual().count_params() < 24e6


def test_threads(settings, monkeypatch):
    for name, value in (("SIZE", 1 << 10), ("SIDE", 16)):
        monkeypatch.setattr(threads, name, value)
    for part in (threads.beside_other_ops, threads.several_at_once):
        (line,) = part(settings)
        assert line.verdict in VERDICTS


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [(100, 200, PASS), (200, 100, FAIL), (100, None, PASS), (None, 100, FAIL), (None, None, INFORMATION)],
)
def test_verdicts_of_growing_tables(settings, monkeypatch, ours, theirs, expected):
    found = {"fastreg": ours, "keras": theirs}

    def run(task, arguments):
        if found[arguments["provider"]] is None and ours is None:
            raise RuntimeError("killed")
        return found[arguments["provider"]]

    monkeypatch.setattr(child, "run", run)
    lines = list(memory.growing_tables(settings))
    assert {line.verdict for line in lines} == {expected}
    assert len(lines) == (1 if expected == INFORMATION else len(memory.SHARES))


def test_a_table_that_fits_and_one_that_does_not():
    arguments = {"provider": "fastreg", "dim": 64}
    grown = child.run("fit", arguments | {"rows": 1 << 17, "allowed": 1 << 30})
    assert 32 << 20 <= grown < 320 << 20
    assert memory._peak("keras", 1 << 20, 256 << 20) is None
