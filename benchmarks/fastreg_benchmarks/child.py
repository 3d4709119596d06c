"""What has to be measured in a process of its own: `python -m fastreg_benchmarks.child TASK JSON`, which prints JSON.

Nothing is imported at the top, for start-up is one of the things to measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastreg_benchmarks.timing import Run

TIMEOUT_SECONDS = 900


def run(task: str, arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Any:
    """Run a task in a new process, with these additions to the environment, and return its result.

    Raises
    ------
    RuntimeError
        If the process fails; with what it wrote to stderr.
    """
    finished = subprocess.run(
        [sys.executable, "-m", __name__, task, json.dumps(dict(arguments))],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"the process for {task!r} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


def attempt(task: str, arguments: Mapping[str, Any]) -> Any:
    """What `run` returns, or None if the process fails: TensorFlow ends it in places where it cannot allocate."""
    try:
        return run(task, arguments)
    except RuntimeError:
        return None


def _limit_memory(allowed: int) -> None:
    """Let this process map so many bytes more than it has mapped, and no more."""
    import resource

    from fastreg.compare import memory as process

    limit = process.status("VmSize") + allowed
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def memory(provider: str, mode: str, what: str, size: int, dtype: str) -> int | None:
    """Bytes by which peak memory grows in some calls of a provider, beyond x; None where the system does not tell."""
    from fastreg.compare import memory as process
    from fastreg_benchmarks import timing
    from fastreg_benchmarks.cases import Case, Inputs
    from fastreg_benchmarks.providers import PROVIDERS

    small, inputs = Inputs(Case(1, dtype, what)), Inputs(Case(size, dtype, what))
    timing.warm_up(PROVIDERS[provider].run(small, mode))  # libraries and threads are not what is measured
    run = PROVIDERS[provider].run(inputs, mode)
    before = process.reset_peak()
    timing.warm_up(run)
    return None if before is None else process.peak() - before


def fit(provider: str, rows: int, dim: int, allowed: int) -> int | None:
    """Bytes by which peak memory grows in three steps of `fit` of an embedding, table included; None if it fails.

    The process may map `allowed` bytes more than it has mapped when it begins.
    """
    import keras as k
    import numpy as np
    import tensorflow as tf

    import fastreg
    from fastreg.compare import memory as process

    def train(rows: int) -> None:
        regularizer = {"keras": k.regularizers, "fastreg": fastreg}[provider].L1L2(1e-6, 1e-6)
        table = k.layers.Embedding(rows, dim, embeddings_initializer="ones", embeddings_regularizer=regularizer)
        model = k.Sequential([k.Input((4,), dtype="int32"), table, k.layers.GlobalAveragePooling1D()])
        model.compile(k.optimizers.SGD(0.1), "mse", jit_compile=False)
        ids = np.random.default_rng(0).integers(0, rows, (96, 4), np.int32)
        model.fit(ids, np.zeros((96, dim), np.float32), batch_size=32, verbose=0)

    train(8)  # libraries and threads are not what is measured
    _limit_memory(allowed)
    before = process.reset_peak()
    try:
        train(rows)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return None
    return None if before is None else process.peak() - before


def lazy_steps(
    provider: str, optimizer: str, workload: Mapping[str, Any], seconds: float, allowed: int
) -> dict[str, Any]:
    """Seconds of training steps of the suite `lazy`, and the largest resident memory of this process in bytes.

    The process may map `allowed` bytes more than it has mapped when it begins.
    """
    from fastreg_benchmarks.lazy.steps import step
    from fastreg_benchmarks.workloads import Workload

    return _steps(lambda: step(provider, optimizer, Workload(**workload)), seconds, allowed)


def recommender_steps(provider: str, workload: Mapping[str, Any], seconds: float, allowed: int) -> dict[str, Any]:
    """The same of the suite `recommender`."""
    from fastreg_benchmarks.recommender.models import steps
    from fastreg_benchmarks.workloads import Recommender

    return _steps(lambda: steps(provider, Recommender(**workload)).fit, seconds, allowed)


def _steps(build: Callable[[], Run], seconds: float, allowed: int) -> dict[str, Any]:
    from fastreg.compare import memory as process
    from fastreg_benchmarks import timing

    _limit_memory(allowed)
    run = build()
    loss = timing.warm_up(run)
    (samples,) = timing.measure([run], seconds).samples
    return {"seconds": samples.tolist(), "peak": process.peak(), "loss": loss}


def keras(size: int, dtype: str, seconds: float) -> dict[str, float]:
    """Median seconds of Keras's value and gradient in each mode; for environments that have to be set beforehand."""
    import numpy as np

    from fastreg_benchmarks import timing
    from fastreg_benchmarks.cases import VALUE_AND_GRADIENT, Case, Inputs
    from fastreg_benchmarks.providers import DEFAULT_MODES, PROVIDERS

    inputs = Inputs(Case(size, dtype, VALUE_AND_GRADIENT))
    runs = [PROVIDERS["keras"].run(inputs, mode) for mode in DEFAULT_MODES]
    for run in runs:
        timing.warm_up(run)
    samples = timing.measure(runs, seconds).samples
    return {mode: float(np.median(values)) for mode, values in zip(DEFAULT_MODES, samples, strict=True)}


def start_up() -> dict[str, float]:
    """Seconds that `import fastreg` takes after TensorFlow and Keras, and that the first value and gradient take."""
    import keras
    import tensorflow as tf

    start = perf_counter()
    import fastreg

    imported = perf_counter() - start
    weight = keras.Variable(keras.random.normal((1 << 18,)))
    with tf.GradientTape() as tape:
        penalty = keras.regularizers.L1L2(0.5, 0.5)(weight)
    tape.gradient(penalty, weight.value)  # TensorFlow's own first time is not ours
    start = perf_counter()
    with tf.GradientTape() as tape:
        penalty = fastreg.L1L2(0.5, 0.5)(weight)
    tape.gradient(penalty, weight.value)
    return {"import": imported, "first_call": perf_counter() - start}


def bits(size: int, threads: int) -> int:
    """How many different results 1 to so many threads give; NUMBA_NUM_THREADS has to allow as many."""
    import fastreg_kernels

    from fastreg_benchmarks.cases import L1, L2, normal

    x, results = normal(size, "float32"), set()
    for count in range(1, threads + 1):
        fastreg_kernels.set_num_threads(count)
        sums, gradient = fastreg_kernels.forward_backward(x, L1, L2)
        results.add((fastreg_kernels.forward(x).tobytes(), sums.tobytes(), gradient.tobytes()))
    return len(results)


TASKS = {task.__name__: task for task in (memory, fit, lazy_steps, recommender_steps, keras, start_up, bits)}

if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](**json.loads(sys.argv[2]))))
