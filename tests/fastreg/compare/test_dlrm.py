"""DLRM, against its definition in NumPy."""

import argparse
import dataclasses

import numpy as np
import pytest

import fastreg
from fastreg.compare import data, dlrm, quality


@pytest.fixture
def settings(small):
    return small(model="dlrm", rows=300, table_rows=40, regularizer="l2", l1=0.0)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    options = argparse.Namespace(criteo=None, rows=300, table_rows=40, seed=0)
    path = tmp_path_factory.mktemp("dlrm") / "data.npz"
    data.write(dlrm.load(options, lambda text, done: None), 0, dlrm.validate, path)
    return data.read(path)


def layer(values, weights):
    return np.maximum(values @ weights[0] + weights[1], 0)


def test_the_model(settings, examples):
    built = dlrm.build(settings, "keras", examples)
    weights = {weight.path: weight.numpy().astype(float) for weight in built.weights}
    counts, ids = examples.held_out.inputs
    vectors = [counts.astype(float)]
    for number in range(1, len(dlrm.BOTTOM) + 2):
        vectors[0] = layer(vectors[0], [weights[f"bottom_{number}/{name}"] for name in ("kernel", "bias")])
    vectors += [weights[f"{name}/embeddings"][ids[:, number]] for number, name in enumerate(examples.tables)]
    products = [(vectors[i] * vectors[j]).sum(axis=1) for i in range(27) for j in range(i)]
    assert len(products) == 27 * 26 // 2
    top = np.concatenate([vectors[0], np.stack(products, axis=1)], axis=1)
    for number in range(1, len(dlrm.TOP) + 1):
        top = layer(top, [weights[f"top_{number}/{name}"] for name in ("kernel", "bias")])
    odds = (top @ weights["click/kernel"] + weights["click/bias"])[:, 0]
    found = built.predict(examples.held_out.inputs, verbose=0)
    np.testing.assert_allclose(found[:, 0], 1 / (1 + np.exp(-odds)), rtol=1e-4)
    for name, rows in examples.tables.items():
        table = weights[f"{name}/embeddings"]
        assert table.shape == (rows, 4)
        assert np.abs(table).max() <= rows**-0.5


def test_both_sides_are_the_same_model(settings, examples):
    """With L2 and SGD they train alike, too."""
    sides = {side: dlrm.build(settings, side, examples) for side in ("keras", "lazy")}
    assert sum(type(layer) is fastreg.Embedding for layer in sides["lazy"].layers) == 26
    assert not any(isinstance(layer, fastreg.Embedding) for layer in sides["keras"].layers)
    for steps in (0, 3):
        for built in sides.values():
            if steps:
                inputs = [array[: 8 * steps] for array in examples.training.inputs]
                built.fit(inputs, examples.training.targets[: 8 * steps], batch_size=8, shuffle=False, verbose=0)
        ours, theirs = ({weight.path: weight.numpy() for weight in sides[side].weights} for side in ("lazy", "keras"))
        assert list(ours) == list(theirs)
        for name, weight in ours.items():
            np.testing.assert_allclose(weight, theirs[name], rtol=1e-4, atol=1e-6)
    penalties = [float(sum(float(loss) for loss in built.losses)) for built in sides.values()]
    assert penalties[1] == pytest.approx(penalties[0], rel=1e-5)


def test_it_learns_what_is_planted(settings, tmp_path):
    """A few steps on the logarithms of the counts alone are well above chance."""
    options = argparse.Namespace(criteo=None, rows=20_000, table_rows=40, seed=0)
    split = data.write(dlrm.load(options, lambda text, done: None), 0, dlrm.validate, tmp_path / "data.npz")
    examples = data.read(tmp_path / "data.npz")
    built = dlrm.build(dataclasses.replace(settings, l2=0.0, learning_rate=1.0), "lazy", examples)
    inputs = [array[:16_384] for array in examples.training.inputs]
    built.fit(inputs, examples.training.targets[:16_384], batch_size=512, shuffle=False, verbose=0)
    predicted = built.predict(examples.held_out.inputs, verbose=0)[:, 0]
    found = dlrm.validate(predicted, examples.held_out.targets)
    assert found["auc"] == quality.auc(predicted, examples.held_out.targets) > 0.6
    assert found["log_loss"] < split.references["of predicting the mean"]["log_loss"]
    assert split.references["of the true probabilities"]["auc"] > found["auc"]
    assert split.references["of predicting the mean"]["auc"] == 0.5
