"""Stages `compute_exact`, `estimate_fcr`, `collect_tables`: from raw candidates to rates, beside exact values and controls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.fcr.cells import SiteCells
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.generated import VariantCells
from inversescope.fcr.rates import coverage_rows, fcr_rates, refusal_rates
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.store import read_json, read_table, write_table
from inversescope.workflow import paths


def compute_exact(context: Context, sites: Sequence[str]) -> None:
    """Weigh the reference prompts by the kernel at each site: exact values of every target, bandwidth and feature.

    Writes results/.../exact/{site}.parquet: target_id, epsilon, n_ball, log_mass (nats, of the preimage's probability under
    the prior), entropy (nats), fcr_{feature}.
    """
    kernel, task = context.config.kernel, context.task
    test, reference = context.prompt_ids("test"), context.prompt_ids("reference")
    labels, reference_labels = context.labels_of(test), context.labels_of(reference)
    log_prior = None if task.uniform else task.log_prior(reference)
    for site in sites:
        epsilons = context.epsilons(site)
        values = exact_reference(
            distance_of(kernel.distance).prepare(np.array(context.activations("test", site))),
            context.activations("reference", site),
            labels,
            reference_labels,
            epsilons,
            kernel.distance,
            kernel.kind,
            log_prior=log_prior,
        )
        table = values.table(epsilons, len(reference), task.size)
        context.write(table, context.path(paths.EXACT, site=site))
        echo(
            f"compute_exact {site}: {len(test)} targets, {len(reference)} reference prompts, {len(epsilons)} bandwidths"
        )


def estimate_fcr(context: Context, variants: Sequence[str], sites: Sequence[str], out: str = "") -> None:
    """Turn raw candidates into rates at each site: all estimators, controls, refusal, coverage, with intervals.

    Writes results/.../cells/{site}.parquet, fcr/{site}.csv, refusal/{site}.csv and coverage/{site}.csv. With `out` the files go to
    results/.../{out}/ and only the variants' rows are written (the study's).
    """
    for site in sites:
        _estimate(context, variants, site, out)


def _estimate(context: Context, variants: Sequence[str], site: str, out: str) -> None:
    base = context.results / out if out else context.results
    z, z_train = (np.array(context.activations(split, site)) for split in ("test", "train"))
    here, epsilons = load_site(context, site, z, z_train), context.epsilons(site)
    if not out:
        chains = context.path(paths.MCMC, site=site)
        states = context.read(chains, "run_mcmc") if context.plan.has_chains else None
        prior_samples = read_table(need(context.path(paths.PRIOR_SAMPLES), "train_backbone"))
        here.add_untrained(epsilons, prior_samples, states)
    refusals: list[dict[str, Any]] = []
    for variant in variants:
        generator = context.config.variant(variant).generator
        meta = read_json(need(context.generator_dir(generator, variant) / "meta.json", "train_generator"))
        if site in meta["shape"]["sites"]:
            samples, log_q = (
                context.read(context.samples_path(generator, variant, site, suffix), "sample_prompts")
                for suffix in (".parquet", ".cache.parquet")
            )
            rows = context.cache_rows(context.config.variant(variant))
            refusals += VariantCells(here, generator, variant, rows).add(samples, log_q)
    cells = here.table()
    write_table(cells, base / "cells" / f"{site}.parquet")
    # Rates are over the targets that the task counts; its own tables report the others apart.
    counted = context.task.counted(here.test)
    cells = cells[counted[cells["target_id"].to_numpy()]]
    refusals = [row for row in refusals if counted[row["target_id"]]]
    rates = fcr_rates(here, cells)
    write_table(rates, base / "fcr" / f"{site}.csv")
    write_table(refusal_rates(here, refusals, rates), base / "refusal" / f"{site}.csv")
    if not out:
        write_table(coverage_rows(here, epsilons), base / "coverage" / f"{site}.csv")
    echo(f"estimate_fcr {site}: {len(cells)} cells, {len(rates)} rates")


def load_site(context: Context, label: str, z: np.ndarray, z_train: np.ndarray) -> SiteCells:
    """What the estimators know of a site, from the activations (T, d) of targets and (N, ...) of cached prompts there."""
    kernel = context.config.kernel
    test, train = (
        context.prompts(split, columns=["prompt_id"])["prompt_id"].to_numpy() for split in ("test", "train")
    )
    cache = Cache(z_train, kernel.distance)
    queries = cache.prepare(z)
    exact = context.read(context.path(paths.EXACT, site=label), "compute_exact")
    return SiteCells(
        context=context,
        site=context.site(label),
        test=test,
        left_out=test,
        train=train,
        exact=exact.set_index(["epsilon", "target_id"]),
        near=cache.search(queries, support_radius(max(context.epsilons(label)), kernel.kind)),
        nearest=cache.nearest(queries)[0],
        labels=context.labels_of(test),
        train_labels=context.labels_of(train),
    )


def collect_tables(context: Context) -> None:
    """Concatenate the per-site tables to fcr.csv, refusal.csv and coverage.csv; gather seconds in timings.csv.

    Seconds are measured, so they stand apart: the other tables are byte-identical from run to run.
    """
    labels = [site.label for site in context.plan.sites]
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
