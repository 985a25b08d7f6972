"""Distances between activations (paper, section 2)."""

from __future__ import annotations

from typing import Any

import numpy as np

from inversescope.errors import InputError

DISTANCES = ("cosine", "euclidean", "normalised_euclidean")


def prepare(z: Any, distance: str) -> Any:
    """Bring activations (N, d) into the form in which `distances` compares them: unit vectors for cosine, else unchanged."""
    if distance != "cosine":
        return z
    norm = (z * z).sum(-1)[..., None] ** 0.5
    if bool((norm == 0).any()):
        raise InputError(
            "an activation is exactly zero, so its cosine distance is undefined",
            "choose another site or distance",
        )
    return z / norm


def distances(queries: Any, keys: Any, distance: str = "cosine") -> Any:
    """Compare prepared queries (Q, d) with prepared keys (N, d): distances (Q, N).

    Keys (N, P, d) are prompts with P positions each; a prompt's distance is the least over its positions. `cosine` is 1 - cos;
    `euclidean` the norm of the difference; `normalised_euclidean` that norm divided by the query's.
    The result has the type of its arguments. Raises `InputError` for an unknown distance.
    """
    if len(keys.shape) == 3:
        count, positions, width = keys.shape
        flat = distances(queries, keys.reshape(count * positions, width), distance)
        least = flat.reshape(len(queries), count, positions)
        return least.min(-1) if isinstance(least, np.ndarray) else least.amin(-1)
    if distance == "cosine":
        result = queries @ keys.T
        result *= -1.0  # in place: this product is what a search spends its time on
        result += 1.0
        return result
    if distance not in DISTANCES:
        raise InputError(f"unknown distance {distance!r}", f"choose one of {', '.join(DISTANCES)}")
    q2 = (queries * queries).sum(-1)[:, None]
    squared = q2 + (keys * keys).sum(-1)[None, :] - 2.0 * (queries @ keys.T)
    squared = squared * (squared > 0)
    return squared**0.5 if distance == "euclidean" else (squared / q2) ** 0.5


def paired_distances(a: np.ndarray, b: np.ndarray, distance: str = "cosine") -> np.ndarray:
    """Distance of row i of `b` to the query in row i of `a`: two (N, d) arrays to (N,), in double precision.

    Where `b` is (N, P, d), the least over its P positions.
    """
    if b.ndim == 3:
        return np.min([paired_distances(a, b[:, p], distance) for p in range(b.shape[1])], axis=0)
    a, b = a.astype(np.float64), b.astype(np.float64)
    if distance == "cosine":
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        return 1.0 - (a * b).sum(-1) / np.maximum(norms, np.finfo(np.float64).tiny)
    difference = np.linalg.norm(a - b, axis=-1)
    return difference if distance == "euclidean" else difference / np.linalg.norm(a, axis=-1)
