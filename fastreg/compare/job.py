"""What a job is: a model, what it is trained on, and by which figures it is judged."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import keras

from fastreg.compare.data import Data, Examples, Validate
from fastreg.compare.settings import Settings

Notify = Callable[[str, int], None]
"""Told what is going on, and how much was done since the last time."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Of the options that mean something else for each model."""

    rows: int
    table_rows: int | None
    dim: int
    l1: float
    l2: float
    learning_rates: dict[str, float]
    batch_size: int
    steps: int
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A model that can be compared.

    Attributes
    ----------
    defaults : Defaults
    only : frozenset of str
        Names of options that other models do not have.
    load : callable
        Reads or makes the examples that the options ask for.
    build : callable
        Builds and compiles the model of one side.
    validate : callable
    figures : dict of str to str
        What the figures of `validate` are called.
    """

    defaults: Defaults
    only: frozenset[str]
    load: Callable[[argparse.Namespace, Notify], Examples]
    build: Callable[[Settings, str, Data], keras.Model]
    validate: Validate
    figures: dict[str, str]
