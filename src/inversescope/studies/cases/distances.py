"""Stage `compare_distances`: how the choice of distance shapes the preimage and what is read from it (an open question of
InversionView's authors)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from inversescope.context import Context, echo
from inversescope.fcr.intervals import bootstrap_means
from inversescope.kernel.distances import Distance, distance_of
from inversescope.sampling.recompute import Activations, activations_of
from inversescope.sites import Site
from inversescope.store import write_table

#: Name -> distance of `kernel` on activations; `standardised` divides each dimension by its standard deviation beforehand.
DISTANCES = {"cosine": "cosine", "normalised_euclidean": "normalised_euclidean", "standardised": "euclidean"}
BLOCK = 1 << 16


def compare_distances(context: Context) -> None:
    """Read each site under three distances, at bandwidths that hold the same share of the prior on average.

    Writes results/{task}/{model}/distances.csv: a row a (site, distance, feature) with epsilon, share (of the prior in a ball),
    spread (standard deviation over targets of log10 of that share), empty (share of targets with none), overlap (Jaccard index
    with the ball of the configured distance), exact fcr with interval, fcr_matched with its own, over as many nearest prompts of
    each target as lie in its ball of the configured distance (balls of a target are of one size under every distance), and
    refusal_{variant} of the raw candidates, judged anew.
    """
    task, config = context.task, context.config
    activations = activations_of(context)
    test, reference = context.prompt_ids("test"), context.prompt_ids("reference")
    own, labels = context.labels_of(test), context.labels_of(reference)
    # Reference prompts (targets, prompts) with the target's label.
    same = {name: labels[name][None] == own[name][:, None] for name in config.fcr.features}
    names = [config.kernel.distance, *(name for name in DISTANCES if name != config.kernel.distance)]
    rows = []
    for site in context.plan.sites:
        if site.position == "any":
            continue
        space = Space(context, activations([site]), site)
        first = np.zeros((0, 0), bool)  # balls of the configured distance
        for name in names:
            d = space.distances(name)
            if name == names[0]:
                epsilon = context.headline(site.label)
                first = ball = matched = d < epsilon
            else:
                epsilon = float(np.quantile(d, first.mean()))
                ball, matched = d < epsilon, nearest(d, first.sum(1))
            about: dict[str, Any] = {"task": task.name, "model": context.model_name, "site": site.label}
            about |= {"distance": name, "epsilon": epsilon, **_sizes(ball, first)}
            refused = {f"refusal_{v}": share for v, share in space.refusals(name, epsilon).items()}
            rows += [about | _rates(context, f, same[f], (ball, matched)) | refused for f in same]
        echo(f"compare_distances {site.label}: {len(DISTANCES)} distances at a share of {first.mean():.4f}")
    write_table(pd.DataFrame(rows), context.results / "distances.csv")


@dataclass(frozen=True)
class Space:
    """Activations of a site, and the candidates that generators drew for its targets."""

    context: Context
    activations: Activations
    site: Site

    @cached_property
    def queries(self) -> np.ndarray:
        """Activations of the targets (targets, d)."""
        return np.array(self.context.activations("test", self.site.label))

    @cached_property
    def keys(self) -> np.ndarray:
        """Activations of the reference prompts (prompts, d)."""
        return np.array(self.context.activations("reference", self.site.label))

    @cached_property
    def scale(self) -> np.ndarray:
        """Standard deviation of each dimension (d,)."""
        return np.array(self.context.activations("train", self.site.label)).std(0)

    def metric(self, name: str) -> tuple[Distance, np.ndarray]:
        """A distance, and what activations are divided by beforehand."""
        unit = np.maximum(self.scale, 1e-12) if name == "standardised" else np.ones_like(self.scale)
        return distance_of(DISTANCES[name]), unit

    def distances(self, name: str) -> np.ndarray:
        """Distances (targets, prompts) under one of `DISTANCES`."""
        metric, unit = self.metric(name)
        queries = metric.prepare((self.queries / unit).astype(np.float32))
        blocks = (self.keys[low : low + BLOCK] for low in range(0, len(self.keys), BLOCK))
        parts = [metric.between(queries, metric.prepare((z / unit).astype(np.float32))) for z in blocks]
        return np.concatenate(parts, axis=1)

    @cached_property
    def candidates(self) -> dict[str, pd.DataFrame]:
        """Variant -> raw candidates at the headline bandwidth and the variant's first decoding."""
        config, result = self.context.config, {}
        for name in config.studied_variants:
            path = self.context.samples_path(config.variant(name).generator, name, self.site.label)
            columns = ["target_id", "prompt_id", "epsilon", "decoding"]
            table = self.context.read(path, "sample_prompts", columns)
            table = table[np.isclose(table["epsilon"], self.context.headline(self.site.label, name))]
            result[name] = table[table["decoding"] == table["decoding"].iloc[0]].reset_index(drop=True)
        return result

    @cached_property
    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct candidates that are prompts (n,), and their activations (n, d)."""
        index = np.unique(np.concatenate([table["prompt_id"] for table in self.candidates.values()]))
        index = index[index >= 0]
        # Of generators none of whose candidates are prompts there is nothing to read.
        z = np.empty((0, *self.queries.shape[1:]), np.float32)
        if len(index):
            z = self.activations(index, self.site)
        return index, z

    def refusals(self, name: str, epsilon: float) -> dict[str, float]:
        """Variant -> share of its candidates that lie outside of the ball."""
        metric, unit = self.metric(name)
        index, found = self.drawn
        shares = {}
        for variant, table in self.candidates.items():
            parsed = table[table["prompt_id"] >= 0]
            z = found[np.searchsorted(index, parsed["prompt_id"].to_numpy())]
            near = metric.paired(self.queries[parsed["target_id"].to_numpy()] / unit, z / unit) < epsilon
            shares[variant] = 1.0 - near.sum() / len(table)
        return shares


def nearest(d: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Which prompts (targets, prompts) are among each target's `count` (targets,) nearest; ties with the last one count too."""
    chosen = np.zeros(d.shape, bool)
    for row, (distance, n) in enumerate(zip(d, count, strict=True)):
        if n:
            chosen[row] = distance <= np.partition(distance, n - 1)[n - 1]
    return chosen


def _sizes(ball: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """How large balls (targets, prompts) are, and how much of those of the configured distance they hold."""
    share, union = ball.mean(1), (ball | first).sum(1)
    overlap = np.where(union > 0, (ball & first).sum(1) / np.maximum(union, 1), np.nan)
    return {
        "share": share.mean(),
        "spread": float(np.nanstd(np.log10(np.where(share > 0, share, np.nan)))),
        "empty": float((share == 0).mean()),
        "overlap": float(np.nanmean(overlap)),
    }


def _rates(
    context: Context, feature: str, same: np.ndarray, balls: tuple[np.ndarray, np.ndarray]
) -> dict[str, Any]:
    """Exact FCR over a ball, and over as many nearest prompts as lie in the configured distance's."""
    settings = context.config.fcr
    with np.errstate(invalid="ignore"):
        match = np.stack([(inside & same).sum(1) / inside.sum(1) for inside in balls])
    found = bootstrap_means(match, settings.bootstrap, settings.confidence, context.config.seed)
    row = dict(zip(("fcr", "ci_low", "ci_high"), (part[0] for part in found), strict=True))
    row |= zip(("fcr_matched", "matched_low", "matched_high"), (part[1] for part in found), strict=True)
    return {"feature": feature, **row, "chance": context.chance(feature)}
