"""HLO text, parsed as far as counting needs it: computations, instructions, the arrays that they return."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_COMMENT = re.compile(r"/\*.*?\*/")
_HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_NAME = re.compile(r"[\w.\-]+")


class Array(NamedTuple):
    """An array that an instruction returns; of one whose size is bounded, the bound."""

    elements: int
    bits: int

    @property
    def bytes(self) -> float:
        """Of four-bit types, halves too."""
        return self.elements * self.bits / 8


@dataclass(frozen=True)
class Instruction:
    """A line of a computation.

    Attributes
    ----------
    arrays : tuple of Array
        What it returns: one array, or those of a tuple in order.
    operands : tuple of str
        Names of instructions of the same computation.
    parameter : int or None
        The number of a parameter.
    attributes : str
        What stands after the operands.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    parameter: int | None
    attributes: str

    @property
    def bytes(self) -> float:
        """Of all that it returns."""
        return sum(array.bytes for array in self.arrays)

    def attribute(self, pattern: str) -> str | None:
        """What the group of a pattern matches in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    def called(self, *keys: str) -> list[str]:
        """Names of the computations under these attributes."""
        found = [self.attribute(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)") for key in keys]
        return [name for names in found if names is not None for name in _NAME.findall(names)]


@dataclass
class Computation:
    """Instructions by name, in their order; `root` is the one whose result is returned."""

    name: str
    root: str = ""
    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def parameters(self) -> list[Instruction]:
        """In the order of their numbers."""
        found = [i for i in self.instructions.values() if i.parameter is not None]
        return sorted(found, key=lambda i: i.parameter or 0)

    def users(self, name: str) -> list[Instruction]:
        """Instructions with this operand."""
        return [i for i in self.instructions.values() if name in i.operands]


class Module(NamedTuple):
    """All computations by name, and the one that is called from outside."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Parse the text of a module.

    Raises
    ------
    ValueError
        If it has no entry, or a line that looks like an instruction and is none.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        bare = _COMMENT.sub("", line)
        if head := _HEAD.match(bare):
            current = computations[head[2]] = Computation(head[2])
            entry = current if head[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(bare)):
            current.instructions[match[2]] = _instruction(match[2], match[3])
            current.root = match[2] if match[1] else current.root
    if entry is None:
        raise ValueError(f"Expected the text of an HLO module, with an entry. Received: {text[:80]!r}")
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    """Of `TYPE OPCODE(OPERANDS)ATTRIBUTES`."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    returned, text = text[:end], text[end:].strip()
    opening = text.index("(")
    end = _closing(text, opening)
    opcode, inside = text[:opening], text[opening + 1 : end]
    return Instruction(
        name,
        opcode,
        tuple(_arrays(returned)),
        () if opcode in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", inside)),
        int(inside) if opcode == "parameter" else None,
        text[end + 1 :],
    )


def _arrays(returned: str) -> Iterator[Array]:
    for name, dimensions in _ARRAY.findall(returned):
        width = re.match(r"[a-z]+(\d+)", name)  # f32, bf16, f8e4m3fn; neither token nor opaque is memory
        bits = 8 if name == "pred" else int(width[1]) if width else 0
        yield Array(math.prod(int(size) for size in dimensions.replace("<=", "").split(",") if size), bits)


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position
    raise ValueError(f"Expected balanced parentheses. Received: {text[start : start + 80]!r}")
