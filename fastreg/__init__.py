"""Compiled L1 and L2 penalties for Keras on TensorFlow."""

# isort: off
import fastreg._backend  # noqa: F401 - first: it refuses what the rest would fail on in a less helpful way

# isort: on
from fastreg_kernels import set_num_threads

from fastreg._additions import regularize
from fastreg._bridges.buffers import clear as clear_buffers
from fastreg._bridges.settings import get_bridge, set_bridge, set_crossover
from fastreg._info import info
from fastreg._version import __version__
from fastreg.copies import to_keras
from fastreg.embed_reduce import EmbedReduce
from fastreg.embedding import Embedding
from fastreg.metrics import PenaltyMetric
from fastreg.models import accelerate, inspect
from fastreg.ops import l1_l2_penalty
from fastreg.optimizers import LazyRegularization
from fastreg.regularizers import L1, L1L2, L2, l1, l1_l2, l2

__all__ = [
    "L1",
    "L1L2",
    "L2",
    "EmbedReduce",
    "Embedding",
    "LazyRegularization",
    "PenaltyMetric",
    "__version__",
    "accelerate",
    "clear_buffers",
    "get_bridge",
    "info",
    "inspect",
    "l1",
    "l1_l2",
    "l1_l2_penalty",
    "l2",
    "regularize",
    "set_bridge",
    "set_crossover",
    "set_num_threads",
    "to_keras",
]
