"""The suite `bags`."""

from dataclasses import asdict, replace

import keras
import numpy as np
import pytest
from fastreg_benchmarks import bags, results
from fastreg_benchmarks.bags import linear, models, pooled
from fastreg_benchmarks.limits.lines import FAIL, INFORMATION, PASS, UNCLEAR
from fastreg_benchmarks.recommender import agreement, rivals
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.workloads import Bags
from rich.console import Console

import fastreg

TINY = Bags(tables=2, rows=50, width=4, batch=8, bag=3)


def test_the_suite_writes_targets(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(pooled, "QUICK_BAGS", TINY)
    monkeypatch.setattr(linear, "QUICK_BAGS", replace(TINY, width=1, bag=1))
    csv = tmp_path / "bags.csv"
    assert bags.run(replace(settings, suite="bags", csv=csv), Console(quiet=True)) == 0
    rows = results.read(csv, LimitRow)
    assert [(row.line, row.target) for row in rows] == [
        *((1, target) for target in ("within 1e-05", "at least 3", "-", "at least 1")),
        *((2, target) for target in ("within 1e-05", "at least 1")),
    ]
    assert {row.verdict for row in rows} <= {PASS, FAIL, UNCLEAR, INFORMATION}
    assert rows[0].verdict == rows[4].verdict == PASS


def test_what_is_not_installed_is_named(settings, monkeypatch):
    monkeypatch.setattr(pooled, "QUICK_BAGS", TINY)
    monkeypatch.setattr(rivals.importlib.util, "find_spec", lambda name: None)
    lines = list(pooled.training(settings))
    assert [line.measured for line in lines if line.measured.startswith("not installed")] == [
        "not installed: pip install keras-rs",
        "not installed: pip install torch fbgemm-gpu-cpu",
    ]


def test_batches():
    first, second = TINY.batches()[:2]
    assert first[0].shape == (8, 2, 3)
    assert first[1].shape == (8, 1)
    assert 0 <= first[0].min() <= first[0].max() < 50
    assert (first[0] != second[0]).any()
    np.testing.assert_array_equal(first[0], TINY.batches()[0][0])
    distinct = replace(TINY, exponent=None).batches()[0][0]
    assert all(np.unique(distinct[:, table]).size == 24 for table in range(2))


@pytest.mark.parametrize("wrong", [False, True])
def test_weights_that_differ_are_found(wrong):
    def model(factor):
        layer = fastreg.EmbedReduce(50, 4, embeddings_regularizer=fastreg.L2(factor), combiner="sum")
        return models.model(lambda: layer, total, keras.optimizers.SGD(0.1), TINY)

    def total(vectors):
        return keras.ops.sum(keras.ops.concatenate(vectors, axis=1), axis=1, keepdims=True)

    line = agreement.agree(1, "weights", model(0.1), model(0.2 if wrong else 0.1), TINY.batches())
    assert line.verdict == ("WRONG" if wrong else PASS)


def test_steps_train():
    model = pooled._model(lambda: pooled._lazy(TINY, fastreg.L2(0.1)), "adagrad", TINY)
    before = model.get_weights()
    assert np.isfinite(models.step(model, TINY).call())
    assert all((now != then).any() for now, then in zip(model.get_weights(), before, strict=True))


def test_the_model_in_pytorch():
    pytest.importorskip("fbgemm_gpu", reason="FBGEMM is not installed")
    from fastreg_benchmarks.worker import Worker

    with Worker("fastreg_benchmarks.pytorch.bags:step", {"workload": asdict(TINY), "threads": 1}) as worker:
        losses = [worker.run.call() for _ in range(20)]
    assert np.isfinite(losses).all()
    assert losses[-4:] != losses[:4]
