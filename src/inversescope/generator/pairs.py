"""Where training examples come from, behind one interface: Appendix B's noise, no noise, or kernel pairs.

All sources serve the same `Batch`; the generator's architecture does not know which one it learns from.

- `NoisePairs` (paper, 3.2 and Appendix B): a cached activation plus noise, and the prompt that it came from. With epsilon 0 there
  is no noise (InversionView as published).
- `KernelPairs` (ours): a clean cached activation as anchor, and *other* cached prompts within epsilon of it. They are draws from
  P(x; z) itself, on the activations that are asked for later. What conditions (mean embedding, counts) and what is predicted
  come from disjoint parts of the cache, cut anew for every chunk of steps; the anchor's own prompt is in neither. A neighbour
  that is predicted stands for many prompts of the prior. The anchor's own prompt, and those that condition, belong to P(x; z)
  too, but each stands for itself alone (`KernelPairs._targets`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Literal

import numpy as np

from inversescope.errors import InputError
from inversescope.generator.condition import (
    LOG_EPSILON,
    Prompts,
    bandwidth_scalars,
    mean_embedding,
    scalar_inputs,
)
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Cache, Neighbours

#: A bandwidth, or a range (low, high) from which each example draws its own, log-uniformly.
Epsilon = float | tuple[float, float]
MAX_TARGETS = 128  # neighbours that are searched for a soft target, at most
MOST_TOLD = 0.99  # of the prior that neighbours which condition speak for, at most
KEPT_BYTES = (
    7 << 28
)  # of searchable copies of activations that are kept; those of further sites are made again
FLOOR_ROWS = 16_384  # cached prompts that the Bayes floor of noise is estimated from, at most


@dataclass
class Batch:
    """One training step's examples, site by site (rows of a site follow each other).

    Attributes:
        z: site label -> (b, d) float32 activations as the generator sees them.
        path: (B, T) int32 the sequence whose prefixes are conditioned on.
        lengths: (B,) int32 tokens of it in use.
        weight: (B,) float32 weight in the loss.
        targets: (B, M, T) int32 sequences that share the soft target, or None: the path itself.
        target_weight: (B, M) float32 their weights (0 = padding).
        scalars, embedding: the generator's other inputs, or None.
        neighbours: (B, K, T) int32 sequences of the condition's neighbours (attention over neighbours), or None.
        neighbour_weight: (B, K) float32, 0 = padding.
        floor: mean over examples of the Bayes floor of the loss, nats a sequence (nan where not computed).
    """

    z: dict[str, np.ndarray]
    path: np.ndarray
    lengths: np.ndarray
    weight: np.ndarray
    targets: np.ndarray | None = None
    target_weight: np.ndarray | None = None
    scalars: np.ndarray | None = None
    embedding: np.ndarray | None = None
    neighbours: np.ndarray | None = None
    neighbour_weight: np.ndarray | None = None
    floor: float = float("nan")

    def part(self, index: int, of: int) -> Batch:
        """Every `of`-th example from the `index`-th on, still site by site; all of them for one part of one.

        Raises:
            InputError: there are fewer examples than parts.
        """
        if of == 1:
            return self
        if len(self.path) < of:
            raise InputError(
                f"{of} processes share {len(self.path)} examples a step",
                "raise per_site, or start fewer processes",
            )
        z, start = {}, 0
        for label, rows in self.z.items():
            z[label] = rows[(index - start) % of :: of]
            start += len(rows)
        arrays = {
            field.name: getattr(self, field.name)[index::of]
            for field in fields(self)
            if isinstance(getattr(self, field.name), np.ndarray)
        }
        return replace(self, z=z, **arrays)


@dataclass
class PairSource:
    """Where training examples come from.

    Attributes:
        activations: site label -> (N, d), or (N, P, d): then each example is read at one of P positions.
        per_site: examples of a site that a step reads.
        sites_per_step: sites that a step reads, drawn anew each step; None = all of them.
        prior_size: number of prompts of the prior that the cache was drawn from.
        epsilon: bandwidth of all sites, or site label -> its own.
        log_epsilons: site label -> what the scalar log eps is relative to, where it is not `LOG_EPSILON`.
        prior: (N,) probability of each cached prompt, if they are not all alike.
    """

    activations: dict[str, np.ndarray]
    prompts: Prompts
    _: KW_ONLY
    per_site: int
    prior_size: int
    seed: int
    epsilon: Epsilon | Mapping[str, Epsilon]
    log_epsilons: dict[str, float] = field(default_factory=dict)
    distance: str = "cosine"
    kind: str = "hard"
    prior: np.ndarray | None = None
    sites_per_step: int | None = None

    @property
    def dimensions(self) -> dict[str, int]:
        """Site label -> dimension of the activations in a batch."""
        return {label: z.shape[-1] for label, z in self.activations.items()}

    def sites_at(self, step: int) -> list[str]:
        """Labels of the sites that a step reads, in their order; a function of the seed and the step alone."""
        labels = list(self.activations)
        if self.sites_per_step is None or self.sites_per_step >= len(labels):
            return labels
        rng = np.random.default_rng([self.seed, 103, step])
        return [labels[i] for i in sorted(rng.choice(len(labels), self.sites_per_step, replace=False))]

    def epsilon_at(self, label: str) -> Epsilon:
        """The bandwidth, or range of bandwidths, of a site."""
        return self.epsilon[label] if isinstance(self.epsilon, Mapping) else self.epsilon

    def batch(self, step: int) -> Batch:
        """Examples of one step; a function of the seed and the step alone, so that a resumed run sees the same ones."""
        raise NotImplementedError


@dataclass
class NoisePairs(PairSource):
    """Cached activations with Appendix B's noise, each with the prompt that it came from.

    Attributes:
        width: site label -> dimension in which the noise lives (d for `subspace`, d_model for `model`: the activation is
            padded with zeros, since any orthonormal embedding of a head's output space is as good for isotropic noise).
        epsilon: of the noise, no range; 0 = none, and then there is no Bayes floor.
        floor_every: steps between two estimates of the floor.
    """

    _: KW_ONLY
    width: dict[str, int]
    norm_band: float = 0.1
    floor_every: int = 50

    @property
    def dimensions(self) -> dict[str, int]:
        """Site label -> dimension of the activations in a batch."""
        return self.width

    def batch(self, step: int) -> Batch:
        """Examples of one step."""
        rng = np.random.default_rng([self.seed, 101, step])
        z: dict[str, np.ndarray] = {}
        rows, floors = [], []
        for label in self.sites_at(step):
            cached = self.activations[label]
            row = rng.integers(self.prompts.size, size=self.per_site)
            rows.append(row)
            z[label] = self._padded(label, cached[at_positions(cached, row, rng)])
            epsilon = self.epsilon_at(label)
            assert not isinstance(epsilon, tuple)
            if not epsilon:
                continue
            metric = distance_of(self.distance)
            noised = metric.perturb(z[label], epsilon, rng, self.kind, self.norm_band)
            z[label] = noised.astype(np.float32)
            if step % self.floor_every == 0 and cached.ndim == 2:
                floors.append(self._floor(label, z[label], row))
        index = np.concatenate(rows)
        return Batch(
            z=z,
            path=self.prompts.tokens[index],
            lengths=self.prompts.lengths[index],
            weight=np.ones(len(index), np.float32),
            floor=float(np.mean(floors)) if floors else float("nan"),
        )

    def _padded(self, label: str, z: np.ndarray) -> np.ndarray:
        """Activations (n, d) filled up with zeros to the width that the noise lives in."""
        return np.pad(z.astype(np.float32), ((0, 0), (0, self.width[label] - z.shape[1])))

    def _floor(self, label: str, z: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Nats (n,) that no generator can do without: log of how many prompts lie as near to z (n, width) as its own."""
        # The part of z outside the head's space counts in the distance: compare with zero-padded cached rows.
        cache = Cache(self._padded(label, self.activations[label][:FLOOR_ROWS]), self.distance)
        count = cache.counts(cache.prepare(z), np.array([self.epsilon_at(label)]))[:, 0]
        size = self.prior_size if self.prior is None else 1.0 / self.prior[row]
        return np.log(np.maximum(count / cache.size, 1.0 / size) * size)


def at_positions(
    z: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...] | np.ndarray:
    """Index of the activations of some rows of z (N, d); of z (N, P, d), of one of each row's positions, at random."""
    return rows if z.ndim == 2 else (rows, rng.integers(z.shape[1], size=len(rows)))


@dataclass
class KernelPairs(PairSource):
    """Clean anchors with other cached prompts within epsilon as targets; a prompt is as far as the nearest of its positions.

    Attributes:
        embed: condition on the mean embedding and the scalars of a disjoint part of the cache.
        soft: target = next-token distribution among all neighbours that share the path's prefix; else one drawn neighbour.
        disjoint: False takes condition and target from the whole cache alike (an ablation: it learns to copy).
        empty: what becomes of anchors without a neighbour: `own` (their prompt, with its prior weight), `skip`, or `widen`
            (epsilon doubled until there is one).
        attend: hand out the neighbours themselves, for attention over them.
        n_condition: neighbours that condition, at most.
        chunk: steps that share one neighbour search, at least (`chunked`).
    """

    _: KW_ONLY
    embed: bool = True
    soft: bool = True
    disjoint: bool = True
    empty: Literal["own", "skip", "widen"] = "own"
    attend: bool = False
    n_condition: int = 128
    chunk: int = 16

    def __post_init__(self) -> None:
        if self.prompts.size < 4:
            raise InputError(
                f"a cache of {self.prompts.size} prompts has no neighbours to learn from", "raise n_train"
            )
        self._caches: dict[str, Cache] = {}
        self._chunk_index = -1
        self._steps: list[dict[str, _Drawn]] = []

    @property
    def chunked(self) -> int:
        """Steps that share one neighbour search, which goes through the whole cache, however few its queries are.

        Where a step reads few of the sites there are more than `chunk`: each site is read in a quarter of `chunk` steps or more.
        """
        sites = len(self.activations)
        per_step = min(self.sites_per_step or sites, sites)
        return max(self.chunk, -(-self.chunk * sites // (4 * per_step)))

    def batch(self, step: int) -> Batch:
        """Examples of one step."""
        index, offset = divmod(step, self.chunked)
        if index != self._chunk_index:
            self._steps = self._draw_chunk(index)
            self._chunk_index = index
        return self._lay_out(self._steps[offset])

    def _draw_chunk(self, index: int) -> list[dict[str, _Drawn]]:
        """Examples of each of a chunk's steps, by site."""
        rng = np.random.default_rng([self.seed, 102, index])
        steps = [self.sites_at(step) for step in range(index * self.chunked, (index + 1) * self.chunked)]
        reads = Counter(label for read in steps for label in read)
        # Each site's examples of all these steps are searched for at once, then dealt out.
        sites = {
            label: self._draw_site(label, reads[label] * self.per_site, rng)
            for label in self.activations
            if label in reads
        }
        dealt: Counter[str] = Counter()
        drawn = []
        for read in steps:
            parts = {}
            for label in read:
                parts[label] = sites[label][dealt[label] : dealt[label] + self.per_site]
                dealt[label] += self.per_site
            drawn.append(parts)
        return drawn

    def _lay_out(self, sites: dict[str, _Drawn]) -> Batch:
        """One step's examples of all sites as a batch, no wider than they need."""
        drawn = {
            name: np.concatenate([site.arrays[name] for site in sites.values()])
            for name in next(iter(sites.values())).arrays
        }
        members, rows, tokens = drawn["members"], drawn["rows"], self.prompts.tokens
        used = np.flatnonzero((members >= 0).any(0))
        near = drawn.get("near")
        if near is not None:
            near = near[:, : max(int((near >= 0).sum(1).max()), 1)]
        return Batch(
            z={label: site.z for label, site in sites.items()},
            path=tokens[rows],
            lengths=self.prompts.lengths[rows],
            weight=drawn["weight"],
            targets=tokens[np.maximum(members[:, used], 0)] if self.soft else None,
            target_weight=drawn["member_weight"][:, used] if self.soft else None,
            scalars=drawn["scalars"],
            embedding=drawn.get("embedding"),
            neighbours=None if near is None else tokens[np.maximum(near, 0)],
            neighbour_weight=None if near is None else (near >= 0).astype(np.float32),
            floor=_mean_of_known(drawn["floor"]),
        )

    def _cache(self, label: str) -> Cache:
        """A site's activations ready for search: made when first read, and kept if there is room, since there may be hundreds."""
        if label in self._caches:
            return self._caches[label]
        cache = Cache(self.activations[label], self.distance)
        if cache.keys.nbytes + sum(known.keys.nbytes for known in self._caches.values()) <= KEPT_BYTES:
            self._caches[label] = cache
        return cache

    def _draw_site(self, label: str, count: int, rng: np.random.Generator) -> _Drawn:
        """A chunk's examples of one site."""
        cache = self._cache(label)
        anchors = rng.integers(cache.size, size=count)
        told = self.epsilon_at(label)
        if isinstance(told, tuple):
            low, high = np.log(told)
            epsilon = np.exp(rng.uniform(low, high, count))
        else:
            epsilon = np.full(count, float(told))
        # One random cut of the cache, at a random place of its (random) row order: condition from one part, target from the other.
        first = int(rng.integers(cache.size))
        cut = int(cache.size * rng.uniform(0.4, 0.8)) if self.embed else 0
        everything = (first, cache.size)
        condition_span = (first, cut) if self.disjoint else everything
        target_span = ((first + cut) % cache.size, cache.size - cut) if self.disjoint else everything
        places = at_positions(self.activations[label], anchors, rng)
        queries = cache.keys[places]

        def search(limit: int, span: tuple[int, int]) -> Neighbours:
            return cache.search(queries, support_radius(epsilon, self.kind), anchors, limit, span)

        found = search(MAX_TARGETS, target_span)
        for _ in range(12 if self.empty == "widen" else 0):
            lonely = found.counts == 0
            if not lonely.any():
                break
            epsilon[lonely] *= 2.0
            found = search(MAX_TARGETS, target_span)
        middle = self.log_epsilons.get(label, LOG_EPSILON)
        near = search(self.n_condition, condition_span) if self.embed else None
        beside = near if self.disjoint else None
        members, member_weight, weight = self._targets(found, beside, anchors, epsilon, cut / cache.size)
        arrays = {
            "rows": _pick(members, member_weight, rng),
            "members": members,
            "member_weight": member_weight,
            "weight": weight,
            "floor": self._floor(found, anchors, epsilon),
            "scalars": bandwidth_scalars(epsilon, middle),
        }
        if near is not None:
            arrays["embedding"] = mean_embedding(self.prompts, near)
            arrays["scalars"] = scalar_inputs(near, epsilon, middle)
            if self.attend:
                arrays["near"] = near.table(self.n_condition)
        return _Drawn(self.activations[label][places], arrays)

    def _targets(
        self,
        found: Neighbours,
        told: Neighbours | None,
        anchors: np.ndarray,
        epsilon: np.ndarray,
        part: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cached rows that each of B anchors' target averages over, -1 = none, and their weights: (B, M) each, the anchor's own
        prompt first, then those that were found, then those that condition; and each anchor's weight in the loss (B,).

        Each stands for some prompts of the prior. The anchor's own prompt stands for itself. In sampling the whole cache
        conditions, here a part of it does: those that condition stand for all cached ones. Those that were found stand for all
        others.

        Args:
            told: neighbours that condition; None = none do, or they are among those found.
        """
        chance = np.broadcast_to(
            1.0 / self.prior_size if self.prior is None else self.prior, self.prompts.size
        )
        # Weight of a prompt of probability 1 that stands for itself, where a neighbour that was found weighs 1.
        one = found.scanned.astype(float)
        more = np.ones(len(anchors))
        if told is not None:
            more = np.minimum(1.0 / part, self.n_condition / np.maximum(told.counts, 1))
            one /= 1.0 - np.minimum(more * told.scanned * chance.mean(), MOST_TOLD)
        own = one * chance[anchors]
        lonely = found.counts == 0
        members, weights = [anchors[:, None]], [own[:, None] if self.empty == "own" else lonely[:, None]]
        rows, value = self._table(found, epsilon, MAX_TARGETS)
        members, weights = [*members, rows], [*weights, value]
        if told is not None:
            rows, value = self._table(told, epsilon, self.n_condition)
            # Without one that was found the rest is unknown: those told must not pass for all of it.
            members, weights = (
                [*members, rows],
                [*weights, value * (more * one * ~lonely)[:, None] * chance[rows]],
            )
        weight = np.concatenate(weights, 1, dtype=np.float32)
        # Where none was found about half a neighbour more is expected.
        in_loss = own / (own + 0.5) if self.empty == "own" else 0.0
        return (
            np.where(weight > 0, np.concatenate(members, 1), -1),
            weight,
            np.where(lonely, in_loss, 1.0).astype(np.float32),
        )

    def _table(self, near: Neighbours, epsilon: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Neighbours of each query and their kernel values: (Q, width) each, filled up with -1 and 0."""
        rows = near.table(width)
        value = np.zeros(rows.shape, np.float32)
        value[rows >= 0] = kernel_values(near.distance, np.repeat(epsilon, near.counts), self.kind)
        return rows, value

    def _floor(self, found: Neighbours, anchors: np.ndarray, epsilon: np.ndarray) -> np.ndarray:
        """Bayes floor of the loss (B,) in nats a sequence, the entropy of P(x; z); NaN without a neighbour."""
        rows, value = self._table(found, epsilon, MAX_TARGETS)
        mass = value.sum(1)
        share = mass / np.maximum(found.scanned, 1)
        if self.prior is None:
            floor = np.log(np.maximum(share * self.prior_size + 1.0, 1.0))
        else:
            # What prompts of the ball weigh, on average, over what the ball weighs.
            mean = (-np.log(self.prior)[rows] * value).sum(1) / np.maximum(mass, 1e-12)
            floor = mean + np.log(share + self.prior[anchors])
        return np.where(found.counts > 0, floor, np.nan)


@dataclass
class _Drawn:
    """Examples of one site: activations (B, d), and what else there is of them, by name."""

    z: np.ndarray
    arrays: dict[str, np.ndarray]

    def __getitem__(self, part: slice) -> _Drawn:
        return _Drawn(self.z[part], {name: array[part] for name, array in self.arrays.items()})


def _pick(members: np.ndarray, weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of each row's members (B, M), drawn by weight (B, M)."""
    cumulative = np.cumsum(weight, 1, dtype=np.float64)
    pick = (cumulative < rng.random((len(members), 1)) * cumulative[:, -1:]).sum(1)
    chosen = members[np.arange(len(members)), np.minimum(pick, members.shape[1] - 1)]
    return np.where(chosen < 0, members[:, 0], chosen)


def _mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are (a sparse cache may leave every anchor alone)."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
