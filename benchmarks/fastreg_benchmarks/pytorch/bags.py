"""The model of the suite `bags` with FBGEMM's tables, without a regularizer, and its training step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastreg_benchmarks.pytorch.recommender import adagrad_tables, training
from fastreg_benchmarks.timing import Run
from fastreg_benchmarks.workloads import Bags


def step(workload: Mapping[str, Any], threads: int) -> Run:
    """A training step on the next of some batches that are in memory; it gives the loss."""
    torch.set_num_threads(threads)
    bags = Bags(**workload)
    tables = adagrad_tables([bags.rows] * bags.tables, bags.width)
    offsets = torch.arange(bags.batch * bags.tables + 1) * bags.bag
    head = torch.nn.Linear(bags.tables * bags.width, 1)
    # By table, then by bag; before the step, as a loader of data would.
    batches = [
        (torch.from_numpy(ids).long().transpose(0, 1).reshape(-1), torch.from_numpy(labels))
        for ids, labels in bags.batches()
    ]
    return training(lambda ids: head(tables(ids, offsets)), [*head.parameters()], batches)
