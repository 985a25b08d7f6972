"""Supervised readers of an activation: a linear probe and the nearest neighbour (scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

#: scikit-learn's name of each distance; normalising by the query changes no order.
_METRICS = {"cosine": "cosine", "euclidean": "euclidean", "normalised_euclidean": "euclidean"}


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


def nearest_neighbour(z: np.ndarray, labels: np.ndarray, distance: str = "cosine") -> KNeighborsClassifier:
    """Fit a classifier that gives the label of the nearest training activation (N, d)."""
    return KNeighborsClassifier(1, metric=_METRICS[distance], algorithm="brute").fit(z, labels)
