"""Intervals: bootstrap over target prompts, and of one share."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np


def wilson(rate: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (low, high) of a share that n independent samples show; n may be an effective number. NaN without any."""
    if not n > 0 or math.isnan(rate):
        return math.nan, math.nan
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle, half = rate + z * z / (2 * n), z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2)
    # Rounding errors must not leave the rate outside where it is 0 or 1.
    return min(rate, max(0.0, (middle - half) / (1 + z * z / n))), max(
        rate, min(1.0, (middle + half) / (1 + z * z / n))
    )


def bootstrap_means(
    values: np.ndarray, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over targets and percentile bootstrap intervals, resampling targets.

    Args:
        values: (K, n) a row a rate, a column a target; NaN = missing.

    Returns:
        mean, low, high: (K,) each; NaN for rows without any value.
    """
    values = np.atleast_2d(values)
    mean, low, high = (np.full(len(values), math.nan) for _ in range(3))
    present, tail = np.isfinite(values), (1.0 - confidence) / 2
    # Rows with the same missing targets are resampled together.
    patterns, group = np.unique(present, axis=0, return_inverse=True)
    for g, pattern in enumerate(patterns):
        rows = np.flatnonzero(group.ravel() == g)
        n = int(pattern.sum())
        if n == 0:
            continue
        data = values[np.ix_(rows, np.flatnonzero(pattern))]
        mean[rows] = data.mean(1)
        if n == 1:
            low[rows] = high[rows] = mean[rows]
            continue
        counts = _resampled(n, resamples, seed)
        for part in np.array_split(np.arange(len(rows)), -(-len(rows) * resamples // 4_000_000)):
            ends = np.quantile(data[part] @ counts / n, [tail, 1.0 - tail], axis=-1)
            low[rows[part]], high[rows[part]] = ends
    return mean, low, high


def _resampled(n: int, resamples: int, seed: int) -> np.ndarray:
    """How often each of n targets is in each resample: float64 (n, resamples)."""
    drawn = np.random.default_rng([seed, 7]).integers(0, n, (resamples, n))
    places = drawn + n * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=n * resamples).reshape(resamples, n).T.astype(float)
