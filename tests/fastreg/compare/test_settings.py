"""The options of a comparison, as a file and as a command."""

import dataclasses
import shlex

import pytest

from fastreg.cli import _parser
from fastreg.compare import command, data
from fastreg.compare.settings import Settings

SPLIT = data.Split(training=1000, held_out=100, users=5, items=6, baseline=1.0)


def parsed(*arguments):
    options = _parser().parse_args(["compare", *arguments])
    command._check(options)
    return command._settings(options, SPLIT)


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
    ],
)
def test_the_command_repeats_the_comparison(arguments):
    settings = parsed(*arguments)
    program, name, *options = shlex.split(settings.command())
    assert (program, name) == ("fastreg", "compare")
    assert parsed(*options) == settings


def test_defaults():
    settings = parsed()
    assert (settings.rows, settings.dim, settings.steps) == (1_000_000, 64, command.DEFAULT_STEPS)
    assert (settings.l1, settings.l2) == (command.DEFAULT_L1, command.DEFAULT_L2)
    assert settings.batch_size == 1000  # no more than there are ratings to train on
    assert parsed("--batch-size", "300", "--epochs", "2").steps == 6
    assert parsed("--regularizer", "l2").l1 == 0
    assert dataclasses.replace(settings, jit=True).command() != settings.command()
