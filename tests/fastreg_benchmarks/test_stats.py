import numpy as np
import pytest
from fastreg_benchmarks import stats


def test_quantiles_of_known_data():
    assert stats.quantiles(np.arange(101.0)) == (20.0, 50.0, 80.0)


def test_ratio_of_constant_timings_has_no_width():
    found = stats.ratio(np.full(7, 6.0), np.full(7, 2.0))
    assert (found.value, found.low, found.high) == (3.0, 3.0, 3.0)


def test_what_disturbs_whole_rounds_cancels_out():
    disturbed = np.random.default_rng(1).uniform(1, 10, 40)
    found = stats.ratio(3 * disturbed, disturbed)
    assert (found.low, found.value, found.high) == pytest.approx((3.0, 3.0, 3.0))


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    generator = np.random.default_rng(2)
    intervals = [stats.ratio(generator.normal(20, 2, 30), generator.normal(10, 1, 30)) for _ in range(200)]
    covered = sum(found.low <= 2 <= found.high for found in intervals)
    assert 180 <= covered <= 200
    assert all(found.low <= found.value <= found.high for found in intervals)
    assert any(found.low < found.high for found in intervals)


def test_interval_shrinks_with_repetitions():
    generator = np.random.default_rng(3)
    few, many = (stats.ratio(generator.normal(20, 2, n), generator.normal(10, 1, n)) for n in (8, 800))
    assert many.high - many.low < (few.high - few.low) / 3


def test_the_same_timings_have_the_same_interval():
    generator = np.random.default_rng(4)
    above, below = generator.random(9), generator.random(9)
    assert stats.ratio(above, below) == stats.ratio(above, below)


def test_difference_of_paired_timings():
    disturbed = np.random.default_rng(5).uniform(1, 10, 40)
    found = stats.difference(disturbed + 0.25, disturbed)
    assert (found.low, found.value, found.high) == pytest.approx((0.25, 0.25, 0.25))


def test_inverse_swaps_the_ends():
    assert stats.Ratio(2.0, 1.0, 4.0).inverse() == stats.Ratio(0.5, 0.25, 1.0)


def test_timings_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="same rounds"):
        stats.ratio(np.ones(3), np.ones(4))
