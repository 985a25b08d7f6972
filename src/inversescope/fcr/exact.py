"""The exact reference: FCR without any generator, from prompts weighted by the kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inversescope.kernel.arrays import Array
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

    def table(self, epsilons: list[float], reference: int, prior: int) -> pd.DataFrame:
        """Rows of exact/{site}.parquet, a (bandwidth, target) each, from so many reference prompts of a prior of so many."""
        frames = []
        for e, epsilon in enumerate(epsilons):
            frame = pd.DataFrame(
                {"target_id": np.arange(len(self.mass)), "epsilon": epsilon, "n_ball": self.count[:, e]}
            )
            with np.errstate(divide="ignore"):
                frame["log_mass"] = np.log(self.mass[:, e] / reference)
            # The entropy of the posterior over prompts of the prior; draws stand for more than themselves.
            surprise = math.log(prior) if self.surprise is None else self.surprise[:, e]
            frame["entropy"] = self.entropy[:, e] + surprise - math.log(reference)
            for name, match in self.match.items():
                frame[f"fcr_{name}"] = match[:, e]
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)


def exact_reference(
    queries: Array,
    reference: np.ndarray,
    query_labels: dict[str, np.ndarray],
    reference_labels: dict[str, np.ndarray],
    epsilons: list[float],
    distance: str = "cosine",
    kind: str = "hard",
    block: int = 16384,
    log_prior: np.ndarray | None = None,
    prepared: bool = False,
) -> Exact:
    """Weigh reference prompts by the kernel: FCR without any generator.

    Args:
        queries: prepared target activations (Q, d); reference: activations (N, d), prepared block by block unless they are.
        query_labels, reference_labels: feature -> integer labels (Q,) and (N,).
        log_prior: log P(x) (N,) of the reference prompts, where they are not all alike; asks for `surprise`.

    Returns:
        Exact values. If the reference is all of the prior they are exact; if it holds draws of it, estimates.
    """
    metric, order = distance_of(distance), np.argsort(epsilons)
    ascending = np.asarray(epsilons, np.float64)[order]
    radius = support_radius(float(ascending[-1]), kind)
    sums = _Sums(len(queries), ascending, kind, 2 + len(query_labels))
    for low in range(0, len(reference), block):
        part = slice(low, low + block)
        keys = reference[part] if prepared else metric.prepare(np.asarray(reference[part]))
        owner, row, d = metric.within(queries, keys, radius)
        same = [query_labels[name][owner] == reference_labels[name][part][row] for name in query_labels]
        surprise = None if log_prior is None else -log_prior[part][row]
        sums.add(owner, d, [np.ones(len(row)), surprise, *same])
    back = np.argsort(order)
    count, total, log_mass = sums.results()
    with np.errstate(divide="ignore", invalid="ignore"):
        mass = total[0]
        entropy = np.log(mass) - log_mass / mass
        means = total[1:] / mass
    return Exact(
        mass[:, back],
        count[:, back],
        entropy[:, back],
        {name: means[1 + i][:, back] for i, name in enumerate(query_labels)},
        None if log_prior is None else means[0][:, back],
    )


class _Sums:
    """Sums of quantities over the reference prompts within each of Q balls at E ascending bandwidths, weighted by the kernel."""

    def __init__(self, queries: int, epsilons: np.ndarray, kind: str, quantities: int) -> None:
        self.epsilons, self.kind = epsilons, kind
        shape = queries, len(epsilons)
        self.count, self.log_mass = np.zeros(shape), np.zeros(shape)
        self.total = np.zeros((quantities, *shape))

    def add(self, owner: np.ndarray, distance: np.ndarray, quantities: list[np.ndarray | None]) -> None:
        """Add prompts at distances (m,) from the queries `owner` (m,), and what each adds (m,) to each of the sums."""
        queries, E = self.count.shape
        if self.kind == "hard":
            # A prompt counts for every bandwidth above its distance: bin it by the first one, add up afterwards.
            key = owner * E + np.searchsorted(self.epsilons.astype(np.float32), distance, side="right")
            for total, quantity in zip(self.total, quantities, strict=True):
                if quantity is not None:
                    total += np.bincount(key, weights=quantity, minlength=queries * E).reshape(queries, E)
            return
        for e, epsilon in enumerate(self.epsilons):
            # Cut off as everywhere else: the tail of all of the prior could outweigh a small ball.
            inside = distance < np.float32(support_radius(float(epsilon), self.kind))
            k = kernel_values(distance, epsilon, self.kind) * inside
            self.count[:, e] += np.bincount(owner[inside], minlength=queries)
            nats = k * np.log(np.maximum(k, 1e-300))
            self.log_mass[:, e] += np.bincount(owner, weights=nats, minlength=queries)
            for total, quantity in zip(self.total, quantities, strict=True):
                if quantity is not None:
                    total[:, e] += np.bincount(owner, weights=k * quantity, minlength=queries)

    def results(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Prompts within reach (Q, E), sums (quantities, Q, E), and the sum of k log k (Q, E)."""
        if self.kind != "hard":
            return self.count, self.total, self.log_mass
        total = np.cumsum(self.total, 2)
        return total[0], total, self.log_mass
