"""The model of the suite `bags` with FBGEMM's tables, without a regularizer, and its training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastreg_benchmarks.pytorch.recommender import ACCUMULATOR, EPSILON, LARGEST
from fastreg_benchmarks.pytorch.tables import fbgemm_tables
from fastreg_benchmarks.timing import Run, in_turns
from fastreg_benchmarks.workloads import RATE, Bags


def step(workload: Mapping[str, Any], threads: int) -> Run:
    """A training step on the next of some batches that are in memory; it gives the loss."""
    torch.set_num_threads(threads)
    bags = Bags(**workload)
    tables = fbgemm_tables([bags.rows] * bags.tables, bags.width, "EXACT_ADAGRAD", learning_rate=RATE, eps=EPSILON)
    tables.init_embedding_weights_uniform(-LARGEST, LARGEST)
    for (accumulator,) in tables.split_optimizer_states():
        accumulator.fill_(ACCUMULATOR)
    offsets = torch.arange(bags.batch * bags.tables + 1) * bags.bag
    head = torch.nn.Linear(bags.tables * bags.width, 1)
    optimizer = torch.optim.Adagrad(head.parameters(), RATE, initial_accumulator_value=ACCUMULATOR, eps=EPSILON)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def trained(batch: tuple[Any, Any]) -> float:
        ids, labels = batch
        optimizer.zero_grad()
        loss = loss_of(head(tables(ids, offsets)), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    # By table, then by bag; before the step, as a loader of data would.
    batches = [
        (torch.from_numpy(ids).long().transpose(0, 1).reshape(-1), torch.from_numpy(labels))
        for ids, labels in bags.batches()
    ]
    return in_turns(trained, batches)
