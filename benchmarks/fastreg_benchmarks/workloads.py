"""What steps of the suites around embedding tables look up; NumPy alone, for processes without TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

L1, L2 = 1e-7, 1e-6
RATE = 0.01
BATCHES = 8
"""Batches that steps take in turns, so that the rows of one step are not in the caches for the next by luck."""

CARDINALITIES = (
    *(1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194, 27),
    *(14_992, 5_461_306, 10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572),
)
"""Of the 26 categorical features of the Criteo Kaggle data set."""


@dataclass(frozen=True)
class Workload:
    """A table and what each step looks up.

    Attributes
    ----------
    rows, width : int
    batch, fields : int
        `batch * fields` ids a step.
    exponent : float or None
        Of the power law of ids; None: no id occurs twice in a step.
    """

    rows: int
    width: int
    batch: int
    fields: int
    exponent: float | None

    def ids(self, generator: np.random.Generator) -> NDArray[np.int32]:
        """The ids of a step, shape (batch, fields)."""
        count = self.batch * self.fields
        if self.exponent is None:
            chosen = generator.choice(self.rows, count, replace=False)
        else:
            chosen = scattered(power_law(generator, self.rows, self.exponent, count), self.rows)
        return chosen.astype(np.int32).reshape(self.batch, self.fields)


class Batch(NamedTuple):
    """What a step of a recommender takes: of shapes (batch, dense), (batch, fields) and (batch, 1)."""

    dense: NDArray[np.float32]
    ids: NDArray[np.int32]
    labels: NDArray[np.float32]


@dataclass(frozen=True)
class Recommender:
    """A recommender with a table for each of its fields.

    Attributes
    ----------
    cardinalities : tuple of int
        Rows of each table.
    width, batch : int
    dense : int
        Features that are numbers.
    hidden : int
        Units of the hidden layers.
    exponent : float
        Of the power law of each field's ids.
    """

    cardinalities: tuple[int, ...] = CARDINALITIES
    width: int = 16
    batch: int = 2048
    dense: int = 13
    hidden: int = 64
    exponent: float = 1.05

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(self.cardinalities)

    def capped(self, most: int) -> Recommender:
        """With tables of at most so many rows."""
        return replace(self, cardinalities=tuple(min(rows, most) for rows in self.cardinalities))

    def resized(self, rows: int) -> Recommender:
        """With as many tables, all of so many rows."""
        return replace(self, cardinalities=(rows,) * len(self.cardinalities))

    def batches(self) -> list[Batch]:
        """Those that steps take in turns, the same for every model."""
        generator = np.random.default_rng(0)
        fields = [Workload(rows, self.width, self.batch, 1, self.exponent) for rows in self.cardinalities]
        return [
            Batch(
                generator.normal(size=(self.batch, self.dense)).astype(np.float32),
                np.concatenate([field.ids(generator) for field in fields], axis=1),
                generator.integers(2, size=(self.batch, 1)).astype(np.float32),
            )
            for _ in range(BATCHES)
        ]


@dataclass(frozen=True)
class Bags:
    """A model whose fields have bags of ids each, all of one size, and tables of one size.

    Attributes
    ----------
    tables, rows, width : int
    batch, bag : int
        Bags, and ids in each, that a step looks up in each table.
    exponent : float or None
        See `Workload`.
    """

    tables: int = len(CARDINALITIES)
    rows: int = 200_000
    width: int = 16
    batch: int = 2048
    bag: int = 20
    exponent: float | None = 1.05

    def batches(self) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
        """Ids, of shape (batch, tables, bag), and labels, of shape (batch, 1), that steps take in turns."""
        generator = np.random.default_rng(0)
        field = Workload(self.rows, self.width, self.batch, self.bag, self.exponent)
        return [
            (
                np.stack([field.ids(generator) for _ in range(self.tables)], axis=1),
                generator.integers(2, size=(self.batch, 1)).astype(np.float32),
            )
            for _ in range(BATCHES)
        ]


def power_law(generator: np.random.Generator, rows: int, exponent: float, count: int) -> NDArray[np.int64]:
    """Ranks from 0 to rows - 1 with probability about `(rank + 1) ** -exponent`, by the inverse of the integral."""
    power = 1.0 - exponent
    ranks = (1.0 + generator.random(count) * ((rows + 1.0) ** power - 1.0)) ** (1.0 / power)
    return np.asarray(np.clip(ranks.astype(np.int64) - 1, 0, rows - 1), np.int64)


def scattered(ranks: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    """Frequent ids all over the table, not side by side at its beginning: rank times a number prime to `rows`."""
    factor = next(step for step in range(int(rows * 0.618) | 1, 2 * rows + 3) if np.gcd(step, rows) == 1)
    return np.asarray(ranks * factor % rows, np.int64)
