"""Made-up impressions."""

import numpy as np
import pytest
from fastreg_benchmarks.workloads import CARDINALITIES

from fastreg.cli import UsageError
from fastreg.compare import clicks, quality


def generate(seed=0, rows=20_000):
    return clicks.generate(rows, 500, seed, lambda text, done: None)


def test_impressions():
    examples = generate()
    assert list(examples.tables.values()) == [min(size, 500) for size in CARDINALITIES]
    ids, counts = examples.inputs["ids"], examples.inputs["counts"]
    assert (ids.shape, ids.dtype) == ((20_000, 26), np.int32)
    assert (counts.shape, counts.dtype) == ((20_000, 13), np.float32)
    assert ids.min() >= 0
    assert (ids.max(axis=0) < list(examples.tables.values())).all()
    assert np.isfinite(counts).all()
    np.testing.assert_allclose(np.expm1(counts), np.round(np.expm1(counts)), rtol=1e-5)  # they are counts
    # A power law: the commonest of 500 values is far above its share.
    assert np.bincount(ids[:, 2]).max() > 20 * 20_000 / 500
    assert 0.2 < examples.targets.mean() < 0.35


def test_clicks_are_drawn_with_the_probabilities():
    examples = generate()
    deviation = (examples.targets - examples.truth).mean()
    assert abs(deviation) < 5 * np.sqrt((examples.truth * (1 - examples.truth)).mean() / 20_000)
    assert 0.75 < quality.auc(examples.truth, examples.targets) < 0.9


def test_the_seed_decides():
    first, again, other = generate(1, 100), generate(1, 100), generate(2, 100)
    for name in first.inputs:
        assert (first.inputs[name] == again.inputs[name]).all()
        assert (first.inputs[name] != other.inputs[name]).any()
    assert (first.truth == again.truth).all()


def test_more_than_memory_holds(monkeypatch):
    monkeypatch.setattr(clicks, "physical_memory", lambda: 2**20)
    with pytest.raises(UsageError, match="20,000 impressions"):
        generate()
