"""The cases of `fastreg bench` under pytest-benchmark: `pytest benchmarks`, about two minutes."""

import functools

import pytest
from fastreg_benchmarks import check, measure
from fastreg_benchmarks.cases import PASSES, Case, Inputs
from fastreg_benchmarks.providers import DEFAULT_MODES, PROVIDERS, plan

SIZES = (1, 10_000, 2**22)

CASES = [
    pytest.param(case, provider, mode, id=f"{case.size}-{case.what}-{mode}-{provider.name}")
    for case in (Case(size, "float32", what) for size in SIZES for what in PASSES)
    for provider, mode in plan(case, tuple(PROVIDERS), DEFAULT_MODES)
]


@functools.lru_cache(maxsize=1)
def inputs_of(case):
    measure.release()
    return Inputs(case)


@pytest.mark.benchmark(min_time=1e-3, max_time=0.3, min_rounds=5, disable_gc=True)
@pytest.mark.parametrize(("case", "provider", "mode"), CASES)
def test_penalty(benchmark, case, provider, mode):
    inputs = inputs_of(case)
    run = provider.run(inputs, mode)
    verdict, bridge = measure.prepare(inputs, provider, run)
    assert verdict.status != check.WRONG
    benchmark.group = f"{case}, {mode}"
    benchmark.extra_info.update(bridge=bridge, model_bytes=case.model_bytes)
    with run.scope():
        benchmark(run.call)
