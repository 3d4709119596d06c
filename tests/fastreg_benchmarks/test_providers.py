import numpy as np
import pytest
from fastreg_benchmarks import check, measure
from fastreg_benchmarks.cases import DTYPES, PASSES, VALUE, VALUE_AND_GRADIENT, Case, Inputs
from fastreg_benchmarks.providers import DEFAULT_MODES, DIRECT, DYNAMIC, EAGER, FUNCTION, JIT, MODES, PROVIDERS, plan

import fastreg


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_provider_is_right_in_every_mode(dtype, what):
    inputs = Inputs(Case(3001, dtype, what))
    for provider, mode in plan(inputs.case, tuple(PROVIDERS), MODES):
        verdict, _ = measure.prepare(inputs, provider, provider.run(inputs, mode))
        assert verdict.status == check.OK, (provider.name, mode, verdict)


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("fastreg", FUNCTION, "tensorflow"),  # so few elements
        ("fastreg", DYNAMIC, "dynamic"),
        ("fastreg", JIT, "tensorflow"),
        ("fastreg-native", FUNCTION, "native"),
        ("fastreg-native", EAGER, "native"),
        ("fastreg-callback", FUNCTION, "py_function"),
        ("fastreg-callback", EAGER, "py_function"),
        ("fastreg-ops", EAGER, "tensorflow"),
        ("keras", EAGER, ""),
        ("kernel", DIRECT, ""),
    ],
)
def test_what_served_is_reported(name, mode, expected):
    inputs = Inputs(Case(100, "float32", VALUE_AND_GRADIENT))
    previous = fastreg.get_bridge()
    fastreg.set_crossover(1000)
    try:
        assert measure.prepare(inputs, PROVIDERS[name], PROVIDERS[name].run(inputs, mode))[1] == expected
    finally:
        fastreg.set_crossover(None)
    assert fastreg.get_bridge() == previous


def test_the_kernel_provider_uses_its_buffer_again():
    inputs = Inputs(Case(100, "float32", "value+gradient"))
    call = PROVIDERS["kernel"].run(inputs, DIRECT).call
    assert call()[1] is inputs.out
    assert call()[1] is inputs.out


def test_plan_leaves_out_what_a_provider_does_not_know():
    chosen = [(provider.name, mode) for provider, mode in plan(Case(1, "bfloat16", VALUE), tuple(PROVIDERS), (JIT,))]
    assert chosen == [("keras", JIT), ("fastreg", JIT), ("fastreg-ops", JIT), ("kernel", DIRECT)]


def test_there_is_a_baseline_in_every_mode():
    modes = {mode for provider in PROVIDERS.values() if provider.baseline for mode in provider.modes}
    assert modes == set(MODES) >= set(DEFAULT_MODES)


def test_numpy_stays_in_the_dtype_of_x():
    inputs = Inputs(Case(10, "float32", "value+gradient"))
    value, gradient = PROVIDERS["numpy"].run(inputs, DIRECT).call()
    assert (value.dtype, gradient.dtype) == (np.float32, np.float32)
