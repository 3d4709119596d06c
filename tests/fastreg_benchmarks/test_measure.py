from dataclasses import replace

import pytest
from fastreg_benchmarks import environment, measure
from fastreg_benchmarks.cases import VALUE_AND_GRADIENT, Case
from fastreg_benchmarks.providers import DEFAULT_MODES, PROVIDERS

from fastreg.cli import UsageError

CASE = Case(1000, "float32", VALUE_AND_GRADIENT)


def test_rows_hold_together(settings):
    rows = measure.measure_case(CASE, settings)
    assert {row.provider for row in rows} == set(PROVIDERS)
    keras = {row.mode: row for row in rows if row.provider == "keras"}
    best = min(keras.values(), key=lambda row: row.p50_s)
    for row in rows:
        assert row.date == settings.environment.date
        assert row.check == "ok"
        assert row.p20_s <= row.p50_s <= row.p80_s
        assert row.gbs == pytest.approx(8000 / row.p50_s / 1e9)
        assert row.limit_s == pytest.approx(8000 / 2e10)
        assert row.limit_share == pytest.approx(row.limit_s / row.p50_s)
        assert row.best_keras == best.mode
        assert row.speedup == pytest.approx(best.p50_s / row.p50_s)
        assert row.speedup_low <= row.speedup <= row.speedup_high
        if row.mode in DEFAULT_MODES:
            assert row.mode_speedup == pytest.approx(keras[row.mode].p50_s / row.p50_s)
        else:
            assert row.mode_speedup is None


def test_without_keras_there_is_nothing_to_compare_with(settings):
    (row,) = measure.measure_case(CASE, replace(settings, providers=("numpy",)))
    assert row.best_keras is row.speedup is row.mode_speedup is None


@pytest.mark.parametrize(
    ("size", "warm", "caches"), [(1000, False, "warm"), (1 << 18, False, "cold"), (1 << 18, True, "warm")]
)
def test_caches(settings, size, warm, caches):
    settings = replace(settings, providers=("kernel",), warm=warm)
    (row,) = measure.measure_case(Case(size, "float32", VALUE_AND_GRADIENT), settings)
    assert row.caches == caches


def test_a_large_case_has_its_limit_probed_beside_it(settings, monkeypatch):
    monkeypatch.setattr(measure.bandwidth, "MEMORY_BYTES", 4000)
    (row,) = measure.measure_case(CASE, replace(settings, providers=("kernel",)))
    assert row.limit_s != pytest.approx(settings.bandwidth.seconds(CASE))


def test_a_case_beyond_memory_is_refused(monkeypatch):
    monkeypatch.setattr(environment, "physical_memory", lambda: 1000)
    with pytest.raises(UsageError, match="more than this machine has"):
        measure.require_memory(CASE)
