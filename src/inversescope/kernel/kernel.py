"""Kernels, their support, and importance weights (paper, section 2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from inversescope.errors import InputError

KERNELS = ("hard", "gaussian")


def check_bandwidth(epsilon: float) -> None:
    """Refuse a bandwidth that defines no neighbourhood.

    Raises:
        InputError: epsilon is not a positive finite number.
    """
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise InputError(
            f"kernel bandwidth epsilon = {epsilon} is not positive", "set kernel.epsilon > 0, for example 0.1"
        )


def kernel_values(d: np.ndarray, epsilon: float | np.ndarray, kind: str = "hard") -> np.ndarray:
    """k(d / epsilon): the indicator of d < epsilon (`hard`) or exp(-(d / epsilon)^2) (`gaussian`)."""
    if kind == "hard":
        return (d < epsilon).astype(np.float64)
    if kind == "gaussian":
        return np.exp(-((np.asarray(d, np.float64) / epsilon) ** 2))
    raise InputError(f"unknown kernel {kind!r}", f"choose one of {', '.join(KERNELS)}")


def support_radius(epsilon: Any, kind: str = "hard") -> Any:
    """Distance beyond which the kernel is treated as zero: epsilon for `hard`, 3.7 epsilon (k < 1.2e-6) for `gaussian`."""
    return epsilon if kind == "hard" else 3.7 * epsilon


def effective_sample_size(weights: np.ndarray) -> float:
    """Kish's effective sample size (sum w)^2 / sum w^2 of non-negative weights; 0 for none."""
    total = float(np.sum(weights))
    return total * total / float(np.sum(np.square(weights))) if total > 0 else 0.0


def truncate_weights(weights: np.ndarray) -> np.ndarray:
    """Clip importance weights at their mean times sqrt(n) (Ionides, 2008): bounded variance for a vanishing bias."""
    if weights.size == 0:
        return weights
    return np.minimum(weights, weights.mean() * math.sqrt(weights.size))
