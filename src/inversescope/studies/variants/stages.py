"""Stages `collect_study` and `collect_frontier`: dimension, training steps, seeds and ablations; and generators side by side."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from inversescope.config.methods import VariantConfig
from inversescope.context import Context, echo, need, stream
from inversescope.errors import InputError
from inversescope.fcr.stages import write_timings
from inversescope.sites import Site
from inversescope.store import read_json, read_table, write_table


def collect_study(context: Context) -> None:
    """Write results/.../study.csv, ablations.csv and study_timings.csv from the study's per-site tables.

    study.csv has a row a (variant, site) of the dimension study; ablations.csv a row an (ablation, group of sites, bandwidth),
    with a bootstrap interval of the FCR error over targets. `fcr_error` is the mean over features (and sites) of
    |mean over targets of (generated - exact)|; `fcr_error_weighted` the same for `reweighted`.
    """
    config = context.config
    features = config.fcr.features
    folder = context.results / "study"
    compared = context.plan.ablations
    labels = context.plan.labels_of(compared)
    fcr = pd.concat(
        [read_table(need(folder / "fcr" / f"{x}.csv", "estimate_variants")) for x in labels],
        ignore_index=True,
    )
    refusal = pd.concat([read_table(folder / "refusal" / f"{x}.csv") for x in labels], ignore_index=True)
    cells = pd.concat(
        [read_table(folder / "cells" / f"{x}.parquet").assign(site=x) for x in labels], ignore_index=True
    )
    cells = cells[cells["feature"].isin(features)]
    cells["group"] = cells["site"].map({x: _group(context.site(x)) for x in labels})
    dimension = [v for v in map(config.variant, config.study_variants) if v.study == "dimension"]
    shortest = {
        base: min((v.steps for v in dimension if v.base == base), default=1) for base in ("paper", "default")
    }
    rows, ablations = [], []
    for name in compared:
        variant = config.variant(name)
        meta = read_json(
            need(context.generator_dir(variant.generator, name) / "meta.json", "train_generator")
        )
        refused = refusal[(refusal["variant"] == name) & (refusal["decoding"] == "plain")]
        own = cells[(cells["variant"] == name) & (cells["decoding"] == "plain")]
        if variant.study == "dimension":
            for label, dim in meta["shape"]["sites"].items():
                part = refused[
                    (refused["site"] == label) & (refused["epsilon"] == config.kernel.epsilon)
                ].iloc[0]
                here = own[(own["site"] == label) & (own["epsilon"] == config.kernel.epsilon)]
                rows.append(
                    {
                        "variant": name,
                        "base": variant.base,
                        "seed": variant.seed,
                        "steps_multiple": round(variant.steps / shortest[variant.base]),
                        "site": label,
                        "dim": _dimension(context, label, dim),
                        "kind": _group(context.site(label)),
                        "epsilon": config.kernel.epsilon,
                        "refusal_rate": part["refusal_rate"],
                        "entropy_gap": part["entropy_gap"],
                        "fcr_error": _error(here, "generated"),
                        "fcr_error_weighted": _error(here, "reweighted"),
                        "fcr_error_combined": _error(here, "combined"),
                    }
                )
        if variant.study != "dimension" or (variant.seed == 0 and variant.steps == shortest[variant.base]):
            for epsilon in sorted(own["epsilon"].unique()):
                for group in ("heads", "residual"):
                    mine = own[(own["epsilon"] == epsilon) & (own["group"] == group)]
                    if mine.empty:
                        continue
                    part = refused[
                        (refused["epsilon"] == epsilon) & refused["site"].isin(mine["site"].unique())
                    ]
                    ablations.append(_ablation(context, name, variant, group, epsilon, mine, part))
    write_table(pd.DataFrame(rows), context.results / "study.csv")
    write_table(pd.DataFrame(ablations), context.results / "ablations.csv")
    write_timings(context, compared, context.results / "study_timings.csv")
    echo(
        f"collect_study: {len(rows)} rows of the dimension study, {len(ablations)} of ablations; FCR rows {len(fcr)}"
    )


def _dimension(context: Context, label: str, fallback: int) -> int:
    """Dimension of the activations themselves, not of the space that noise pads them to."""
    return int(context.activations("test", label).shape[1]) or fallback


def _group(site: Site) -> str:
    if site.head is not None:
        return "heads"
    return "mlp" if site.kind.startswith("mlp") else "residual"


def _differences(cells: pd.DataFrame, estimator: str) -> np.ndarray:
    """(sites x features, targets) differences to the exact value, NaN where missing."""
    part = cells[cells["estimator"] == estimator]
    wide = part.assign(difference=part["value"] - part["exact"]).pivot_table(
        index=["site", "feature"], columns="target_id", values="difference", dropna=False
    )
    return wide.to_numpy(float)


def _error(cells: pd.DataFrame, estimator: str) -> float:
    difference = _differences(cells, estimator)
    return float(np.nanmean(np.abs(np.nanmean(difference, 1)))) if difference.size else math.nan


def _resampled_error(difference: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Mean absolute mean difference of each resample: difference (K, n) with NaN = missing, draws (R, n) of targets -> (R,)."""
    n = difference.shape[1]
    count = np.stack([np.bincount(d, minlength=n) for d in draws], 1).astype(float)  # (n, R)
    known = np.isfinite(difference)
    with np.errstate(invalid="ignore"):
        means = (np.where(known, difference, 0.0) @ count) / (known @ count)
    return np.asarray(np.nanmean(np.abs(means), 0))


def _rmse(cells: pd.DataFrame, estimator: str) -> float:
    difference = _differences(cells, estimator)
    return float(np.sqrt(np.nanmean(difference**2))) if difference.size else math.nan


def _ablation(
    context: Context,
    name: str,
    variant: VariantConfig,
    group: str,
    epsilon: float,
    cells: pd.DataFrame,
    refused: pd.DataFrame,
) -> dict[str, object]:
    """One row of ablations.csv."""
    settings = context.config.fcr
    difference = _differences(cells, "generated")
    n = difference.shape[1]
    rng = stream(context.config.seed, "collect_study", name, group)
    draws = rng.integers(n, size=(settings.bootstrap, n))
    errors = _resampled_error(difference, draws)
    tail = (1.0 - settings.confidence) / 2.0
    near = cells[(cells["estimator"] == "cache") & cells["feature"].eq(settings.features[0])]
    return {
        "variant": variant.base if variant.study == "dimension" else name,
        "base": variant.base,
        "study": variant.study,
        "change": variant.change,
        "group": group,
        "epsilon": epsilon,
        "cache_size": int(cells["cache_size"].iloc[0]),
        "share_without_neighbour": float(near["value"].isna().mean()) if len(near) else math.nan,
        "refusal_rate": float(refused["refusal_rate"].mean()),
        "entropy_gap": float(refused["entropy_gap"].mean()),
        "fcr_error": float(np.nanmean(np.abs(np.nanmean(difference, 1)))),
        "ci_low": float(np.nanquantile(errors, tail)),
        "ci_high": float(np.nanquantile(errors, 1.0 - tail)),
        "fcr_error_weighted": _error(cells, "reweighted"),
        "fcr_error_combined": _error(cells, "combined"),
        "cell_rmse": _rmse(cells, "generated"),
        "cell_rmse_cache": _rmse(cells, "cache"),
        "cell_rmse_reweighted": _rmse(cells, "reweighted"),
        "cell_rmse_combined": _rmse(cells, "combined"),
    }


# ------------------------------------------------------------------------------------------------------------------ frontier

FRONTIER_COLUMNS = (
    "generator setting seed refusal_rate fcr_error entropy_gap train_seconds n_parameters variant decoding steps share "
    "refusal_low refusal_high fcr_error_low fcr_error_high fcr_error_reweighted worst_refusal parse_refusal backbone_seconds "
    "n_sites n_targets n_candidates headline"
).split()
HEADS_COLUMNS = "generator variant setting site refusal_rate n_seeds".split()
PAIRS_COLUMNS = (
    "generator other setting other_setting n_sites n_seeds mean other_mean worst other_worst share_won share_lost "
    "difference ci_low ci_high"
).split()


def collect_frontier(context: Context) -> None:
    """Write results/.../frontier.csv, frontier_{time,heads,pairs}.csv: generators side by side.

    frontier.csv has a row a (generator, setting, seed) at the headline bandwidth, means over sites: refusal from raw
    candidates, `fcr_error` as in `collect_study` (plain means of accepted candidates; `fcr_error_reweighted` beside it),
    bootstrap intervals over targets. `generator` is `inversescope`, `inversionview`, `inversionview_noised` (noise in
    training), `inversionview_wide` (as many parameters as `default`), `inversionview_noised_wide` (both) or
    `inversionview_scratch` (decoder from random weights); a setting of `inversescope` names the variant too
    (`default/plain`); `headline` marks the setting under which a generator is quoted. `train_seconds` holds the backbone's
    seconds too (`backbone_seconds`), where training starts from it.
    frontier_time.csv has the same columns at the headline settings, for every length of training (`share` of the longest).
    frontier_heads.csv has refusal by site, mean over seeds; frontier_pairs.csv every pair of generators at their headlines:
    paired difference of mean refusal with a bootstrap interval over targets, and the share of sites that each wins.

    Raises:
        InputError: the study has no variant of the frontier, or a stage before this one has not run.
    """
    config = context.config
    names = context.plan.frontier
    if not names:
        raise InputError(
            "the experiment has no variant of the frontier", "add the study frontier to its studies"
        )
    folder = context.results / "frontier"
    labels = context.plan.labels_of(names)
    refusal = pd.concat(
        [read_table(need(folder / "refusal" / f"{x}.csv", "estimate_variants")) for x in labels],
        ignore_index=True,
    )
    cells = pd.concat(
        [
            read_table(need(folder / "cells" / f"{x}.parquet", "estimate_variants")).assign(site=x)
            for x in labels
        ],
        ignore_index=True,
    )
    cells = cells[cells["feature"].isin(config.fcr.features) & cells["variant"].isin(names)]
    backbone = read_json(need(context.backbone_dir / "meta.json", "train_backbone"))["train_seconds"]
    longest: dict[tuple[str, int], int] = {}
    for name in names:
        variant = config.variant(name)
        key = (variant.base, variant.seed)
        longest[key] = max(longest.get(key, 0), variant.steps)
    rows: list[dict[str, object]] = []
    rates: dict[tuple[str, str], list[np.ndarray]] = {}  # (base, setting) -> refusal (sites, targets) by seed
    for name in names:
        variant = config.variant(name)
        meta = read_json(
            need(context.generator_dir(variant.generator, name) / "meta.json", "train_generator")
        )
        from_backbone = variant.generator == "inversescope" or variant.decoder_init == "backbone"
        seconds = backbone if from_backbone else 0.0
        share = variant.steps / longest[variant.base, variant.seed]
        for order, setting in enumerate(config.decodings_of(name, config.kernel.epsilon, True)):
            refused = refusal[(refusal["variant"] == name) & (refusal["decoding"] == setting)]
            own = cells[(cells["variant"] == name) & (cells["decoding"] == setting)]
            refused_by = _refusal_by_target(context, name, setting)
            if share == 1.0:
                rates.setdefault((variant.base, setting), []).append(refused_by)
            draws = stream(config.seed, "collect_frontier", name, setting).integers(
                refused_by.shape[1], size=(config.fcr.bootstrap, refused_by.shape[1])
            )
            difference = _differences(own, "generated")
            tail = (1.0 - config.fcr.confidence) / 2.0
            low, high = np.nanquantile(_resampled_error(difference, draws), [tail, 1.0 - tail])
            refusal_low, refusal_high = np.quantile(refused_by.mean(0)[draws].mean(1), [tail, 1.0 - tail])
            rows.append(
                {
                    "generator": _method(variant),
                    "setting": setting if _method(variant) == variant.base else f"{variant.base}/{setting}",
                    "seed": variant.seed,
                    "refusal_rate": float(refused_by.mean()),
                    "fcr_error": _error(own, "generated"),
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
                    "fcr_error_reweighted": _error(own, "reweighted"),
                    "worst_refusal": float(refused_by.mean(1).max()),
                    "parse_refusal": float(refused["parse_refusal"].mean()),
                    "backbone_seconds": seconds,
                    "n_sites": refused_by.shape[0],
                    "n_targets": refused_by.shape[1],
                    "n_candidates": int(refused["n_candidates"].sum()),
                    "headline": order == 0,
                }
            )
    table = pd.DataFrame(rows)[FRONTIER_COLUMNS]
    write_table(table[table["share"] == 1.0], context.results / "frontier.csv")
    write_table(table[table["headline"]], context.results / "frontier_time.csv")
    of_base: dict[str, VariantConfig] = {config.variant(v).base: config.variant(v) for v in names}
    sites: dict[str, list[str]] = {
        config.variant(v).base: [s.label for s in context.plan.sites_of(v)] for v in names
    }
    heads = [
        {
            "generator": _method(of_base[base]),
            "variant": base,
            "setting": setting,
            "site": label,
            "refusal_rate": rate,
            "n_seeds": len(tables),
        }
        for (base, setting), tables in rates.items()
        for label, rate in zip(sites[base], np.mean(tables, 0).mean(1), strict=True)
    ]
    write_table(pd.DataFrame(heads)[HEADS_COLUMNS], context.results / "frontier_heads.csv")
    first = {
        base: config.decodings_of(v, config.kernel.epsilon, True)[0]
        for v in names
        for base in [config.variant(v).base]
    }
    pairs = [
        _pair(context, base, other, (first[base], first[other]), rates)
        for i, base in enumerate(first)
        for other in list(first)[i + 1 :]
        if sites[base] == sites[other]
    ]
    write_table(pd.DataFrame(pairs, columns=PAIRS_COLUMNS), context.results / "frontier_pairs.csv")
    echo(f"collect_frontier: {len(rows)} rows of {len(first)} generators at {len(labels)} sites")


def _method(variant: VariantConfig) -> str:
    """A generator's name in frontier.csv: InversionView with noise in training is a row of its own."""
    return variant.base if variant.generator == "inversionview" else variant.generator


def _refusal_by_target(context: Context, name: str, setting: str) -> np.ndarray:
    """Refusal (sites, targets) of a variant under a decoding setting at the headline bandwidth, from raw candidates."""
    generator = context.config.variant(name).generator
    rows = []
    for site in context.plan.sites_of(name):
        path = need(context.samples_path(generator, name, site.label), "sample_prompts")
        frame = read_table(path, ["target_id", "decoding", "epsilon", "accepted"])
        near = np.isclose(frame["epsilon"], context.config.kernel.epsilon)
        part = frame[near & (frame["decoding"] == setting)]
        rows.append(1.0 - part.groupby("target_id")["accepted"].mean().sort_index().to_numpy(float))
    return np.stack(rows)


def _pair(
    context: Context,
    base: str,
    other: str,
    settings: tuple[str, str],
    rates: dict[tuple[str, str], list[np.ndarray]],
) -> dict[str, object]:
    """One row of frontier_pairs.csv: means over seeds, paired by site and target."""
    config = context.config
    one, two = (np.mean(rates[key], 0) for key in zip((base, other), settings, strict=True))
    n = one.shape[1]
    draws = stream(config.seed, "collect_frontier", base, other).integers(n, size=(config.fcr.bootstrap, n))
    tail = (1.0 - config.fcr.confidence) / 2.0
    low, high = np.quantile((one - two).mean(0)[draws].mean(1), [tail, 1.0 - tail])
    by_site, by_site_other = one.mean(1), two.mean(1)
    return {
        "generator": base,
        "other": other,
        "setting": settings[0],
        "other_setting": settings[1],
        "n_sites": len(one),
        "n_seeds": min(len(rates[base, settings[0]]), len(rates[other, settings[1]])),
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
