import importlib.util

import numpy as np
import pytest
from fastreg_benchmarks import command, environment, results
from fastreg_benchmarks.cases import L1, L2
from fastreg_benchmarks.providers import DIRECT, PROVIDERS, Provider
from fastreg_benchmarks.results import Row

from fastreg.cli import UsageError, main


@pytest.fixture(autouse=True)
def no_default_file(monkeypatch):
    """Tests leave the checkout's results alone."""
    monkeypatch.setattr(environment, "checkout", lambda: None)


def exit_code(*arguments):
    try:
        return main(["bench", *arguments])
    except SystemExit as leaving:  # argparse's own way
        return leaving.code


def provider(change_value=1.0, change_gradient=1.0):
    def build(inputs, mode):
        x = inputs.x
        return lambda: (
            change_value * (L1 * np.abs(x.astype(np.float64)).sum() + L2 * np.square(x.astype(np.float64)).sum()),
            np.float32(change_gradient) * np.float32(L1) * np.sign(x) + np.float32(2 * L2) * x,
        )

    return Provider("own", "a provider of the tests", (DIRECT,), build, dtypes=("float32",))


def test_from_the_command_line_to_the_files(tmp_path, capsys):
    csv, plot = tmp_path / "rows.csv", tmp_path / "plot.png"
    arguments = ("--sizes", "1", "1_000", "--dtypes", "float32", "--seconds", "0.05", "--csv", str(csv))
    assert exit_code(*arguments, "--plot", str(plot)) == 0
    rows = results.read(csv, Row)
    assert {row.size for row in rows} == {1, 1000}
    assert {row.provider for row in rows} == set(PROVIDERS)
    assert len(rows) == 2 * 2 * (3 + 3 + 2 + 2 + 3 + 1 + 1)
    assert {row.check for row in rows} == {"ok"}
    assert len({row.date for row in rows}) == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "bandwidth in GB/s" in out
    assert "value + gradient of 1,000 float32" in out
    assert "fastreg-callback" in out


def test_a_provider_of_ours_is_measured_like_the_others(monkeypatch, capsys):
    monkeypatch.setitem(PROVIDERS, "own", provider())
    assert exit_code("--sizes", "100", "--dtypes", "float32", "--seconds", "0.01", "--providers", "own") == 0


@pytest.mark.parametrize("wrong", [{"change_gradient": 1.01}, {"change_value": 1.01}])
def test_a_wrong_result_is_reported(monkeypatch, capsys, tmp_path, wrong):
    monkeypatch.setitem(PROVIDERS, "own", provider(**wrong))
    csv = tmp_path / "rows.csv"
    arguments = ("--sizes", "100", "--dtypes", "float32", "--seconds", "0.01", "--providers", "own", "numpy")
    assert exit_code(*arguments, "--csv", str(csv)) == 1
    assert "WRONG: own" in capsys.readouterr().out
    checks = {(row.provider, row.what): row.check for row in results.read(csv, Row)}
    assert checks["own", "value+gradient"] == "WRONG"
    assert checks["numpy", "value+gradient"] == "ok"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--sizes", "0"),
        ("--sizes", "-1"),
        ("--sizes", "many"),
        ("--sizes", "1.5"),
        ("--sizes", "2**"),
        ("--sizes", "2**60"),
        ("--sizes"),
        ("--seconds", "0"),
        ("--seconds", "nan"),
        ("--seconds", "soon"),
        ("--modes", "lazy"),
        ("--dtypes", "int32"),
        ("--providers", "torch"),
        ("--suite", "all"),
        ("--suite", "limits", "--sizes", "1"),
        ("--suite", "limits", "--warm"),
        ("--suite", "crossover", "--providers", "keras"),
        ("--suite", "crossover", "--modes", "jit"),
        ("--suite", "crossover", "--plot"),
        ("--providers", "fastreg-callback", "--modes", "jit"),
        ("--providers", "numpy", "--dtypes", "float16"),
        ("--csv", "/no/such/folder/rows.csv"),
        ("--plot", "/no/such/folder/plot.png"),
        ("--plot", "plot.txt"),
    ],
)
def test_bad_input_is_refused_with_one_clear_line(arguments, capsys):
    assert exit_code(*((arguments,) if isinstance(arguments, str) else arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: " in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err


def test_plots_need_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert exit_code("--plot") == 2
    assert "pip install" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("10_000", 10_000), ("2**22", 1 << 22), ("007", 7)])
def test_sizes(text, size):
    assert command.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "_1", "1_", "2**-1", "2**100", "1e3", "0**3", " 1"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="not a size"):
        command.parse_size(text)
