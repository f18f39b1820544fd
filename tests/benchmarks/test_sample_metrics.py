"""Metrics of single pictures against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.accuracy.sample_metrics import feature_distance, snr_by_timestep
from dq_deploy.decibels import PSNR_CEILING_DB, psnr_db
from dq_deploy.errors import ArtifactError, UsageError


def test_psnr_of_a_constant_error() -> None:
    expected = np.full((2, 1, 4, 4), 0.5)
    found = psnr_db(expected, expected + np.array([0.1, 0.01]).reshape(2, 1, 1, 1))
    assert found == pytest.approx([20.0, 40.0])


def test_psnr_of_equal_pictures_is_capped() -> None:
    pictures = np.random.default_rng(0).random((3, 1, 4, 4))
    assert psnr_db(pictures, pictures) == pytest.approx([PSNR_CEILING_DB] * 3)


def test_psnr_refuses_other_shapes_and_nan() -> None:
    with pytest.raises(UsageError, match="cannot be compared"):
        psnr_db(np.zeros((2, 1, 4, 4)), np.zeros((3, 1, 4, 4)))
    with pytest.raises(ArtifactError, match="NaN or Inf in 1 pictures"):
        psnr_db(np.zeros((2, 1, 1, 1)), np.array([0.0, np.nan]).reshape(2, 1, 1, 1))


def test_feature_distance_of_unrelated_pictures_is_one() -> None:
    generator = np.random.default_rng(1)
    expected = generator.normal(size=(2000, 8))
    assert feature_distance(expected, expected) == pytest.approx(0)
    assert feature_distance(expected, generator.normal(size=(2000, 8))).mean() == pytest.approx(1, rel=0.05)


def test_feature_distance_needs_pictures_that_differ() -> None:
    with pytest.raises(ArtifactError, match="same features"):
        feature_distance(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(UsageError, match="cannot be compared"):
        feature_distance(np.ones((3, 2)), np.ones((2, 2)))


def test_snr_by_timestep() -> None:
    power, error = np.array([[50.0, 50.0], [1.0, 1.0]]), np.array([[0.5, 0.5], [0.0, 0.0]])
    assert snr_by_timestep(power, error) == pytest.approx([20.0, 150.0])
