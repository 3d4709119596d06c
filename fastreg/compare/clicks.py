"""Made-up impressions of Criteo's sizes, clicked with probabilities that a model can learn."""

from __future__ import annotations

import numpy as np
from fastreg_benchmarks.environment import physical_memory
from fastreg_benchmarks.workloads import Recommender, power_law, scattered
from numpy.typing import NDArray

from fastreg.cli import UsageError
from fastreg.compare import criteo
from fastreg.compare.data import Examples
from fastreg.compare.job import Notify

LIKELY = 0.2
"""Share of impressions of which a click is likelier than none; then about one in four is clicked, as of Criteo's."""

ABSENT = 0.2
"""Share of counts that are missing."""

COUNT_EFFECT, CATEGORY_EFFECT, PAIR_EFFECT = 0.25, 0.25, 0.1
"""Of a standard deviation of one count, category or pair of categories, on the log-odds of a click."""

_BYTES = 8 * criteo.COUNTS * 2 + 4 * criteo.CATEGORIES
"""Of an impression while it is made up, at least."""


def generate(rows: int, table_rows: int, seed: int, notify: Notify) -> Examples:
    """Draw impressions.

    Ids follow a power law within each table. The log-odds of a click are a sum of effects: one for each logarithm of a
    count, one for each row of each table, and the product of one for each row of two tables that follow each other.

    Parameters
    ----------
    rows : int
        Impressions.
    table_rows : int
        Rows of a table at most.
    seed : int
    notify : callable

    Raises
    ------
    fastreg.cli.UsageError
        If they certainly do not fit into memory.
    """
    if rows * _BYTES > physical_memory():
        raise UsageError(f"{rows:,} impressions do not fit into {physical_memory() / 2**30:.0f} GiB")
    notify("drawing impressions", 0)
    recommender = Recommender().capped(table_rows)
    generator = np.random.default_rng([seed, 2])
    counts = np.exp(generator.normal(1.0, 1.5, (rows, criteo.COUNTS))).astype(np.int64)
    counts[generator.random(counts.shape) < ABSENT] = 0
    numbers = criteo.logarithms(counts)
    odds = (numbers - numbers.mean(axis=0)) @ generator.normal(0.0, COUNT_EFFECT, criteo.COUNTS)
    ids = np.empty((rows, criteo.CATEGORIES), np.int32)
    last: NDArray[np.float32] = np.zeros(rows, np.float32)
    for number, size in enumerate(recommender.cardinalities):
        ids[:, number] = scattered(power_law(generator, size, recommender.exponent, rows), size)
        effects = generator.standard_normal((size, 2), np.float32)[ids[:, number]]
        odds += CATEGORY_EFFECT * effects[:, 0] + PAIR_EFFECT * effects[:, 1] * last
        last = effects[:, 1]
    probabilities = 1.0 / (1.0 + np.exp(-(odds - np.quantile(odds, 1.0 - LIKELY))))
    clicked = generator.random(rows) < probabilities
    notify("drawing impressions", rows)
    return Examples(
        {"counts": numbers, "ids": ids},
        clicked.astype(np.float32),
        {criteo.table_name(number): size for number, size in enumerate(recommender.cardinalities)},
        f"made-up impressions of Criteo's sizes: {rows:,}, {clicked.mean():.1%} of them clicked",
        truth=probabilities,
    )
