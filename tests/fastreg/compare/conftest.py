"""What the tests of models share."""

import pytest

from fastreg.compare.settings import Settings

_SMALL = {
    "model": "movielens",
    "ratings": None,
    "criteo": None,
    "rows": 50,
    "table_rows": None,
    "dim": 4,
    "regularizer": "l1l2",
    "l1": 0.25,
    "l2": 0.5,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "batch_size": 8,
    "warmup": 1,
    "steps": 2,
    "seed": 1,
    "jit": False,
    "eager": False,
    "tolerance": 1e-5,
}


@pytest.fixture(scope="session")
def small():
    """Settings of a small model, but for what is given."""
    return lambda **changes: Settings(**_SMALL | changes)
