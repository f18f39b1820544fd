"""Kernel distance (KID, Bińkowski et al., arXiv 1801.01401): unbiased squared MMD with the kernel k(x, y) = (x·y/d + 1)³.

Unlike the Fréchet distance it is unbiased at any number of samples: zero on average when both sides have one distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.errors import UsageError

from .bootstrap import Interval

Array = np.ndarray[Any, Any]
_NORMAL_95 = 1.959964  # the standard normal's 97.5% quantile


def kernel_distance(x: Array, y: Array) -> float:
    """Unbiased squared MMD of features x [m, d] and y [n, d] (eq. 4 there: no term of a sample with itself)."""
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise UsageError(f"features of shapes {list(x.shape)} and {list(y.shape)} have no kernel distance")
    x, y = x.astype(np.float64), y.astype(np.float64)
    return _within(x) + _within(y) - 2 * float(_kernel(x, y).mean())


def kernel_distances(x: Array, y: Array, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> Array:
    """Distances [subsets] of random subsets of ``size`` samples, drawn without replacement and the same for every x of one length."""
    size = min(size, len(x), len(y))
    generator = np.random.default_rng([seed, len(x), len(y)])
    return np.array(
        [
            kernel_distance(x[generator.choice(len(x), size, replace=False)], y[generator.choice(len(y), size, replace=False)])
            for _ in range(subsets)
        ]
    )


def subset_interval(distances: Array, *, size: int, count: int) -> Interval:
    """Mean of subset distances [subsets] (or of paired differences of them) with a 95% interval.

    A subset of ``size`` out of ``count`` samples scatters √(count / size) times as much as all of them do.
    """
    mean = float(np.mean(distances))
    error = float(np.std(distances, ddof=1)) * (min(size, count) / count) ** 0.5
    return Interval(mean, mean - _NORMAL_95 * error, mean + _NORMAL_95 * error)


def _kernel(x: Array, y: Array) -> Array:
    kernel: Array = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _within(x: Array) -> float:
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))
