"""Figures side by side."""

import dataclasses
import math

import numpy as np
import pytest
from rich.console import Console

from fastreg.compare import data, report
from fastreg.compare.session import Outcome, Side
from fastreg.compare.settings import Settings
from fastreg.compare.weights import Difference, Zeros

SETTINGS = Settings(
    model="movielens",
    ratings=None,
    criteo=None,
    rows=1000,
    table_rows=None,
    dim=8,
    regularizer="l1l2",
    l1=1e-7,
    l2=1e-6,
    optimizer="sgd",
    learning_rate=0.5,
    batch_size=100,
    warmup=1,
    steps=10,
    seed=0,
    jit=None,
    eager=False,
    tolerance=1e-5,
)
TABLES = {"user": 11, "item": 12, "crosses": 1000}
SPLIT = data.Split(2000, 200, TABLES, {"of predicting the mean": {"rmse": 1.25}})
NO_ZEROS = Zeros(0.0, 1023, 1023, 4 << 20, 4 << 20, dict.fromkeys(TABLES, 0.0))


def side(seconds, turns=5, **changes):
    result = {"loss": 0.5, "penalty": 0.25, "rmse": 0.9, "peak_memory": 3 << 30, "kernel_calls": 7, "choices": []}
    timed = [np.full(2, seconds) for _ in range(turns)]
    return Side({"memory_before": 1 << 30, "digest": "same"}, timed, result | changes)


def outcome(keras, fastreg, **difference):
    values = {"relative": 1e-7, "weight": "user", "beyond": 0, "elements": 100} | difference
    difference = Difference(**values, by_weight={"user": values["relative"]})
    return Outcome(
        {"keras": keras, "fastreg": fastreg}, {"fastreg": difference}, {"keras": NO_ZEROS, "fastreg": NO_ZEROS}
    )


def printed(settings, found):
    console = Console(width=120, record=True)
    console.print(report.table(settings, report.rows(settings, SPLIT, found)))
    return console.export_text()


def cells(text, name):
    """What stands in the line of that name."""
    (line,) = (line for line in text.splitlines() if line.startswith(f" {name}  "))
    return line.removeprefix(f" {name}").split()


def test_speedup():
    found = report.speedup(side(0.3), side(0.1))
    assert found.value == pytest.approx(3)
    assert found.interval == pytest.approx((3, 3))
    assert str(found) == "3.00x (95% interval 3.00 to 3.00)"
    few = report.speedup(side(0.3, turns=2), side(0.1, turns=2))
    assert few.interval is None
    assert "too few turns" in str(few)


def test_table():
    text = printed(SETTINGS, outcome(side(0.3), side(0.1, penalty=0.75, kernel_calls=1234)))
    assert cells(text, "step time, median of 10 steps") == ["300.0", "ms", "100.0", "ms"]
    assert cells(text, "examples a second, at the median") == ["333", "1,000"]
    assert cells(text, "validation RMSE of predicting the mean") == ["1.25000", "1.25000"]
    assert "6.00 s" in text  # 20 steps of 0.3 s
    assert "0.250000" in text
    assert "0.750000" in text
    assert "1.25000" in text
    assert "3,072 MiB" in text
    assert "1,234" in text


def test_notes():
    assert report.notes(SETTINGS, outcome(side(1), side(1))) == []
    idle = side(1, kernel_calls=0, choices=[{"bridge": "tensorflow", "reason": "too small", "count": 3}])
    (note,) = report.notes(SETTINGS, outcome(side(1), idle))
    assert "No kernel ran" in note
    assert "too small" in note
    adam = dataclasses.replace(SETTINGS, optimizer="adam")
    (note,) = report.notes(adam, outcome(side(1), side(1), beyond=3))
    assert "changes its sign at zero" in note
    assert report.notes(adam, outcome(side(1), side(1), beyond=report.FEW)) == []
    assert report.notes(dataclasses.replace(adam, l1=0.0), outcome(side(1), side(1), beyond=3)) == []


def with_lazy(found, lazy, **difference):
    values = {"relative": 1e-3, "weight": "user", "beyond": 7, "elements": 100, "by_weight": {}} | difference
    half = Zeros(0.5, 400, 1023, 4 << 20, 1 << 20, dict.fromkeys(TABLES, 0.5))
    return Outcome(
        found.sides | {"lazy": lazy},
        found.differences | {"lazy": Difference(**values)},
        found.zeros | {"lazy": half},
    )


def test_a_third_column():
    settings = dataclasses.replace(SETTINGS, lazy=True)
    found = with_lazy(outcome(side(0.3), side(0.1)), side(0.01))
    text = printed(settings, found)
    assert "fastreg.Embedding" in text
    assert cells(text, "step time, median of 10 steps")[-2:] == ["10.0", "ms"]
    assert cells(text, "exact zeros in the tables") == ["0.0%", "0.0%", "50.0%"]
    assert cells(text, "rows that are not all zero") == ["1,023", "1,023", "400"]
    assert cells(text, "file without rows of zeros") == ["4", "MiB", "4", "MiB", "1", "MiB"]
    (note,) = report.notes(settings, found)
    assert "stays there" in note
    assert report.notes(dataclasses.replace(settings, l1=0.0), found) == []


def test_two_columns_of_dlrm():
    settings = dataclasses.replace(SETTINGS, model="dlrm", table_rows=1000)
    references = {"of predicting the mean": {"auc": 0.5, "log_loss": 0.625}}
    split = dataclasses.replace(SPLIT, tables={f"C{number}": number for number in range(1, 27)}, references=references)
    three = with_lazy(outcome(side(0.3), side(0.1)), side(0.01, auc=0.75, log_loss=0.5))
    three.sides["keras"].result.update(auc=math.nan, log_loss=0.5)
    two = [{name: of[name] for name in of if name != "fastreg"} for of in (three.sides, three.differences, three.zeros)]
    found = Outcome(*two)
    figures = {row.name: row.cells for row in report.rows(settings, split, found)}
    assert figures["validation AUC"] == ["-", "0.75000"]
    assert figures["validation log loss of predicting the mean"] == ["0.62500", "0.62500"]
    assert list(report.headings(settings).values()) == ["keras.regularizers.L1L2", "fastreg.Embedding"]
    lines = report.header(settings, split, data.Examples({}, np.zeros(0, "float32"), {}, "lines of a file", ("2 bad",)))
    assert "lines of a file; 200 held out" in lines
    assert any(line.startswith("26 tables of 1 to 26 rows, in all 351, x 8") for line in lines)
    assert lines[-2:] == ["2 bad", settings.command()]


@pytest.mark.parametrize(
    ("changes", "difference", "said", "failed"),
    [
        ({"l1": 0.0}, {"relative": 1e-7, "beyond": 0}, "Keras and fastreg.Embedding agree", False),
        ({"l1": 0.0}, {}, "Keras and fastreg.Embedding disagree", True),
        ({}, {}, "1.0e-03 of max|w| from Keras (user), by its own rule", False),
        ({}, {"relative": math.inf}, "training diverged: user is not finite", True),
    ],
)
def test_verdicts_of_lazy_tables(changes, difference, said, failed):
    settings = dataclasses.replace(SETTINGS, lazy=True, **changes)
    found = with_lazy(outcome(side(0.3), side(0.1)), side(0.01), **difference)
    *_, speed, last = report.verdicts(settings, found)
    assert speed.text.startswith("whole step, speed-up of fastreg.Embedding: 30.00x")
    assert said in last.text
    assert last.failed is failed
