"""FCR errors from cells, one a target, site and feature: means, intervals over targets, and the error of a single cell."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd


def differences(cells: pd.DataFrame, estimator: str) -> np.ndarray:
    """(sites x features, targets) differences to the exact value, NaN where missing."""
    part = cells[cells["estimator"] == estimator]
    wide = part.assign(difference=part["value"] - part["exact"]).pivot_table(
        index=["site", "feature"], columns="target_id", values="difference", dropna=False
    )
    return wide.to_numpy(float)


def mean_error(cells: pd.DataFrame, estimator: str) -> float:
    """Mean over sites and features of |mean over targets of (estimate - exact)|; NaN without any cell."""
    difference = differences(cells, estimator)
    return float(np.nanmean(np.abs(np.nanmean(difference, 1)))) if difference.size else math.nan


def cell_rmse(cells: pd.DataFrame, estimator: str) -> float:
    """Root mean square difference of single cells; NaN without any."""
    difference = differences(cells, estimator)
    return float(np.sqrt(np.nanmean(difference**2))) if difference.size else math.nan


def resampled_error(difference: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """`mean_error` of each resample: difference (K, n) with NaN = missing, draws (R, n) of targets -> (R,)."""
    n = difference.shape[1]
    count = np.stack([np.bincount(d, minlength=n) for d in draws], 1).astype(float)  # (n, R)
    known = np.isfinite(difference)
    with np.errstate(invalid="ignore"):
        means = (np.where(known, difference, 0.0) @ count) / (known @ count)
    return np.asarray(np.nanmean(np.abs(means), 0))
