"""Stages `collect_study` and `collect_frontier`: dimension, training steps, seeds and ablations; and generators side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN, VariantConfig
from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.fcr.intervals import bootstrap_means
from inversescope.fcr.resampling import ends
from inversescope.fcr.stages import write_timings
from inversescope.sites import Site
from inversescope.store import read_json, read_table, write_table
from inversescope.streams import stream
from inversescope.studies.variants.claims import training_losses
from inversescope.studies.variants.errors import cell_rmse, differences, mean_error, resampled_error


def _estimates(context: Context, group: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Refusal, and cells of the headline features, of a group of further variants (`study` or `frontier`) at all of their sites and
    bandwidths."""
    names, folder = context.plan.group(group), context.results / group
    refusal, cells = [], []
    for label in context.plan.labels_of(names):
        refusal.append(read_table(need(folder / "refusal" / f"{label}.csv", "estimate_fcr")))
        found = read_table(need(folder / "cells" / f"{label}.parquet", "estimate_fcr"))
        named = [{"epsilon": epsilon, "bandwidth": str(one)} for one, epsilon in context.resolved(label)]
        cells.append(found.merge(pd.DataFrame(named), on="epsilon").assign(site=label))
    read = [(name, str(one)) for name in names for one in context.config.bandwidths_of(name)]
    tables = [pd.concat(parts, ignore_index=True) for parts in (refusal, cells)]
    refused, table = (
        one[pd.MultiIndex.from_frame(one[["variant", "bandwidth"]]).isin(read)] for one in tables
    )
    return refused, table[table["feature"].isin(context.config.fcr.features)]


def _description(context: Context, name: str) -> dict[str, Any]:
    """What is written of a trained generator."""
    folder = context.generator_dir(context.config.variant(name).generator, name)
    meta: dict[str, Any] = read_json(need(folder / "meta.json", "train_generator"))
    return meta


def _group(site: Site) -> str:
    if site.head is not None:
        return "heads"
    return "mlp" if site.kind.startswith("mlp") else "residual"


# --------------------------------------------------------------------------------------------------------------------- study


def collect_study(context: Context) -> None:
    """Write results/.../study.csv, study_rates.csv, ablations.csv, claims.csv and study_timings.csv from per-site tables.

    study.csv has a row a (variant, site, bandwidth) of the dimension study; study_rates.csv one a headline feature too: the
    generated and the exact rate, with bootstrap intervals over targets, and the refusal. ablations.csv has a row an (ablation,
    group of sites, bandwidth), epsilon and share medians over sites, with a bootstrap interval of the FCR error over targets.
    claims.csv has the same of the runs that test claims of the paper, with `seed`, `copies` (share of accepted candidates that are
    the target prompt itself) and the losses of `claims.training_losses`.
    `fcr_error` is the mean over features (and sites) of |mean over targets of (generated - exact)|; `fcr_error_weighted` the same
    for `reweighted`.
    """
    config, compared = context.config, context.plan.ablations
    refusal, cells = _estimates(context, "study")
    groups = {label: _group(context.site(label)) for label in context.plan.labels_of(compared)}
    cells = cells.assign(group=cells["site"].map(groups))
    shortest: dict[str, int] = {}
    for name in filter(config.is_swept, compared):
        variant = config.variant(name)
        shortest[variant.base] = min(variant.steps, shortest.get(variant.base, variant.steps))
    rows: list[dict[str, Any]] = []
    rates, ablations, claims = [], [], []
    for name in compared:
        variant, swept = config.variant(name), config.is_swept(name)
        refused, own = (
            table[(table["variant"] == name) & (table["decoding"] == PLAIN)] for table in (refusal, cells)
        )
        if swept:
            multiple = round(variant.steps / shortest[variant.base])
            own_rows = list(_dimension_rows(context, name, multiple, refused, own))
            rows += own_rows
            rates.append(_rate_rows(context, pd.DataFrame(own_rows), refused, own))
        if not swept or (variant.seed == 0 and variant.steps == shortest[variant.base]):
            for bandwidth in map(str, config.bandwidths_of(name)):
                for group in ("heads", "residual"):
                    mine = own[(own["bandwidth"] == bandwidth) & (own["group"] == group)]
                    if len(mine):
                        there = refused["site"].isin(mine["site"].unique())
                        part = refused[(refused["bandwidth"] == bandwidth) & there]
                        key = {"group": group, "bandwidth": bandwidth}
                        row = _ablation(context, name, key, mine, part)
                        if name in context.plan.claims:
                            told = {"seed": variant.seed, "copies": float(part["copies"].mean())}
                            claims.append(row | told | training_losses(context, name))
                        else:
                            ablations.append(row)
    write_table(pd.DataFrame(rows), context.results / "study.csv")
    write_table(
        pd.concat(rates, ignore_index=True) if rates else pd.DataFrame(), context.results / "study_rates.csv"
    )
    write_table(pd.DataFrame(ablations), context.results / "ablations.csv")
    write_table(pd.DataFrame(claims), context.results / "claims.csv")
    write_timings(context, compared, context.results / "study_timings.csv")
    echo(f"collect_study: {len(rows)} rows of the dimension study, {len(ablations)} of ablations")


def _dimension_rows(
    context: Context, name: str, multiple: int, refused: pd.DataFrame, cells: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    """Rows of study.csv of one variant, at each bandwidth at which it is read."""
    variant = context.config.variant(name)
    sites = _description(context, name)["shape"]["sites"]
    for bandwidth, label in product(context.config.bandwidths_of(name), sites):
        part, here = (t[(t["site"] == label) & (t["bandwidth"] == str(bandwidth))] for t in (refused, cells))
        yield {
            "variant": name,
            "base": variant.base,
            "seed": variant.seed,
            "steps_multiple": multiple,
            "site": label,
            # Of the activations themselves, not of the space that noise pads them to.
            "dim": int(context.activations("test", label, raw=True).shape[1]),
            "kind": _group(context.site(label)),
            "epsilon": context.epsilon(bandwidth, label),
            "share": part["share"].iloc[0],
            "bandwidth": str(bandwidth),
            "refusal_rate": part["refusal_rate"].iloc[0],
            "entropy_gap": part["entropy_gap"].iloc[0],
            "fcr_error": mean_error(here, "generated"),
            "fcr_error_weighted": mean_error(here, "reweighted"),
            "fcr_error_combined": mean_error(here, "combined"),
        }


def _rate_rows(
    context: Context, about: pd.DataFrame, refused: pd.DataFrame, cells: pd.DataFrame
) -> pd.DataFrame:
    """Rows of study_rates.csv of one variant; `about` are its rows of study.csv."""
    settings, seed = context.config.fcr, context.config.seed
    wide = cells[cells["estimator"] == "generated"].pivot(
        index=["site", "bandwidth", "feature"], columns="target_id", values=["value", "exact"]
    )
    rows = wide.index.to_frame(index=False)
    for column, name in {"value": "fcr", "exact": "exact"}.items():
        values = wide[column].to_numpy(float)
        names = (name, *(f"{'ci' if name == 'fcr' else name}_{end}" for end in ("low", "high")))
        ends = bootstrap_means(values, settings.bootstrap, settings.confidence, seed)
        rows = rows.assign(**dict(zip(names, ends, strict=True)))
    rows["n_targets"] = np.isfinite(wide["value"].to_numpy(float)).sum(1)
    rows["chance"] = rows["feature"].map(context.task.chance)
    of = ["refusal_rate", "parse_refusal", "distance_refusal", "entropy_gap", "epsilon", "share"]
    rows = rows.merge(refused[["site", "bandwidth", *of]], on=["site", "bandwidth"])
    shared = ["variant", "base", "seed", "steps_multiple", "site", "dim", "kind"]
    return about[shared].drop_duplicates("site").merge(rows, on="site")


def _ablation(
    context: Context, name: str, key: dict[str, Any], cells: pd.DataFrame, refused: pd.DataFrame
) -> dict[str, Any]:
    """One row of ablations.csv."""
    variant, settings = context.config.variant(name), context.config.fcr
    difference = differences(cells, "generated")
    n = difference.shape[1]
    rng = stream(context.config.seed, "collect_study", name, key["group"])
    draws = rng.integers(n, size=(settings.bootstrap, n))
    error = mean_error(cells, "generated")
    low, high = ends(resampled_error(difference, draws), settings.confidence, error)
    near = cells[(cells["estimator"] == "cache") & cells["feature"].eq(settings.features[0])]
    return {
        "variant": variant.base if context.config.is_swept(name) else name,
        "base": variant.base,
        "study": variant.study,
        "change": variant.change,
        **key,
        "epsilon": float(refused["epsilon"].median()),
        "share": float(refused["share"].median()),
        "cache_size": int(cells["cache_size"].iloc[0]),
        "share_without_neighbour": float(near["value"].isna().mean()) if len(near) else math.nan,
        "refusal_rate": float(refused["refusal_rate"].mean()),
        "entropy_gap": float(refused["entropy_gap"].mean()),
        "fcr_error": error,
        "ci_low": low,
        "ci_high": high,
        "fcr_error_weighted": mean_error(cells, "reweighted"),
        "fcr_error_combined": mean_error(cells, "combined"),
        "cell_rmse": cell_rmse(cells, "generated"),
        **{f"cell_rmse_{e}": cell_rmse(cells, e) for e in ("cache", "reweighted", "combined")},
    }


# ------------------------------------------------------------------------------------------------------------------ frontier

PAIRS_COLUMNS = (
    "generator other setting other_setting n_sites n_seeds mean other_mean worst other_worst share_won share_lost "
    "difference ci_low ci_high"
).split()
#: (base, setting) -> refusal (sites, targets), a table a seed.
Rates = dict[tuple[str, str], list[np.ndarray]]


def collect_frontier(context: Context) -> None:
    """Write results/.../frontier.csv, frontier_{time,heads,pairs}.csv: generators side by side.

    frontier.csv has a row a (generator, setting, seed) at the headline bandwidth, means over sites: refusal from raw
    candidates, `fcr_error` as in `collect_study` (plain means of accepted candidates; `fcr_error_reweighted` beside it),
    bootstrap intervals over targets. `generator` is `inversescope`, or a variant of InversionView; a setting of `inversescope`
    names the variant too (`default/plain`); `headline` marks the setting under which a generator is quoted. `train_seconds`
    holds the backbone's seconds too (`backbone_seconds`), where training starts from it.
    frontier_time.csv has the same columns at the headline settings, for every length of training (`share` of the longest).
    frontier_heads.csv has refusal by site, mean over seeds; frontier_pairs.csv every pair of generators at their headlines:
    paired difference of mean refusal with a bootstrap interval over targets, and the share of sites that each wins.

    Raises:
        InputError: the study has no variant of the frontier, or a stage before this one has not run.
    """
    config, names = context.config, context.plan.frontier
    if not names:
        raise InputError(
            "the experiment has no variant of the frontier", "add the study frontier to its studies"
        )
    refusal, cells = _estimates(context, "frontier")
    variants = {name: config.variant(name) for name in names}
    longest: dict[tuple[str, int], int] = {}
    for one in variants.values():
        longest[one.base, one.seed] = max(longest.get((one.base, one.seed), 0), one.steps)
    rows, rates, first = [], Rates(), {}
    for name, variant in variants.items():
        share = variant.steps / longest[variant.base, variant.seed]
        settings = config.decodings_of(name, True, True)
        first[variant.base] = settings[0]
        for setting in settings:
            refused = _refusal_by_target(context, name, setting)
            if share == 1.0:
                rates.setdefault((variant.base, setting), []).append(refused)
            of = [t[(t["variant"] == name) & (t["decoding"] == setting)] for t in (refusal, cells)]
            row = _frontier_row(context, name, (setting, share), refused, *of)
            rows.append(row | {"headline": setting == settings[0]})
    table = pd.DataFrame(rows)
    write_table(table[table["share"] == 1.0], context.results / "frontier.csv")
    write_table(table[table["headline"]], context.results / "frontier_time.csv")
    of_base = {variant.base: name for name, variant in variants.items()}
    heads = [row for key, of in rates.items() for row in _head_rows(context, of_base[key[0]], key, of)]
    write_table(pd.DataFrame(heads), context.results / "frontier_heads.csv")
    sites = {base: context.plan.sites_of(name) for base, name in of_base.items()}
    pairs = [
        _pair(context, (one, first[one]), (two, first[two]), rates)
        for one, two in combinations(first, 2)
        if sites[one] == sites[two]
    ]
    write_table(pd.DataFrame(pairs, columns=PAIRS_COLUMNS), context.results / "frontier_pairs.csv")
    echo(f"collect_frontier: {len(rows)} rows of {len(first)} generators")


def _method(variant: VariantConfig) -> str:
    """A generator's name in frontier.csv: InversionView with noise in training is a row of its own."""
    return variant.base if variant.generator == "inversionview" else variant.generator


def _frontier_row(
    context: Context,
    name: str,
    run: tuple[str, float],
    refused_by: np.ndarray,
    refused: pd.DataFrame,
    cells: pd.DataFrame,
) -> dict[str, Any]:
    """One row of frontier.csv: a setting, the share of the longest training, refusal (sites, targets) of raw candidates, and the
    rows of refusal and cells of this variant and setting."""
    setting, share = run
    config, variant, meta = context.config, context.config.variant(name), _description(context, name)
    seconds = 0.0
    if variant.generator == "inversescope" or variant.decoder_init == "backbone":
        seconds = read_json(need(context.backbone_dir / "meta.json", "train_backbone"))["train_seconds"]
    n = refused_by.shape[1]
    draws = stream(config.seed, "collect_frontier", name, setting).integers(n, size=(config.fcr.bootstrap, n))
    refusal_low, refusal_high = ends(refused_by.mean(0)[draws].mean(1), config.fcr.confidence)
    error = mean_error(cells, "generated")
    again = resampled_error(differences(cells, "generated"), draws)
    low, high = ends(again, config.fcr.confidence, error)
    method = _method(variant)
    return {
        "generator": method,
        "setting": setting if method == variant.base else f"{variant.base}/{setting}",
        "seed": variant.seed,
        "refusal_rate": float(refused_by.mean()),
        "fcr_error": error,
        "entropy_gap": float(refused["entropy_gap"].mean()),
        "train_seconds": meta["train_seconds"] + seconds,
        "n_parameters": meta["n_parameters"],
        "variant": variant.base,
        "decoding": setting,
        "steps": meta["steps"],
        "share": share,
        "refusal_low": refusal_low,
        "refusal_high": refusal_high,
        "fcr_error_low": low,
        "fcr_error_high": high,
        "fcr_error_reweighted": mean_error(cells, "reweighted"),
        "worst_refusal": float(refused_by.mean(1).max()),
        "parse_refusal": float(refused["parse_refusal"].mean()),
        "backbone_seconds": seconds,
        "n_sites": refused_by.shape[0],
        "n_targets": n,
        "n_candidates": int(refused["n_candidates"].sum()),
    }


def _refusal_by_target(context: Context, name: str, setting: str) -> np.ndarray:
    """Refusal (sites, targets) of a variant under a decoding setting at the headline bandwidth, from raw candidates."""
    generator = context.config.variant(name).generator
    rows = []
    for site in context.plan.sites_of(name):
        path = need(context.samples_path(generator, name, site.label), "sample_prompts")
        frame = read_table(path, ["target_id", "decoding", "epsilon", "accepted"])
        near = np.isclose(frame["epsilon"], context.headline(site.label, name))
        part = frame[near & (frame["decoding"] == setting)]
        rows.append(1.0 - part.groupby("target_id")["accepted"].mean().sort_index().to_numpy(float))
    return np.stack(rows)


def _head_rows(
    context: Context, name: str, key: tuple[str, str], tables: list[np.ndarray]
) -> Iterator[dict[str, Any]]:
    """Rows of frontier_heads.csv of one generator and setting, means over seeds; `name` is any of its variants."""
    about = {"generator": _method(context.config.variant(name)), "variant": key[0], "setting": key[1]}
    sites = context.plan.sites_of(name)
    for site, rate in zip(sites, np.mean(tables, 0).mean(1), strict=True):
        yield {**about, "site": site.label, "refusal_rate": rate, "n_seeds": len(tables)}


def _pair(context: Context, one: tuple[str, str], two: tuple[str, str], rates: Rates) -> dict[str, Any]:
    """One row of frontier_pairs.csv, of two generators under a setting each: means over seeds, paired by site and target."""
    config = context.config
    mine, theirs = (np.mean(rates[key], 0) for key in (one, two))
    n = mine.shape[1]
    rng = stream(config.seed, "collect_frontier", one[0], two[0])
    draws = rng.integers(n, size=(config.fcr.bootstrap, n))
    low, high = ends((mine - theirs).mean(0)[draws].mean(1), config.fcr.confidence)
    by_site, by_site_other = mine.mean(1), theirs.mean(1)
    return {
        "generator": one[0],
        "other": two[0],
        "setting": one[1],
        "other_setting": two[1],
        "n_sites": len(mine),
        "n_seeds": min(len(rates[one]), len(rates[two])),
        "mean": float(by_site.mean()),
        "other_mean": float(by_site_other.mean()),
        "worst": float(by_site.max()),
        "other_worst": float(by_site_other.max()),
        "share_won": float((by_site < by_site_other).mean()),
        "share_lost": float((by_site > by_site_other).mean()),
        "difference": float(by_site.mean() - by_site_other.mean()),
        "ci_low": low,
        "ci_high": high,
    }
