"""Fréchet distance between feature distributions taken as Gaussians (Heusel et al., arXiv 1706.08500, eq. 6).

d² = |μ − μ'|² + tr(Σ + Σ' − 2·(ΣΣ')^½). The trace of the root is the sum of the square roots of the eigenvalues of the symmetric
Σ'^½ Σ Σ'^½, so no general matrix root is needed and no complex number appears.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dq_deploy.errors import ArtifactError, UsageError

from .bootstrap import resamples

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Gaussian:
    """Mean [d], covariance [d, d] and number of samples of features."""

    mean: Array
    covariance: Array
    count: int

    @cached_property
    def root(self) -> Array:
        """The symmetric square root of the covariance [d, d]."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: Array = (vectors * _roots(values)) @ vectors.T
        return root


def _roots(eigenvalues: Array) -> Array:
    """Square roots of a covariance's eigenvalues. Those that are 0 come out as some 1e-16, of either sign, whose roots would be 1e-8."""
    noise = eigenvalues.max() * len(eigenvalues) * np.finfo(np.float64).eps
    roots: Array = np.sqrt(np.where(eigenvalues > noise, eigenvalues, 0))
    return roots


def gaussian(features: Array) -> Gaussian:
    """Statistics of features [n, d] in float64, the covariance with n − 1.

    Raises UsageError for fewer than two samples and ArtifactError for a NaN or an infinity.
    """
    if features.ndim != 2 or len(features) < 2:
        raise UsageError(f"features of shape {list(features.shape)} have no covariance", "at least 2 samples are needed")
    if not np.isfinite(features).all():
        raise ArtifactError(f"NaN or Inf in the features of {int((~np.isfinite(features)).any(axis=1).sum())} of {len(features)} samples")
    features = features.astype(np.float64)
    centred = features - features.mean(axis=0)
    return Gaussian(features.mean(axis=0), centred.T @ centred / (len(features) - 1), len(features))


def frechet_distance(a: Gaussian, reference: Gaussian) -> float:
    """Squared Fréchet distance, which is what "FID" means. Raises UsageError when the features are of different sizes."""
    if a.mean.shape != reference.mean.shape:
        raise UsageError(f"features of sizes {len(a.mean)} and {len(reference.mean)} cannot be compared")
    product = reference.root @ a.covariance @ reference.root
    cross = _roots(np.linalg.eigvalsh(product)).sum()
    gap = float(((a.mean - reference.mean) ** 2).sum())
    return gap + float(np.trace(a.covariance) + np.trace(reference.covariance) - 2 * cross)


def frechet_replicates(features: Array, reference: Gaussian, *, replicates: int, seed: int = 0) -> Array:
    """Distances [replicates] of resamples of the features [n, d]; the reference stays. Biased upwards, alike for all: for differences."""
    features = features.astype(np.float64)
    centre = features.mean(axis=0)
    centred, found = features - centre, []
    for drawn in resamples(len(features), replicates, seed):
        weights = np.bincount(drawn, minlength=len(features)).astype(np.float64)
        shift = weights @ centred / len(features)
        second = (centred * weights[:, None]).T @ centred
        covariance = (second - len(features) * np.outer(shift, shift)) / (len(features) - 1)
        found.append(frechet_distance(Gaussian(centre + shift, covariance, len(features)), reference))
    return np.array(found)
