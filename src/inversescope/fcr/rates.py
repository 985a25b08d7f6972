"""Rates over targets, with intervals: rows of fcr.csv, refusal.csv and coverage.csv."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from inversescope.fcr.cells import SiteCells
from inversescope.fcr.estimators import LOW_ESS
from inversescope.fcr.intervals import bootstrap_means
from inversescope.kernel.neighbours import coverage

FCR_COLUMNS = (
    "task model generator variant site layer head epsilon share feature estimator fcr ci_low ci_high cell_rmse n_targets n_samples "
    "ess decoding cache_size ess_low chance exact error error_low error_high bandwidth"
).split()
REFUSAL_COLUMNS = (
    "task model generator variant site layer head epsilon share entropy_gap n_candidates refusal_rate parse_refusal "
    "distance_refusal ci_low ci_high decoding cache_size copies fcr_error bits bits_generated gap_low gap_high bandwidth"
).split()
_KEYS = ["generator", "variant", "epsilon", "feature", "estimator", "decoding", "cache_size"]


def fcr_rates(site: SiteCells, cells: pd.DataFrame) -> pd.DataFrame:
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
            chance=context.chance(str(row["feature"])),
            exact=float(group["exact"].mean()),
            error=error[g],
            error_low=error_low[g],
            error_high=error_high[g],
        )
        rows.append(row)
    return _identify(site, pd.DataFrame(rows))[FCR_COLUMNS]


def _identify(site: SiteCells, frame: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that say where a row comes from; of bandwidths with one epsilon here each has its row."""
    context = site.context
    head = site.site.head if site.site.head is not None else ""
    return frame.merge(site.bandwidths, on="epsilon", how="left").assign(
        task=context.task_name,
        model=context.model_name,
        site=site.site.label,
        layer=site.site.layer,
        head=head,
    )


def refusal_rates(site: SiteCells, rows: list[dict[str, object]], rates: pd.DataFrame) -> pd.DataFrame:
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


def coverage_rows(site: SiteCells, epsilons: list[float]) -> pd.DataFrame:
    """How many cached neighbours the targets have, a bandwidth each."""
    rows = []
    size = len(site.train)
    for epsilon in epsilons:
        counts = [len(site.cached(target, epsilon)[0]) for target in range(len(site.test))]
        rows.append({"epsilon": epsilon, "cache_size": size, **coverage(np.array(counts)).to_dict()})
    frame = _identify(site, pd.DataFrame(rows))
    first = ["task", "model", "site", "epsilon", "share", "bandwidth", "cache_size"]
    return frame[[*first, *(c for c in frame.columns if c not in [*first, "layer", "head"])]]
