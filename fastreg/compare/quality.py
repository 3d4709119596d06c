"""How good predictions are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_CLEARANCE = 1e-7


def rmse(predicted: NDArray[Any], targets: NDArray[Any]) -> float:
    """Root of the mean squared error, in float64."""
    return float(np.sqrt(np.square(predicted.astype(np.float64) - targets).mean()))


def log_loss(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of `-log p` of what happened, in float64, with p kept away from 0 and 1 as Keras's loss keeps it."""
    kept = np.clip(probabilities.astype(np.float64), _CLEARANCE, 1.0 - _CLEARANCE)
    return float(-np.log(np.where(labels > 0, kept, 1.0 - kept)).mean())


def auc(scores: NDArray[Any], labels: NDArray[Any]) -> float:
    """Area under the ROC curve: the probability that a positive example has the higher score than a negative one.

    By the sum of the ranks of the positive examples (Mann and Whitney 1947), equal scores sharing their mean rank; NaN
    where all examples are of one class.

    Parameters
    ----------
    scores : ndarray, shape (examples,)
    labels : ndarray, shape (examples,)
        0 or 1.
    """
    positive = labels > 0
    positives = int(positive.sum())
    negatives = positive.size - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of equal scores the mean of those that they take up
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))
