"""Lines 2 and 3: what a training step sees, against the machine's limit and against Keras."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fastreg_benchmarks import bandwidth, child, stats, timing
from fastreg_benchmarks.cases import PASSES, VALUE_AND_GRADIENT, Case, Inputs
from fastreg_benchmarks.check import WRONG
from fastreg_benchmarks.limits.lines import (
    INFORMATION,
    LARGE,
    QUICK_LARGE,
    Line,
    at_least,
    at_most,
    verdict,
    with_medians,
)
from fastreg_benchmarks.measure import measure_case, prepare, release, time_case
from fastreg_benchmarks.providers import DEFAULT_MODES, DYNAMIC, EAGER, FUNCTION, JIT, PROVIDERS
from fastreg_benchmarks.report import duration
from fastreg_benchmarks.results import Row
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.stats import Ratio, Samples
from fastreg_benchmarks.timing import Run

MOST_OF_LIMITS = {"two-pass": 1.3, "one-pass": 1.2}
LEAST_SPEEDUP, LEAST_SPEEDUP_TUNED = 12, 4
MOST_OF_KERAS = 1.05
MOST_MORE_SECONDS = 50e-6

SIZES = tuple(4**power for power in range(14))
QUICK_SIZES = (1, 4**5, 4**9)
MOST_OF_FUNCTION = {1: 1.05, 100: 1.05, 10_000: 1.05, 100_000: 0.8, 1_000_000: 0.42, 4_000_000: 0.22, LARGE: 0.1}
MOST_OF_JIT = {1: 1.1, 100: 1.1, 10_000: 1.1, 1_000_000: 0.6}
MOST_OF_EAGER = 0.3
"""Of Keras's time in each mode, for value and gradient, by size."""

UNKNOWN_SIZES = (1, 4**6, 4**9)

ALLOCATORS = {
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "no unmapping": {
        "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=34359738368:glibc.malloc.trim_threshold=34359738368:"
        "glibc.malloc.hugetlb=1"
    },
}
"""Environments in which TensorFlow's large tensors cost fewer page faults than they do by default."""


def through_keras(settings: Settings) -> Iterator[Line]:
    """Line 2: value and gradient of a large float32 weight in a `tf.function`."""
    case = Case(QUICK_LARGE if settings.quick else LARGE, "float32", VALUE_AND_GRADIENT)
    inputs, probe = Inputs(case), bandwidth.Probe(case.nbytes)
    ours = PROVIDERS["fastreg"].run(inputs, FUNCTION)
    keras = [PROVIDERS["keras"].run(inputs, mode) for mode in DEFAULT_MODES]
    checks = [prepare(inputs, PROVIDERS["fastreg"], ours)[0]]
    checks += [prepare(inputs, PROVIDERS["keras"], run)[0] for run in keras]
    probes = [Run(probe.read), Run(probe.copy)]
    for run in probes:
        timing.warm_up(run)
    read, copy, step, *baselines = timing.measure([*probes, ours, *keras], settings.seconds).samples
    right = all(check.status != WRONG for check in checks)
    name = f"tf.function, {case}"
    for passes, limit in (
        ("two-pass", read + copy),
        ("one-pass", copy),
    ):  # read x, then read x + write g; or the latter
        against = stats.ratio(step, limit)
        most = MOST_OF_LIMITS[passes]
        target = f"at most {most} x the {passes} limit"
        yield Line(2, name, target, str(against), at_most(against, most) if right else WRONG)
    best = min(baselines, key=_median)
    faster = stats.ratio(best, step)
    target = f"at least {LEAST_SPEEDUP} x faster than the best Keras"
    measured = with_medians(faster, step, best)
    yield Line(2, name, target, measured, at_least(faster, LEAST_SPEEDUP) if right else WRONG)
    del inputs, probe, ours, keras, run, probes
    release()
    yield _against_tuned(case, settings, _median(step))


def _against_tuned(case: Case, settings: Settings, step: float) -> Line:
    medians = {}
    for allocator, environment in ALLOCATORS.items():
        arguments = {"size": case.size, "dtype": case.dtype, "seconds": settings.seconds}
        for mode, seconds in child.run("keras", arguments, environment).items():
            medians[f"{mode}, {allocator}"] = seconds
    best = min(medians, key=lambda name: medians[name])
    return Line(
        2,
        f"tf.function, {case}",
        f"at least {LEAST_SPEEDUP_TUNED} x faster than Keras with a tuned malloc",
        f"{medians[best] / step:.1f}; {duration(step)} against {duration(medians[best])} ({best})",
        verdict(medians[best] >= LEAST_SPEEDUP_TUNED * step),
    )


def never_slower(settings: Settings) -> Iterator[Line]:
    """Line 3: fastreg's time over Keras's in the same mode, from one element up, and where the size is unknown."""
    settings = replace(settings, providers=("keras", "fastreg", "fastreg-callback"), modes=DEFAULT_MODES)
    for size in QUICK_SIZES if settings.quick else SIZES:
        for what in PASSES:
            case = Case(size, "float32", what)
            rows = measure_case(case, settings)
            release()
            for mode in DEFAULT_MODES:
                yield _against_keras(case, mode, [row for row in rows if row.mode == mode])
    for size in UNKNOWN_SIZES:
        yield _unknown_size(Case(size, "float32", VALUE_AND_GRADIENT), settings)
        release()


def by_size(settings: Settings) -> Iterator[Line]:
    """Line 3: value and gradient in a `tf.function` over Keras's, by itself and compiled, and eagerly over Keras's."""
    for size, most in MOST_OF_FUNCTION.items():
        if settings.quick and size > QUICK_SIZES[-1]:
            return
        case = Case(size, "float32", VALUE_AND_GRADIENT)
        inputs = Inputs(case)
        plan = [("fastreg", FUNCTION), ("keras", FUNCTION), ("keras", JIT), ("fastreg", EAGER), ("keras", EAGER)]
        runs = [PROVIDERS[name].run(inputs, mode) for name, mode in plan]
        checks = [prepare(inputs, PROVIDERS[name], run)[0] for (name, _), run in zip(plan, runs, strict=True)]
        wrong = any(check.status == WRONG for check in checks)
        ours, keras, compiled, eager, keras_eager = time_case(case, runs, settings).samples
        for mode, pair, limit in (
            (f"{FUNCTION} over {FUNCTION}", (ours, keras), most),
            (f"{FUNCTION} over {JIT}", (ours, compiled), MOST_OF_JIT.get(size)),
            (f"{EAGER} over {EAGER}", (eager, keras_eager), MOST_OF_EAGER),
        ):
            ratio = stats.ratio(*pair)
            target = "-" if limit is None else f"at most {limit} x Keras's time"
            found = INFORMATION if limit is None else at_most(ratio, limit)
            yield Line(3, f"{mode}, {case}", target, with_medians(ratio, *pair), WRONG if wrong else found)
        del inputs, runs
        release()


def _against_keras(case: Case, mode: str, rows: Sequence[Row]) -> Line:
    by_name = {row.provider: row for row in rows}
    ratio = _time_ratio(by_name["fastreg"])
    measured = f"{ratio} by {by_name['fastreg'].bridge}"
    if "fastreg-callback" in by_name:
        measured += f"; by callbacks {_time_ratio(by_name['fastreg-callback'])}"
    wrong = any(row.check == WRONG for row in rows)
    target = f"at most {MOST_OF_KERAS} x Keras's time"
    return Line(3, f"{mode}, {case}", target, measured, WRONG if wrong else at_most(ratio, MOST_OF_KERAS))


def _time_ratio(row: Row) -> Ratio:
    if row.mode_speedup is None or row.mode_speedup_low is None or row.mode_speedup_high is None:
        raise ValueError(f"Keras was not measured beside {row.provider} in {row.mode}")
    return Ratio(row.mode_speedup, row.mode_speedup_low, row.mode_speedup_high).inverse()


def _unknown_size(case: Case, settings: Settings) -> Line:
    inputs = Inputs(case)
    providers = [PROVIDERS[name] for name in ("fastreg", "keras")]
    runs = [provider.run(inputs, DYNAMIC) for provider in providers]
    checks = [prepare(inputs, provider, run)[0] for provider, run in zip(providers, runs, strict=True)]
    ours, keras = time_case(case, runs, settings).samples
    more = stats.difference(ours, keras)
    measured = f"{more.value * 1e6:.0f} [{more.low * 1e6:.0f}, {more.high * 1e6:.0f}] µs more"
    wrong = any(check.status == WRONG for check in checks)
    return Line(
        3,
        f"size unknown when traced, {case}",
        f"at most {MOST_MORE_SECONDS * 1e6:.0f} µs more than Keras",
        measured,
        WRONG if wrong else at_most(more, MOST_MORE_SECONDS),
    )


def _median(samples: Samples) -> float:
    return stats.quantiles(samples)[1]
