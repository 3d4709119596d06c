"""To be written."""

import argparse

DESCRIPTION = "to be written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None yet."""


def run(options: argparse.Namespace) -> int:  # noqa: ARG001
    """Nothing yet."""
    return 0
