from dataclasses import replace

import pytest
from fastreg_benchmarks import child, limits, report, results
from fastreg_benchmarks.limits import kernels, lines, processes, training
from fastreg_benchmarks.limits.lines import FAIL, PASS, UNCLEAR, Line
from fastreg_benchmarks.results import LimitRow
from fastreg_benchmarks.stats import Ratio

VERDICTS = {PASS, FAIL, UNCLEAR}


def test_verdicts_by_interval():
    below, around, above = Ratio(0.8, 0.7, 0.9), Ratio(1.0, 0.9, 1.1), Ratio(1.2, 1.1, 1.3)
    assert [lines.at_most(ratio, 1) for ratio in (below, around, above)] == [PASS, UNCLEAR, FAIL]
    assert [lines.at_least(ratio, 1) for ratio in (below, around, above)] == [FAIL, UNCLEAR, PASS]


def test_shares_of_the_kernels(settings, monkeypatch):
    monkeypatch.setattr(kernels, "QUICK_LARGE", 1 << 12)
    found = list(kernels.shares(settings))
    assert len(found) == 4 * len(kernels.fastreg_kernels.DTYPES)
    assert {line.verdict for line in found} <= VERDICTS


def test_a_wrong_kernel_is_found(settings, monkeypatch):
    monkeypatch.setattr(kernels, "QUICK_LARGE", 1 << 12)
    backward = kernels.fastreg_kernels.backward
    monkeypatch.setattr(
        kernels.fastreg_kernels, "backward", lambda x, l1, l2, out=None: backward(x, l1, 2 * l2, out=out)
    )
    found = list(kernels.shares(settings))
    assert {line.what.split(",")[0] for line in found if line.verdict == "WRONG"} == {"backward"}


def test_never_slower(settings, monkeypatch):
    monkeypatch.setattr(training, "QUICK_SIZES", (10,))
    monkeypatch.setattr(training, "UNKNOWN_SIZES", (10,))
    found = list(training.never_slower(settings))
    assert len(found) == 2 * 3 + 1
    assert {line.verdict for line in found} <= VERDICTS
    assert sum("by callbacks" in line.measured for line in found) == 4


def test_by_size(settings, monkeypatch):
    monkeypatch.setattr(training, "MOST_OF_FUNCTION", {10: 1.05, 20: 0.8})
    monkeypatch.setattr(training, "MOST_OF_JIT", {10: 1.1})
    found = list(training.by_size(settings))
    assert [line.target.split(" x ")[0] for line in found[:3]] == ["at most 1.05", "at most 1.1", "at most 0.3"]
    assert [line.verdict == lines.INFORMATION for line in found] == [False, False, False, False, True, False]


def test_through_keras(settings, monkeypatch):
    monkeypatch.setattr(training, "QUICK_LARGE", 1 << 12)
    monkeypatch.setattr(child, "run", lambda task, arguments, environment=None: {"jit": 1.0, "eager": 2.0})
    found = list(training.through_keras(settings))
    assert len(found) == 4
    assert found[-1].verdict == PASS


def test_memory_and_bits_in_processes_of_their_own(settings):
    arguments = {"provider": "kernel", "mode": "direct", "what": "value+gradient", "size": 1 << 23, "dtype": "float32"}
    grown = child.run("memory", arguments)
    assert grown is None or 32 << 20 <= grown < 64 << 20  # one buffer
    assert child.run("bits", {"size": 100_003, "threads": 3}, {"NUMBA_NUM_THREADS": "3"}) == 1


def test_memory_verdicts(settings, monkeypatch):
    monkeypatch.setattr(processes, "QUICK_LARGE", 1 << 24)
    monkeypatch.setattr(child, "run", lambda task, arguments: 65 << 20)  # one buffer, and a little
    found = list(processes.memory(settings))
    ours = [line.verdict for line in found if "keras" not in line.what]
    assert ours == [FAIL] * 3 + [PASS] * 3
    assert {line.verdict for line in found if "keras" in line.what} == {lines.INFORMATION}


def test_memory_where_the_system_does_not_tell(settings, monkeypatch):
    monkeypatch.setattr(child, "run", lambda task, arguments: None)
    assert {line.verdict for line in processes.memory(settings)} == {lines.INFORMATION}


def test_start_up_verdicts(settings, monkeypatch):
    monkeypatch.setattr(child, "run", lambda task, arguments, environment=None: {"import": 0.3, "first_call": 0.2})
    assert [line.verdict for line in processes.start_up(settings)] == [PASS, FAIL, PASS]


def test_a_failing_process_says_why():
    with pytest.raises(RuntimeError, match="no_such_task"):
        child.run("no_such_task", {})


@pytest.mark.parametrize(("verdict", "code"), [(PASS, 0), (FAIL, 0), ("WRONG", 1)])
def test_lines_are_printed_and_kept(settings, monkeypatch, tmp_path, capsys, verdict, code):
    line = Line(1, "a kernel", "at least 0.9", "0.8 [0.7, 0.9]", verdict)
    monkeypatch.setattr(limits, "PARTS", (lambda settings: iter([line]),))
    path = tmp_path / "limits.csv"
    assert limits.run(replace(settings, suite="limits", csv=path), report.console()) == code
    (row,) = results.read(path, LimitRow)
    assert (row.what, row.measured, row.verdict) == ("a kernel", "0.8 [0.7, 0.9]", verdict)
    assert "0.8 [0.7, 0.9]" in capsys.readouterr().out
