import os
import time

import pytest
from fastreg_benchmarks import timing
from fastreg_benchmarks.worker import Worker

STUB = """
import os, sys, time
from fastreg_benchmarks.timing import Run

print("of an import")

def step(seconds):
    def call():
        print("of a call")
        time.sleep(seconds)
        return os.getpid()
    return Run(call)

def modules():
    return Run(lambda: sorted(sys.modules))

def broken():
    raise OSError("made for another library")

def dying():
    os.write(2, b"killed\\n")
    os._exit(3)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A name for functions of a module that the process can import."""
    (tmp_path / "stub_steps.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return "stub_steps:{}".format


def test_a_run_elsewhere_is_timed_as_one_here(stub):
    with Worker(stub("step"), {"seconds": 0.02}) as worker:
        assert timing.warm_up(worker.run) == worker.process_id != os.getpid()
        samples = timing.measure([worker.run, timing.Run(lambda: time.sleep(0.001))], 1e-9).samples
        assert samples[0].shape == samples[1].shape == (timing.MIN_ROUNDS,)
        assert (samples[0] >= 0.02).all()
        assert (samples[1] < 0.02).any()
    with pytest.raises(OSError, match=r".*"):
        os.kill(worker.process_id, 0)


def test_without_tensorflow(stub):
    with Worker(stub("modules"), {}) as worker:
        assert not {"tensorflow", "keras", "fastreg", "numba"} & set(worker.run.call())


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "OSError: made for another library"), ("dying", "killed"), ("none", "none")]
)
def test_a_process_that_fails_says_why(stub, name, message):
    with pytest.raises(RuntimeError, match=message):
        Worker(stub(name), {})
