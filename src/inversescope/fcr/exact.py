"""The exact reference: FCR without any generator, from prompts weighted by the kernel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius


@dataclass
class Exact:
    """Exact values of Q targets at E bandwidths.

    Attributes:
        mass: (Q, E) sum of kernel values over the reference prompts.
        count: (Q, E) reference prompts with positive kernel value.
        entropy: (Q, E) nats, of the posterior over the reference prompts.
        match: feature -> (Q, E) posterior probability of the target's own label.
        surprise: (Q, E) nats, posterior mean of -log P(x) under the prior, if it was asked for.
    """

    mass: np.ndarray
    count: np.ndarray
    entropy: np.ndarray
    match: dict[str, np.ndarray]
    surprise: np.ndarray | None = None


def exact_reference(
    queries: np.ndarray,
    reference: np.ndarray,
    query_labels: dict[str, np.ndarray],
    reference_labels: dict[str, np.ndarray],
    epsilons: list[float],
    distance: str = "cosine",
    kind: str = "hard",
    block: int = 16384,
    log_prior: np.ndarray | None = None,
) -> Exact:
    """Weigh reference prompts by the kernel: FCR without any generator.

    Args:
        queries: prepared target activations (Q, d); reference: activations (N, d), prepared block by block.
        query_labels, reference_labels: feature -> integer labels (Q,) and (N,).
        log_prior: log P(x) (N,) of the reference prompts, where they are not all alike; asks for `surprise`.

    Returns:
        Exact values. If the reference is all of the prior they are exact; if it holds draws of it, estimates.
    """
    metric, order = distance_of(distance), np.argsort(epsilons)
    sorted_eps = np.asarray(epsilons, np.float64)[order]
    Q, E = len(queries), len(epsilons)
    radius = support_radius(float(sorted_eps[-1]), kind)
    mass, count, log_mass = np.zeros((Q, E)), np.zeros((Q, E)), np.zeros((Q, E))
    match = {name: np.zeros((Q, E)) for name in query_labels}
    surprise = np.zeros((Q, E))
    for low in range(0, len(reference), block):
        d = metric.between(queries, metric.prepare(np.asarray(reference[low : low + block])))
        flat = np.flatnonzero(d < np.float32(radius))
        owner, row = np.divmod(flat, d.shape[1])
        value = d.ravel()[flat]
        same = {n: query_labels[n][owner] == reference_labels[n][low : low + block][row] for n in match}
        if kind == "hard":
            # A prompt counts for every bandwidth above its distance: bin it by the first one, add up afterwards.
            key = owner * E + np.searchsorted(sorted_eps.astype(np.float32), value, side="right")
            count += np.bincount(key, minlength=Q * E).reshape(Q, E)
            for name, hits in same.items():
                match[name] += np.bincount(key, weights=hits, minlength=Q * E).reshape(Q, E)
            if log_prior is not None:
                nats = -log_prior[low : low + block][row]
                surprise += np.bincount(key, weights=nats, minlength=Q * E).reshape(Q, E)
            continue
        for e, epsilon in enumerate(sorted_eps):
            # Cut off as everywhere else: the tail of all of the prior could outweigh a small ball.
            inside = value < np.float32(support_radius(float(epsilon), kind))
            k = kernel_values(value, epsilon, kind) * inside
            mass[:, e] += np.bincount(owner, weights=k, minlength=Q)
            count[:, e] += np.bincount(owner[inside], minlength=Q)
            log_mass[:, e] += np.bincount(owner, weights=k * np.log(np.maximum(k, 1e-300)), minlength=Q)
            if log_prior is not None:
                nats = -log_prior[low : low + block][row]
                surprise[:, e] += np.bincount(owner, weights=k * nats, minlength=Q)
            for name, hits in same.items():
                match[name][:, e] += np.bincount(owner, weights=k * hits, minlength=Q)
    if kind == "hard":
        count = np.cumsum(count, 1)
        match = {name: np.cumsum(value, 1) for name, value in match.items()}
        surprise = np.cumsum(surprise, 1)
        mass = count.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.log(mass) - log_mass / mass
        match = {name: value / mass for name, value in match.items()}
        surprise = surprise / mass
    back = np.empty(E, np.int64)
    back[order] = np.arange(E)
    return Exact(
        mass[:, back],
        count[:, back],
        entropy[:, back],
        {n: v[:, back] for n, v in match.items()},
        None if log_prior is None else surprise[:, back],
    )
