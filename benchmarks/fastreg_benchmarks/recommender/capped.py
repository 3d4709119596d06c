"""Lines 2, 3 and 5: models with tables that are cut to a size at which all of them fit into one process."""

from __future__ import annotations

from collections.abc import Iterator

from fastreg_benchmarks.limits.lines import Line
from fastreg_benchmarks.recommender.models import NAMES, SMALL_TABLES, size_of, steps
from fastreg_benchmarks.recommender.rows import Timed, compared, measure, row
from fastreg_benchmarks.results import RecommenderRow
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.workloads import Recommender

WORKLOAD = Recommender()

CAP, LARGE_CAP = 200_000, 2_000_000
QUICK_CAP, QUICK_LARGE_CAP = 20_000, 200_000
"""Most rows of a table."""

MOST_OF_SMALL = 1.0
LEAST_AGAINST_KERAS, LEAST_AGAINST_PLAIN = 12, 5
MOST_GROWTH = 1.3
MOST_WITHOUT_TRAINING = 1.1

Found = tuple[list[RecommenderRow], list[Line]]


def capped(settings: Settings) -> Recommender:
    """The workload with tables of the smaller cap."""
    return WORKLOAD.capped(QUICK_CAP if settings.quick else CAP)


def described(workload: Recommender) -> str:
    """Its cap in words."""
    return f"tables up to {max(workload.cardinalities):,}"


def against_keras(settings: Settings) -> Iterator[Found]:
    """Steps of training, prediction and evaluation of the same models, each kind interleaved."""
    workload = capped(settings)
    models = {provider: steps(provider, workload) for provider in NAMES}

    def measured(part: str, *providers: str) -> tuple[list[RecommenderRow], dict[str, Timed]]:
        timed = measure({provider: getattr(models[provider], part) for provider in providers}, settings)
        return [row(part, name, size_of(name, workload), timed[name].samples, settings) for name in timed], timed

    what = f"{described(workload)}: lazy"
    rows, timed = measured("fit", *NAMES)
    lazy = timed["lazy"]
    lines = [compared(2, f"fit, {what} over {NAMES[SMALL_TABLES]}", lazy, timed[SMALL_TABLES], most=MOST_OF_SMALL)]
    for provider, least in (("keras", LEAST_AGAINST_KERAS), ("keras-plain", LEAST_AGAINST_PLAIN)):
        lines.append(
            compared(2, f"fit, {what}, times faster than {NAMES[provider]}", timed[provider], lazy, least=least)
        )
    yield rows, lines

    # The target of evaluation is Keras's model with the same regularizer, whose loss holds the penalty too: summed anew
    # at every step there, once after training here. The model without one is for information.
    for part, rivals in (
        ("predict", {"keras-plain": MOST_WITHOUT_TRAINING}),
        ("evaluate", {"keras": MOST_WITHOUT_TRAINING, "keras-plain": None}),
    ):
        rows, timed = measured(part, "lazy", *rivals)
        yield (
            rows,
            [
                compared(5, f"{part}, {what} over {NAMES[rival]}", timed["lazy"], timed[rival], most=most)
                for rival, most in rivals.items()
            ],
        )


def growth(settings: Settings) -> Iterator[Found]:
    """Steps of training with larger tables over those with smaller ones."""
    large = WORKLOAD.capped(QUICK_LARGE_CAP if settings.quick else LARGE_CAP)
    workloads = {described(workload): workload for workload in (large, capped(settings))}
    timed = measure({cap: steps("lazy", workload).fit for cap, workload in workloads.items()}, settings)
    (first, over), (second, under) = timed.items()
    rows = [row("growth", "lazy", workloads[cap], timed[cap].samples, settings) for cap in timed]
    yield rows, [compared(3, f"fit, lazy: {first} over {second}", over, under, most=MOST_GROWTH)]
