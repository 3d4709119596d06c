"""Notes of two trainings, compared."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastreg_benchmarks.check import finfo
from fastreg_benchmarks.soak.cases import Training
from fastreg_benchmarks.soak.models import BATCH, SAMPLES
from fastreg_benchmarks.soak.training import Notes

ROUNDINGS = 8
"""Units of the last place, of the coarsest dtype of the policy, by which a step may differ; steps add up."""

TRACKED = 2e-3
"""Relative; the loss in training of lazy tables with L1 lags behind by 1e-4 of a penalty where weights became zero."""

SMALLEST = 2.0**-6
"""Arrays that are smaller are compared as if they had an element of this size."""


class Difference(NamedTuple):
    """Of two arrays under one label: `size` in units of the largest element, infinite if they are not comparable."""

    label: str
    size: float
    tolerance: float


def differences(training: Training, ours: Notes, theirs: Notes) -> list[Difference]:
    """Every pair of notes, compared."""
    labels = [label for label, _ in ours], [label for label, _ in theirs]
    if labels[0] != labels[1]:
        odd = sorted(set(labels[0]) ^ set(labels[1]))
        return [Difference(f"noted by one only: {', '.join(odd)}", float("inf"), 0.0)]
    return [
        Difference(label, _difference(mine, other), tolerance(training, label))
        for (label, mine), (_, other) in zip(ours, theirs, strict=True)
    ]


def tolerance(training: Training, label: str) -> float:
    """What rounding explains after the modes up to that of the label."""
    name = training.policy.removeprefix("mixed_")
    number = int(label.split(maxsplit=1)[0])
    steps = 1 + 2 * -(-SAMPLES // BATCH) * (1 + number)  # at most
    value = ROUNDINGS * steps * float(finfo(np.dtype(name)).eps)
    is_tracked = training.lazy and not training.only_l2 and label.endswith("loss")
    return value + TRACKED if is_tracked else value


def _difference(ours: Any, theirs: Any) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return float("inf")
    mine, other = ours.astype(np.float64), theirs.astype(np.float64)
    finite = np.isfinite(other)
    if not np.array_equal(np.where(finite, 0.0, other), np.where(np.isfinite(mine), 0.0, mine), equal_nan=True):
        return float("inf")
    mine, other = mine[finite], other[finite]
    return float(np.abs(mine - other).max(initial=0.0) / max(np.abs(other).max(initial=0.0), SMALLEST))
