"""What is trained on, what is held out, and in which order."""

import itertools

import numpy as np
import pytest

from fastreg.compare import data, quality
from fastreg.compare.data import Examples


def test_split():
    training, held_out = data.split(1000, 3)
    assert sorted([*training, *held_out]) == list(range(1000))
    assert len(held_out) == 100
    assert [part.tolist() for part in data.split(1000, 3)] == [training.tolist(), held_out.tolist()]
    assert data.split(1000, 4)[1].tolist() != held_out.tolist()
    assert [len(part) for part in data.split(2, 0)] == [1, 1]


def test_batches():
    batches = list(itertools.islice(data.batches(10, 3, 5), 6))
    for epoch in (batches[:3], batches[3:]):
        seen = np.concatenate(epoch)
        assert len(seen) == len(set(seen)) == 9
        assert set(seen) <= set(range(10))
    assert np.concatenate(batches[:3]).tolist() != np.concatenate(batches[3:]).tolist()
    again = list(itertools.islice(data.batches(10, 3, 5), 6))
    assert np.array_equal(batches, again)


@pytest.mark.parametrize("known", [False, True])
def test_written_and_read(tmp_path, known):
    generator = np.random.default_rng(0)
    inputs = {"ids": generator.integers(0, 20, (500, 3)), "numbers": generator.random((500, 2), np.float32)}
    targets = generator.random(500, np.float32)
    truth = targets + 0.25 if known else None
    examples = Examples(inputs, targets, {"first": 20, "second": 30}, "a test", truth=truth)
    written = data.write(
        examples, 7, lambda predicted, of: {"rmse": quality.rmse(predicted, of)}, tmp_path / "data.npz"
    )
    training, held_out = data.split(500, 7)
    assert (written.training, written.held_out) == (450, 50)
    deviations = targets[held_out] - targets[training].astype(float).mean()
    references = {"of predicting the mean": {"rmse": pytest.approx(np.sqrt((deviations**2).mean()), rel=1e-6)}}
    if known:
        references["of the true probabilities"] = {"rmse": pytest.approx(0.25)}
    assert written.references == references
    found = data.read(tmp_path / "data.npz")
    assert found.tables == written.tables == {"first": 20, "second": 30}
    for part, chosen in ((found.training, training), (found.held_out, held_out)):
        assert [array.dtype.name for array in part.inputs] == ["int32", "float32"]
        for array, expected in zip(part.inputs, inputs.values(), strict=True):
            np.testing.assert_array_equal(array, expected[chosen])
        np.testing.assert_array_equal(part.targets, targets[chosen])
