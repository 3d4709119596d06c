"""How far weights are apart, against NumPy on the whole arrays."""

import math

import numpy as np
import pytest

from fastreg.compare import weights


@pytest.fixture
def save(tmp_path):
    def save(name, **arrays):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return save


@pytest.mark.parametrize("block", [1, 7, 1 << 22])
def test_against_numpy(monkeypatch, block):
    monkeypatch.setattr(weights, "_BLOCK", block)
    generator = np.random.default_rng(1)
    first = generator.normal(size=(10, 5)).astype("float32")
    second = first + generator.normal(size=(10, 5)).astype("float32") * 3e-5
    difference = np.abs(first.astype(float) - second)
    scale = max(np.abs(first).max(), np.abs(second).max())
    largest, beyond = weights.relative(first, second, 1e-5)
    assert largest == difference.max() / scale
    assert 0 < beyond == (difference > 1e-5 * scale).sum()


def test_each_weight_by_its_own_magnitude(save):
    ours = save("ours.npz", large=np.full(3, 1e6), small=np.array([1e-3, 2e-3]))
    theirs = save("theirs.npz", large=np.full(3, 1e6), small=np.array([1e-3, 2.2e-3]))
    found = weights.compare(ours, theirs, 1e-5)
    assert found.weight == "small"
    assert found.relative == pytest.approx(0.2 / 2.2)
    assert (found.beyond, found.elements) == (1, 5)
    assert found.by_weight == {"large": 0, "small": found.relative}


def test_identical(save):
    arrays = {"a": np.zeros((2, 2)), "b": np.arange(3.0), "empty": np.zeros((0, 3))}
    found = weights.compare(save("ours.npz", **arrays), save("theirs.npz", **arrays), 0.0)
    assert (found.relative, found.beyond, found.elements) == (0, 0, 7)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite(save, bad):
    ours, theirs = save("ours.npz", w=np.array([1.0, 2, 3])), save("theirs.npz", w=np.array([1.0, bad, 3]))
    for pair in ((ours, theirs), (theirs, ours), (theirs, theirs)):
        found = weights.compare(*pair, 1e-5)
        assert (found.relative, found.beyond) == (math.inf, 1)


def test_zeros_in_tables(save, tmp_path):
    table = np.zeros((10, 4), "float32")
    table[3, 1], table[7] = 1.0, -2.0
    path = save("side.npz", **{"user/embeddings": table, "item/embeddings": np.ones((2, 4), "float32")}, kernel=table)
    found = weights.zeros(path)
    assert found.share == pytest.approx((40 - 5) / 48)
    assert (found.kept, found.rows, found.nbytes) == (4, 12, 48 * 4)
    assert found.by_table == {"user/embeddings": 1 - 5 / 40, "item/embeddings": 0}
    with np.load(tmp_path / "side.pruned.npz") as pruned:
        assert found.pruned == (tmp_path / "side.pruned.npz").stat().st_size
        restored = np.zeros((10, 4), "float32")
        restored[pruned["user/embeddings/rows"]] = pruned["user/embeddings/values"]
        np.testing.assert_array_equal(restored, table)
