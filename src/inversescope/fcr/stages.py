"""Stages `compute_exact`, `estimate_fcr`, `collect_tables`: from raw candidates to rates, beside exact values and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.fcr.estimators import (
    LOW_ESS,
    CacheDraws,
    Estimate,
    GeneratorDraws,
    bootstrap_means,
    combined,
    exact_reference,
    refusal,
    reweighted,
    weighted_match,
)
from inversescope.kernel.kernel import kernel_values, prepare, support_radius
from inversescope.kernel.neighbours import Cache, Neighbours, coverage
from inversescope.sites import Site
from inversescope.store import read_json, read_table, write_table

FCR_COLUMNS = (
    "task model generator variant site layer head epsilon feature estimator fcr ci_low ci_high cell_rmse n_targets n_samples ess "
    "decoding cache_size ess_low chance exact error error_low error_high"
).split()
REFUSAL_COLUMNS = (
    "task model generator variant site layer head epsilon entropy_gap n_candidates refusal_rate parse_refusal distance_refusal "
    "ci_low ci_high decoding cache_size copies fcr_error bits bits_generated gap_low gap_high"
).split()


def compute_exact(context: Context, site: str) -> None:
    """Weigh the reference prompts by the kernel at one site: exact values of every target, bandwidth and feature.

    Writes results/.../exact/{site}.parquet: target_id, epsilon, n_ball, log_mass (nats, of the preimage's probability under
    the prior), entropy (nats), fcr_{feature}.
    """
    kernel, task = context.config.kernel, context.task
    epsilons = _epsilons(context)
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    reference = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    queries = prepare(np.array(context.activations("test", site)), kernel.distance)
    z = context.activations("reference", site)
    values = exact_reference(
        queries,
        z,
        task.features_of(test),
        task.features_of(reference),
        epsilons,
        kernel.distance,
        kernel.kind,
        log_prior=None if task.uniform else task.log_prior(reference),
    )
    rows = []
    for e, epsilon in enumerate(epsilons):
        frame = pd.DataFrame(
            {"target_id": np.arange(len(test)), "epsilon": epsilon, "n_ball": values.count[:, e]}
        )
        with np.errstate(divide="ignore"):
            frame["log_mass"] = np.log(values.mass[:, e] / len(reference))
        # The entropy of the posterior over prompts of the prior; draws stand for more than themselves.
        surprise = math.log(task.size) if values.surprise is None else values.surprise[:, e]
        frame["entropy"] = values.entropy[:, e] + surprise - math.log(len(reference))
        for name, match in values.match.items():
            frame[f"fcr_{name}"] = match[:, e]
        rows.append(frame)
    write_table(pd.concat(rows, ignore_index=True), context.results / "exact" / f"{site}.parquet")
    echo(
        f"compute_exact {site}: {len(test)} targets, {len(reference)} reference prompts, {len(epsilons)} bandwidths"
    )


def _epsilons(context: Context) -> list[float]:
    config = context.config
    used = {
        e for name in [*config.studied_variants, *config.study_variants] for e in config.epsilons_of(name)
    }
    return sorted({*config.kernel.epsilons, config.kernel.epsilon, *used})


@dataclass
class _Site:
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


def _load_site(context: Context, label: str) -> _Site:
    kernel, task = context.config.kernel, context.task
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    train = context.prompts("train", columns=["prompt_id"])["prompt_id"].to_numpy()
    cache = Cache(np.array(context.activations("train", label)), kernel.distance)
    queries = cache.prepare(np.array(context.activations("test", label)))
    radius = support_radius(max(_epsilons(context)), kernel.kind)
    exact = read_table(need(context.results / "exact" / f"{label}.parquet", "compute_exact"))
    return _Site(
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


def estimate_fcr(context: Context, variants: Sequence[str], site: str, out: str = "") -> None:
    """Turn raw candidates into rates at one site: all estimators, controls, refusal, coverage, with intervals.

    Writes results/.../cells/{site}.parquet, fcr/{site}.csv, refusal/{site}.csv and coverage/{site}.csv. With `out` the files go to
    results/.../{out}/ and only the variants' rows are written (the study's).
    """
    base = context.results / out if out else context.results
    here = _load_site(context, site)
    epsilons = _epsilons(context)
    if not out:
        _untrained(here, epsilons)
    refusals: list[dict[str, Any]] = []
    for variant in variants:
        generator = context.config.variant(variant).generator
        meta = read_json(need(context.generator_dir(generator, variant) / "meta.json", "train_generator"))
        if site in meta["shape"]["sites"]:
            refusals += _variant(here, generator, variant)
    cells = pd.DataFrame(here.cells)
    for feature in here.features:
        truth = here.exact[f"fcr_{feature}"]
        rows = cells["feature"] == feature
        index = pd.MultiIndex.from_frame(cells.loc[rows, ["epsilon", "target_id"]])
        cells.loc[rows, "exact"] = truth.reindex(index).to_numpy()
    write_table(cells, base / "cells" / f"{site}.parquet")
    # Rates are over the targets that the task counts; its own tables report the others apart.
    counted = context.task.counted(here.test)
    cells = cells[counted[cells["target_id"].to_numpy()]]
    refusals = [row for row in refusals if counted[row["target_id"]]]
    rates = _summarise(here, cells)
    write_table(rates, base / "fcr" / f"{site}.csv")
    write_table(_finish_refusals(here, refusals, rates), base / "refusal" / f"{site}.csv")
    if not out:
        write_table(_coverage(here, epsilons), base / "coverage" / f"{site}.csv")
    echo(f"estimate_fcr {site}: {len(cells)} cells, {len(rates)} rates")


def _untrained(site: _Site, epsilons: list[float]) -> None:
    """Exact values, the cache alone, the chain, and the controls that need no generator."""
    context = site.context
    kernel, task = context.config.kernel, context.task
    size = len(site.train)
    backbone = read_table(need(context.results / "samples" / "backbone.parquet", "train_backbone"))
    mcmc_path = context.results / "mcmc" / f"{site.site.label}.parquet"
    chain = read_table(mcmc_path) if mcmc_path.exists() else None
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


def _variant(site: _Site, generator: str, variant: str) -> list[dict[str, object]]:
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
        need(context.cache_logq_path(generator, variant, site.site.label), "sample_prompts")
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

    site: _Site
    pairs: str

    def log_density(self, index: np.ndarray) -> np.ndarray:
        """Log probability (n,) of prompts as draws of the cache, -inf for those that it cannot hold, and for -1."""
        task, split = self.site.context.task, "train" if self.pairs == "train" else None
        left_out = np.exp(task.log_prior(self.site.test, split)).sum()
        density = task.log_prior(index, split) - math.log1p(-left_out)
        return np.where(np.isin(index, self.site.test), -np.inf, density)


_KEYS = ["generator", "variant", "epsilon", "feature", "estimator", "decoding", "cache_size"]


def _summarise(site: _Site, cells: pd.DataFrame) -> pd.DataFrame:
    """Rates over targets, with intervals: one row a (variant, epsilon, feature, estimator)."""
    context = site.context
    settings = context.config.fcr
    targets = np.arange(len(site.test))
    groups = list(cells.groupby(_KEYS, sort=True))
    table, errors = np.full((2, len(groups), len(targets)), math.nan)
    for g, (_, group) in enumerate(groups):
        table[g, group["target_id"].to_numpy()] = group["value"].to_numpy()
        errors[g, group["target_id"].to_numpy()] = (group["value"] - group["exact"]).to_numpy()
    bootstrap = settings.bootstrap, settings.confidence, context.config.seed
    mean, low, high = bootstrap_means(table, *bootstrap)
    # Of the same targets: far narrower than two intervals side by side, as targets differ more than estimates of one do.
    error, error_low, error_high = bootstrap_means(errors, *bootstrap)
    rows = []
    for g, (key, group) in enumerate(groups):
        difference = errors[g][np.isfinite(errors[g])]
        row: dict[str, object] = dict(zip(_KEYS, key, strict=True))
        row.update(
            fcr=mean[g],
            ci_low=low[g],
            ci_high=high[g],
            cell_rmse=float(np.sqrt((difference**2).mean())) if len(difference) else math.nan,
            n_targets=int(group["value"].notna().sum()),
            n_samples=float(group["n_samples"].mean()),
            ess=float(group["ess"].median()),
            ess_low=float((group["ess"] < LOW_ESS).mean()),
            chance=context.task.chance(str(row["feature"])),
            exact=float(group["exact"].mean()),
            error=error[g],
            error_low=error_low[g],
            error_high=error_high[g],
        )
        rows.append(row)
    return _identify(site, pd.DataFrame(rows))[FCR_COLUMNS]


def _identify(site: _Site, frame: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that say where a row comes from."""
    context = site.context
    head = site.site.head if site.site.head is not None else ""
    return frame.assign(
        task=context.task_name,
        model=context.model_name,
        site=site.site.label,
        layer=site.site.layer,
        head=head,
    )


def _finish_refusals(site: _Site, rows: list[dict[str, object]], rates: pd.DataFrame) -> pd.DataFrame:
    """Means over targets of the refusal rows, with intervals and the FCR error beside them."""
    if not rows:
        return pd.DataFrame(columns=REFUSAL_COLUMNS)
    settings = site.context.config.fcr
    frame = pd.DataFrame(rows)
    keys = ["generator", "variant", "epsilon", "decoding", "cache_size"]
    result = []
    for key, group in frame.groupby(keys, sort=True):
        names = dict(zip(keys, key, strict=True))
        values = group.sort_values("target_id")[["refusal_rate", "entropy_gap"]].to_numpy(float).T
        _, low, high = bootstrap_means(
            values, settings.bootstrap, settings.confidence, site.context.config.seed
        )
        same = rates[(rates["estimator"] == "generated") & rates["feature"].isin(settings.features)]
        for name, value in names.items():
            same = same[same[name] == value]
        means = group[
            [
                "refusal_rate",
                "parse_refusal",
                "distance_refusal",
                "entropy_gap",
                "copies",
                "bits",
                "bits_generated",
            ]
        ].mean()
        result.append(
            {
                **names,
                **means.to_dict(),
                "n_candidates": int(group["n"].sum()),
                "ci_low": low[0],
                "ci_high": high[0],
                "gap_low": low[1],
                "gap_high": high[1],
                "fcr_error": float(same["error"].abs().mean()),
            }
        )
    return _identify(site, pd.DataFrame(result))[REFUSAL_COLUMNS]


def _coverage(site: _Site, epsilons: list[float]) -> pd.DataFrame:
    """How many cached neighbours the targets have, a bandwidth each."""
    rows = []
    size = len(site.train)
    for epsilon in epsilons:
        counts = [len(site.cached(target, epsilon)[0]) for target in range(len(site.test))]
        rows.append({"epsilon": epsilon, "cache_size": size, **coverage(np.array(counts)).to_dict()})
    frame = _identify(site, pd.DataFrame(rows))
    first = ["task", "model", "site", "epsilon", "cache_size"]
    return frame[[*first, *(c for c in frame.columns if c not in [*first, "layer", "head"])]]


def collect_tables(context: Context) -> None:
    """Concatenate the per-site tables to fcr.csv, refusal.csv and coverage.csv; gather seconds in timings.csv.

    Seconds are measured, so they stand apart: the other tables are byte-identical from run to run.
    """
    labels = [site.label for site in context.sites()]
    for name in ("fcr", "refusal", "coverage"):
        parts = [
            read_table(need(context.results / name / f"{label}.csv", "estimate_fcr")) for label in labels
        ]
        write_table(pd.concat(parts, ignore_index=True), context.results / f"{name}.csv")
    write_timings(context, context.config.studied_variants, context.results / "timings.csv")
    echo(f"collect_tables: {len(labels)} sites")


def write_timings(context: Context, variants: Sequence[str], path: Path) -> None:
    """Seconds of training and sampling as measured, a (variant, site) each."""
    rows = []
    for variant in variants:
        generator = context.config.variant(variant).generator
        meta = read_json(need(context.generator_dir(generator, variant) / "meta.json", "train_generator"))
        for label in meta["shape"]["sites"]:
            timing = read_json(context.samples_path(generator, variant, label).with_suffix(".json"))
            rows.append(
                {
                    "generator": generator,
                    "variant": variant,
                    "site": label,
                    "train_seconds": meta["train_seconds"],
                    "sample_seconds": timing["sample_seconds"],
                    "steps": meta["steps"],
                    "n_parameters": meta["n_parameters"],
                }
            )
    write_table(pd.DataFrame(rows), path)
