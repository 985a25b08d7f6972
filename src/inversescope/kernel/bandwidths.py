"""Bandwidths as shares of the prior: the epsilon at which the median ball of some activations holds so much of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inversescope.config.methods import KernelConfig
from inversescope.kernel.distances import Distance, distance_of

#: Pairs of activations that are compared at a time: bounds the memory at a quarter of a GiB.
PAIRS = 1 << 26
ASKED = 200  # prompts around which a share is measured where there are no validation prompts


def rounded(epsilon: float) -> float:
    """A bandwidth to six significant digits, as tables hold it: the same number wherever it is read."""
    return float(f"{epsilon:.6g}")


def epsilons_of_shares(
    metric: Distance, queries: np.ndarray, reference: np.ndarray, shares: Sequence[float]
) -> list[float]:
    """The epsilon, a share each, at which the median ball around the queries holds that share of the reference prompts.

    The ball of one query that holds m of N prompts ends halfway between the m-th and the next; epsilon is the median over
    queries. Where so many prompts have the query's own activation that the ball would be smaller than rounding errors
    (`Distance.resolution`), it is as large as these: then it holds more than the share.

    Args:
        queries, reference: activations (Q, d) and (N, d) or (N, P, d), not prepared; N prompts of the prior.
        shares: of the N prompts; the ball holds one at least.
    """
    size = len(reference)
    held = np.clip(np.round(np.asarray(shares) * size).astype(np.int64), 1, size - 1)
    ends = np.sort(np.unique([held - 1, held]))
    keys, prepared = metric.prepare(reference), metric.prepare(queries)
    step = max(1, PAIRS // size)
    parts = []
    for low in range(0, len(queries), step):
        d = np.partition(metric.between(prepared[low : low + step], keys), ends, axis=1)
        parts.append((d[:, held - 1].astype(np.float64) + d[:, held]) / 2)
    least = metric.resolution(queries)
    return [rounded(max(float(value), least)) for value in np.median(np.concatenate(parts), axis=0)]


def shares_of_epsilons(
    metric: Distance, queries: np.ndarray, reference: np.ndarray, epsilons: Sequence[float]
) -> list[float]:
    """The share of the reference prompts that the median ball around the queries holds, an epsilon each (see above)."""
    keys, prepared = metric.prepare(reference), metric.prepare(queries)
    step, radii = max(1, PAIRS // len(reference)), np.asarray(epsilons, np.float32)
    parts = []
    for low in range(0, len(queries), step):
        d = metric.between(prepared[low : low + step], keys)
        parts.append(np.stack([(d < radius).mean(1) for radius in radii], 1))
    return [float(value) for value in np.median(np.concatenate(parts), axis=0)]


def one_position(z: np.ndarray) -> np.ndarray:
    """Activations (N, d) as they are; of activations (N, P, d) at P positions, one of each prompt, in turn."""
    rows = np.arange(len(z))
    return z if z.ndim == 2 else z[rows, rows % z.shape[1]]


def headline_at(kernel: KernelConfig, z: np.ndarray) -> float:
    """The headline epsilon at a site of which only the activations (N, d) or (N, P, d) of N draws of the prior are at hand."""
    if kernel.share is None:
        return kernel.epsilon
    return epsilons_of_shares(distance_of(kernel.distance), one_position(z[:ASKED]), z, [kernel.share])[0]
