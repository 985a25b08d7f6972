"""Where training examples come from, behind one interface: Appendix B's noise, no noise, or kernel pairs.

All sources serve the same `Batch`; the generator's architecture does not know which one it learns from.

- `NoisePairs` (paper, 3.2 and Appendix B): a cached activation plus noise, and the prompt that it came from. With epsilon 0 there
  is no noise (InversionView as published).
- `KernelPairs` (ours): a clean cached activation as anchor, and *other* cached prompts within epsilon of it. They are draws from
  P(x; z) itself, on the activations that are asked for later. What conditions (mean embedding, counts) and what is predicted
  come from disjoint parts of the cache, cut anew for every chunk of steps; the anchor's own prompt is in neither. It enters
  the target with its own prior weight only: it stands for one prompt of the prior, a cached neighbour for |prior| / n of them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, Protocol

import numpy as np

from inversescope.errors import InputError
from inversescope.generator.condition import Prompts, bandwidth_scalars, mean_embedding, scalar_inputs
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Cache

MAX_TARGETS = 128  # neighbours that a soft target averages over


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


class PairSource(Protocol):
    """Where training examples come from."""

    def batch(self, step: int) -> Batch:
        """Examples of one step; a function of the seed and the step alone, so that a resumed run sees the same ones."""


class NoisePairs:
    """Cached activations with Appendix B's noise, each with the prompt that it came from.

    Args:
        epsilon: bandwidth of the noise; 0 = none, and then there is no Bayes floor.
        activations: site label -> (N, d), or (N, P, d): then each example is read at one of P positions.
        width: site label -> dimension in which the noise lives (d for `subspace`, d_model for `model`: the activation is
            padded with zeros, since any orthonormal embedding of a head's output space is as good for isotropic noise).
        prior_size: number of prompts of the prior that the cache was drawn from.
        prior: (N,) probability of each cached prompt, if they are not all alike.
    """

    def __init__(
        self,
        activations: dict[str, np.ndarray],
        prompts: Prompts,
        width: dict[str, int],
        *,
        epsilon: float,
        per_site: int,
        prior_size: int,
        seed: int,
        distance: str = "cosine",
        kind: str = "hard",
        norm_band: float = 0.1,
        floor_every: int = 50,
        prior: np.ndarray | None = None,
    ) -> None:
        self.prior = prior
        self.activations, self.prompts, self.width = activations, prompts, width
        self.epsilon, self.per_site, self.prior_size, self.seed = epsilon, per_site, prior_size, seed
        self.distance, self.kind, self.norm_band, self.floor_every = distance, kind, norm_band, floor_every
        self.caches = {label: Cache(z[:16384], distance) for label, z in activations.items()}

    def batch(self, step: int) -> Batch:
        """Examples of one step."""
        rng = np.random.default_rng([self.seed, 101, step])
        z: dict[str, np.ndarray] = {}
        rows, floors = [], []
        for label, cached in self.activations.items():
            row = rng.integers(self.prompts.size, size=self.per_site)
            clean = np.zeros((self.per_site, self.width[label]), np.float32)
            clean[:, : cached.shape[-1]] = cached[at_positions(cached, row, rng)]
            rows.append(row)
            if not self.epsilon:
                z[label] = clean
                continue
            noised = distance_of(self.distance).perturb(clean, self.epsilon, rng, self.kind, self.norm_band)
            z[label] = noised.astype(np.float32)
            if step % self.floor_every == 0 and cached.ndim == 2:
                # The part of z outside the head's space counts in the distance: compare with zero-padded cached rows.
                cache = self.caches[label]
                padded = np.zeros((cache.size, self.width[label]), np.float32)
                padded[:, : cached.shape[1]] = cached[: cache.size]
                share = Cache(padded, self.distance).counts(
                    cache.prepare(z[label]), np.array([self.epsilon])
                )[:, 0]
                size = self.prior_size if self.prior is None else 1.0 / self.prior[row]
                floors.append(np.log(np.maximum(share / cache.size, 1.0 / size) * size))
        index = np.concatenate(rows)
        return Batch(
            z=z,
            path=self.prompts.tokens[index],
            lengths=self.prompts.lengths[index],
            weight=np.ones(len(index), np.float32),
            floor=float(np.mean(floors)) if floors else float("nan"),
        )


def at_positions(
    z: np.ndarray, rows: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, ...] | np.ndarray:
    """Index of the activations of some rows of z (N, d); of z (N, P, d), of one of each row's positions, at random."""
    return rows if z.ndim == 2 else (rows, rng.integers(z.shape[1], size=len(rows)))


class KernelPairs:
    """Clean anchors with other cached prompts within epsilon as targets.

    Args:
        activations: as in `NoisePairs`; a prompt is as far from an anchor as the nearest of its positions.
        prior: as in `NoisePairs`.
        epsilon: a number, or a range (low, high) from which each anchor draws its own, log-uniformly.
        embed: condition on the mean embedding and the scalars of a disjoint part of the cache.
        soft: target = next-token distribution among all neighbours that share the path's prefix; else one drawn neighbour.
        disjoint: False takes condition and target from the whole cache alike (an ablation: it learns to copy).
        empty: what becomes of anchors without a neighbour: `own` (their prompt, with its prior weight), `skip`, or `widen`
            (epsilon doubled until there is one).
        attend: hand out the neighbours themselves, for attention over them.
        n_condition: neighbours that condition, at most.
        chunk: steps that share one neighbour search.
    """

    def __init__(
        self,
        activations: dict[str, np.ndarray],
        prompts: Prompts,
        *,
        epsilon: float | tuple[float, float],
        per_site: int,
        prior_size: int,
        seed: int,
        distance: str = "cosine",
        kind: str = "hard",
        embed: bool = True,
        soft: bool = True,
        disjoint: bool = True,
        empty: Literal["own", "skip", "widen"] = "own",
        attend: bool = False,
        n_condition: int = 128,
        chunk: int = 16,
        prior: np.ndarray | None = None,
    ) -> None:
        self.prior = prior
        if prompts.size < 4:
            raise InputError(
                f"a cache of {prompts.size} prompts has no neighbours to learn from", "raise n_train"
            )
        self.prompts, self.epsilon, self.per_site = prompts, epsilon, per_site
        self.prior_size, self.seed, self.kind, self.distance = prior_size, seed, kind, distance
        self.attend, self.n_condition = attend, n_condition
        self.embed, self.soft, self.disjoint, self.empty, self.chunk = embed, soft, disjoint, empty, chunk
        self.activations = activations
        self.caches = {label: Cache(z, distance) for label, z in activations.items()}
        self._chunk_index = -1
        self._batches: list[Batch] = []

    def batch(self, step: int) -> Batch:
        """Examples of one step."""
        index, offset = divmod(step, self.chunk)
        if index != self._chunk_index:
            self._batches = self._draw_chunk(index)
            self._chunk_index = index
        return self._batches[offset]

    def _draw_chunk(self, index: int) -> list[Batch]:
        rng = np.random.default_rng([self.seed, 102, index])
        count = self.chunk * self.per_site
        sites = [self._draw_site(label, count, rng) for label in self.activations]
        batches = []
        for k in range(self.chunk):
            part = slice(k * self.per_site, (k + 1) * self.per_site)
            z = {label: site["z"][part] for label, site in zip(self.activations, sites, strict=True)}

            def join(name: str, part: slice = part) -> np.ndarray:
                return np.concatenate([site[name][part] for site in sites])

            rows = join("rows")
            members = join("members")
            width = 1 + int((members[:, 1:] >= 0).sum(1).max())
            members = members[:, :width]
            near = None
            if self.attend:
                near = join("near")
                near = near[:, : max(int((near >= 0).sum(1).max()), 1)]
            batches.append(
                Batch(
                    z=z,
                    path=self.prompts.tokens[rows],
                    lengths=self.prompts.lengths[rows],
                    weight=join("weight"),
                    targets=self.prompts.tokens[np.maximum(members, 0)] if self.soft else None,
                    target_weight=join("member_weight")[:, :width] if self.soft else None,
                    scalars=join("scalars"),
                    embedding=join("embedding") if self.embed else None,
                    neighbours=None if near is None else self.prompts.tokens[np.maximum(near, 0)],
                    neighbour_weight=None if near is None else (near >= 0).astype(np.float32),
                    floor=_mean_of_known(join("floor")),
                )
            )
        return batches

    def _draw_site(self, label: str, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        cache = self.caches[label]
        size = cache.size
        anchors = rng.integers(size, size=count)
        if isinstance(self.epsilon, tuple):
            low, high = np.log(self.epsilon)
            epsilon = np.exp(rng.uniform(low, high, count))
        else:
            epsilon = np.full(count, float(self.epsilon))
        radius = support_radius(epsilon, self.kind)
        # One random cut of the cache, at a random place of its (random) row order: condition from one part, target from the other.
        first = int(rng.integers(size))
        cut = int(size * rng.uniform(0.4, 0.8)) if self.embed else 0
        condition_span = (first, cut) if self.disjoint else (first, size)
        target_span = ((first + cut) % size, size - cut) if self.disjoint else (first, size)
        places = at_positions(self.activations[label], anchors, rng)
        queries = cache.keys[places]
        found = cache.search(queries, radius, anchors, MAX_TARGETS, target_span)
        if self.empty == "widen":
            for _ in range(12):
                lonely = np.flatnonzero(found.counts == 0)
                if not lonely.size:
                    break
                epsilon[lonely] *= 2.0
                radius = support_radius(epsilon, self.kind)
                found = cache.search(queries, radius, anchors, MAX_TARGETS, target_span)
        n = found.counts
        members = np.full((count, MAX_TARGETS + 1), -1, np.int64)
        member_weight = np.zeros((count, MAX_TARGETS + 1), np.float32)
        owner = np.repeat(np.arange(count), n)
        column = 1 + np.arange(len(owner)) - found.start[owner]
        members[owner, column] = found.rows
        member_weight[owner, column] = kernel_values(found.distance, epsilon[owner], self.kind)
        # A neighbour stands for prior_size / scanned prompts of the prior, the anchor's own prompt for one.
        own = found.scanned / self.prior_size if self.prior is None else found.scanned * self.prior[anchors]
        weight = np.ones(count, np.float32)
        if self.empty == "own":
            members[:, 0] = anchors
            member_weight[:, 0] = own
            # Without a neighbour the rest of the posterior is unknown: about half a neighbour more is expected.
            weight[n == 0] = (own / (own + 0.5))[n == 0]
        else:
            members[n == 0, 0] = anchors[n == 0]
            member_weight[n == 0, 0] = 1.0
            weight[n == 0] = 0.0
        cumulative = np.cumsum(member_weight, 1, dtype=np.float64)
        pick = (cumulative < rng.random((count, 1)) * cumulative[:, -1:]).sum(1)
        pick = np.minimum(pick, MAX_TARGETS)
        chosen = members[np.arange(count), pick]
        chosen = np.where(chosen < 0, members[:, 0], chosen)
        share = member_weight[:, 1:].sum(1) / np.maximum(found.scanned, 1)
        floor = np.log(np.maximum(share * self.prior_size + 1.0, 1.0))
        if self.prior is not None:
            # Entropy of P(x; z): what prompts of the ball weigh, on average, over what the ball weighs.
            surprise = np.where(members[:, 1:] >= 0, -np.log(self.prior)[members[:, 1:]], 0.0)
            mean = (surprise * member_weight[:, 1:]).sum(1) / np.maximum(member_weight[:, 1:].sum(1), 1e-12)
            floor = mean + np.log(share + self.prior[anchors])
        result = {
            "z": self.activations[label][places],
            "rows": chosen,
            "members": members,
            "member_weight": member_weight,
            "weight": weight,
            "floor": np.where(n > 0, floor, np.nan),
            "scalars": bandwidth_scalars(epsilon),
        }
        if self.embed:
            near = cache.search(queries, radius, anchors, self.n_condition, condition_span)
            result["embedding"] = mean_embedding(self.prompts, near)
            result["scalars"] = scalar_inputs(near, epsilon)
            if self.attend:
                table = np.full((count, self.n_condition), -1, np.int64)
                owner = np.repeat(np.arange(count), near.counts)
                table[owner, np.arange(len(owner)) - near.start[owner]] = near.rows
                result["near"] = table
        return result


def _mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if all are (a sparse cache may leave every anchor alone)."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
