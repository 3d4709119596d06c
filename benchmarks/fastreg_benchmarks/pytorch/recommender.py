"""The recommender of the suite of that name in PyTorch, without a regularizer, and its training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fastreg_benchmarks.pytorch.tables import fbgemm_tables
from fastreg_benchmarks.timing import Run, in_turns
from fastreg_benchmarks.workloads import RATE, Batch, Recommender

ACCUMULATOR, EPSILON = 0.1, 1e-7
"""Of Keras's Adagrad."""

LARGEST = 0.05
"""Of the first weights of Keras's tables."""


class Tables(NamedTuple):
    """Tables of a library.

    Attributes
    ----------
    prepared : callable
        Makes of ids, of shape (batch, fields), what the tables take; before the step, as a loader of data would.
    lookup : callable
        Gives a list of tensors of shape (batch, ...).
    parameters : list
        Those that the optimizer has to update.
    """

    prepared: Callable[[Any], Any]
    lookup: Callable[[Any], list[Any]]
    parameters: list[Any]


def adagrad_tables(cardinalities: Sequence[int], width: int) -> Any:
    """FBGEMM's tables, which Adagrad trains as Keras's does."""
    tables = fbgemm_tables(cardinalities, width, "EXACT_ADAGRAD", learning_rate=RATE, eps=EPSILON)
    tables.init_embedding_weights_uniform(-LARGEST, LARGEST)
    for (accumulator,) in tables.split_optimizer_states():
        accumulator.fill_(ACCUMULATOR)
    return tables


def training(logits: Callable[..., Any], parameters: list[Any], batches: Sequence[tuple[Any, ...]]) -> Run:
    """A run that takes a step of Adagrad on the next of some batches, of inputs and labels; it gives the loss."""
    optimizer = torch.optim.Adagrad(parameters, RATE, initial_accumulator_value=ACCUMULATOR, eps=EPSILON)
    loss_of = torch.nn.BCEWithLogitsLoss()

    def trained(batch: tuple[Any, ...]) -> float:
        *inputs, labels = batch
        optimizer.zero_grad()
        loss = loss_of(logits(*inputs), labels)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return in_turns(trained, batches)


def fbgemm(workload: Recommender) -> Tables:
    """All tables in one, with Adagrad."""
    tables = adagrad_tables(workload.cardinalities, workload.width)
    offsets = torch.arange(workload.batch * len(workload.cardinalities) + 1)
    return Tables(lambda ids: ids.T.reshape(-1), lambda ids: [tables(ids, offsets)], [])


def sparse(workload: Recommender) -> Tables:
    """PyTorch's own, with sparse gradients."""
    bags = []
    for rows in workload.cardinalities:
        bags.append(torch.nn.EmbeddingBag(rows, workload.width, mode="sum", sparse=True))
        torch.nn.init.uniform_(bags[-1].weight, -LARGEST, LARGEST)
    return Tables(
        lambda ids: [column[:, None].contiguous() for column in ids.T],
        lambda columns: [bag(column) for bag, column in zip(bags, columns, strict=True)],
        [bag.weight for bag in bags],
    )


TABLES = {"fbgemm": fbgemm, "torch-sparse": sparse}


def step(provider: str, workload: Mapping[str, Any], threads: int) -> Run:
    """A training step on the next of some batches that are in memory; it gives the loss."""
    torch.set_num_threads(threads)
    recommender = Recommender(**workload)
    tables = TABLES[provider](recommender)
    width, hidden, linear, relu = recommender.width, recommender.hidden, torch.nn.Linear, torch.nn.ReLU
    features = width * (1 + len(recommender.cardinalities))
    bottom = torch.nn.Sequential(linear(recommender.dense, hidden), relu(), linear(hidden, width), relu())
    top = torch.nn.Sequential(linear(features, hidden), relu(), linear(hidden, 1))

    def logits(dense: Any, ids: Any) -> Any:
        return top(torch.cat([bottom(dense), *tables.lookup(ids)], dim=1))

    def tensors(batch: Batch) -> tuple[Any, Any, Any]:
        dense, ids, labels = map(torch.from_numpy, batch)
        return dense, tables.prepared(ids.long()), labels

    parameters = [*bottom.parameters(), *top.parameters(), *tables.parameters]
    return training(logits, parameters, [tensors(batch) for batch in recommender.batches()])
