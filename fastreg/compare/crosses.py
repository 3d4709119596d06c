"""Crosses of users with what they rated: rows of one large table."""

from __future__ import annotations

import numpy as np

from fastreg.compare.data import Codes
from fastreg.compare.ratings import Ratings

_USER_ITEM, _USER_GENRE = 1, 2
"""Kinds of crosses, so that a user with item 5 and the same user with genre 5 are different keys."""


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
