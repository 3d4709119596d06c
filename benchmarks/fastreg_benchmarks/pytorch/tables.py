"""FBGEMM's tables on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def fbgemm_tables(cardinalities: Sequence[int], width: int, optimizer: str, **options: Any) -> Any:
    """Tables that are looked up in one call, and updated in its backward.

    Parameters
    ----------
    cardinalities : sequence of int
        Rows of each table.
    width : int
    optimizer : str
        A name of `EmbOptimType`.
    **options
        Of the optimizer.

    Raises
    ------
    ImportError, OSError
        If FBGEMM is not installed, or was made for another PyTorch.
    """
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in cardinalities],
        optimizer=EmbOptimType[optimizer],
        **options,
    )
