import numpy as np
import pytest
from fastreg_benchmarks import lazy, results
from fastreg_benchmarks.lazy import criteo, rows, shares, sizes, steps
from fastreg_benchmarks.lazy.steps import EMBEDDINGS
from fastreg_benchmarks.results import LazyRow, LimitRow
from fastreg_benchmarks.workloads import BATCHES, Workload
from rich.console import Console

from fastreg import models
from fastreg.cli import main


@pytest.mark.parametrize("provider", EMBEDDINGS)
@pytest.mark.parametrize("optimizer", steps.OPTIMIZERS)
def test_every_step_trains(provider, optimizer):
    run = steps.step(provider, optimizer, Workload(50, 4, batch=16, fields=3, exponent=1.2))
    losses = [run.call() for _ in range(10 * BATCHES)]  # each the mean of all until then
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[BATCHES - 1]


def test_the_table_of_criteo():
    assert len(criteo.CARDINALITIES) == 26
    assert sum(criteo.CARDINALITIES) == criteo.WORKLOAD.rows == 33_762_577


def test_a_table_that_does_not_fit_is_said_to_fail(monkeypatch, settings):
    def fail(task, arguments):
        raise RuntimeError(task)

    monkeypatch.setattr(criteo.child, "run", fail)
    found = list(criteo.steps(settings))
    assert [(rows, line.measured, line.verdict) for rows, (line,) in found] == [
        ([], "fails", "fail"),
        ([], "fails", "-"),
        ([], "fails", "-"),
    ]


def test_the_suite_writes_rows_and_a_plot(monkeypatch, settings, tmp_path):
    for module, name, value in (
        (sizes, "QUICK_SIZES", (100, 200)),
        (sizes, "QUICK_COMPARED", 200),
        (sizes, "QUICK_FEW", (10,)),
        (shares, "QUICK_ROWS", 300),
        (shares, "SHARES", (0.01, 1.0)),
        (criteo, "QUICK_ROWS", 400),
    ):
        monkeypatch.setattr(module, name, value)
    small = Workload(sizes.SMALL, 4, 8, 2, 1.2)
    monkeypatch.setattr(sizes, "WORKLOAD", small)
    csv, plot = tmp_path / "rows.csv", tmp_path / "lazy.png"
    changed = type(settings)(**{**vars(settings), "suite": "lazy", "csv": csv, "plot": plot})
    with (tmp_path / "out.txt").open("w") as file:
        assert lazy.run(changed, Console(file=file, width=200)) == 0
    found = results.read(csv, LazyRow)
    assert {row.part for row in found} == {"sizes", "against-keras", "few-rows", "shares", "criteo"}
    assert {row.provider for row in found} == set(EMBEDDINGS)
    assert all(0 < row.p20_s <= row.p50_s <= row.p80_s for row in found)
    assert plot.read_bytes().startswith(b"\x89PNG")
    targets = results.read(tmp_path / "rows_targets.csv", LimitRow)
    assert [row.line for row in targets] == sorted(row.line for row in targets)
    assert {row.line for row in targets} == {1, 2, 3, 4, 5, 6}
    printed = (tmp_path / "out.txt").read_text()
    for words in ("times faster than Keras with L1L2", "at most 1.5", "touched", "a step"):
        assert words in printed


def test_rows_hold_what_was_timed(settings):
    workload = Workload(10, 4, 8, 2, None)
    row = rows.row("sizes", ("lazy", "sgd", workload), np.array([1.0, 2.0, 3.0]), settings)
    assert (row.rows, row.width, row.lookups, row.exponent, row.rounds, row.p50_s) == (10, 4, 16, None, 3, 2.0)


@pytest.mark.parametrize("option", [("--sizes", "1"), ("--modes", "jit"), ("--dtypes", "float32"), ("--warm",)])
def test_options_that_do_not_apply(option, capsys):
    assert main(["bench", "--suite", "lazy", *option]) == 2
    assert "does not apply" in capsys.readouterr().err


def test_the_fewest_rows_are_those_that_inspect_names():
    assert min(sizes.FEW) == models.LEAST_ROWS
