"""`fastreg info --cuda-audit`."""

import importlib.util
import itertools

from fastreg_kernels.cuda import audit

from fastreg.cli import main

audit_every = audit.every


def test_the_table(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    few = list(itertools.islice(audit_every([(9, 0)]), 3))
    monkeypatch.setattr(audit, "every", lambda: few)
    assert main(["info", "--cuda-audit"]) == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│ 9.0")]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    assert [row[:4] for row in cells] == [
        ["9.0", "fold", "float64", "float64"],
        ["9.0", "forward", "float32", "float64"],
        ["9.0", "backward", "float32", ""],
    ]
    assert [row[5] for row in cells] == ["100%"] * 3
    assert [row[7] for row in cells] == ["0"] * 3  # spilled
    assert int(cells[1][8]) > 0
    assert int(cells[2][9]) > 0


def test_what_is_missing_is_named(monkeypatch, capsys):
    def missing():
        raise audit.ToolError("nvdisasm is missing: pip install it")
        yield

    monkeypatch.setattr(audit, "every", missing)
    assert main(["info", "--cuda-audit"]) == 2
    assert "nvdisasm is missing" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["info", "--cuda-audit"]) == 2
    assert "pip install 'fastreg-keras[cuda]'" in capsys.readouterr().err
