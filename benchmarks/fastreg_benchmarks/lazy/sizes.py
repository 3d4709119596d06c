"""Parts 1 to 3, and 6: steps of tables of three sizes, of small ones, and of Keras's layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastreg_benchmarks import stats
from fastreg_benchmarks.lazy.rows import Key, measure
from fastreg_benchmarks.lazy.steps import OPTIMIZERS
from fastreg_benchmarks.limits.lines import INFORMATION, Line, at_least, at_most, with_medians
from fastreg_benchmarks.results import LazyRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import Workload

SIZES, QUICK_SIZES = (100_000, 1_000_000, 10_000_000), (10_000, 100_000)
SMALL = 1_000
WORKLOAD = Workload(rows=SMALL, width=64, batch=4096, fields=8, exponent=1.2)

FEW, QUICK_FEW = (2, 10, 100, 1_000, 10_000), (10, 100)
"""Rows of tables of which `accelerate(model, lazy=True)` could leave some dense, if that were faster."""

MOST_GROWTH = MOST_OF_SMALL = 1.5
LEAST_AGAINST_KERAS, LEAST_AGAINST_PLAIN = 30, 5
COMPARED, QUICK_COMPARED = 1_000_000, 100_000


def steps(settings: Settings) -> Iterator[tuple[list[LazyRow], list[Line]]]:
    """With each optimizer, then with L2 alone, then against Keras, then tables of few rows."""
    sizes = QUICK_SIZES if settings.quick else SIZES
    for optimizer in OPTIMIZERS:
        yield _growth("lazy", optimizer, sizes, settings)
    yield _growth("lazy-l2", "sgd", sizes, settings)
    yield _against_keras(replace(WORKLOAD, rows=QUICK_COMPARED if settings.quick else COMPARED), settings)
    for rows in QUICK_FEW if settings.quick else FEW:
        yield _of_few_rows(replace(WORKLOAD, rows=rows), settings)


def _growth(
    provider: str, optimizer: str, sizes: tuple[int, ...], settings: Settings
) -> tuple[list[LazyRow], list[Line]]:
    small: Key = ("keras-plain", optimizer, WORKLOAD)
    keys: list[Key] = [(provider, optimizer, replace(WORKLOAD, rows=size)) for size in sizes]
    rows, samples = measure("sizes", [small, *keys], settings)
    growth = stats.ratio(samples[keys[-1]], samples[keys[0]])
    name = f"{provider}, {optimizer}"
    lines = [
        Line(
            1,
            f"{name}: step at {sizes[-1]:,} rows over {sizes[0]:,}",
            f"at most {MOST_GROWTH}",
            str(growth),
            at_most(growth, MOST_GROWTH),
        )
    ]
    for key in keys:
        ratio = stats.ratio(samples[key], samples[small])
        lines.append(
            Line(
                3,
                f"{name}: step at {key[2].rows:,} rows over Keras's plain {SMALL:,}",
                f"at most {MOST_OF_SMALL}",
                with_medians(ratio, samples[key], samples[small]),
                at_most(ratio, MOST_OF_SMALL),
            )
        )
    return rows, lines


def _against_keras(workload: Workload, settings: Settings) -> tuple[list[LazyRow], list[Line]]:
    keys: list[Key] = [(provider, "sgd", workload) for provider in ("lazy", "keras", "keras-plain", "fastreg")]
    rows, samples = measure("against-keras", keys, settings)
    lines = []
    for key, least, name in (
        (keys[1], LEAST_AGAINST_KERAS, "Keras with L1L2"),
        (keys[2], LEAST_AGAINST_PLAIN, "Keras without a regularizer"),
        (keys[3], None, "Keras's layer with fastreg.L1L2"),
    ):
        ratio = stats.ratio(samples[key], samples[keys[0]])
        lines.append(
            Line(
                2,
                f"lazy, sgd, {workload.rows:,} rows: times faster than {name}",
                "-" if least is None else f"at least {least}",
                with_medians(ratio, samples[key], samples[keys[0]]),
                INFORMATION if least is None else at_least(ratio, least),
            )
        )
    return rows, lines


def _of_few_rows(workload: Workload, settings: Settings) -> tuple[list[LazyRow], list[Line]]:
    """Whether a table that every step touches as a whole is better lazy or dense."""
    keys: list[Key] = [(provider, "sgd", workload) for provider in ("lazy", "fastreg")]
    rows, samples = measure("few-rows", keys, settings)
    ratio = stats.ratio(samples[keys[1]], samples[keys[0]])
    name = f"lazy, sgd, {workload.rows:,} rows: times faster than Keras's layer with fastreg.L1L2"
    return rows, [
        Line(6, name, "at least 1", with_medians(ratio, samples[keys[1]], samples[keys[0]]), at_least(ratio, 1))
    ]
