"""What a comparison found, in figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from fastreg_benchmarks.report import duration

from fastreg.compare import svg
from fastreg.compare.report import headings
from fastreg.compare.session import Outcome, Point
from fastreg.compare.settings import LAZY, Settings

# Of Okabe and Ito's palette, told apart with any colour vision; markers tell them apart in print.
_STYLES = {"keras": ("#D55E00", "s"), "fastreg": ("#0072B2", "o"), LAZY: ("#009E73", "D")}

_STYLE = {
    "svg.fonttype": "none",  # text that can be read, searched and copied
    "svg.hashsalt": "fastreg",  # the same ids every time
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

_WIDTH, _HEIGHT, _LINE = 4.8, 2.8, 0.17
"""Inches: of a figure, and of one line in those that have one for each weight."""

_EXACT = 1e-9
"""Differences below this are drawn next to none."""


class Drawing(NamedTuple):
    """A figure: its element, and what it shows."""

    element: str
    caption: str


def draw(settings: Settings, outcome: Outcome) -> Iterator[Drawing]:
    """Draw step times, memory, losses, zeros and differences of weights."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot: no display, no state

    weights = len(next(iter(outcome.differences.values())).by_weight)
    tables = len(outcome.zeros["keras"].by_table)
    figures: dict[str, tuple[Callable[[Any, Settings, Outcome], str], int]] = {
        "time": (_times, 0),
        "memory": (_memory, 0),
        "loss-steps": (_loss_by_step, 0),
        "loss-seconds": (_loss_by_second, 0),
        "zeros": (_zeros, tables),
        "weights": (_differences, weights),
    }
    for name, (drawn, lines) in figures.items():
        with mpl.rc_context(_STYLE):
            figure = Figure(figsize=(_WIDTH, max(_HEIGHT, 1 + _LINE * lines)), layout="constrained")
            caption = drawn(figure.subplots(), settings, outcome)
            yield Drawing(svg.inline(figure, name, caption), caption)


def _times(axes: Any, settings: Settings, outcome: Outcome) -> str:
    names = headings(settings)
    for line, (side, found) in enumerate(outcome.sides.items()):
        color, marker = _STYLES[side]
        times = 1e3 * np.concatenate(found.turns)
        # Spread over the line, so that steps that took as long do not hide each other.
        height = line + np.linspace(-0.25, 0.25, times.size)
        axes.scatter(times, height, s=6, marker=marker, color=color, alpha=0.5, linewidths=0)
        median = float(np.median(times))
        axes.plot([median, median], [line - 0.35, line + 0.35], color="black", linewidth=1.5)
        axes.annotate(duration(median / 1e3), (median, line - 0.37), ha="center", va="bottom", fontsize=8)
    axes.set(xlabel="milliseconds", ylim=(len(names) - 0.4, -0.75), xlim=(0, None))
    axes.set_yticks(range(len(names)), list(names.values()))
    return f"Time of each of {settings.steps} training steps, and the median"


def _memory(axes: Any, settings: Settings, outcome: Outcome) -> str:
    names = headings(settings)
    for line, (side, found) in enumerate(outcome.sides.items()):
        color, _ = _STYLES[side]
        peak, before = found.result["peak_memory"] / 2**20, found.ready["memory_before"]
        axes.barh(line, peak, 0.6, color=color, alpha=0.45)
        if before is not None:
            axes.barh(line, before / 2**20, 0.6, color=color)
        axes.annotate(f" {peak:,.0f}", (peak, line), va="center", fontsize=8)
    axes.set(xlabel="MiB", ylim=(len(names) - 0.4, -0.6))
    axes.margins(x=0.15)
    axes.set_yticks(range(len(names)), list(names.values()))
    return "Memory before training (dark), and its peak in training (light)"


def _loss_by_step(axes: Any, settings: Settings, outcome: Outcome) -> str:
    _losses(axes, settings, outcome, lambda point: point.steps)
    axes.set_xlabel("training steps, the warm-up's included")
    return "Loss, with the penalty, over steps: a mean for each turn"


def _loss_by_second(axes: Any, settings: Settings, outcome: Outcome) -> str:
    _losses(axes, settings, outcome, lambda point: point.seconds if point.seconds > 0 else math.nan)
    axes.set_xlabel("seconds in timed steps")
    return "Loss, with the penalty, over time"


def _losses(axes: Any, settings: Settings, outcome: Outcome, place: Callable[[Point], float]) -> None:
    for side, heading in headings(settings).items():
        color, marker = _STYLES[side]
        course = outcome.sides[side].course
        # The first lies under the others where they agree, and shows around them.
        width = 3.5 if side == "keras" else 1.2
        axes.plot(
            [place(point) for point in course],
            [point.loss for point in course],
            color=color,
            marker=marker,
            markersize=width + 1,
            linewidth=width,
            label=heading,
        )
    axes.set_ylabel("loss")
    _legend(axes)


def _zeros(axes: Any, settings: Settings, outcome: Outcome) -> str:
    found = {side: zeros.by_table for side, zeros in outcome.zeros.items()}
    _dots(axes, settings, {side: {name: 100 * share for name, share in of.items()} for side, of in found.items()})
    axes.set(xlabel="% of the weights", xlim=(-3, 103))
    return "Exact zeros in each table after training"


def _differences(axes: Any, settings: Settings, outcome: Outcome) -> str:
    found = {side: difference.by_weight for side, difference in outcome.differences.items()}
    _dots(axes, settings, found)
    finite = [value for of in found.values() for value in of.values() if math.isfinite(value)]
    axes.set_xscale("symlog", linthresh=_EXACT)
    axes.set(xlabel="of the largest weight", xlim=(-_EXACT / 5, 10 * max([settings.tolerance, _EXACT, *finite])))
    axes.axvline(settings.tolerance, color="black", linewidth=1, linestyle="--", label="tolerance")
    _legend(axes)
    return "Largest difference from Keras's weights, of each weight"


def _dots(axes: Any, settings: Settings, values: dict[str, dict[str, float]]) -> None:
    """A line for each weight, and on it a dot for each side; what is not finite has none."""
    for side, of in values.items():
        color, marker = _STYLES[side]
        size = 6 if side == "keras" else 3.5
        axes.plot(
            list(of.values()), range(len(of)), marker, color=color, markersize=size, label=headings(settings)[side]
        )
    names = [name.removesuffix("/embeddings") for name in next(iter(values.values()))]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the axes, where it hides nothing."""
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1.0)
