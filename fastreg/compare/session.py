"""The processes, taking turns."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from fastreg.compare import weights
from fastreg.compare.settings import LAZY, Settings

MAX_TURN = 5
"""Steps that a side trains before it is the other's turn, at most: both then see the machine in the same moods."""

MIN_TURNS = 20
"""Turns that each side gets if there are steps enough; the interval of the speed-up rests on them."""

Notify = Callable[[str, int], None]
"""Told what is going on, and how many training steps were done since the last time."""


class WorkerError(Exception):
    """A process that died, or cannot be compared."""


@dataclass
class Side:
    """What one process reported: `turns` holds the times of the timed steps, in seconds, by turn."""

    ready: dict[str, Any] = field(default_factory=dict)
    turns: list[NDArray[np.float64]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All sides, how far their final weights are from Keras's, and, of a lazy comparison, the zeros in their tables."""

    keras: Side
    fastreg: Side
    difference: weights.Difference
    lazy: Side | None = None
    lazy_difference: weights.Difference | None = None
    zeros: tuple[weights.Zeros, ...] = ()


class Worker:
    """A process that trains one side."""

    def __init__(self, side: str, folder: Path) -> None:
        self.side = side
        self._log = folder / f"{side}.log"
        # It imports what this process imports, whatever modules the current folder happens to hold.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with self._log.open("w") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
                [sys.executable, "-P", "-m", "fastreg.compare.worker", side, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is for this process, which stops the workers
            )
        self._requests, self._replies = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)

    def send(self, request: dict[str, Any]) -> None:
        """Ask for something."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except BrokenPipeError:
            raise self._death() from None

    def receive(self, kind: str, on_step: Callable[[int], None] | None = None) -> Any:
        """Wait for a reply, and hear of every step until then.

        Raises
        ------
        WorkerError
            If the process dies.
        """
        for line in self._replies:
            if not line.endswith("\n"):
                break  # it died in the middle of a word
            reply = json.loads(line)
            if "failed" in reply:
                raise WorkerError(f"the {self.side} process failed: {reply['failed']}")
            if kind in reply:
                return reply[kind]
            if on_step is not None:
                on_step(reply["step"])
        raise self._death()

    def stop(self) -> None:
        """End the process, if it has not ended already."""
        self.process.kill()
        self.process.wait()
        self._replies.close()
        with contextlib.suppress(BrokenPipeError):  # a request that nobody read
            self._requests.close()

    def _death(self) -> WorkerError:
        code = self.process.wait()
        if code == -signal.SIGKILL:
            return WorkerError(f"the {self.side} process was killed (SIGKILL), as happens when memory runs out")
        if code < 0:
            return WorkerError(f"the {self.side} process was killed ({signal.Signals(-code).name})")
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return WorkerError(f"the {self.side} process ended with code {code}" + (f": {lines[-1]}" if lines else ""))


def run(settings: Settings, folder: Path, notify: Notify) -> Outcome:
    """Train all sides in turns, on `data.npz` in `folder`, and compare their weights.

    Parameters
    ----------
    settings : Settings
    folder : Path
        For what the processes exchange; everything but `data.npz` is written here.
    notify : callable

    Raises
    ------
    WorkerError
        If a process dies, or the models do not start from the same weights. No process outlives this call.
    """
    settings.write(folder / "settings.json")
    sides = {side: Side() for side in settings.sides}
    with ExitStack() as stack:
        workers = []
        for side in sides:
            workers.append(Worker(side, folder))
            stack.callback(workers[-1].stop)
        notify("building the models", 0)
        for worker in workers:
            sides[worker.side].ready = worker.receive("ready")
        if len({side.ready["digest"] for side in sides.values()}) != 1:
            raise WorkerError("the models do not start from the same weights")
        _take_turns(settings, workers, sides, notify)
        notify("validating", 0)
        for worker in workers:
            worker.send({"finish": True})
        for worker in workers:
            sides[worker.side].result = worker.receive("finished")
    notify("comparing weights", 0)
    trained = {side: folder / f"{side}.npz" for side in sides}
    difference = weights.compare(trained["keras"], trained["fastreg"], settings.tolerance)
    if not settings.lazy:
        return Outcome(sides["keras"], sides["fastreg"], difference)
    return Outcome(
        sides["keras"],
        sides["fastreg"],
        difference,
        sides[LAZY],
        weights.compare(trained["keras"], trained[LAZY], settings.tolerance),
        tuple(weights.zeros(path) for path in trained.values()),
    )


def _take_turns(settings: Settings, workers: list[Worker], sides: dict[str, Side], notify: Notify) -> None:
    warmup = turns(settings.warmup)
    for number, steps in enumerate(warmup + turns(settings.steps)):
        timed = number >= len(warmup)
        # Each goes first as often as the others.
        first = number % len(workers)
        for worker in workers[first:] + workers[:first]:
            on_step = functools.partial(notify, f"{'timed' if timed else 'warm-up'} steps, {worker.side}")
            on_step(0)
            worker.send({"train": steps})
            seconds = worker.receive("trained", on_step)["seconds"]
            if timed:
                sides[worker.side].turns.append(np.asarray(seconds))


def turns(steps: int) -> list[int]:
    """Steps of each turn."""
    size = min(MAX_TURN, max(1, steps // MIN_TURNS))
    return [min(size, steps - start) for start in range(0, steps, size)]
