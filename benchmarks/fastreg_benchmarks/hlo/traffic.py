"""Bytes that a compiled function reads and writes, counted from its optimised HLO.

Each kernel reads what it takes of its operands once, and writes its results; nothing stays in a cache between kernels.
A result that shares memory with an operand is written all the same. Of what a kernel only slices or gathers from, the
part that is taken counts; of what it updates in place (dynamic-update-slice, scatter) what is put in, and once more
what it is combined with. Loops count as often as XLA knows that they run; where it does not know, and of branches, what
happens at times counts or not, as one asks. Work space of library calls does not count, nor a second pass inside one,
as in a sort.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fastreg_benchmarks.hlo.text import Computation, Instruction, parse

FREE = {  # names, views, and ends of what was counted at its start
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all", "add-dependency"),
    *("partition-id", "replica-id", "copy-done", "async-done", "async-update", "fusion-done", "custom-call-done"),
}
VIEWS = {"bitcast", "get-tuple-element", "opt-barrier"}
TAKING = {"slice", "dynamic-slice", "gather"}
PUTTING = {"dynamic-update-slice", "scatter"}


@dataclass(frozen=True)
class Kernel:
    """Something that runs, with the bytes that it reads and writes, and how often it runs."""

    name: str
    what: str
    read: float
    written: float
    times: int = 1

    @property
    def bytes(self) -> float:
        """Read and written, in all its runs."""
        return self.times * (self.read + self.written)


@dataclass(frozen=True)
class Traffic:
    """The kernels of a function; `elements` are those of its largest argument, `notes` what could not be known."""

    kernels: list[Kernel]
    elements: int
    notes: list[str]

    @property
    def per_element(self) -> float:
        """Bytes."""
        return _bytes(self.kernels) / self.elements


def count(text: str, *, least: bool = False) -> Traffic:
    """The traffic of the optimised HLO of a function.

    Of branches the costliest counts, and a loop of which XLA does not know how often it runs counts once. With `least`
    the cheapest branch counts, and such a loop does not.
    """
    counter = _Counter(text, least)
    kernels = list(counter.within(counter.entry))
    sizes = [array.elements for i in counter.entry.parameters for array in i.arrays]
    return Traffic(kernels, max(sizes, default=1), counter.notes)


def _bytes(kernels: Iterable[Kernel]) -> float:
    return sum(kernel.bytes for kernel in kernels)


class _Counter:
    def __init__(self, text: str, least: bool) -> None:
        self._computations, self.entry = parse(text)
        self._least = least
        self.notes: list[str] = []

    def within(self, computation: Computation) -> list[Kernel]:
        """The kernels of a computation whose instructions run one by one."""
        return [k for i in computation.instructions.values() if i.opcode not in FREE for k in self._run(computation, i)]

    def _run(self, computation: Computation, i: Instruction) -> list[Kernel]:
        if i.opcode in ("call", "async-start"):
            return self._all(i.called("to_apply", "calls"))
        if i.opcode == "while":
            turns = i.attribute(r'"known_trip_count":\{"n":"(\d+)"')
            if turns is None:
                self.notes.append(f"{i.name}: how often it loops is not known")
            times = int(turns or not self._least)
            body = self._all(i.called("condition", "body")) if times else []
            return [replace(kernel, times=times * kernel.times) for kernel in body]
        if i.opcode == "conditional":
            names = i.called("branch_computations", "true_computation", "false_computation")
            return (min if self._least else max)((self._all([name]) for name in names), key=_bytes)
        return [self._kernel(computation, i)]

    def _all(self, names: Iterable[str]) -> list[Kernel]:
        return [kernel for name in names for kernel in self.within(self._computations[name])]

    def _kernel(self, computation: Computation, i: Instruction) -> Kernel:
        sizes = {name: computation.instructions[name].bytes for name in i.operands}  # what is passed twice is read once
        if i.opcode in ("fusion", "fusion-start"):
            (name,) = i.called("calls")
            fused = self._computations[name]
            read = sum(self._taken_by(i, fused, operand, size) for operand, size in sizes.items())
            kind = i.attribute(r"kind=(\w+)") or ""
            return Kernel(i.name, f"{i.opcode} {kind}", read, self._written(fused))
        if i.opcode == "copy-start":  # returns the operand and a context too
            size = sum(sizes.values())
            return Kernel(i.name, i.opcode, size, size)
        if i.opcode in TAKING:
            indices = sum(size for name, size in sizes.items() if name != i.operands[0])
            return Kernel(i.name, i.opcode, i.bytes + indices, i.bytes)
        if i.opcode in PUTTING:
            put = self._put(computation, i)
            read = sum(size for name, size in sizes.items() if name != i.operands[0])
            return Kernel(i.name, i.opcode, read + (put if i.opcode == "scatter" else 0), put)
        library = i.attribute(r'custom_call_target="([^"]*)"')
        arrays = i.arrays
        if library and len(arrays) > 1 and arrays[-1].bits == 8:
            arrays = arrays[:-1]  # work space
        return Kernel(i.name, library or i.opcode, sum(sizes.values()), sum(array.bytes for array in arrays))

    def _taken_by(self, i: Instruction, inner: Computation, operand: str, size: float) -> float:
        """Bytes of an operand that a call of a fused computation reads."""
        places = [at for at, name in enumerate(i.operands) if name == operand]
        return min(size, sum(self._taken(inner, inner.parameters[at].name, size) for at in places))

    def _taken(self, computation: Computation, value: str, size: float) -> float:
        """Bytes that a fused computation reads of one of its values, which is `size` bytes long."""
        taken = 0.0
        for user in computation.users(value):
            is_source = user.operands.count(value) == 1 and user.operands[0] == value
            if user.opcode == "tuple":
                continue  # handed through
            if user.opcode in VIEWS:
                taken += self._taken(computation, user.name, size)
            elif user.opcode in TAKING and is_source:
                taken += user.bytes
            elif user.opcode in PUTTING and is_source:
                taken += self._put(computation, user) if user.opcode == "scatter" else 0
            elif user.opcode in ("fusion", "call"):
                inner = self._computations[user.called("calls", "to_apply")[0]]
                taken += self._taken_by(user, inner, value, size)
                handed = self._origin(inner, inner.root).parameter
                if handed is not None and user.operands[handed] == value:
                    taken += self._taken(computation, user.name, size)
            else:
                return size
        return min(size, taken)

    def _written(self, computation: Computation) -> float:
        root = computation.instructions[computation.root]
        names = root.operands if root.opcode == "tuple" else (root.name,)
        return sum(self._written_as(computation, name) for name in names)

    def _written_as(self, computation: Computation, name: str) -> float:
        i = self._origin(computation, name)
        if i.parameter is not None:
            return 0.0  # handed through
        if i.opcode in PUTTING and self._origin(computation, i.operands[0]).parameter is not None:
            return self._put(computation, i)
        return computation.instructions[name].bytes

    @staticmethod
    def _put(computation: Computation, i: Instruction) -> float:
        """Bytes that a dynamic-update-slice or scatter puts into its first operand."""
        names = i.operands[len(i.operands) // 2 + 1 :] if i.opcode == "scatter" else i.operands[1:2]
        return sum(computation.instructions[name].bytes for name in names)

    @staticmethod
    def _origin(computation: Computation, name: str) -> Instruction:
        """What this is a view of."""
        i = computation.instructions[name]
        while i.opcode in VIEWS:
            i = computation.instructions[i.operands[0]]
        return i
