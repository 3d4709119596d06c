import numpy as np
import pytest
from fastreg_benchmarks import workloads
from fastreg_benchmarks.workloads import BATCHES, CARDINALITIES, Recommender, Workload


@pytest.mark.parametrize("size", [1, 2, 10, 1000, 33_762_577])
def test_scattering_is_a_permutation(size):
    ranks = np.arange(min(size, 5000))
    scattered = workloads.scattered(ranks, size)
    assert len(np.unique(scattered)) == len(ranks)
    assert scattered.min() >= 0
    assert scattered.max() < size


def test_ids_follow_the_power_law():
    ranks = workloads.power_law(np.random.default_rng(0), 1000, 1.2, 4_000_000)
    assert ranks.min() == 0
    assert ranks.max() < 1000
    frequencies = np.bincount(ranks, minlength=1000) / len(ranks)
    # A rank has the weight of the integral over [rank + 1, rank + 2].
    edges = np.arange(1, 1002.0) ** -0.2
    np.testing.assert_allclose(frequencies[:20], ((edges[:-1] - edges[1:]) / (edges[0] - edges[-1]))[:20], rtol=0.02)


def test_without_a_law_no_id_occurs_twice():
    ids = Workload(500, 4, batch=500, fields=1, exponent=None).ids(np.random.default_rng(0))
    assert sorted(ids.ravel()) == list(range(500))


def test_the_recommender_has_criteos_tables():
    recommender = Recommender()
    assert (recommender.cardinalities, recommender.rows) == (CARDINALITIES, 33_762_577)
    assert max(recommender.capped(1000).cardinalities) == 1000
    assert min(recommender.capped(1000).cardinalities) == 3
    assert recommender.resized(10).cardinalities == (10,) * 26


def test_batches_of_the_recommender():
    recommender = Recommender(cardinalities=(3, 1, 5000), batch=400)
    batches = recommender.batches()
    assert len(batches) == BATCHES
    for batch in batches:
        assert (batch.dense.shape, batch.dense.dtype) == ((400, 13), np.float32)
        assert (batch.ids.shape, batch.ids.dtype) == ((400, 3), np.int32)
        assert (batch.labels.shape, batch.labels.dtype) == ((400, 1), np.float32)
        assert batch.ids.min() >= 0
        assert (batch.ids.max(axis=0) < recommender.cardinalities).all()
    assert (batches[0].ids != batches[1].ids).any()
    for again, batch in zip(recommender.batches(), batches, strict=True):
        np.testing.assert_array_equal(again.ids, batch.ids)
