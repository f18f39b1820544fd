"""The kernel distance is unbiased, and says what the written-out sums say."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.kernel_distance import kernel_distance, kernel_distances, subset_interval
from dq_deploy.errors import UsageError


def test_zero_on_average_for_equal_distributions_at_any_sample_count() -> None:
    generator = np.random.default_rng(0)
    for count in (4, 32):
        found = [kernel_distance(generator.normal(size=(count, 6)), generator.normal(size=(count, 6))) for _ in range(600)]
        error = np.std(found) / len(found) ** 0.5
        assert abs(np.mean(found)) < 3.5 * error
        assert min(found) < 0  # an estimate that cannot be negative would be biased


def test_agrees_with_the_sums_written_out() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(4, 3)), generator.normal(1, 1, size=(5, 3))

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([k(x[i], x[j]) for i in range(4) for j in range(4) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y) == pytest.approx(within_x + within_y - 2 * across)


def test_grows_with_the_distance() -> None:
    generator = np.random.default_rng(2)
    base, near, far = (generator.normal(m, 1, size=(200, 4)) for m in (0, 0.5, 1))
    assert kernel_distance(base, far) > kernel_distance(base, near) > 0


def test_subsets_are_paired_between_methods() -> None:
    generator = np.random.default_rng(3)
    real, drawn = generator.normal(size=(60, 4)), generator.normal(0.5, 1, size=(60, 4))
    first, again = (kernel_distances(drawn, real, subsets=5, size=20) for _ in range(2))
    assert np.array_equal(first, again)
    assert len(first) == 5


def test_interval_narrows_as_the_subset_is_a_smaller_part() -> None:
    values = np.random.default_rng(4).normal(1, 0.1, 100)
    wide, narrow = subset_interval(values, size=1000, count=1000), subset_interval(values, size=1000, count=4000)
    assert (wide.high - wide.low) == pytest.approx(2 * (narrow.high - narrow.low))
    assert wide.value == pytest.approx(float(values.mean()))


def test_features_of_other_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="no kernel distance"):
        kernel_distance(np.zeros((3, 2)), np.zeros((3, 4)))
