"""The command line: `fastreg info`, `fastreg compare`, `fastreg bench`; also `python -m fastreg`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

EXIT_USAGE = 2
"""Exit code for input that cannot be used, with one line on stderr that says why."""


class UsageError(Exception):
    """Input of the user's that cannot be used; its message is all that he needs to see."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for the processes that a command starts
    try:
        options = _parser().parse_args(arguments)
        return int(options.run(options))
    except UsageError as error:
        print(f"fastreg: error: {error}", file=sys.stderr)
        return EXIT_USAGE


def _parser() -> argparse.ArgumentParser:
    # Imported here: they bring TensorFlow in, which reads the environment set above.
    import fastreg_benchmarks.command

    import fastreg.compare.command
    from fastreg import __version__, _info

    parser = argparse.ArgumentParser(prog="fastreg", description="Compiled L1 and L2 penalties for Keras.")
    parser.add_argument("--version", action="version", version=f"fastreg {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, module in (
        ("info", _info),
        ("compare", fastreg.compare.command),
        ("bench", fastreg_benchmarks.command),
    ):
        description = str(module.DESCRIPTION)
        command = commands.add_parser(name, help=description, description=description)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
