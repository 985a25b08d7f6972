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
    """Means over targets and percentile bootstrap intervals, resampling targets (scipy).

    Args:
        values: (K, n) a row a rate, a column a target; NaN = missing.

    Returns:
        mean, low, high: (K,) each; NaN for rows without any value.
    """
    from scipy import stats  # a second of imports, for those who resample alone

    values = np.atleast_2d(values)
    mean, low, high = (np.full(len(values), math.nan) for _ in range(3))
    present = np.isfinite(values)
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
        result = stats.bootstrap(
            (data,),
            np.mean,
            axis=-1,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, 4_000_000 // (n * len(rows))),
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng([seed, 7]),
        )
        low[rows], high[rows] = result.confidence_interval.low, result.confidence_interval.high
    return mean, low, high
