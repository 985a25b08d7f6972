"""Cells at one site: every estimator's value for each target, bandwidth and feature, beside the exact one and controls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from inversescope.context import Context, need
from inversescope.fcr.estimators import (
    CacheDraws,
    Estimate,
    GeneratorDraws,
    combined,
    refusal,
    reweighted,
    weighted_match,
)
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Cache, Neighbours
from inversescope.sites import Site
from inversescope.store import read_table
from inversescope.workflow import paths


@dataclass
class SiteCells:
    """Everything that the estimators need at one site."""

    context: Context
    site: Site
    test: np.ndarray  # prompt ids of the targets
    train: np.ndarray  # prompt ids of the cache
    exact: pd.DataFrame
    near: Neighbours  # cached neighbours at the largest radius
    nearest: np.ndarray  # cache row of each target's nearest neighbour
    features: list[str]
    labels: dict[str, np.ndarray]  # of the targets
    train_labels: dict[str, np.ndarray]
    cells: list[dict[str, object]] = field(default_factory=list)

    def add(
        self,
        feature: str,
        target: int,
        epsilon: float,
        estimator: str,
        estimate: Estimate,
        generator: str = "",
        variant: str = "",
        decoding: str = "",
        cache_size: int = 0,
    ) -> None:
        """Record a cell."""
        self.cells.append(
            {
                "target_id": target,
                "epsilon": epsilon,
                "generator": generator,
                "variant": variant,
                "decoding": decoding,
                "cache_size": cache_size,
                "estimator": estimator,
                "feature": feature,
                "value": estimate.value,
                "ess": estimate.ess,
                "n_samples": estimate.n,
            }
        )

    def cached(
        self, target: int, epsilon: float, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and distances of a target's neighbours among the cached prompts, or the allowed ones of them (N,) bool."""
        part = slice(self.near.start[target], self.near.start[target + 1])
        rows, d = self.near.rows[part], self.near.distance[part]
        keep = d < np.float32(support_radius(epsilon, self.context.config.kernel.kind))
        if allowed is not None:
            keep &= allowed[rows]
        return rows[keep], d[keep]


def load_cells(context: Context, label: str) -> SiteCells:
    kernel, task = context.config.kernel, context.task
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    train = context.prompts("train", columns=["prompt_id"])["prompt_id"].to_numpy()
    cache = Cache(np.array(context.activations("train", label)), kernel.distance)
    queries = cache.prepare(np.array(context.activations("test", label)))
    radius = support_radius(max(context.plan.bandwidths), kernel.kind)
    exact = read_table(need(context.path(paths.EXACT, site=label), "compute_exact"))
    return SiteCells(
        context=context,
        site=context.site(label),
        test=test,
        train=train,
        exact=exact.set_index(["epsilon", "target_id"]),
        near=cache.search(queries, radius),
        nearest=cache.nearest(queries)[0],
        features=list(task.features),
        labels=task.features_of(test),
        train_labels=task.features_of(train),
    )


def add_untrained(site: SiteCells, epsilons: list[float]) -> None:
    """Exact values, the cache alone, the chain, and the controls that need no generator."""
    context = site.context
    kernel, task = context.config.kernel, context.task
    size = len(site.train)
    backbone = read_table(need(context.path(paths.PRIOR_SAMPLES), "train_backbone"))
    states = context.path(paths.MCMC, site=site.site.label)
    chain = read_table(need(states, "run_mcmc")) if context.plan.has_chains else None
    chain_ids = chain["prompt_id"].to_numpy().astype(np.int64) if chain is not None and len(chain) else None
    for feature in site.features:
        target_label, cached_label = site.labels[feature], site.train_labels[feature]
        drawn = backbone.loc[backbone["parsed"].astype(bool), f"feature_{feature}"].to_numpy().astype(str)
        names = np.array(task.feature_values[feature])
        # The majority label of the cache is the best guess without any activation.
        majority = int(np.bincount(cached_label[cached_label >= 0]).argmax())
        for target in range(len(site.test)):
            own = target_label[target]
            share = float((drawn == names[own]).mean()) if len(drawn) else math.nan
            prior = Estimate(share, len(drawn), float(len(drawn)))
            for epsilon in epsilons:
                row = site.exact.loc[(epsilon, target)]
                mass = float(row["n_ball"])
                site.add(
                    feature, target, epsilon, "exact", Estimate(float(row[f"fcr_{feature}"]), int(mass), mass)
                )
                site.add(feature, target, epsilon, "prior", prior)
                rows, d = site.cached(target, epsilon)
                weight = kernel_values(d, epsilon, kernel.kind)
                match = (cached_label[rows] == own).astype(float)
                site.add(feature, target, epsilon, "cache", weighted_match(match, weight), cache_size=size)
                hit = float(cached_label[site.nearest[target]] == own)
                site.add(feature, target, epsilon, "nearest", Estimate(hit, 1, 1.0), cache_size=size)
                site.add(feature, target, epsilon, "majority", Estimate(float(majority == own), 1, 1.0))
        if chain_ids is not None and chain is not None:
            match = task.features_of(chain_ids)[feature] == target_label[chain["target_id"].to_numpy()]
            grouped = pd.Series(match.astype(float)).groupby(chain["target_id"].to_numpy())
            for target, value in grouped.mean().items():
                n = int(grouped.size()[target])
                site.add(
                    feature,
                    int(target),
                    context.config.kernel.epsilon,
                    "mcmc",
                    Estimate(float(value), n, math.nan),
                )


def add_variant(site: SiteCells, generator: str, variant: str) -> list[dict[str, object]]:
    """Estimators of one variant; returns its refusal rows, a target each."""
    context = site.context
    own_rows = context.cache_rows(context.config.variant(variant))
    allowed = np.zeros(len(site.train), bool)
    allowed[own_rows] = True
    cache_size = len(own_rows)
    frontier = (
        context.config.variant(variant).study == "frontier"
    )  # generators alone, without the cache's help
    kernel, task = context.config.kernel, context.task
    path = need(context.samples_path(generator, variant, site.site.label), "sample_prompts")
    samples = read_table(path)
    log_q_rows = read_table(
        need(context.samples_path(generator, variant, site.site.label, ".cache.parquet"), "sample_prompts")
    )
    cached_log_q = {
        (float(e), int(t)): (g["row"].to_numpy(), g["logq"].to_numpy())
        for (e, t), g in log_q_rows.groupby(["epsilon", "target_id"])
    }
    support = _Support(site, context.config.variant(variant).cache_pairs)
    cached_prior, cached_density = task.log_prior(site.train), support.log_density(site.train)
    shuffle = np.roll(np.arange(len(site.test)), 1)
    refusals: list[dict[str, object]] = []
    for (epsilon, decoding), block in samples.groupby(["epsilon", "decoding"], sort=True):
        if decoding == "noised":
            continue
        names: dict[str, Any] = {
            "generator": generator,
            "variant": variant,
            "decoding": str(decoding),
            "cache_size": cache_size,
        }
        per_target = {int(t): g for t, g in block.groupby("target_id")}
        for target in range(len(site.test)):
            group = per_target[target]
            index = group["prompt_id"].to_numpy().astype(np.int64)
            parsed, accepted = group["parsed"].to_numpy(bool), group["accepted"].to_numpy(bool)
            log_q = group["logq"].to_numpy(float)
            k = np.where(
                accepted,
                kernel_values(group["distance"].fillna(np.inf).to_numpy(float), epsilon, kernel.kind),
                0.0,
            )
            marginal = group["logq_marginal"].to_numpy(float) if "logq_marginal" in group else None
            priors = task.log_prior(np.where(parsed, index, -1))
            outcome = refusal(parsed, accepted, log_q, index == site.test[target], priors, marginal)
            truth = site.exact.loc[(epsilon, target)]
            refusals.append(
                {
                    **names,
                    "epsilon": epsilon,
                    "target_id": target,
                    "n": outcome.n,
                    "refusal_rate": outcome.rate,
                    "parse_refusal": outcome.parse,
                    "distance_refusal": outcome.distance,
                    "entropy_gap": outcome.entropy - float(truth["entropy"]),
                    "copies": outcome.copies,
                    "bits": -float(truth["log_mass"]) / math.log(2),
                    "bits_generated": -outcome.log_mass / math.log(2),
                }
            )
            labels = task.features_of(np.where(parsed, index, -1))
            density = support.log_density(np.where(parsed, index, -1))
            rows, d = site.cached(target, float(epsilon), allowed)
            cached_k = kernel_values(d, epsilon, kernel.kind)
            known = cached_log_q.get((float(epsilon), target))
            cached_q: np.ndarray | None = None
            if known is not None:
                cached_q = pd.Series(known[1], index=known[0]).reindex(rows).to_numpy()
            elif not len(rows):
                cached_q = np.zeros(0)
            for feature in site.features:
                own = site.labels[feature][target]
                match = (labels[feature] == own).astype(float)
                # Candidates follow P(x; z), kernel and all: a plain mean over the accepted ones (equation 1).
                plain = accepted.astype(float)
                uniform = weighted_match(match, plain)
                site.add(feature, target, epsilon, "generated", uniform, **names)
                site.add(feature, target, epsilon, "reweighted", reweighted(match, k, priors, log_q), **names)
                other = (labels[feature] == site.labels[feature][shuffle[target]]).astype(float)
                site.add(
                    feature, int(shuffle[target]), epsilon, "shuffled", weighted_match(other, plain), **names
                )
                if decoding == "plain" and not frontier:
                    draws = GeneratorDraws(match, k, priors, density, log_q)
                    cached_match = (site.train_labels[feature][rows] == own).astype(float)
                    cached = CacheDraws(
                        cached_match, cached_k, cached_prior[rows], cached_density[rows], cached_q, cache_size
                    )
                    site.add(feature, target, epsilon, "combined", combined(cached, draws), **names)
                    if cache_size != len(site.train):
                        site.add(
                            feature, target, epsilon, "cache", weighted_match(cached_match, cached_k), **names
                        )
    return refusals


@dataclass(frozen=True)
class _Support:
    """What the cache was drawn from: the prior, or its train split, without the test prompts."""

    site: SiteCells
    pairs: str

    def log_density(self, index: np.ndarray) -> np.ndarray:
        """Log probability (n,) of prompts as draws of the cache, -inf for those that it cannot hold, and for -1."""
        task, split = self.site.context.task, "train" if self.pairs == "train" else None
        left_out = np.exp(task.log_prior(self.site.test, split)).sum()
        density = task.log_prior(index, split) - math.log1p(-left_out)
        return np.where(np.isin(index, self.site.test), -np.inf, density)
