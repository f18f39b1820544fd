"""Fréchet distance against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.bootstrap import resamples
from benchmarks.accuracy.frechet import Gaussian, frechet_distance, frechet_replicates, gaussian
from dq_deploy.errors import ArtifactError, UsageError


def test_diagonal_gaussians_have_a_closed_form() -> None:
    a = Gaussian(np.array([1.0, 2.0, 3.0]), np.diag([4.0, 9.0, 0.0]), 10)
    b = Gaussian(np.array([0.0, 2.0, 5.0]), np.diag([1.0, 16.0, 25.0]), 10)
    # |μ − μ'|² + Σ (σ − σ')²
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2 + 5**2)


def test_rotated_gaussians_agree_with_the_general_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = np.random.default_rng(0)
    a, b = gaussian(generator.normal(size=(50, 8)) @ generator.normal(size=(8, 8))), gaussian(generator.normal(size=(50, 8)))
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_distance_to_itself_is_zero_and_it_is_symmetric() -> None:
    generator = np.random.default_rng(1)
    a, b = gaussian(generator.normal(size=(40, 5))), gaussian(generator.normal(1, 2, size=(40, 5)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_fewer_samples_than_features_are_no_obstacle() -> None:
    generator = np.random.default_rng(2)
    features = generator.normal(size=(4, 20))
    assert frechet_distance(gaussian(features), gaussian(features)) == pytest.approx(0, abs=1e-9)


def test_statistics_are_those_of_numpy() -> None:
    features = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
    found = gaussian(features)
    assert np.allclose(found.covariance, np.cov(features, rowvar=False), rtol=1e-6)
    assert found.count == 30


def test_replicates_are_distances_of_resampled_features() -> None:
    generator = np.random.default_rng(4)
    features, reference = generator.normal(size=(50, 6)), gaussian(generator.normal(0.2, 1, size=(80, 6)))
    found = frechet_replicates(features, reference, replicates=3, seed=7)
    expected = [frechet_distance(gaussian(features[index]), reference) for index in resamples(50, 3, 7)]
    assert np.allclose(found, expected, rtol=1e-8)


def test_bad_features_are_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 samples"):
        gaussian(np.zeros((1, 3)))
    with pytest.raises(ArtifactError, match="NaN or Inf in the features of 1 of 2 samples"):
        gaussian(np.array([[1.0, np.nan], [0.0, 0.0]]))
    with pytest.raises(UsageError, match="sizes 2 and 3 cannot be compared"):
        frechet_distance(gaussian(np.zeros((2, 2))), gaussian(np.zeros((2, 3))))
