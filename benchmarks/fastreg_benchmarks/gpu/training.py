"""Training steps on a GPU: Keras's penalties compiled by XLA, which Keras does by itself there, against the kernels."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import keras
import numpy as np

import fastreg
from fastreg_benchmarks import stats, timing
from fastreg_benchmarks.cases import L1, L2
from fastreg_benchmarks.environment import Environment
from fastreg_benchmarks.gpu.penalties import synchronised
from fastreg_benchmarks.gpu.rows import GpuRow
from fastreg_benchmarks.timing import Run

COLUMNS, BATCH = 64, 1024
FRACTION = 4
"""The penalised table has so much less elements than the largest penalty that is measured: weights, gradients and
optimizer need their room."""

PLAN = [
    ("none", "jit", None, True),
    ("keras", "jit", keras.regularizers.L1L2, True),
    ("keras", "tf.function", keras.regularizers.L1L2, False),
    ("fastreg", "jit", fastreg.L1L2, True),  # TensorFlow's ops, compiled by XLA as Keras's own are
    ("fastreg", "tf.function", fastreg.L1L2, False),  # clusters of XLA, or the kernels
]
RIVAL = 1


def measure(size: int, seconds: float, where: Environment) -> list[GpuRow]:
    """Time `train_on_batch` of a model with one large embedding, every provider in turns."""
    rows_of_table = max(1, size // COLUMNS)
    ids = np.random.default_rng().integers(0, rows_of_table, (BATCH, 1), np.int32)
    targets = np.ones((BATCH, 1), np.float32)
    runs = []
    for _, _, penalty, compiled in PLAN:
        model = _model(rows_of_table, penalty, compiled)
        runs.append(synchronised(Run(lambda model=model: model.train_on_batch(ids, targets))))  # type: ignore[misc]
        timing.warm_up(runs[-1])
    samples = timing.measure(runs, seconds).samples
    rival = float(np.median(samples[RIVAL]))
    rows = []
    for (name, mode, _, _), values in zip(PLAN, samples, strict=True):
        p20, p50, p80 = stats.quantiles(values)
        rows.append(
            GpuRow(
                **asdict(where),
                part="training",
                size=rows_of_table * COLUMNS,
                dtype="float32",
                what="step",
                provider=name,
                mode=mode,
                rounds=values.size,
                p20_s=p20,
                p50_s=p50,
                p80_s=p80,
                gbs=float("nan"),
                rival="keras jit",
                share=rival / p50,
                check="",
            )
        )
    return rows


def _model(rows: int, penalty: Any, compiled: bool) -> keras.Model:
    table = keras.layers.Embedding(rows, COLUMNS, embeddings_regularizer=None if penalty is None else penalty(L1, L2))
    model = keras.Sequential([keras.Input((1,), dtype="int32"), table, keras.layers.Flatten(), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=compiled)
    return model
