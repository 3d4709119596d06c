"""`fastreg compare` from the command line to the verdict."""

import math
from collections import Counter

import numpy as np
import pytest

from fastreg import cli
from fastreg.compare import session
from fastreg.compare.session import Outcome, Side
from fastreg.compare.weights import Difference


@pytest.fixture
def csv(tmp_path):
    generator = np.random.default_rng(0)
    lines = ["user,item,rating,genres"]
    for _ in range(200):
        user, item, rating = generator.integers(0, [9, 8, 6])
        lines.append(f"{user},{item},{rating},{'Drama|War' if item % 2 else 'Comedy'}")
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


SMALL = ["--rows", "200", "--dim", "4", "--batch-size", "20", "--steps", "4", "--warmup", "1"]


def outcome(capsys, *arguments):
    try:
        code = cli.main(["compare", *arguments])
    except SystemExit as leaving:
        code = leaving.code
    return (code, *capsys.readouterr())


@pytest.fixture
def trainings(monkeypatch):
    """What the processes reported, and what was heard of them, for each comparison that the command makes."""
    found = []
    run = session.run

    def recorded(settings, folder, notify):
        steps = Counter()

        def hear(text, number):
            steps[text.split(",")[0]] += number
            notify(text, number)

        result = run(settings, folder, hear)
        with np.load(folder / "keras.npz") as arrays:
            found.append((result, steps, dict(arrays)))
        return result

    monkeypatch.setattr(session, "run", recorded)
    return found


def assert_same_figures(ours, theirs):
    for figure in ("loss", "penalty", "rmse"):
        assert ours.result[figure] == pytest.approx(theirs.result[figure], rel=1e-5)


def test_two_models_that_agree(capsys, csv, trainings):
    code, out, err = outcome(capsys, "--ratings", csv, *SMALL, "--l1", "1e-4", "--l2", "1e-3")
    assert code == 0, err
    assert "200 ratings of 8 items by 9 users" in out
    assert "validation RMSE" in out
    assert "peak memory in training" in out
    assert "whole step, speed-up:" in out
    assert "the models agree" in out
    assert "No kernel ran" not in out  # native ops serve tables of any size
    assert f"fastreg compare --ratings {csv}" in out
    ((found, steps, weights),) = trainings
    for side in (found.keras, found.fastreg):
        assert sum(map(len, side.turns)) == 4
        assert all((turn > 0).all() for turn in side.turns)
        assert side.result["peak_memory"] > side.ready["memory_before"] > 0
    assert found.keras.ready["digest"] == found.fastreg.ready["digest"]
    assert found.difference.relative <= 1e-5
    assert found.difference.beyond == 0
    assert_same_figures(found.fastreg, found.keras)
    assert (steps["warm-up steps"], steps["timed steps"]) == (2 * 1, 2 * 4)
    assert weights["user/embeddings"].shape == (9, 4)


def test_two_models_that_agree_on_kernels(capsys, csv, monkeypatch):
    monkeypatch.setenv("FASTREG_BRIDGE", "py_function")
    code, out, err = outcome(capsys, "--ratings", csv, *SMALL, "--eager", "--optimizer", "adagrad")
    assert code == 0, err
    assert "No kernel ran" not in out
    assert "the models agree" in out


def a_third_column(capsys, csv, *arguments):
    code, out, err = outcome(capsys, "--ratings", csv, *SMALL, "--lazy", *arguments)
    assert code == 0, err
    assert "whole step, speed-up of fastreg.Embedding" in out
    assert "file without rows of zeros" in out
    assert "--lazy" in out
    return out


def test_a_third_column_of_the_same_training(capsys, csv, trainings):
    """With L2 and SGD a table that is regularised lazily ends where Keras's does; the penalty that it reports too."""
    out = a_third_column(capsys, csv, "--regularizer", "l2", "--l2", "1e-3")
    assert "Keras and fastreg.Embedding agree" in out
    ((found, _, _),) = trainings
    assert found.lazy_difference.relative <= 1e-5
    assert sum(map(len, found.lazy.turns)) == 4
    assert_same_figures(found.lazy, found.keras)
    assert [zeros.rows for zeros in found.zeros] == [9 + 8 + 200] * 3


def test_a_third_column_of_another_rule(capsys, csv, trainings):
    """Weights are within 0.05, and each of 5 steps takes 0.5 * 0.02 off them."""
    out = a_third_column(capsys, csv, "--regularizer", "l1", "--l1", "0.02", "--learning-rate", "0.5")
    assert "from Keras (" in out
    ((found, _, _),) = trainings
    keras, fastreg, lazy = found.zeros
    assert keras.share < 0.1
    assert fastreg.share < 0.1
    assert lazy.share > 0.5


@pytest.fixture
def trained(monkeypatch):
    """Results without training."""

    def pretend(**difference):
        result = {"loss": 1.0, "penalty": 1.0, "rmse": 1.0, "peak_memory": 1, "kernel_calls": 1, "choices": []}
        side = Side({"memory_before": None}, [np.ones(2)], result)
        values = {"relative": 0.0, "weight": "table", "beyond": 0, "elements": 10} | difference
        monkeypatch.setattr(session, "run", lambda *_: Outcome(side, side, Difference(**values)))

    return pretend


@pytest.mark.parametrize(
    ("difference", "code", "said"),
    [
        ({}, 0, "identical"),
        ({"relative": 1e-7}, 0, "1.0e-07 of max|w| (table), tolerance 1e-05"),
        ({"relative": 1e-3, "beyond": 4}, 1, "disagree"),
        ({"relative": math.inf, "beyond": 4}, 1, "diverged: table is not finite"),
    ],
)
def test_verdicts(capsys, csv, trained, difference, code, said):
    trained(**difference)
    found, out, err = outcome(capsys, "--ratings", csv, *SMALL)
    assert found == code
    assert said in (err if code else out)
    assert len(err.splitlines()) == code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (session.WorkerError("the keras process was killed"), 1, "the keras process was killed"),
        (OSError(28, "No space left on device", "/somewhere"), 1, "/somewhere: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures(capsys, csv, monkeypatch, error, code, said):
    def fail(*_):
        raise error

    monkeypatch.setattr(session, "run", fail)
    found, _, err = outcome(capsys, "--ratings", csv, *SMALL)
    assert (found, err) == (code, f"fastreg: {said}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "0"], "--rows: expected a positive integer"),
        (["--rows", str(2**31)], "int32"),
        (["--dim", "-1"], "--dim"),
        (["--batch-size", "0"], "--batch-size"),
        (["--steps", "0"], "--steps"),
        (["--epochs", "0"], "--epochs"),
        (["--warmup", "0"], "--warmup"),
        (["--seed", "-1"], "--seed"),
        (["--l1", "-0.5"], "--l1"),
        (["--l2", "nan"], "--l2"),
        (["--l2", "inf"], "--l2"),
        (["--tolerance", "-1"], "--tolerance"),
        (["--regularizer", "l1", "--l2", "0.5"], "--l2 does not apply"),
        (["--regularizer", "l3"], "l3"),
        (["--optimizer", "none"], "none"),
        (["--eager", "--jit"], "exclude each other"),
        (["--lazy", "--jit"], "exclude each other"),
        (["--steps", "1", "--epochs", "1"], "not allowed with"),
        (["--rows", str(2**31 - 1), "--dim", "4096"], "GiB"),
    ],
)
def test_bad_input(capsys, csv, arguments, said):
    code, out, err = outcome(capsys, "--ratings", csv, *arguments)
    assert code == cli.EXIT_USAGE
    assert out == ""
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
