import io

import pytest
from fastreg_benchmarks import report, results
from rich.console import Console

from fastreg.cli import UsageError


@pytest.fixture
def run_rows(make_row):
    """A small run: Keras in two modes and fastreg, two sizes, and rows that the table leaves out."""
    rows = []
    for size in (10_000, 1_000):
        rows += [
            make_row(size=size, provider="keras", mode="eager", p50_s=4e-3),
            make_row(size=size, provider="keras", mode="jit", p50_s=2e-3),
            make_row(size=size, bridge="tensorflow" if size == 1_000 else "py_function"),
            make_row(size=size, mode="eager", p50_s=0.5e-3, mode_speedup=8.0),
            make_row(size=size, what="value"),
            make_row(size=size, dtype="float64"),
        ]
    return rows


def printed(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def test_readme_table(run_rows):
    lines = report.readme_table(run_rows).splitlines()
    assert lines[0].startswith("| elements | Keras, eager | Keras, jit | fastreg, eager | x Keras, eager | served by |")
    ours = "500 µs | 8.0x | py_function | 1.00 ms | 3.0x | tensorflow | 2.0x | 10%"
    assert lines[2] == f"| 1,000 | 4.00 ms | **2.00 ms** | {ours} |"
    assert lines[3].startswith("| 10,000 |")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "a processor" in lines[-1]
    assert "abc" in lines[-1]


def test_readme_table_needs_keras_and_fastreg(make_row):
    for rows in ([], [make_row()], [make_row(provider="keras")], [make_row(dtype="float64")]):
        with pytest.raises(UsageError, match="no run"):
            report.readme_table(rows)


def test_case_table_shows_everything(make_row):
    text = printed(report.case_table("a case", [make_row(), make_row(provider="numpy", speedup=None, check="WRONG")]))
    for expected in ("a case", "limit 100 µs", "fastreg", "py_function", "10%", "2.00 (1.50-2.50)", "WRONG", "1000"):
        assert expected in text


def test_limits_table_keeps_intervals_in_brackets(environment_of_rows):
    row = results.LimitRow(
        **environment_of_rows, line=1, what="w", target="t", measured="0.9 [0.8, 1.0]", verdict="unclear"
    )
    assert "0.9 [0.8, 1.0]" in printed(report.limits_table([row]))


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (4.56e-4, "456 µs"),
        (9.996e-6, "10.0 µs"),
        (9.9999e-4, "1.00 ms"),
        (5e-9, "5.00 ns"),
    ],
)
def test_duration(seconds, expected):
    assert report.duration(seconds) == expected
