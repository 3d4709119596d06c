"""Attributes of an optimizer wrapper that are those of what it wraps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def forward(cls: type, names: Sequence[str], target: Callable[[Any], Any]) -> None:
    """Have attributes of a wrapper be those of `target(wrapper.inner_optimizer)`, unless the wrapper's rule refuses."""
    for name in names:
        setattr(cls, name, _forwarded(name, target))


def _forwarded(name: str, target: Callable[[Any], Any]) -> property:
    def read(self: Any) -> Any:
        return getattr(target(self.inner_optimizer), name) if "inner_optimizer" in vars(self) else None

    def write(self: Any, value: Any) -> None:
        if "inner_optimizer" not in vars(self):
            return  # Keras's own constructor, which knows of no options
        wrapped = target(self.inner_optimizer)
        before = getattr(wrapped, name)
        setattr(wrapped, name, value)
        try:
            self._rule.check()
        except ValueError:
            setattr(wrapped, name, before)
            raise

    return property(read, write, doc="The wrapped optimizer's.")
