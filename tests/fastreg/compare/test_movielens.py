"""The recommender of MovieLens."""

import numpy as np
import pytest

import fastreg
from fastreg.compare import movielens
from fastreg.compare.data import Data, Part
from fastreg.compare.ratings import Ratings


@pytest.fixture
def build(small):
    part = Part([np.zeros(4, "int32"), np.zeros(4, "int32"), np.zeros((4, 3), "int32")], np.float32([3, 4, 3, 4]))
    data = Data(part, part, {"user": 7, "item": 9, "crosses": 50})
    return lambda side, **changes: movielens.build(small(**changes), side, data)


def test_examples():
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 20, 500), generator.integers(0, 30, 500)
    ratings = Ratings(users, items, generator.integers(0, 5, (500, 3)), generator.random(500, np.float32), "a test")
    examples = movielens.examples(ratings, 1000)
    assert examples.tables == {"user": 20, "item": 30, "crosses": 1000}
    assert [array.shape for array in examples.inputs.values()] == [(500,), (500,), (500, 4)]
    assert examples.source == "a test: 500 ratings of 30 items by 20 users"
    assert movielens.validate(np.float32([1, 2]), np.float32([2, 4])) == {"rmse": pytest.approx(np.sqrt(2.5))}


def test_both_sides_are_the_same_model(build):
    ours, theirs = build("fastreg"), build("keras")
    assert [weight.path for weight in ours.weights] == [weight.path for weight in theirs.weights]
    for weight, expected in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)
    inputs = [np.arange(5) % 7, np.arange(5), np.arange(15).reshape(5, 3)]
    np.testing.assert_array_equal(ours.predict(inputs, verbose=0), theirs.predict(inputs, verbose=0))
    assert ours.predict(inputs, verbose=0).mean() == pytest.approx(3.5, abs=0.1)
    assert [float(loss) for loss in ours.losses] == pytest.approx([float(loss) for loss in theirs.losses], rel=1e-6)


def test_tables(build):
    tables = {layer.name: layer for layer in build("fastreg").layers if hasattr(layer, "embeddings")}
    shapes = {name: tuple(table.embeddings.shape) for name, table in tables.items()}
    assert shapes == {"user": (7, 4), "item": (9, 4), "crosses": (50, 4)}
    for table in tables.values():
        values = table.embeddings.numpy()
        assert np.abs(values).max() <= movielens.SPREAD
        assert len(np.unique(values)) == values.size
        assert type(table.embeddings_regularizer) is fastreg.L1L2


def test_the_seed_decides(build):
    first, again, other = (build("keras", seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True) if a.any())


@pytest.mark.parametrize("name", ["sgd", "adagrad", "adam"])
def test_compiled_as_asked(build, name):
    built = build("keras", optimizer=name, learning_rate=0.125, jit=True)
    assert type(built.optimizer).__name__.lower() == name
    assert float(built.optimizer.learning_rate) == 0.125
    assert built.jit_compile is True
    assert build("keras", eager=True, jit=None).run_eagerly
