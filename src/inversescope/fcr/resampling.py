"""Bootstrap over sites, heads or prompts: rank correlations, and the ends of an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

#: Resamples for an interval, where it is not `fcr.bootstrap` that says how many.
RESAMPLES = 2000


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of two samples (n,); NaN where one of them is constant, or all are missing but one."""
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 2 or not np.ptp(x[known]) > 0 < np.ptp(y[known]):
        return float("nan")
    return float(np.corrcoef(rankdata(x[known]), rankdata(y[known]))[0, 1])


def ends(resampled: np.ndarray, confidence: float, error: float | None = None) -> tuple[float, float]:
    """Percentile interval of resampled values (R,), of those that are known; NaN if none is.

    Args:
        error: the value itself, if it is a mean of absolute values. Resamples of such are too high on average, as chance adds to
            each, so they are moved until that average is the value; the interval holds it then, and begins at 0 at least.
    """
    known, tail = resampled[np.isfinite(resampled)], (1.0 - confidence) / 2.0
    low, high = np.quantile(known, [tail, 1.0 - tail]) if len(known) else (np.nan, np.nan)
    if error is None:
        return float(low), float(high)
    raised = float(known.mean()) - error if len(known) else np.nan
    return max(float(low) - raised, 0.0), float(high) - raised


def resamples(groups: Sequence[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Sites of each resample: as many groups as there are, with replacement, all sites of a group together."""
    count = len(groups)
    return [np.concatenate([groups[g] for g in rng.integers(count, size=count)]) for _ in range(RESAMPLES)]


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row of two tables (K, n), a column a site: (K,), of several rows with their mean behind."""
    found = np.array([spearman(*rows) for rows in zip(x, y, strict=True)])
    return np.append(found, found.mean()) if len(found) > 1 else found


def intervals_of_correlations(
    x: np.ndarray, y: np.ndarray, draws: Sequence[np.ndarray], confidence: float
) -> np.ndarray:
    """The ends (K or K + 1, 2) of the intervals of `correlations`; draws are `resamples` of the columns, the same for all rows."""
    again = np.array([correlations(x[:, drawn], y[:, drawn]) for drawn in draws])
    return np.array([ends(column, confidence) for column in again.T])
