"""What is drawn: a case, from its seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from fastreg._bridges.settings import NAMES as BRIDGES

POLICIES = {
    "float32": ("float32", "float32", "mixed_float16", "mixed_bfloat16"),
    "float64": ("float64",),
    "float16": ("float16",),
    "bfloat16": ("bfloat16",),
}
"""Policies that Keras can train with, by its floatx, which is that of losses."""

MODELS = ("features", "shared", "nested", "subclassed", "deferred", "series", "images", "tokens", "two tables")
LAZY_MODELS = ("tokens", "two tables")

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw", "adagrad", "rmsprop", "nadam", "adamax", "scaled")
LAZY_OPTIMIZERS = ("sgd", "adagrad", "rowwise", "adam", "scaled")

CLIPPING: tuple[tuple[str, float], ...] = (("clipnorm", 0.25), ("clipvalue", 0.0625), ("global_clipnorm", 0.5))

TRAINING_MODES = ("fit", "train_on_batch", "loop", "two batches")
OTHER_MODES = (
    "evaluate",
    "test_on_batch",
    "predict",
    "reload",
    "weights",
    "recompile",
    "freeze",
    "strengthen",
    "rate",
)


@dataclass(frozen=True)
class Training:
    """One model and what is done with it.

    Attributes
    ----------
    seed : int
        Of layers, penalties, weights and data.
    model : str
        Of `MODELS`.
    tables : {"dense", "lazy"}
        Whether embeddings are `fastreg.Embedding`.
    penalties : {"layers", "accelerate"}
        Whether the model is written with fastreg's regularizers or `fastreg.accelerate` puts them there.
    when : {"made", "compiled", "trained"}
        What was done to the model before `accelerate`.
    policy : str
    optimizer : str
    options : tuple of (str, float)
        Of the optimizer.
    implicit : bool
        Of `LazyRegularization`.
    execution : {"graph", "eager", "jit"}
    steps_per_execution : int
    modes : tuple of str
        What is done, in turn.
    """

    seed: int
    model: str
    tables: str
    penalties: str
    when: str
    policy: str
    optimizer: str
    options: tuple[tuple[str, float], ...]
    implicit: bool
    execution: str
    steps_per_execution: int
    modes: tuple[str, ...]

    @property
    def lazy(self) -> bool:
        """Whether embeddings are `fastreg.Embedding`."""
        return self.tables == "lazy"

    @property
    def is_keras_s(self) -> bool:
        """Whether Keras's own training is what to compare with; the decoupled rule is, if not."""
        plain = self.optimizer in ("sgd", "scaled") and not self.options and not self.implicit
        return not self.lazy or (plain and self.seed % 2 == 0)

    @property
    def only_l2(self) -> bool:
        """Whether tables have no L1, as Keras's training of them is another one then."""
        return self.lazy and self.is_keras_s


@dataclass(frozen=True)
class Case:
    """Trainings at once, each in a thread of its own if there are several, and what holds for the process."""

    seed: int
    floatx: str
    bridge: str
    threads: int
    trainings: tuple[Training, ...]


def draw(seed: int) -> Case:
    """The case of a seed."""
    chooser = random.Random(seed)
    at_once = chooser.choice((1, 1, 1, 1, 1, 3))
    floatx = chooser.choice(("float32", "float32", "float32", "float32", *POLICIES))
    return Case(
        seed=seed,
        floatx=floatx,
        bridge=chooser.choice(BRIDGES),
        threads=chooser.choice((1, 2)),
        trainings=tuple(_training(chooser, floatx) for _ in range(at_once)),
    )


def _training(chooser: random.Random, floatx: str) -> Training:
    lazy = chooser.random() < 0.35 and floatx in ("float32", "float64")
    optimizer = chooser.choice(LAZY_OPTIMIZERS if lazy else OPTIMIZERS)
    execution = chooser.choice(("graph", "graph", "eager") if lazy else ("graph", "graph", "eager", "jit"))
    training = Training(
        seed=chooser.randrange(10**6),
        model=chooser.choice(LAZY_MODELS if lazy else MODELS),
        tables="lazy" if lazy else "dense",
        penalties=chooser.choice(("layers", "accelerate")),
        when=chooser.choice(("made", "compiled", "trained")),
        policy=chooser.choice(POLICIES[floatx]),
        optimizer=optimizer,
        options=_options(chooser, lazy),
        implicit=lazy and chooser.random() < 0.2,
        execution=execution,
        steps_per_execution=chooser.choice((1, 1, 2)) if execution == "graph" else 1,
        modes=_modes(chooser),
    )
    if training.when == "trained" and not training.is_keras_s:
        return replace(training, when="compiled")  # what is trained before tables are lazy is trained by Keras's rule
    return training


def _options(chooser: random.Random, lazy: bool) -> tuple[tuple[str, float], ...]:
    options = [chooser.choice(CLIPPING)] if chooser.random() < 0.3 else []
    if not lazy and chooser.random() < 0.2:
        options.append(chooser.choice((("gradient_accumulation_steps", 2), ("use_ema", True), ("weight_decay", 0.125))))
    return tuple(options)


def _modes(chooser: random.Random) -> tuple[str, ...]:
    modes = [chooser.choice(TRAINING_MODES)]
    for _ in range(chooser.randrange(1, 3)):
        modes += [chooser.choice(OTHER_MODES), chooser.choice(TRAINING_MODES)]
    return tuple(modes)
