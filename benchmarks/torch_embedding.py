"""Sparse embeddings of PyTorch and FBGEMM beside fastreg's: `python benchmarks/torch_embedding.py`.

The same work for all: look up 4096 x 8 ids, sum them in eights, take the gradient, update the rows. fastreg regularises
the whole table by L1L2 on top, PyTorch nothing, FBGEMM decays the rows touched. PyTorch and FBGEMM are no dependencies:
what is not installed is left out, and said so.
"""

import argparse
import importlib.util
import sys
from dataclasses import replace

import fastreg_kernels
import numpy as np
import tensorflow as tf
from fastreg_benchmarks import environment, report, stats, timing
from fastreg_benchmarks.lazy.sizes import WORKLOAD
from fastreg_benchmarks.pytorch.tables import fbgemm_tables
from fastreg_benchmarks.timing import in_turns
from fastreg_benchmarks.workloads import BATCHES, L1, L2, RATE
from rich.console import Console
from rich.table import Table

import fastreg


def ours(optimizer, workload, ids):
    layer = fastreg.Embedding(workload.rows, workload.width, embeddings_regularizer=fastreg.L1L2(L1, L2))
    layer.build()
    optimizer = fastreg.LazyRegularization(optimizer, rowwise=optimizer == "adagrad")
    optimizer.learning_rate = RATE

    @tf.function
    def step(batch):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.reduce_sum(layer(batch), axis=1)) + sum(layer.losses)
        optimizer.apply(tape.gradient(loss, layer.trainable_weights), layer.trainable_weights)
        return loss

    return in_turns(lambda batch: float(step(batch)), [tf.constant(batch) for batch in ids])


def torch_sparse(workload, ids):
    import torch

    table = torch.nn.Embedding(workload.rows, workload.width, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), RATE)

    def step(batch):
        optimizer.zero_grad()
        loss = table(batch).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return in_turns(step, [torch.from_numpy(batch) for batch in ids])


def fbgemm(workload, ids):
    import torch

    adagrad = {"optimizer": "EXACT_ROWWISE_ADAGRAD", "learning_rate": RATE, "weight_decay": 2 * L2}
    table = fbgemm_tables([workload.rows], workload.width, **adagrad)
    offsets = torch.arange(0, workload.batch * workload.fields + 1, workload.fields)

    def step(batch):
        loss = table(batch, offsets).mean()
        loss.backward()
        return loss.item()

    return in_turns(step, [torch.from_numpy(batch.ravel().astype(np.int64)) for batch in ids])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    workload = replace(WORKLOAD, rows=options.rows)
    generator = np.random.default_rng(0)
    ids = [workload.ids(generator) for _ in range(BATCHES)]
    runs = {
        "fastreg.Embedding, SGD": ours("sgd", workload, ids),
        "fastreg.Embedding, row-wise Adagrad": ours("adagrad", workload, ids),
    }
    console = Console()
    if importlib.util.find_spec("torch") is None:
        console.print("PyTorch is not installed")
    else:
        # PyTorch would load Triton, whose LLVM ends a process that has TensorFlow's and Numba's. Nothing here needs it.
        sys.modules["triton"] = None
        import torch

        torch.set_num_threads(fastreg_kernels.get_num_threads())
        runs["PyTorch sparse, SGD"] = torch_sparse(workload, ids)
    if importlib.util.find_spec("fbgemm_gpu") is None:
        console.print("FBGEMM is not installed")
    else:
        try:
            runs["FBGEMM, row-wise Adagrad"] = fbgemm(workload, ids)
        except (ImportError, OSError) as error:  # made for another PyTorch
            console.print(f"FBGEMM cannot be loaded: {error}", markup=False)
    for run in runs.values():
        timing.warm_up(run)
    samples = timing.measure(list(runs.values()), options.seconds).samples
    here = environment.describe()
    work = f"{workload.rows:,} x {workload.width}, {workload.batch} x {workload.fields} ids"
    table = Table("provider", "p20", "p50", "p80", title=f"{work}; {here.device}, {here.threads} threads")
    for name, times in zip(runs, samples, strict=True):
        table.add_row(name, *(report.duration(value) for value in stats.quantiles(times)))
    console.print(table)


if __name__ == "__main__":
    main()
