"""Changes that are all made, or none."""

import pytest

from fastreg._changes import Changes


class Owner:
    def __init__(self):
        self.value, self.items, self.names, self.ids = 1, [1, 2], {"a": 1}, {1}


class Other(Owner):
    pass


def change(owner, changes, done):
    changes.set(owner, "value", 2)
    changes.set(owner, "value", 3)
    for collection in (owner.items, owner.names, owner.ids):
        changes.keep(collection)
    owner.items.append(3)
    owner.names["b"] = 2
    owner.ids.add(2)
    changes.become(owner, Other, extra=True)
    changes.afterwards(lambda: done.append(owner.value))


def test_they_are_made():
    owner, done = Owner(), []
    with Changes() as changes:
        change(owner, changes, done)
        assert done == []
    assert type(owner) is Other
    assert vars(owner) == {"value": 3, "items": [1, 2, 3], "names": {"a": 1, "b": 2}, "ids": {1, 2}, "extra": True}
    assert done == [3]


def test_they_are_taken_back():
    owner, done = Owner(), []
    with pytest.raises(ZeroDivisionError), Changes() as changes:
        change(owner, changes, done) or 1 / 0
    assert type(owner) is Owner
    assert vars(owner) == vars(Owner())
    assert done == []
