"""The suite `xla-gpu`: bytes that an H100 would move in training steps, counted on a machine without one.

TensorFlow writes the HLO of a step; XLA's GPU compiler, as jax's CUDA plug-in ships it, compiles that for a GPU that it
knows by a description; what the kernels of the result read and write is added up. These are no times. Nor is it known
which matrix product a real GPU would take, since XLA times them there: cuBLAS writes the product before anybody uses
it, Triton can go on in the same kernel with what follows. And TensorFlow's own XLA is of another day than jax's.

1. A dense layer. 2. A dense table. 3. A lazily regularised table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from rich.console import Console

from fastreg_benchmarks.hlo import traffic
from fastreg_benchmarks.limits import run_parts
from fastreg_benchmarks.limits.lines import Line, verdict
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.xla_gpu import compiler
from fastreg_benchmarks.xla_gpu.steps import Step

ROW_TYPE = LimitRow

SLACK = 1.0
"""Bytes per weight that targets leave to activations, gradients of looked-up rows and sums of blocks."""


class Target(NamedTuple):
    """Bytes per weight that a step may move; `rival` is the layer with Keras's penalty, and without one."""

    line: int
    layer: str
    rival: str
    optimizer: str
    product: str
    most: int

    @property
    def steps(self) -> tuple[Step, Step, Step]:
        """Fastreg's, Keras's, and the one without a penalty."""
        return (
            Step(self.layer, "fastreg", self.optimizer),
            Step(self.rival, "keras", self.optimizer),
            Step(self.rival, "none", self.optimizer),
        )

    def __str__(self) -> str:
        product = f", product by {self.product}" if self.layer == "dense layer" else ""
        return f"{self.layer}, {self.optimizer}{product}"


TARGETS = (
    Target(1, "dense layer", "dense layer", "SGD", "cuBLAS", 32),
    Target(1, "dense layer", "dense layer", "Adam", "cuBLAS", 48),
    Target(1, "dense layer", "dense layer", "SGD", "Triton", 20),
    Target(1, "dense layer", "dense layer", "Adam", "Triton", 36),
    Target(2, "dense table", "dense table", "SGD", "cuBLAS", 20),  # of tables there is no product
    Target(2, "dense table", "dense table", "Adam", "cuBLAS", 36),
    Target(3, "lazy table", "dense table", "SGD", "cuBLAS", 1),
    Target(3, "lazy table", "dense table", "Adam", "cuBLAS", 1),
)


class Bytes(NamedTuple):
    """Per weight: in most steps, and in one in which all happens that happens at times, each loop once."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.least:.1f}" + (f" (at times {self.most:.1f})" if self.most > self.least else "")


def run(settings: Settings, console: Console) -> int:
    """Compile and count everything; a target that is missed is reported, no more."""
    device = compiler.describe(settings.jax_python)
    return run_parts([lines], replace(settings, environment=replace(settings.environment, device=device)), console)


def lines(settings: Settings) -> Iterator[Line]:
    """The line of every target."""
    keys = list(dict.fromkeys((step, target.product) for target in TARGETS for step in target.steps))
    hlo = {step: step.hlo() for step in dict.fromkeys(step for step, _ in keys)}
    texts = compiler.compile_all(settings.jax_python, [(hlo[step], product) for step, product in keys])
    counted = dict(zip(keys, map(count, texts), strict=True))
    for target in TARGETS:
        ours, keras, plain = (counted[step, target.product] for step in target.steps)
        yield Line(
            target.line,
            str(target),
            f"at most {target.most} (+ {SLACK:g}) bytes",
            f"{ours}; Keras {keras}, without a penalty {plain}",
            verdict(ours.least <= target.most + SLACK),
        )


def count(text: str) -> Bytes:
    """Bytes per weight of an optimised step; the largest argument are the weights."""
    least, most = traffic.count(text, least=True), traffic.count(text)
    return Bytes(least.per_element, most.per_element)
