"""The processes: their turns, and what is said when one fails; test_command.py has trainings that go well."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from fastreg.compare import data, movielens, ratings, session, worker
from fastreg.compare.settings import Settings

SETTINGS = Settings(
    model="movielens",
    ratings=None,
    criteo=None,
    rows=300,
    table_rows=None,
    dim=4,
    regularizer="l1l2",
    l1=1e-4,
    l2=1e-3,
    optimizer="sgd",
    learning_rate=0.1,
    batch_size=16,
    warmup=1,
    steps=40,
    seed=1,
    jit=False,
    eager=False,
    tolerance=1e-5,
)


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 20, 400), generator.integers(0, 30, 400)
    some = ratings.Ratings(users, items, generator.integers(0, 5, (400, 2)), generator.random(400, np.float32), "test")
    examples = movielens.examples(some, SETTINGS.rows)
    data.write(examples, SETTINGS.seed, movielens.validate, tmp_path / "data.npz")
    return tmp_path


@pytest.mark.parametrize("steps", [1, 2, 19, 20, 21, 90, 99, 100, 1000])
def test_turns(steps):
    turns = session.turns(steps)
    assert sum(turns) == steps
    assert max(turns) <= session.MAX_TURN
    assert len(turns) >= min(steps, session.MIN_TURNS)


def test_a_worker_that_is_killed(folder):
    SETTINGS.write(folder / "settings.json")
    running = session.Worker("keras", folder)
    try:
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        with pytest.raises(session.WorkerError, match=r"keras process was killed .*memory"):
            running.receive("trained")
        with pytest.raises(session.WorkerError, match=r"keras process was killed .*memory"):
            running.send({"train": 1})
    finally:
        running.stop()


def test_a_worker_that_fails(folder):
    (folder / "settings.json").write_text("{}", encoding="utf-8")
    running = session.Worker("fastreg", folder)
    try:
        with pytest.raises(session.WorkerError, match="fastreg process failed: TypeError"):
            running.receive("ready")
    finally:
        running.stop()
    assert running.process.poll() is not None


def test_nobody_outlives_a_failure(folder, monkeypatch):
    """Different initial weights would make every later figure worthless."""
    started = []

    class Recorded(session.Worker):
        def __init__(self, side, where):
            super().__init__(side, where)
            started.append(self.process)

        def receive(self, kind, on_step=None):
            reply = super().receive(kind, on_step)
            return reply | {"digest": self.side} if kind == "ready" else reply

    monkeypatch.setattr(session, "Worker", Recorded)
    with pytest.raises(session.WorkerError, match="same weights"):
        session.run(SETTINGS, folder, lambda text, steps: None)
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


def test_the_trainer_in_this_process(folder, tmp_path):
    """What the figures of `finish` are made of, computed again here."""
    dataclasses.replace(SETTINGS, steps=3).write(folder / "settings.json")
    with (tmp_path / "replies").open("w") as replies:
        trainer = worker.Trainer("fastreg", folder, replies)
        ready = trainer.ready()
        trained = trainer.train(3)
        result = trainer.finish()
    assert len(trained["seconds"]) == 3
    assert result["loss"] == trained["loss"]
    with np.load(folder / "fastreg.npz") as found, np.load(folder / "data.npz") as arrays:
        tables = [found[f"{name}/embeddings"].astype("float64") for name in ("user", "item", "crosses")]
        expected = sum(SETTINGS.l1 * np.abs(table).sum() + SETTINGS.l2 * np.square(table).sum() for table in tables)
        assert result["penalty"] == pytest.approx(expected, rel=1e-5)
        rows = [arrays[f"held_out_{name}"] for name in ("users", "items", "crosses", "targets")]
        hidden = tables[0][rows[0]] + tables[1][rows[1]] + tables[2][rows[2]].sum(axis=1)
        hidden = hidden @ found["hidden/kernel"] + found["hidden/bias"]
        # The tanh form would be off by more than the tolerance.
        from math import erf

        hidden = hidden * 0.5 * (1 + np.vectorize(erf)(hidden / np.sqrt(2)))
        predicted = (hidden @ found["rating/kernel"])[:, 0] + arrays["train_targets"].astype("float64").mean()
        assert result["rmse"] == pytest.approx(np.sqrt(np.square(predicted - rows[3]).mean()), rel=1e-4)
    assert ready["parameters"] == sum(table.size for table in tables) + 4 * 32 + 32 + 32
