"""Stages `compute_exact`, `estimate_fcr`, `collect_tables`: from raw candidates to rates, beside exact values and controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.fcr.cells import add_untrained, add_variant, load_cells
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.rates import coverage_rows, fcr_rates, refusal_rates
from inversescope.kernel.distances import distance_of
from inversescope.store import read_json, read_table, write_table
from inversescope.workflow import paths


def compute_exact(context: Context, site: str) -> None:
    """Weigh the reference prompts by the kernel at one site: exact values of every target, bandwidth and feature.

    Writes results/.../exact/{site}.parquet: target_id, epsilon, n_ball, log_mass (nats, of the preimage's probability under
    the prior), entropy (nats), fcr_{feature}.
    """
    kernel, task = context.config.kernel, context.task
    epsilons = context.plan.bandwidths
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    reference = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    queries = distance_of(kernel.distance).prepare(np.array(context.activations("test", site)))
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
    write_table(pd.concat(rows, ignore_index=True), context.path(paths.EXACT, site=site))
    echo(
        f"compute_exact {site}: {len(test)} targets, {len(reference)} reference prompts, {len(epsilons)} bandwidths"
    )


def estimate_fcr(context: Context, variants: Sequence[str], site: str, out: str = "") -> None:
    """Turn raw candidates into rates at one site: all estimators, controls, refusal, coverage, with intervals.

    Writes results/.../cells/{site}.parquet, fcr/{site}.csv, refusal/{site}.csv and coverage/{site}.csv. With `out` the files go to
    results/.../{out}/ and only the variants' rows are written (the study's).
    """
    base = context.results / out if out else context.results
    here = load_cells(context, site)
    epsilons = context.plan.bandwidths
    if not out:
        add_untrained(here, epsilons)
    refusals: list[dict[str, Any]] = []
    for variant in variants:
        generator = context.config.variant(variant).generator
        meta = read_json(need(context.generator_dir(generator, variant) / "meta.json", "train_generator"))
        if site in meta["shape"]["sites"]:
            refusals += add_variant(here, generator, variant)
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
    rates = fcr_rates(here, cells)
    write_table(rates, base / "fcr" / f"{site}.csv")
    write_table(refusal_rates(here, refusals, rates), base / "refusal" / f"{site}.csv")
    if not out:
        write_table(coverage_rows(here, epsilons), base / "coverage" / f"{site}.csv")
    echo(f"estimate_fcr {site}: {len(cells)} cells, {len(rates)} rates")


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
