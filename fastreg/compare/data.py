"""What a model is trained on and validated with, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.1
"""Share of the examples that is kept for validation."""

Codes = NDArray[np.int64]

Figures = dict[str, float]
"""Measures of how good predictions are, by name."""

Validate = Callable[[NDArray[Any], NDArray[np.float32]], Figures]
"""Measures predictions against targets."""


@dataclass(frozen=True)
class Examples:
    """Examples to learn from.

    Attributes
    ----------
    inputs : dict of str to ndarray, shapes (examples, ...)
        The model's, in its order; integers are rows of tables.
    targets : ndarray of float32, shape (examples,)
    tables : dict of str to int
        Rows of each table.
    source : str
        Where they come from, and how many they are.
    notes : tuple of str
        What was left out.
    truth : ndarray, shape (examples,), or None
        The best prediction there can be, where the targets were drawn by it.
    """

    inputs: dict[str, NDArray[Any]]
    targets: NDArray[np.float32]
    tables: dict[str, int]
    source: str
    notes: tuple[str, ...] = ()
    truth: NDArray[Any] | None = None


class Part(NamedTuple):
    """The examples of training, or those held out."""

    inputs: list[NDArray[Any]]
    targets: NDArray[np.float32]


@dataclass(frozen=True)
class Data:
    """Both parts, and the rows of each table."""

    training: Part
    held_out: Part
    tables: dict[str, int]


@dataclass(frozen=True)
class Split:
    """Sizes of the two parts and of the tables.

    Attributes
    ----------
    training, held_out : int
    tables : dict of str to int
        Rows.
    references : dict of str to Figures
        What other predictions than the model's come to for the held-out examples.
    """

    training: int
    held_out: int
    tables: dict[str, int]
    references: dict[str, Figures]


def split(count: int, seed: int) -> tuple[Codes, Codes]:
    """Which of `count` examples to train on and which to hold out, drawn with a seed."""
    order = np.random.default_rng([seed, 0]).permutation(count)
    held_out = max(1, round(count * HELD_OUT))
    return order[held_out:], order[:held_out]


def write(examples: Examples, seed: int, validate: Validate, path: Path) -> Split:
    """Write the arrays that all processes train on and validate with, so that they cannot differ.

    Parameters
    ----------
    examples : Examples
    seed : int
        Of the held-out part.
    validate : callable
        Measures the references.
    path : Path
        An `.npz` file, for `read`.
    """
    training, held_out = split(len(examples.targets), seed)
    content: dict[str, Any] = {
        "tables": np.array(list(examples.tables)),
        "rows": np.array(list(examples.tables.values())),
    }
    for name, array in (examples.inputs | {"targets": examples.targets}).items():
        narrow = array if array.dtype == np.float32 else array.astype(np.int32)
        content |= {f"train_{name}": narrow[training], f"held_out_{name}": narrow[held_out]}
    np.savez(path, **content)
    targets = examples.targets[held_out]
    mean = examples.targets[training].mean(dtype=np.float64)
    references = {"of predicting the mean": validate(np.full(targets.shape, mean), targets)}
    if examples.truth is not None:
        references["of the true probabilities"] = validate(examples.truth[held_out], targets)
    return Split(len(training), len(held_out), examples.tables, references)


def read(path: Path) -> Data:
    """The arrays that `write` wrote."""
    with np.load(path) as arrays:
        training, held_out = (
            Part(*_last([arrays[name] for name in arrays.files if name.startswith(part)]))
            for part in ("train_", "held_out_")
        )
        tables = dict(zip(arrays["tables"].tolist(), arrays["rows"].tolist(), strict=True))
    return Data(training, held_out, tables)


def _last(arrays: list[NDArray[Any]]) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    return arrays[:-1], arrays[-1]


def batches(count: int, size: int, seed: int) -> Iterator[Codes]:
    """Endless batches of indices below `count`: each epoch in a new order, without its incomplete last batch."""
    epoch = 0
    while True:
        epoch += 1
        order = np.random.default_rng([seed, epoch]).permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
