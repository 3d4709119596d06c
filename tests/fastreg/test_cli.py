"""The command line's frame: commands, help, version, and how it says no."""

import sys

import pytest

import fastreg
from fastreg import cli


def outcome(capsys, *arguments):
    try:
        code = cli.main(arguments)
    except SystemExit as leaving:  # argparse's own way
        code = leaving.code
    return (code, *capsys.readouterr())


def test_version(capsys):
    assert outcome(capsys, "--version")[:2] == (0, f"fastreg {fastreg.__version__}\n")


def test_help_lists_the_commands(capsys):
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("info", "compare", "bench"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "command"),
        (["unknown"], "unknown"),
        (["info", "--nothing"], "--nothing"),
        (["bench", "--modes", "sideways"], "sideways"),
        (["compare", "--rows", "many"], "many"),
        (["compare", "--l2", "-1"], "--l2"),
        (["compare", "--ratings", "no-such-file.csv"], "no-such-file.csv"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, named):
    code, out, err = outcome(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    assert named in err.splitlines()[-1]
    assert "error:" in err.splitlines()[-1]


@pytest.mark.parametrize("module", ["fastreg", "fastreg.cli"])
def test_as_a_module(run_python, module):
    code = f"import runpy, sys; sys.argv = ['fastreg', 'info']; runpy.run_module('{module}', run_name='__main__')"
    out = run_python(
        f"""
        try:
            exec({code!r})
        except SystemExit as leaving:
            print("code", leaving.code)
        """,
        TF_CPP_MIN_LOG_LEVEL="3",
    )
    assert "threading layer" in out
    assert out.endswith("code 0\n")
    assert fastreg.__version__ in out
    assert sys.version.split()[0] in out
