import numpy as np
import pytest
from fastreg_benchmarks import bandwidth
from fastreg_benchmarks.cases import VALUE, VALUE_AND_GRADIENT


@pytest.fixture(params=[1, 128, 1_000_001])
def probe(request):
    return bandwidth.Probe(request.param)


def test_read_reads_everything(probe):
    assert probe.read() == pytest.approx(probe.x.view(np.float64).sum(), rel=1e-9)


def test_copy_writes_everything(probe):
    probe.out[:] = 0
    np.testing.assert_array_equal(probe.copy(), np.float32(0.999) * probe.x)


def test_scale_changes_everything_in_place(probe):
    before = probe.x.copy()
    assert probe.scale() is probe.x
    np.testing.assert_array_equal(probe.x, np.float32(0.999) * before)


def test_values_stay_normal_after_many_repetitions():
    probe = bandwidth.Probe(1 << 12)
    for _ in range(10_000):
        probe.scale()
    assert np.abs(probe.x).min() > 1e-30


def test_arrays_are_as_large_as_asked(probe):
    assert bandwidth.Probe(1000).x.nbytes >= 1000


def test_limits_of_what_is_computed(probe):
    assert probe.limit(VALUE) == probe.read
    assert probe.limit(VALUE_AND_GRADIENT) == probe.copy


def test_measure_gives_positive_figures():
    found = bandwidth.measure(1 << 16, 0.01)
    assert min(found.read, found.copy, found.scale) > 0
