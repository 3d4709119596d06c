"""What the model looks up for each rating, and in which order it is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastreg.compare.ratings import Codes, Ratings

ARRAYS = ("users", "items", "crosses", "ratings")
"""What the model is trained on: three inputs and the target, one entry or row for each rating."""

HELD_OUT = 0.1
"""Share of the ratings that is kept for validation."""

_USER_ITEM, _USER_GENRE = 1, 2
"""Kinds of crosses, so that a user with item 5 and the same user with genre 5 are different keys."""


@dataclass(frozen=True)
class Split:
    """Sizes of the two parts, and the root mean squared error of predicting the mean for every held-out rating."""

    training: int
    held_out: int
    users: int
    items: int
    baseline: float


def crosses(ratings: Ratings, rows: int) -> Codes:
    """Rows of the table of crosses that each rating looks up: user × item, and user × each genre of the item.

    Parameters
    ----------
    ratings : Ratings
    rows : int
        Of the table.

    Returns
    -------
    ndarray of int64, shape (ratings, 1 + k)
        In [0, rows).
    """
    user = ratings.users[:, None]
    pairs = [hashed(_USER_ITEM, user, ratings.items[:, None], rows), hashed(_USER_GENRE, user, ratings.genres, rows)]
    return np.concatenate(pairs, axis=1)


def hashed(kind: int, left: Codes, right: Codes, rows: int) -> Codes:
    """Hash pairs of codes to rows of a table; the same in every process.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014) on the two codes and the kind, modulo the rows.

    Parameters
    ----------
    kind : int
        What the pair is, below 256.
    left, right : ndarray of int64
        Codes below 2**28, of shapes that broadcast.
    rows : int
    """
    key = np.uint64(kind << 56) | (left.astype(np.uint64) << np.uint64(28)) | right.astype(np.uint64)
    key = key * np.uint64(0x9E3779B97F4A7C15)  # arrays wrap around, as the function is defined
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((key ^ (key >> np.uint64(31))) % np.uint64(rows)).astype(np.int64)


def split(count: int, seed: int) -> tuple[Codes, Codes]:
    """Which of `count` ratings to train on and which to hold out, drawn with a seed."""
    order = np.random.default_rng([seed, 0]).permutation(count)
    held_out = max(1, round(count * HELD_OUT))
    return order[held_out:], order[:held_out]


def write(ratings: Ratings, rows: int, seed: int, path: Path) -> Split:
    """Write the arrays that both processes train on and validate with, so that they cannot differ.

    Parameters
    ----------
    ratings : Ratings
    rows : int
        Of the table of crosses.
    seed : int
        Of the held-out part.
    path : Path
        An `.npz` file: `users` and `items`, how many there are, and `ARRAYS` twice, for training (`train_...`) and
        held out (`held_out_...`).
    """
    training, held_out = split(len(ratings.ratings), seed)
    arrays: tuple[NDArray[Any], ...] = (ratings.users, ratings.items, crosses(ratings, rows), ratings.ratings)
    content: dict[str, Any] = {"users": ratings.users.max() + 1, "items": ratings.items.max() + 1}
    for name, array in zip(ARRAYS, arrays, strict=True):
        narrow = array if array.dtype == np.float32 else array.astype(np.int32)
        content |= {f"train_{name}": narrow[training], f"held_out_{name}": narrow[held_out]}
    np.savez(path, **content)
    mean = ratings.ratings[training].mean(dtype=np.float64)
    baseline = np.sqrt(np.square(ratings.ratings[held_out] - mean).mean())
    return Split(len(training), len(held_out), int(content["users"]), int(content["items"]), float(baseline))


def batches(count: int, size: int, seed: int) -> Iterator[Codes]:
    """Endless batches of indices below `count`: each epoch in a new order, without its incomplete last batch."""
    epoch = 0
    while True:
        epoch += 1
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
