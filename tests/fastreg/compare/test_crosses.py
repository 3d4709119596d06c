"""Rows of the table of crosses."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastreg.compare import crosses
from fastreg.compare.ratings import Ratings


def splitmix64(state):
    """The generator's output function in Python's integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@given(st.integers(0, 255), st.integers(0, 2**28 - 1), st.integers(0, 2**28 - 1), st.integers(1, 2**31 - 1))
def test_hash(kind, left, right, rows):
    key = ((kind << 56 | left << 28 | right) * 0x9E3779B97F4A7C15) % 2**64
    found = crosses.hashed(kind, np.array([left]), np.array([right]), rows)
    assert found.tolist() == [splitmix64(key) % rows]


def test_crosses():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 20, 500), generator.integers(0, 30, 500)
    some_ratings = Ratings(
        users, items, generator.integers(0, 5, (500, 3)), generator.random(500, np.float32), "a test"
    )
    found = crosses.crosses(some_ratings, 1000)
    assert found.shape == (500, 4)
    assert found.min() >= 0
    assert found.max() < 1000
    pairs = list(zip(some_ratings.users, some_ratings.items, strict=True))
    by_pair = dict(zip(pairs, found[:, 0], strict=True))
    assert [by_pair[pair] for pair in pairs] == found[:, 0].tolist()
    # Almost every pair has a row of its own, and a genre is not mistaken for the item of the same number.
    spread = crosses.crosses(some_ratings, 2**31 - 1)
    assert len(np.unique(spread[:, 0])) == len(set(pairs))
    assert not set(spread[:, 0]) & set(spread[:, 1:].ravel())
