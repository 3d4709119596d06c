"""One side of the comparison, in a process of its own: `python -m fastreg.compare.worker SIDE FOLDER`.

It reads `settings.json` and `data.npz` from the folder and then serves requests, one JSON object a line: it says
`ready`, trains as many steps as it is told to whenever it is its turn (`train`), and at last validates the model,
writes its weights to `SIDE.npz` and leaves (`finish`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np
import tensorflow as tf

import fastreg
from fastreg.compare import data, memory
from fastreg.compare.jobs import JOBS
from fastreg.compare.settings import Settings

_PREDICT_BATCH = 8192


class Trainer:
    """The model of one side, and how far its training is."""

    def __init__(self, side: str, folder: Path, replies: IO[str]) -> None:
        self._side, self._folder, self._replies = side, folder, replies
        settings = Settings.read(folder / "settings.json")
        self._job = JOBS[settings.model]
        self._data = data.read(folder / "data.npz")
        self._model = self._job.build(settings, side, self._data)
        self._batch_size = settings.batch_size
        self._batches = data.batches(len(self._data.training.targets), settings.batch_size, settings.seed)
        self._loss = float("nan")

    def ready(self) -> dict[str, Any]:
        """What is known before the first step."""
        digest = hashlib.blake2b(digest_size=16)
        for variable in self._model.weights:
            digest.update(np.ascontiguousarray(variable.numpy()).data)
        return {
            "digest": digest.hexdigest(),
            "parameters": int(self._model.count_params()),
            "memory_before": memory.reset_peak(),
        }

    def train(self, steps: int) -> dict[str, Any]:
        """Train a few steps by `fit`: their times, in seconds, and their mean loss."""
        chosen = np.concatenate([next(self._batches) for _ in range(steps)])
        inputs, targets = self._data.training
        timer = StepTimer(lambda: self.send({"step": 1}))
        history = self._model.fit(
            [array[chosen] for array in inputs],
            targets[chosen],
            batch_size=self._batch_size,
            shuffle=False,
            verbose=0,
            callbacks=[timer],
        )
        self._loss = float(history.history["loss"][0])
        return {"seconds": timer.seconds, "loss": self._loss}

    def finish(self) -> dict[str, Any]:
        """Validate the model, write its weights, and say what the training took and came to."""
        # First what the rest would change.
        peak, info = memory.peak(), fastreg.info()
        inputs, targets = self._data.held_out
        predicted = self._model.predict(inputs, batch_size=_PREDICT_BATCH, verbose=0)[:, 0]
        penalty = float(sum(float(loss) for loss in self._model.losses))
        weights = {variable.path: variable.numpy() for variable in self._model.weights}
        np.savez(self._folder / f"{self._side}.npz", **weights)
        return {
            "loss": self._loss,
            "penalty": penalty,
            **self._job.validate(predicted, targets),
            "peak_memory": peak,
            "kernel_calls": info["kernel_calls"],
            "choices": info["choices"],
        }

    def send(self, reply: dict[str, Any]) -> None:
        """Tell the parent."""
        print(json.dumps(reply), file=self._replies, flush=True)


class StepTimer(keras.callbacks.Callback):  # type: ignore[misc]
    """Times whole training steps: from before the batch is fetched to after the weights are updated."""

    def __init__(self, on_step: Any) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._on_step, self._start = on_step, 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
        """Stop it."""
        tf.test.experimental.sync_devices()  # a GPU may still be at work; does nothing without one
        self.seconds.append(time.perf_counter() - self._start)
        self._on_step()


def main() -> int:
    """Serve the parent until it says `finish` or is gone."""
    # Replies have a descriptor of their own: whatever a library prints to stdout must not come between them.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    side, folder = sys.argv[1:]
    try:
        trainer = Trainer(side, Path(folder), replies)
        trainer.send({"ready": trainer.ready()})
        for line in sys.stdin:
            request = json.loads(line)
            if "train" in request:
                trainer.send({"trained": trainer.train(request["train"])})
            else:
                trainer.send({"finished": trainer.finish()})
                return 0
    except BrokenPipeError:
        return 1  # the parent is gone: nobody is left to tell
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        print(json.dumps({"failed": f"{type(error).__name__}: {lines[0]}"}), file=replies, flush=True)
        raise
    return 1


if __name__ == "__main__":
    sys.exit(main())
