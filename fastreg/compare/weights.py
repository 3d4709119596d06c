"""How far the weights of two models are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1 << 22
"""Elements that are compared at a time, so that the comparison needs little memory."""


@dataclass(frozen=True)
class Difference:
    """How far apart two models are.

    Attributes
    ----------
    relative : float
        Largest difference of an element, as a share of the largest magnitude of its weight in either model; infinite if
        an element is not finite.
    weight : str
        Where.
    beyond, elements : int
        Elements that differ by more than was tolerated, and all elements.
    by_weight : dict of str to float
        As `relative`, of each weight.
    """

    relative: float
    weight: str
    beyond: int
    elements: int
    by_weight: dict[str, float]


@dataclass(frozen=True)
class Zeros:
    """What is exactly zero in the tables of a model.

    Attributes
    ----------
    share : float
        Of all weights of the tables.
    kept, rows : int
        Rows that are not zero as a whole, and all rows.
    nbytes, pruned : int
        Bytes of a file with all rows, and of one with the rows that are kept and their numbers.
    by_table : dict of str to float
        As `share`, of each table.
    """

    share: float
    kept: int
    rows: int
    nbytes: int
    pruned: int
    by_table: dict[str, float]


def zeros(trained: Path) -> Zeros:
    """Count the zeros in the tables of an `.npz` file of weights; write a file without rows of zeros beside it."""
    with np.load(trained) as arrays:
        tables = {name: arrays[name] for name in arrays.files if name.endswith("embeddings")}
    content: dict[str, NDArray[Any]] = {}
    kept, zero, by_table = 0, 0, {}
    for name, table in tables.items():
        rows = np.flatnonzero(table.any(axis=1)).astype(np.int32)
        kept += rows.size
        of_table = table.size - int(np.count_nonzero(table))
        zero += of_table
        by_table[name] = of_table / table.size
        content |= {f"{name}/rows": rows, f"{name}/values": table[rows]}
    pruned = trained.with_suffix(".pruned.npz")
    np.savez(pruned, **content)  # type: ignore[arg-type]
    size = sum(table.size for table in tables.values())
    rows_in_all = sum(len(table) for table in tables.values())
    nbytes = sum(table.nbytes for table in tables.values())
    return Zeros(zero / size, kept, rows_in_all, nbytes, pruned.stat().st_size, by_table)


def compare(first: Path, second: Path, tolerance: float) -> Difference:
    """Compare two `.npz` files of weights with the same names and shapes.

    Each weight is measured by its own largest magnitude, so that a large one cannot hide a small one.

    Parameters
    ----------
    first, second : Path
    tolerance : float
        Share of the largest magnitude.
    """
    with np.load(first) as ours, np.load(second) as theirs:
        found = [(name, ours[name].size, relative(ours[name], theirs[name], tolerance)) for name in ours.files]
    weight, _, (largest, _) = max(found, key=lambda entry: entry[2][0])
    return Difference(
        largest,
        weight,
        sum(beyond for _, _, (_, beyond) in found),
        sum(size for _, size, _ in found),
        {name: difference for name, _, (difference, _) in found},
    )


def relative(first: NDArray[Any], second: NDArray[Any], tolerance: float) -> tuple[float, int]:
    """Largest `|first - second|` as a share of the largest magnitude of either, and how many elements are beyond.

    What is not finite is beyond, and makes the largest difference infinite.
    """
    first, second = first.reshape(-1), second.reshape(-1)
    blocks = [slice(start, start + _BLOCK) for start in range(0, first.size, _BLOCK)]
    magnitudes = [np.abs(array[block]).max() for block in blocks for array in (first, second)]
    scale = float(np.max(magnitudes, initial=0.0))  # unlike Python's max, lets no NaN pass unseen
    if not math.isfinite(scale):
        return math.inf, sum(int((~np.isfinite(first[block] + second[block])).sum()) for block in blocks)
    largest, beyond = 0.0, 0
    for block in blocks:
        difference = np.abs(first[block].astype(np.float64) - second[block])
        largest = max(largest, float(difference.max()))
        beyond += int((difference > tolerance * scale).sum())
    return (largest / scale if scale > 0 else 0.0), beyond
