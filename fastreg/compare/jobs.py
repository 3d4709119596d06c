"""All models that can be compared."""

from __future__ import annotations

from fastreg.compare import dlrm, movielens
from fastreg.compare.job import Job
from fastreg.compare.settings import DLRM, MOVIELENS

JOBS: dict[str, Job] = {MOVIELENS: movielens.JOB, DLRM: dlrm.JOB}
