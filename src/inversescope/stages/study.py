"""Stage `collect_study`: the study over site dimension, training steps and seeds, and the ablations, as two tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from inversescope.config import VariantConfig
from inversescope.sites import Site
from inversescope.stages.common import Context, echo, need, stream
from inversescope.stages.estimates import write_timings
from inversescope.store import read_json, read_table, write_table


def collect_study(context: Context, generator: str) -> None:
    """Write results/.../study.csv, ablations.csv and study_timings.csv from the study's per-site tables.

    study.csv has a row a (variant, site) of the dimension study; ablations.csv a row an (ablation, group of sites, bandwidth),
    with a bootstrap interval of the FCR error over targets. `fcr_error` is the mean over features (and sites) of
    |mean over targets of (generated - exact)|; `fcr_error_weighted` the same for `reweighted`.
    """
    config = context.config
    features = config.fcr.features
    folder = context.results / "study"
    labels = [s.label for s in context.sites() if _read_by_study(context, s.label)]
    fcr = pd.concat(
        [read_table(need(folder / "fcr" / f"{x}.csv", "estimate_study")) for x in labels], ignore_index=True
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
    for name in config.study_variants:
        variant = config.variant(name)
        meta = read_json(need(context.generator_dir(generator, name) / "meta.json", "train_generator"))
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
    write_timings(context, generator, config.study_variants, context.results / "study_timings.csv")
    echo(
        f"collect_study: {len(rows)} rows of the dimension study, {len(ablations)} of ablations; FCR rows {len(fcr)}"
    )


def _read_by_study(context: Context, label: str) -> bool:
    return any(label in {s.label for s in context.variant_sites(v)} for v in context.config.study_variants)


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
    with np.errstate(invalid="ignore"):
        errors = np.array([np.nanmean(np.abs(np.nanmean(difference[:, d], 1))) for d in draws])
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
