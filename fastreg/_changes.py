"""Changes to objects that others hold: all are made, or none."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any


class Changes(contextlib.ExitStack):
    """A context whose changes are taken back if an exception leaves it."""

    def __init__(self) -> None:
        super().__init__()
        self._afterwards: list[Callable[[], Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        self.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def become(self, instance: Any, cls: type, **attributes: Any) -> None:
        """Make an object one of another class, with these attributes, which are set past any `__setattr__`."""
        self.callback(_restore, instance, type(instance), vars(instance).copy())
        instance.__class__ = cls
        vars(instance).update(attributes)

    def keep(self, collection: Any) -> None:
        """Have a list, dictionary or set restored that may be changed in place."""
        self.callback(_refill, collection, copy.copy(collection))

    def afterwards(self, action: Callable[[], Any]) -> None:
        """Have something done when all changes are made, which cannot be taken back."""
        self._afterwards.append(action)

    def __exit__(self, kind: Any, *details: Any) -> bool | None:
        if kind is None:
            self.pop_all()
            for action in self._afterwards:
                action()
        return super().__exit__(kind, *details)


def _restore(instance: Any, cls: type, attributes: dict[str, Any]) -> None:
    instance.__class__ = cls
    vars(instance).clear()
    vars(instance).update(attributes)


def _refill(collection: Any, content: Any) -> None:
    collection.clear()
    (collection.extend if isinstance(collection, list) else collection.update)(content)
