"""Figures of quality, against their definitions."""

import math

import keras
import numpy as np
import pytest

from fastreg.compare import quality


def test_rmse():
    assert quality.rmse(np.float32([1, 2, 3]), np.float32([1, 4, 6])) == pytest.approx(math.sqrt(13 / 3))


@pytest.mark.parametrize("levels", [3, 50, None])
def test_auc_is_the_share_of_pairs_in_order(levels):
    """By going through all pairs; few levels make many scores equal, which count as half."""
    generator = np.random.default_rng(0)
    labels = generator.random(300) < 0.3
    scores = generator.random(300) + labels * 0.2
    if levels is not None:
        scores = np.floor(scores * levels)
    scores = scores.astype(np.float32)
    above = scores[labels][:, None] > scores[~labels]
    equal = scores[labels][:, None] == scores[~labels]
    assert quality.auc(scores, labels.astype(np.float32)) == pytest.approx((above + equal / 2).mean(), rel=1e-12)


def test_auc_of_extremes():
    labels = np.float32([0, 0, 1, 1])
    assert quality.auc(np.arange(4), labels) == 1
    assert quality.auc(-np.arange(4), labels) == 0
    assert quality.auc(np.zeros(4), labels) == 0.5
    assert math.isnan(quality.auc(np.arange(4), np.ones(4)))
    assert math.isnan(quality.auc(np.arange(4), np.zeros(4)))


def test_log_loss_is_keras_loss():
    generator = np.random.default_rng(0)
    probabilities = generator.random(1000, np.float32)
    probabilities[:2] = 0, 1
    labels = (generator.random(1000) < 0.5).astype(np.float32)
    labels[:2] = 1, 0
    expected = keras.losses.BinaryCrossentropy()(labels[:, None], probabilities[:, None])
    assert quality.log_loss(probabilities, labels) == pytest.approx(float(expected), rel=1e-3)
    assert quality.log_loss(probabilities[2:], labels[2:]) == pytest.approx(
        float(keras.losses.BinaryCrossentropy()(labels[2:, None], probabilities[2:, None])), rel=1e-5
    )
