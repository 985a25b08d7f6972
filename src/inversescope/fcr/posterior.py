"""Distributions of a feature's values: the exact posterior of each target, and what weighted prompts say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from inversescope.kernel.arrays import Array
from inversescope.kernel.bandwidths import PAIRS
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius


def exact_posteriors(
    queries: Array,
    reference: np.ndarray,
    labels: Mapping[str, np.ndarray],
    sizes: Mapping[str, int],
    epsilon: float,
    distance: str = "cosine",
    kind: str = "hard",
    block: int | None = None,
) -> dict[str, np.ndarray]:
    """Weigh reference prompts by the kernel: P(f(x) = v | z) of each target and value, without any generator.

    What `exact_reference` says of the target's own value, this says of every value.

    Args:
        queries: prepared target activations (Q, d); reference: activations (N, d) or (N, P, d), prepared block by block.
        labels: feature -> codes (N,) of the reference prompts, -1 where it has none.
        sizes: feature -> its number V of values.
        epsilon: the bandwidth.
        block: reference prompts that are compared at a time.

    Returns:
        feature -> (Q, V); a row is NaN where no prompt with a value is within reach.
    """
    block = block or min(16_384, max(256, PAIRS // max(1, len(queries))))
    metric, radius = distance_of(distance), support_radius(epsilon, kind)
    sums = {name: np.zeros((len(queries), size)) for name, size in sizes.items()}
    for low in range(0, len(reference), block):
        part = slice(low, low + block)
        owner, row, d = metric.within(queries, metric.prepare(np.asarray(reference[part])), radius)
        weight = kernel_values(d, epsilon, kind)
        for name, total in sums.items():
            total += label_sums(owner, labels[name][part][row], weight, *total.shape)
    return {name: as_shares(total) for name, total in sums.items()}


def label_sums(
    owner: np.ndarray, label: np.ndarray, weight: np.ndarray, queries: int, size: int
) -> np.ndarray:
    """Sums (queries, size) of the weights (n,) of prompts by query and by label; no other label counts."""
    known = (label >= 0) & (label < size)
    key = owner[known] * size + label[known]
    return np.bincount(key, weights=weight[known], minlength=queries * size).reshape(queries, size)


def as_shares(sums: np.ndarray) -> np.ndarray:
    """Rows of non-negative sums (Q, V) as distributions, NaN where a row is 0."""
    total = sums.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, sums / total, np.nan)
