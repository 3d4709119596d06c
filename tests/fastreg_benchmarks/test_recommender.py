import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from fastreg_benchmarks import child, recommender, results
from fastreg_benchmarks.limits.lines import FAIL, INFORMATION, PASS, UNCLEAR, Line
from fastreg_benchmarks.recommender import agreement, capped, models, rivals, rows, uncapped
from fastreg_benchmarks.results import LimitRow, RecommenderRow
from fastreg_benchmarks.timing import Run
from fastreg_benchmarks.worker import Worker
from fastreg_benchmarks.workloads import BATCHES, Recommender
from rich.console import Console

import fastreg
from fastreg.cli import main

SMALL = Recommender(cardinalities=(20, 400), width=4, batch=16, hidden=8)
VERDICTS = {PASS, FAIL, UNCLEAR}


@pytest.fixture
def no_torch(monkeypatch):
    """As on a machine that has neither of the rivals."""
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda module: None)


class FakeWorker:
    """Takes a millisecond, in this process."""

    process_id = "self"
    run = Run(lambda: 0.5, clock=lambda calls: 1e-3)

    def __init__(self, function, arguments):
        if arguments["provider"] == "fbgemm":
            raise RuntimeError("ImportError: undefined symbol")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("provider", models.NAMES)
def test_every_model_trains_predicts_and_is_evaluated(provider):
    steps = models.steps(provider, SMALL)
    losses = [steps.fit.call() for _ in range(10 * BATCHES)]  # each the mean of all until then
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[BATCHES - 1]
    assert steps.predict.call().shape == (SMALL.batch, 1)
    assert np.isfinite(steps.evaluate.call())


def test_layers_of_the_providers():
    assert models.size_of("keras-1000", SMALL).cardinalities == (1000, 1000)
    assert models.size_of("lazy", SMALL) is SMALL
    model = models.model(models.EMBEDDINGS["lazy"], models.OPTIMIZERS["adagrad"](), SMALL)
    tables = [layer for layer in model.layers if isinstance(layer, fastreg.Embedding)]
    assert sorted(layer.input_dim for layer in tables) == list(SMALL.cardinalities)
    assert isinstance(model.optimizer, fastreg.LazyRegularization)
    assert not model.jit_compile


def test_the_lazy_model_is_kerass(settings):
    ((measured, (line,)),) = agreement.weights(settings)
    assert measured == []
    assert (line.line, line.verdict) == (1, PASS)


def test_another_rule_is_found(settings, monkeypatch):
    monkeypatch.setattr(agreement.fastreg, "L2", lambda factor: fastreg.L1L2(0.0, 1.01 * factor))
    ((_, (line,)),) = agreement.weights(settings)
    assert line.verdict == "WRONG"


def test_losses_that_are_not_finite_are_wrong():
    good, bad = rows.Timed(np.ones(5), True), rows.Timed(np.ones(5), False)
    assert rows.compared(2, "a", good, good, most=2).verdict == PASS
    assert rows.compared(2, "a", good, good, least=2).verdict == FAIL
    assert rows.compared(2, "a", good, good).verdict == INFORMATION
    for pair in ((good, bad), (bad, good)):
        assert rows.compared(2, "a", *pair, most=2).verdict == "WRONG"


def test_measuring_looks_at_results(settings):
    timed = rows.measure({"a": Run(lambda: 1.0), "b": Run(lambda: np.array([1.0, math.nan]))}, settings)
    assert [timed[name].finite for name in "ab"] == [True, False]


def test_steps_in_a_process_of_their_own():
    arguments = {"provider": "lazy", "workload": asdict(SMALL), "seconds": 0.01, "allowed": 8 << 30}
    found = child.run("recommender_steps", arguments)
    assert min(found["seconds"]) > 0
    assert found["peak"] > 1 << 20
    assert math.isfinite(found["loss"])


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (None, FAIL),
        ({"seconds": [0.1], "peak": 1 << 30, "loss": 0.5}, PASS),
        ({"seconds": [0.1], "peak": 1 << 30, "loss": math.nan}, FAIL),
    ],
)
def test_verdicts_of_whole_tables(monkeypatch, settings, found, verdict):
    monkeypatch.setattr(child, "attempt", lambda task, arguments: found)
    parts = list(uncapped.steps(settings))
    assert [line.verdict for _, (line,) in parts] == [verdict, INFORMATION, INFORMATION]
    assert all(line.measured == "fails" for _, (line,) in parts) == (found is None)
    assert [row.peak_bytes for measured, _ in parts for row in measured] == ([] if found is None else [1 << 30] * 3)


def test_what_is_not_installed_takes_a_line(settings, no_torch):
    ((measured, lines),) = rivals.in_turns(settings)
    assert measured == []
    assert [line.measured for line in lines] == [
        "not installed: pip install torch fbgemm-gpu-cpu",
        "not installed: pip install torch",
    ]
    assert list(rivals.with_memory(settings)) == []


def test_rivals_in_turns_and_one_that_cannot_be_loaded(settings, monkeypatch):
    monkeypatch.setattr(rivals.Rival, "missing", lambda self: [])
    monkeypatch.setattr(rivals, "Worker", FakeWorker)
    monkeypatch.setattr(capped, "WORKLOAD", SMALL)
    ((measured, (failed, timed)),) = rivals.in_turns(settings)
    assert failed.measured == "fails: ImportError: undefined symbol"
    assert "times faster than" in timed.what
    assert "1.00 ms against" in timed.measured
    assert {line.verdict for line in (failed, timed)} == {INFORMATION}
    assert [row.provider for row in measured] == ["lazy", "torch-sparse"]
    ((none, (failed,)), ((row,), (line,))) = rivals.with_memory(settings)
    assert none == []
    assert failed.measured == "fails"
    assert "peak memory" in line.measured
    assert row.peak_bytes > 1 << 20


@pytest.mark.parametrize("provider", rivals.RIVALS)
def test_rivals_train(provider):
    if rivals.RIVALS[provider].missing():
        pytest.skip("not installed")
    workload = replace(SMALL, batch=64)
    with Worker(rivals.STEP, {"provider": provider, "workload": asdict(workload), "threads": 1}) as worker:
        losses = [worker.run.call() for _ in range(20 * BATCHES)]
    assert np.mean(losses[-BATCHES:]) < np.mean(losses[:BATCHES])


def test_the_suite_writes_rows_and_targets(monkeypatch, settings, tmp_path, no_torch):
    monkeypatch.setattr(capped, "WORKLOAD", SMALL)
    monkeypatch.setattr(capped, "QUICK_CAP", 30)
    found = {"seconds": [0.1, 0.2], "peak": 1 << 30, "loss": 0.5}
    monkeypatch.setattr(child, "attempt", lambda task, arguments: found)
    csv = tmp_path / "rows.csv"
    with (tmp_path / "out.txt").open("w") as file:
        changed = replace(settings, suite="recommender", csv=csv)
        assert recommender.run(changed, Console(file=file, width=200)) == 0
    measured = results.read(csv, RecommenderRow)
    assert {row.part for row in measured} == {"fit", "predict", "evaluate", "growth", "uncapped"}
    assert {row.provider for row in measured} == set(models.NAMES)
    assert all(0 < row.p20_s <= row.p50_s <= row.p80_s for row in measured)
    assert {row.rows for row in measured} == {20 + 30, 20 + 400, 2000}
    assert {row.peak_bytes for row in measured} == {None, 1 << 30}
    targets = results.read(tmp_path / "rows_targets.csv", LimitRow)
    assert [row.line for row in targets] == sorted(row.line for row in targets)
    assert {row.line for row in targets} == {1, 2, 3, 4, 5, 6}
    verdicts = {(row.line, row.target): row.verdict in VERDICTS for row in targets if row.target != INFORMATION}
    expected = [(1, "within 1e-05"), (2, "at most 1"), (2, "at least 12"), (2, "at least 5"), (3, "at most 1.3")]
    assert list(verdicts) == [*expected, (4, "trains"), (5, "at most 1.1")]
    assert all(verdicts.values())
    printed = (tmp_path / "out.txt").read_text()
    for words in ("times faster than Keras with L1L2", "evaluate, tables up to 30", "not installed", "a step"):
        assert words in printed


def test_a_wrong_result_shows_in_the_exit_code(monkeypatch, settings, capsys):
    line = Line(1, "weights", "within 1e-05", "differ by 1", "WRONG")
    monkeypatch.setattr(recommender, "PARTS", (lambda settings: iter([([], [line])]),))
    assert recommender.run(settings, Console()) == 1


@pytest.mark.parametrize("option", [("--sizes", "1"), ("--modes", "jit"), ("--plot",), ("--warm",)])
def test_options_that_do_not_apply(option, capsys):
    assert main(["bench", "--suite", "recommender", *option]) == 2
    assert "does not apply" in capsys.readouterr().err
