"""What is looked up, and in which order it is trained on."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastreg.compare import data
from fastreg.compare.ratings import Ratings


@pytest.fixture
def some_ratings():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 20, 500), generator.integers(0, 30, 500)
    return Ratings(users, items, generator.integers(0, 5, (500, 3)), generator.random(500, np.float32), "a test")


def splitmix64(state):
    """The generator's output function in Python's integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@given(st.integers(0, 255), st.integers(0, 2**28 - 1), st.integers(0, 2**28 - 1), st.integers(1, 2**31 - 1))
def test_hash(kind, left, right, rows):
    key = ((kind << 56 | left << 28 | right) * 0x9E3779B97F4A7C15) % 2**64
    found = data.hashed(kind, np.array([left]), np.array([right]), rows)
    assert found.tolist() == [splitmix64(key) % rows]


def test_crosses(some_ratings):
    crosses = data.crosses(some_ratings, 1000)
    assert crosses.shape == (500, 4)
    assert crosses.min() >= 0
    assert crosses.max() < 1000
    pairs = list(zip(some_ratings.users, some_ratings.items, strict=True))
    by_pair = dict(zip(pairs, crosses[:, 0], strict=True))
    assert [by_pair[pair] for pair in pairs] == crosses[:, 0].tolist()
    # Almost every pair has a row of its own, and a genre is not mistaken for the item of the same number.
    spread = data.crosses(some_ratings, 2**31 - 1)
    assert len(np.unique(spread[:, 0])) == len(set(pairs))
    assert not set(spread[:, 0]) & set(spread[:, 1:].ravel())


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


def test_written(some_ratings, tmp_path):
    split = data.write(some_ratings, 1000, 7, tmp_path / "data.npz")
    training, held_out = data.split(500, 7)
    assert (split.training, split.held_out, split.users, split.items) == (450, 50, 20, 30)
    mean = some_ratings.ratings[training].astype(float).mean()
    assert split.baseline == pytest.approx(np.sqrt(((some_ratings.ratings[held_out] - mean) ** 2).mean()), rel=1e-6)
    with np.load(tmp_path / "data.npz") as arrays:
        assert {name: arrays[name].dtype.name for name in arrays.files if "_" in name} == {
            f"{part}_{name}": "float32" if name == "ratings" else "int32"
            for part in ("train", "held_out")
            for name in data.ARRAYS
        }
        np.testing.assert_array_equal(arrays["train_users"], some_ratings.users[training])
        np.testing.assert_array_equal(arrays["held_out_ratings"], some_ratings.ratings[held_out])
        np.testing.assert_array_equal(arrays["held_out_crosses"], data.crosses(some_ratings, 1000)[held_out])
