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
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastreg.compare import weights
from fastreg.compare.job import Notify
from fastreg.compare.settings import Settings

MAX_TURN = 5
"""Steps that a side trains before it is the other's turn, at most: both then see the machine in the same moods."""

MIN_TURNS = 20
"""Turns that each side gets if there are steps enough; the interval of the speed-up rests on them."""


class WorkerError(Exception):
    """A process that died, or cannot be compared."""


class Point(NamedTuple):
    """How far training was after a turn: steps, the seconds that the timed ones took, and the mean loss of the turn."""

    steps: int
    seconds: float
    loss: float


@dataclass
class Side:
    """What one process reported.

    Attributes
    ----------
    ready, result : dict
        Before the first step, and after the last one.
    turns : list of ndarray of float64
        Times of the timed steps, in seconds, by turn.
    course : list of Point
        One for each turn, also of the warm-up.
    """

    ready: dict[str, Any] = field(default_factory=dict)
    turns: list[NDArray[np.float64]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    course: list[Point] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """What came of all sides.

    Attributes
    ----------
    sides : dict of str to Side
    differences : dict of str to Difference
        How far the final weights of each side but Keras's are from Keras's.
    zeros : dict of str to Zeros
        In the tables of each side.
    """

    sides: dict[str, Side]
    differences: dict[str, weights.Difference]
    zeros: dict[str, weights.Zeros]


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
    return Outcome(
        sides,
        {
            side: weights.compare(trained["keras"], path, settings.tolerance)
            for side, path in trained.items()
            if side != "keras"
        },
        {side: weights.zeros(path) for side, path in trained.items()},
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
            trained = worker.receive("trained", on_step)
            side = sides[worker.side]
            done, spent, _ = side.course[-1] if side.course else (0, 0.0, None)
            side.course.append(Point(done + steps, spent + timed * sum(trained["seconds"]), trained["loss"]))
            if timed:
                side.turns.append(np.asarray(trained["seconds"]))


def turns(steps: int) -> list[int]:
    """Steps of each turn."""
    size = min(MAX_TURN, max(1, steps // MIN_TURNS))
    return [min(size, steps - start) for start in range(0, steps, size)]
