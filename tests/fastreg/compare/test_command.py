"""`fastreg compare` from the command line to the verdict."""

import gzip
import math
import re
from collections import Counter

import numpy as np
import pytest

from fastreg import cli
from fastreg.compare import session
from fastreg.compare.session import Outcome, Point, Side
from fastreg.compare.weights import Difference, Zeros


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
    assert f"fastreg compare --model movielens --ratings {csv}" in out
    ((found, steps, weights),) = trainings
    keras, fastreg = found.sides.values()
    for side in (keras, fastreg):
        assert sum(map(len, side.turns)) == 4
        assert all((turn > 0).all() for turn in side.turns)
        assert side.result["peak_memory"] > side.ready["memory_before"] > 0
        assert side.course[0].seconds == 0
        assert side.course[-1].seconds == pytest.approx(sum(turn.sum() for turn in side.turns))
        assert side.course[-1].loss == side.result["loss"]
    assert keras.ready["digest"] == fastreg.ready["digest"]
    assert list(found.differences) == ["fastreg"]
    assert found.differences["fastreg"].relative <= 1e-5
    assert found.differences["fastreg"].beyond == 0
    assert_same_figures(fastreg, keras)
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
    assert found.differences["lazy"].relative <= 1e-5
    keras, _, lazy = found.sides.values()
    assert sum(map(len, lazy.turns)) == 4
    assert_same_figures(lazy, keras)
    assert [zeros.rows for zeros in found.zeros.values()] == [9 + 8 + 200] * 3


def test_a_third_column_of_another_rule(capsys, csv, trainings):
    """Weights are within 0.05, and each of 5 steps takes 0.5 * 0.02 off them."""
    out = a_third_column(capsys, csv, "--regularizer", "l1", "--l1", "0.02", "--learning-rate", "0.5")
    assert "from Keras (" in out
    ((found, _, _),) = trainings
    keras, fastreg, lazy = found.zeros.values()
    assert keras.share < 0.1
    assert fastreg.share < 0.1
    assert lazy.share > 0.5


def test_dlrm_of_a_file_with_a_page(capsys, tmp_path):
    generator = np.random.default_rng(0)
    lines = ["nothing of the kind"]
    for number in range(200):
        ids = [f"{value:08x}" for value in generator.integers(0, 50, 26)]
        lines.append("\t".join([str(number % 2), *map(str, generator.integers(-1, 90, 13)), *ids]))
    path, page = tmp_path / "train.tsv.gz", tmp_path / "page.html"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    arguments = ["--criteo", str(path), "--table-rows", "60", *SMALL, "--regularizer", "l2", "--report", str(page)]
    code, out, err = outcome(capsys, "--model", "dlrm", *arguments)
    assert code == 0, err
    assert f"{path}: 200 impressions, 50.0% of them clicked; 20 held out" in out
    assert f"{path}: 1 of 201 lines left out: line 1: fields separated by tabs: 1, not 40" in out
    assert re.search(r"26 tables of \d+ to 60 rows, in all [\d,]+, x 4", out)
    for name in ("validation AUC", "validation log loss", "examples a second", "exact zeros", "peak memory"):
        assert name in out
    assert "Keras and fastreg.Embedding agree" in out
    assert "true probabilities" not in out  # nobody knows them
    assert f"page: {page}" in out
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 6
    assert "1 of 201 lines left out" in text
    assert f"--criteo {path}" in text


@pytest.fixture
def trained(monkeypatch):
    """Results without training."""

    def pretend(**difference):
        result = {"loss": 1.0, "penalty": 1.0, "rmse": 1.0, "peak_memory": 1, "kernel_calls": 1, "choices": []}
        side = Side({"memory_before": None}, [np.ones(2)], result, [Point(2, 2.0, 1.0)])
        values = {"relative": 0.0, "weight": "table", "beyond": 0, "elements": 10, "by_weight": {"table": 0.0}}
        found = Difference(**(values | difference))
        zeros = dict.fromkeys(("keras", "fastreg"), Zeros(0.0, 1, 1, 4, 4, {"table": 0.0}))
        outcome = Outcome({"keras": side, "fastreg": side}, {"fastreg": found}, zeros)
        monkeypatch.setattr(session, "run", lambda *_: outcome)

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
        (["--steps", "1", "--epochs", "1"], "not allowed with"),
        (["--rows", str(2**31 - 1), "--dim", "4096"], "GiB"),
        (["--ratings", "{csv}", "--table-rows", "5"], "--table-rows does not apply to --model movielens"),
        (["--criteo", "f"], "--criteo does not apply to --model movielens"),
        (["--report", "{csv}/page.html"], "no folder"),
        (["--report", "."], "Is a directory"),
        (["--model", "dlrm", "--ratings", "f"], "--ratings does not apply to --model dlrm"),
        (["--model", "dlrm", "--lazy"], "--lazy does not apply to --model dlrm"),
        (["--model", "dlrm", "--rows", "0"], "--rows: expected a positive integer"),
        (["--model", "dlrm", "--table-rows", "0"], "--table-rows: expected a positive integer"),
        (["--model", "dlrm", "--rows", str(2**31 - 1)], "GiB"),
        (["--model", "dlrm", "--criteo", "{csv}"], "is of Criteo's format"),
        (["--model", "dlrm", "--criteo", "no-such-file.tsv"], "no-such-file.tsv: No such file"),
        (["--model", "other"], "other"),
    ],
)
def test_bad_input(capsys, csv, arguments, said):
    arguments = [argument.format(csv=csv) for argument in arguments]
    code, out, err = outcome(capsys, *(["--ratings", csv] if "--model" not in arguments else []), *arguments)
    assert code == cli.EXIT_USAGE
    assert out == ""
    assert said in err.splitlines()[-1]
    assert "Traceback" not in err
