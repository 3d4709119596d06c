"""The options of a comparison, as a file and as a command."""

import dataclasses
import shlex

import pytest

from fastreg.cli import _parser
from fastreg.compare import command, data
from fastreg.compare.jobs import JOBS
from fastreg.compare.settings import Settings

SPLIT = data.Split(training=1000, held_out=100, tables={"user": 5}, references={})


def parsed(*arguments):
    options = _parser().parse_args(["compare", *arguments])
    job = JOBS[options.model]
    command._fill(options, job)
    command._check(options)
    return command._settings(options, job, SPLIT)


def test_file(tmp_path):
    settings = parsed("--rows", "77", "--no-jit")
    settings.write(tmp_path / "settings.json")
    assert Settings.read(tmp_path / "settings.json") == settings


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--no-jit"],
        ["--lazy"],
        ["--jit", "--optimizer", "adam"],
        ["--eager", "--regularizer", "l1", "--l1", "0.25"],
        ["--regularizer", "l2", "--learning-rate", "0.125", "--seed", "3"],
        ["--ratings", "a file.csv", "--tolerance", "0"],
        ["--model", "dlrm"],
        ["--model", "dlrm", "--criteo", "a file.gz", "--rows", "300", "--table-rows", "40", "--optimizer", "adagrad"],
    ],
)
def test_the_command_repeats_the_comparison(arguments):
    settings = parsed(*arguments)
    program, name, *options = shlex.split(settings.command())
    assert (program, name) == ("fastreg", "compare")
    assert parsed(*options) == settings


def test_defaults():
    settings = parsed()
    defaults = JOBS["movielens"].defaults
    assert (settings.model, settings.rows, settings.table_rows, settings.dim) == ("movielens", 1_000_000, None, 64)
    assert (settings.l1, settings.l2, settings.steps) == (defaults.l1, defaults.l2, defaults.steps)
    assert settings.batch_size == 1000  # no more than there are ratings to train on
    assert parsed("--batch-size", "300", "--epochs", "2").steps == 6
    assert parsed("--regularizer", "l2").l1 == 0
    assert dataclasses.replace(settings, jit=True).command() != settings.command()


def test_defaults_of_dlrm():
    settings, defaults = parsed("--model", "dlrm", "--optimizer", "adam"), JOBS["dlrm"].defaults
    assert settings.sides == ("keras", "lazy")
    assert settings.learning_rate == defaults.learning_rates["adam"]
    for name in ("rows", "table_rows", "dim", "l1", "l2", "steps"):
        assert getattr(settings, name) == getattr(defaults, name)


def test_help_names_the_defaults_of_each_model(capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args(["compare", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "default: movielens 1,000,000, dlrm 500,000" in text
    assert "of the embeddings; default: movielens 64, dlrm 16" in text
