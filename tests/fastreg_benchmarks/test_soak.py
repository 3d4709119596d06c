from dataclasses import replace

import keras
import numpy as np
import pytest
from fastreg_benchmarks.soak import cases, command, compare
from fastreg_benchmarks.soak.cases import Case, Training

import fastreg

LOOP = Training(
    seed=5,
    model="features",
    tables="dense",
    penalties="layers",
    when="made",
    policy="float32",
    optimizer="adam",
    options=(("clipnorm", 0.25),),
    implicit=False,
    execution="eager",
    steps_per_execution=1,
    modes=("loop", "strengthen", "loop"),
)
LAZY = replace(LOOP, model="two tables", tables="lazy", optimizer="rowwise")


@pytest.fixture
def soak_of(monkeypatch, capsys):
    """Runs the command on one case of these trainings, and returns its exit code and what it printed."""

    def run(*trainings):
        monkeypatch.setattr(command, "draw", lambda seed: Case(seed, "float32", "native", 1, trainings))
        return command.main(["--case", "77"]), capsys.readouterr().out

    return run


def test_a_seed_is_a_case():
    drawn = [cases.draw(seed) for seed in range(300)]
    assert drawn == [cases.draw(seed) for seed in range(300)]
    trainings = [training for case in drawn for training in case.trainings]
    for name, values in (
        ("model", cases.MODELS),
        ("policy", {policy for policies in cases.POLICIES.values() for policy in policies}),
        ("optimizer", (*cases.OPTIMIZERS, *cases.LAZY_OPTIMIZERS)),
    ):
        assert {getattr(training, name) for training in trainings} == set(values)
    assert {mode for training in trainings for mode in training.modes} == {*cases.TRAINING_MODES, *cases.OTHER_MODES}
    assert {training.is_keras_s for training in trainings if training.lazy} == {True, False}


def test_trainings_that_agree(soak_of):
    """A dense one and one of lazy tables by a rule that is not Keras's, at once."""
    code, printed = soak_of(LOOP, replace(LAZY, penalties="accelerate"))
    assert code == 0
    assert "agrees 2" in printed
    assert "kernels" in printed


@pytest.mark.parametrize("training", [LOOP, LAZY], ids=["dense", "lazy"])
def test_a_wrong_factor_is_found(soak_of, monkeypatch, training):
    for name in ("L1", "L2", "L1L2"):
        right = getattr(fastreg, name)
        monkeypatch.setattr(fastreg, name, lambda *factors, right=right: right(*(1.01 * each for each in factors)))
    code, printed = soak_of(replace(training, modes=("loop",)))
    assert code == 1
    assert "DIFFERS" in printed
    assert "--case 77" in printed
    assert "0 loop: loss" in printed


def test_an_exception_is_a_failure_unless_keras_raises_it_too(soak_of, monkeypatch):
    def refuse(*arguments, **options):
        raise TypeError("no such layer")

    with monkeypatch.context() as patch:
        patch.setattr(fastreg, "Embedding", refuse)
        code, printed = soak_of(replace(LAZY, modes=("loop",)))
        assert code == 1
        assert "TypeError: no such layer" in printed
    monkeypatch.setattr(keras.layers, "Embedding", refuse)
    code, printed = soak_of(replace(LAZY, tables="dense", optimizer="adam"))
    assert code == 0
    assert "refused 1" in printed


def test_what_differs():
    def sizes(ours, theirs, policy="float32"):
        notes = ([("0 fit: loss", np.array(each, np.float32))] for each in (ours, theirs))
        (found,) = compare.differences(replace(LOOP, policy=policy), *notes)
        return found.size <= found.tolerance

    assert sizes([1.0, np.nan, np.inf], [1.0 + 1e-6, np.nan, np.inf])
    assert not sizes([1.0], [1.0001])
    assert sizes([1.0], [1.0001], policy="mixed_float16")
    assert not sizes([1.0, 1.0], [1.0, np.nan])
    assert not sizes([1.0, np.inf], [1.0, -np.inf])
    assert not sizes([1.0, 2.0], [1.0])
    missing = compare.differences(LOOP, [("0 fit: loss", np.ones(1))], [])
    assert [each.size for each in missing] == [float("inf")]


def test_rounding_is_told_from_a_difference(monkeypatch):
    """As large as what a changed start makes of the reference, or larger."""
    spread = 1e-3

    def run(training, ours, nudge=0):
        return [("0 fit: loss", np.array(1.0 + nudge * spread))]

    monkeypatch.setattr(command, "run", run)
    for size, outcome in ((2e-3, command.ROUNDING), (1e-1, command.DIFFERS)):
        verdict = command._judge(LOOP, [("0 fit: loss", np.array(1.0 + size))], run(LOOP, False))
        assert verdict.outcome == outcome
