"""What the models have in common."""

import keras
import pytest

import fastreg
from fastreg.compare import model
from fastreg.compare.settings import SIDES


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "config"), [("l1", {"l1": 0.25}), ("l2", {"l2": 0.5})])
def test_regularizers(small, side, name, config):
    made = model.regularizer(small(regularizer=name), side)
    assert type(made) is getattr(fastreg if side == "fastreg" else keras.regularizers, name.upper())
    assert {key: float(value) for key, value in made.get_config().items()} == config


@pytest.mark.parametrize(("side", "library"), [("keras", keras.layers), ("fastreg", keras.layers), ("lazy", fastreg)])
def test_tables(small, side, library):
    table = model.table(small(), side, "item", 3, rows=40, spread=0.5)
    assert type(table) is library.Embedding
    table.build(None)
    values = table.get_weights()[0]
    assert values.shape == (40, 4)
    assert 0.45 < abs(values).max() <= 0.5
    others = [model.table(small(), "keras", "item", number, rows=40, spread=0.5) for number in (3, 4)]
    for other in others:
        other.build(None)
    assert [(other.get_weights()[0] == values).all() for other in others] == [True, False]
