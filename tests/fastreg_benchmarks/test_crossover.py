from dataclasses import replace

import pytest
from fastreg_benchmarks import crossover, report
from fastreg_benchmarks.providers import EAGER, FUNCTION


@pytest.mark.parametrize(
    ("speedups", "expected"),
    [
        ([0.5, 0.9, 1.1, 2.0], 4),
        ([1.5, 0.9, 1.1, 2.0], 4),  # faster below does not count
        ([1.1, 1.2, 1.3, 1.4], 1),
        ([0.5, 1.2, 1.3, 0.9], None),
        ([0.5, 0.6, 0.7, 1.5], 8),
    ],
)
def test_crossover_is_where_all_larger_sizes_are_faster(make_row, speedups, expected):
    rows = [
        make_row(size=1 << power, provider=provider, mode=FUNCTION, p50_s=seconds)
        for power, speedup in enumerate(speedups)
        for provider, seconds in (("fastreg-ops", speedup), ("fastreg-native", 1.0))
    ]
    other = [make_row(size=1, provider=provider, mode=EAGER) for provider in ("fastreg-ops", "fastreg-native")]
    assert crossover.crossover([*rows, *other], "fastreg-native", FUNCTION) == expected


def test_run_prints_all_constants(settings, capsys):
    settings = replace(settings, suite="crossover", sizes=(1, 64), modes=(EAGER, FUNCTION))
    assert crossover.run(settings, report.console()) == 0
    out = capsys.readouterr().out
    for (_, mode), name in crossover.CONSTANTS.items():
        assert f"{name} from float32, {mode}:" in out
    assert out.count("fastreg-native") == 4
    assert out.count("(now ") == 4
