"""Confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.bootstrap import Interval, interval, mean_interval, paired_difference, replicated_difference, resamples
from dq_deploy.errors import UsageError


def test_mean_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    trials = 300
    covered = 0
    for _ in range(trials):
        found = mean_interval(generator.gamma(2.0, size=100), replicates=300)
        covered += found.low <= 2.0 <= found.high
    # A binomial of 300 with p = 0.95 lies below 0.91 or above 0.99 once in a thousand; the percentile interval is a little too narrow.
    assert 0.90 <= covered / trials <= 0.99


def test_paired_difference_sees_what_unpaired_intervals_cannot() -> None:
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 5, 256)
    a, b = 20 + noise + generator.normal(0.3, 0.5, 256), 20 + noise
    assert mean_interval(a).low < mean_interval(b).high
    found = paired_difference(a, b)
    assert found.excludes_zero
    assert found.low > 0
    assert found.value == pytest.approx(float(np.mean(a - b)))


def test_equal_methods_are_not_told_apart() -> None:
    generator = np.random.default_rng(2)
    a = generator.normal(size=200)
    assert not paired_difference(a, a + generator.normal(0, 0.1, 200)).excludes_zero
    assert paired_difference(a, a) == Interval(0.0, 0.0, 0.0)


def test_nan_is_never_significant() -> None:
    assert not interval(float("nan"), [float("nan")] * 10).excludes_zero


def test_resamples_are_shared_by_all_methods() -> None:
    assert np.array_equal(resamples(10, 5, 3), resamples(10, 5, 3))
    assert not np.array_equal(resamples(10, 5, 3), resamples(10, 5, 4))


def test_replicated_difference_is_paired() -> None:
    shared = np.random.default_rng(0).normal(0, 10, 200)
    found = replicated_difference(5.0, 5 + shared, 4.0, 4 + shared)
    assert (found.low, found.high) == pytest.approx((1.0, 1.0))


def test_what_cannot_be_resampled_or_paired_is_refused() -> None:
    with pytest.raises(UsageError, match="1 value"):
        mean_interval([1.0])
    with pytest.raises(UsageError, match="2 values cannot be paired with 3"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(UsageError, match="2 replicates cannot be paired with 3"):
        replicated_difference(1, [1, 2], 1, [1, 2, 3])
