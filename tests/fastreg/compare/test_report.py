"""Figures side by side."""

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from fastreg.compare import data, report
from fastreg.compare.session import Outcome, Side
from fastreg.compare.settings import Settings
from fastreg.compare.weights import Difference, Zeros

SETTINGS = Settings(
    ratings=None,
    rows=1000,
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
SPLIT = data.Split(training=2000, held_out=200, users=11, items=12, baseline=1.25)


def side(seconds, turns=5, **changes):
    result = {"loss": 0.5, "penalty": 0.25, "rmse": 0.9, "peak_memory": 3 << 30, "kernel_calls": 7, "choices": []}
    timed = [np.full(2, seconds) for _ in range(turns)]
    return Side({"memory_before": 1 << 30, "digest": "same"}, timed, result | changes)


def outcome(keras, fastreg, **difference):
    values = {"relative": 1e-7, "weight": "user", "beyond": 0, "elements": 100} | difference
    return Outcome(keras, fastreg, Difference(**values))


def printed(table):
    console = Console(width=120, record=True)
    console.print(table)
    return console.export_text()


def test_speedup():
    found = report.speedup(side(0.3), side(0.1))
    assert found.value == pytest.approx(3)
    assert found.interval == pytest.approx((3, 3))
    assert str(found) == "3.00x (95% interval 3.00 to 3.00)"
    few = report.speedup(side(0.3, turns=2), side(0.1, turns=2))
    assert few.interval is None
    assert "too few turns" in str(few)


def test_table():
    text = printed(report.table(SETTINGS, SPLIT, outcome(side(0.3), side(0.1, penalty=0.75, kernel_calls=1234))))
    lines = {line[:36].strip(): line[36:].split() for line in text.splitlines() if line.strip()}
    assert lines["step time, median of 10 steps"] == ["300.0", "ms", "100.0", "ms"]
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


def test_a_third_column():
    apart = Difference(1e-3, "user", 7, 100)
    zeros = tuple(Zeros(share, kept, 1000, 4 << 20, 1 << 20) for share, kept in ((0.0, 1000), (0.001, 999), (0.5, 400)))
    found = dataclasses.replace(outcome(side(0.3), side(0.1)), lazy=side(0.01), lazy_difference=apart, zeros=zeros)
    text = printed(report.table(SETTINGS, SPLIT, found))
    for expected in ("fastreg.Embedding", "10.0 ms", "50.0%", "400", "4 MiB", "1 MiB"):
        assert expected in text
    (note,) = report.notes(SETTINGS, found)
    assert "stays there" in note
    assert report.notes(dataclasses.replace(SETTINGS, l1=0.0), found) == []
