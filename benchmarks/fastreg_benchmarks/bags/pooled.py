"""Line 1: bags of ids, summed by lazily regularised tables, and by `keras_rs` and FBGEMM without a regularizer."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import keras

import fastreg
from fastreg_benchmarks.bags import models
from fastreg_benchmarks.limits.lines import INFORMATION, Line
from fastreg_benchmarks.recommender.agreement import agree
from fastreg_benchmarks.recommender.rivals import RIVALS, Rival
from fastreg_benchmarks.recommender.rows import compared, measure
from fastreg_benchmarks.settings import Settings
from fastreg_benchmarks.worker import Worker
from fastreg_benchmarks.workloads import L1, L2, RATE, Bags

KERAS_RS = Rival("keras_rs", {"keras_rs": "keras-rs"})

BAGS, QUICK_BAGS = Bags(), Bags(rows=20_000, batch=512)
SMALL = Bags(tables=3, rows=300, batch=64, bag=5)
LEAST_AGAINST_KERAS, LEAST_AGAINST_FBGEMM = 3.0, 1.0
LARGE_L2 = 0.1
"""Without whose penalty the weights would be others by far more than is tolerated."""


def training(settings: Settings) -> Iterator[Line]:
    """Steps with Adagrad, interleaved, after weights were compared."""
    yield agreement()
    bags = QUICK_BAGS if settings.quick else BAGS
    penalty = fastreg.L1L2(L1, L2)
    runs = {"lazy": models.step(_model(functools.partial(_lazy, bags, penalty), "adagrad", bags), bags)}
    if not KERAS_RS.missing():
        runs["keras_rs"] = models.step(_model(functools.partial(_keras_rs, bags), "adagrad", bags), bags)
    runs["keras"] = models.step(_model(functools.partial(_summed, bags, None), "adagrad", bags), bags)
    with ExitStack() as stack:
        fbgemm = RIVALS["fbgemm"]
        if not fbgemm.missing():
            arguments = {"workload": asdict(bags), "threads": settings.environment.threads}
            worker = stack.enter_context(Worker("fastreg_benchmarks.pytorch.bags:step", arguments))
            runs["fbgemm"] = worker.run
        timed = measure(runs, settings)
    what = f"{bags.tables} tables of {bags.rows:,} x {bags.width}, {bags.batch:,} bags of {bags.bag}, summed, in each"
    what = f"{what}: lazy with L1L2, times faster than"
    if "keras_rs" in timed:
        yield compared(1, f"{what} {KERAS_RS}", timed["keras_rs"], timed["lazy"], least=LEAST_AGAINST_KERAS)
    else:
        yield Line(1, f"{what} {KERAS_RS}", f"at least {LEAST_AGAINST_KERAS:g}", KERAS_RS.to_install(), INFORMATION)
    yield compared(1, f"{what} keras.layers.Embedding and a sum", timed["keras"], timed["lazy"])
    if "fbgemm" in timed:
        yield compared(1, f"{what} {fbgemm}", timed["fbgemm"], timed["lazy"], least=LEAST_AGAINST_FBGEMM)
    else:
        yield Line(1, f"{what} {fbgemm}", f"at least {LEAST_AGAINST_FBGEMM:g}", fbgemm.to_install(), INFORMATION)


def agreement() -> Line:
    """Weights after steps of SGD with L2, with which the lazy rule is Keras's."""
    ours = _model(functools.partial(_lazy, SMALL, fastreg.L2(LARGE_L2)), "sgd", SMALL)
    theirs = _model(functools.partial(_summed, SMALL, keras.regularizers.L2(LARGE_L2)), "sgd", SMALL)
    what = "bags, sgd with L2: weights after steps, against Keras's"
    return agree(1, what, ours, theirs, SMALL.batches())


def _model(reduce: Any, optimizer: str, bags: Bags) -> keras.Model:
    made = {"sgd": keras.optimizers.SGD, "adagrad": keras.optimizers.Adagrad}[optimizer](RATE)
    return models.model(reduce, lambda vectors: keras.layers.Dense(1)(keras.layers.Concatenate()(vectors)), made, bags)


def _lazy(bags: Bags, penalty: Any) -> models.Reduce:
    return fastreg.EmbedReduce(bags.rows, bags.width, embeddings_regularizer=penalty, combiner="sum")


def _keras_rs(bags: Bags) -> models.Reduce:
    import keras_rs

    layer: models.Reduce = keras_rs.layers.EmbedReduce(bags.rows, bags.width, combiner="sum")
    return layer


def _summed(bags: Bags, penalty: Any) -> models.Reduce:
    layer = keras.layers.Embedding(bags.rows, bags.width, embeddings_regularizer=penalty)
    return lambda ids: keras.ops.sum(layer(ids), axis=1)
