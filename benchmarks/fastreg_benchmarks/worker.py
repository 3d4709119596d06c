"""A process that has a run of a library that TensorFlow had better not share one with, and times it when told to.

`python -m fastreg_benchmarks.worker MODULE:FUNCTION JSON` makes the run and then answers each line of its input with
one of JSON: `call` with the result of a call, a number with the seconds of one of so many.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from fastreg_benchmarks import timing
from fastreg_benchmarks.child import TIMEOUT_SECONDS
from fastreg_benchmarks.timing import Run

PAUSE_SECONDS = 0.01
"""Around each sample: threads of the process that ran before, or will run next, would spin on for a while."""


class Worker:
    """The process, seen from the one that started it; a context manager, at whose end it ends.

    Parameters
    ----------
    function : str
        As "module:function"; it returns a run.
    arguments : mapping
        Of the function; they have to be JSON.

    Attributes
    ----------
    run : Run
        As if it were here.
    process_id : int

    Raises
    ------
    RuntimeError
        If the process fails, now or when the run is called; with the last line that it wrote to stderr.
    """

    def __init__(self, function: str, arguments: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by _end
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, function, json.dumps(dict(arguments))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.process_id = self._process.pid
        self.run = Run(lambda: self._ask("call"), clock=lambda calls: float(self._ask(str(calls))))
        try:
            self._ask("call")
        except RuntimeError:
            self._end()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _ask(self, question: str) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        try:
            print(question, file=stdin, flush=True)
        except BrokenPipeError:
            raise RuntimeError(self._last_error()) from None
        # One line answers one question, so that nothing is left that was read from the pipe already.
        answer = stdout.readline() if select.select([stdout], [], [], TIMEOUT_SECONDS)[0] else ""
        if not answer:
            raise RuntimeError(self._last_error())
        return json.loads(answer)

    def _last_error(self) -> str:
        self._errors.seek(0)
        return self._errors.read().strip().split("\n")[-1] or "no answer"

    def _end(self) -> None:
        self._process.kill()  # it has nothing to finish
        self._process.communicate()
        self._errors.close()


def main(function: str, arguments: str) -> None:
    """What the process does."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries may print what they like
    module, name = function.split(":")
    run: Run = getattr(importlib.import_module(module), name)(**json.loads(arguments))
    for question in sys.stdin:
        time.sleep(PAUSE_SECONDS)
        answer = run.call() if question == "call\n" else timing.sample(run, int(question))
        time.sleep(PAUSE_SECONDS)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
