"""Supervised readers of an activation: a linear probe (scikit-learn) and the nearest neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from inversescope.kernel.distances import Distance

BLOCK = 512  # activations that are compared with all others at a time


def linear_probe(
    z: np.ndarray,
    labels: np.ndarray,
    z_val: np.ndarray,
    labels_val: np.ndarray,
    strengths: Sequence[float],
    max_iter: int = 1000,
) -> tuple[Pipeline, float]:
    """Fit multinomial logistic regression on standardised activations (N, d); the regularisation is chosen on validation data.

    Args:
        strengths: inverse regularisations C that are tried; the highest validation accuracy wins, the smallest C of equals.

    Returns:
        The probe, and its C.
    """
    best: tuple[float, float, Pipeline] | None = None
    for strength in sorted(strengths):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=max_iter))
        probe.fit(z, labels)
        accuracy = float(probe.score(z_val, labels_val))
        if best is None or accuracy > best[0]:
            best = accuracy, strength, probe
    if best is None:
        raise ValueError("no strength to try")
    return best[2], best[1]


def nearest_neighbour(
    metric: Distance, queries: np.ndarray, z: np.ndarray, apart: tuple[np.ndarray, np.ndarray] | None = None
) -> np.ndarray:
    """Row (Q,) of the activation in z (N, d) that is nearest to each query (Q, d).

    Args:
        apart: codes (Q,) and (N,): an activation of the query's own code is passed over, such as a prompt in its own words.
    """
    keys, found = metric.prepare(z), []
    for low in range(0, len(queries), BLOCK):
        d = metric.between(metric.prepare(queries[low : low + BLOCK]), keys)
        if apart is not None:
            d = np.where(apart[0][low : low + BLOCK, None] == apart[1], np.inf, d)
        found.append(d.argmin(1))
    return np.concatenate(found)
