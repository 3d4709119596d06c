"""What a comparison trains, and how; the same for both of its processes."""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

SIDES = ("keras", "fastreg")
"""Whose regularizers the processes use."""

LAZY = "lazy"
"""The side whose tables are `fastreg.Embedding`, regularised lazily."""

MOVIELENS, DLRM = "movielens", "dlrm"
"""The models."""

OPTIMIZERS = ("sgd", "adagrad", "adam")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of a comparison, with every default filled in.

    Attributes
    ----------
    model : {"movielens", "dlrm"}
    ratings : str or None
        CSV file; None for MovieLens, and of other models.
    criteo : str or None
        File of Criteo's format; None for made-up impressions, and of other models.
    rows : int
        Of the table of crosses; of other models than that of MovieLens, examples that are read or made.
    table_rows : int or None
        Rows of a table at most; None for MovieLens.
    dim : int
        Of all embeddings.
    regularizer : {"l1", "l2", "l1l2"}
    l1, l2 : float
        Factors of the penalty; one that the regularizer does not have is 0.
    optimizer : {"sgd", "adagrad", "adam"}
    learning_rate : float
    batch_size : int
    warmup, steps : int
        Training steps of each side: first those that are not timed, then those that are.
    seed : int
        Of the initial weights, the order of the batches and the held-out ratings.
    jit : bool or None
        `jit_compile` of the model; None leaves the choice to Keras.
    eager : bool
        Whether `fit` runs eagerly.
    tolerance : float
        Largest difference between weights that counts as agreement, as a share of the largest magnitude of the weight.
    lazy : bool
        Whether a third process trains lazily regularised tables; of DLRM the second one always does.
    """

    model: str
    ratings: str | None
    criteo: str | None
    rows: int
    table_rows: int | None
    dim: int
    regularizer: str
    l1: float
    l2: float
    optimizer: str
    learning_rate: float
    batch_size: int
    warmup: int
    steps: int
    seed: int
    jit: bool | None
    eager: bool
    tolerance: float
    lazy: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        """The processes that train."""
        if self.model == DLRM:
            return ("keras", LAZY)
        return (*SIDES, LAZY) if self.lazy else SIDES

    @property
    def same_rule(self) -> bool:
        """Whether lazy regularisation is the same training as Keras's, up to rounding."""
        return self.l1 == 0 and self.optimizer == "sgd"

    def command(self) -> str:
        """The command that repeats this comparison, whatever the defaults of its options become."""
        words = ["fastreg", "compare"]
        for field in dataclasses.fields(self):
            value, option = getattr(self, field.name), "--" + field.name.replace("_", "-")
            if field.name in ("l1", "l2") and field.name not in self.regularizer:
                continue
            if value is False and field.name == "jit":
                words.append("--no-jit")
            elif value is True:
                words.append(option)
            elif value is not None and value is not False:
                words += [option, str(value)]
        return shlex.join(words)

    def write(self, path: Path) -> None:
        """Write a file for `read`."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Settings:
        """The settings that `write` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))
