"""Headline numbers of the study of indirect object identification: errors against exact rates, refusal, errors of single cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from inversescope.config.methods import PLAIN, Bandwidth
from inversescope.figures.headline import Row, headline_page, number
from inversescope.figures.registry import Page, table
from inversescope.figures.tables import (
    DECODINGS,
    VARIANTS,
    estimator_rows,
    fcr_errors,
    full_cache,
    pooled_rmse,
    select,
    uncovered_share,
)
from inversescope.studies.ioi.shown import IoiStudy

GROUPS = {"heads": "heads", "residual": "residual sites"}
#: Bandwidths at which the estimators are compared; with smaller caches, where at least this share of targets has no neighbour.
ESTIMATOR_EPSILONS, SPARSE = (0.1, 0.02, 0.005), 0.1


@table("headline", "plot_figures", title="Headline numbers")
def headline(study: IoiStudy) -> Page:
    """Headline numbers of the study."""
    return headline_page([*_errors(study), *_disjoint(study), *_cells(study), *_refusal(study)])


def _errors(study: IoiStudy) -> Iterator[Row]:
    """Mean |FCR - exact| for each estimator, decoding and group; of the cache alone too."""
    section = f"mean |FCR − exact| over sites and features, {study.bandwidth_label}"
    shown = [(e, d, v) for d in DECODINGS for e in ("generated", "reweighted", "combined") for v in VARIANTS]
    fcr = study.fcr
    for estimator, decoding, who in [*shown, ("cache", "", "")]:
        key = {"estimator": estimator, "decoding": decoding, "variant": who}
        if not np.logical_and.reduce([fcr[name] == value for name, value in key.items()]).any():
            continue
        errors = fcr_errors(fcr, study.bandwidth_of(who), study.headline, **key).dropna(subset="error")
        for group, title in GROUPS.items():
            of = errors.loc[errors["group"] == group, "error"]
            if len(of):
                how = f"{estimator}, {DECODINGS[decoding]}" if decoding else "cache alone, no generator"
                yield number(section, f"{how}, {title}", who or "cache", of.mean(), n=len(of))


def _disjoint(study: IoiStudy) -> Iterator[Row]:
    """Sites where the intervals of `combined` and `exact` do not meet, and rates whose paired interval leaves 0 out."""
    section = f"agreement of combined and exact, {study.bandwidth_label}"
    key: dict[str, Any] = {"feature": study.headline, "estimator": "combined"}
    for who in VARIANTS:
        rows = fcr_errors(study.fcr, study.bandwidth_of(who), study.headline, "combined", PLAIN, who)
        apart = rows[(rows["ci_low"] > rows["exact_high"]) | (rows["ci_high"] < rows["exact_low"])]
        counts = {"unit": "count", "n": rows["site"].nunique()}
        yield number(section, "sites whose intervals are disjoint", who, apart["site"].nunique(), **counts)
        if "error_low" in study.fcr:
            rows = full_cache(select(study.rates, variant=who, decoding=PLAIN, **key))
            apart = (rows["error_low"] > 0) | (rows["error_high"] < 0)
            what = "rates whose paired interval of combined − exact leaves 0 out (1 in 20 by chance)"
            yield number(section, what, who, apart.sum(), unit="count", n=len(rows))


def _cells(study: IoiStudy) -> Iterator[Row]:
    """Error of a single cell of cache, reweighted and combined: full cache, and sparse settings."""
    fcr, features = study.fcr, study.headline
    section = "error of a single cell, one target at one site (root mean square); share of the targets that each answers"
    rows = {name: estimator_rows(fcr, name, features) for name in ("combined", "cache", "reweighted")}
    rows = {name: part[part["group"].isin(list(GROUPS))] for name, part in rows.items()}
    empty = uncovered_share(fcr, features)
    exact = select(fcr, estimator="exact", feature=features)
    sizes = sorted(set(rows["combined"]["cache"]), reverse=True)
    for size in sizes:
        known = rows["combined"].query("cache == @size")["bandwidth"].unique()
        for bandwidth in sorted(map(Bandwidth.parse, known), reverse=True):

            def here(part: Any, at: str = str(bandwidth)) -> Any:
                return part[part["bandwidth"] == at]

            own = {name: here(part[part["cache"] == size]) for name, part in rows.items()}
            lonely = here(empty[(empty["cache"] == size) & empty["site"].isin(own["combined"]["site"])])
            share = float(lonely["share_lt1"].mean())
            compared = bandwidth.kind == "share" or np.isclose(bandwidth.value, ESTIMATOR_EPSILONS).any()
            dense = size == sizes[0] and compared
            if not dense and not share >= SPARSE:
                continue
            asked = float(here(exact)["n_targets"].mean())
            what = f"cache of {size:,}, {bandwidth.label}, {share:.0%} of targets without neighbour"
            for who, part in own.items():
                yield number(section, what, who, pooled_rmse(part), n=int(part["n_targets"].sum()))
                yield number(section, f"{what}: answered", who, part["n_targets"].mean() / asked)


def _refusal(study: IoiStudy) -> Iterator[Row]:
    """Refusal, its part outside of the prior, and entropy gap, means over sites."""
    section = f"refusal at {study.bandwidth_label}, temperature 1; entropy of accepted candidates − exact; means over sites"
    refusal = study.refusals
    shown = {"refusal_rate": ("refused", ""), "entropy_gap": ("entropy gap", "nats")}
    for decoding, how in DECODINGS.items():
        for who in VARIANTS:
            rows = refusal[(refusal["decoding"] == decoding) & (refusal["variant"] == who)]
            rows = full_cache(rows).drop_duplicates("site")
            for group, title in GROUPS.items():
                part = rows[rows["group"] == group]
                for column, (what, unit) in shown.items() if len(part) else ():
                    yield number(
                        section, f"{what}, {how}, {title}", who, part[column].mean(), unit=unit, n=len(part)
                    )
            if len(rows):
                what = f"not in the prior, {how}, all sites"
                yield number(section, what, who, rows["parse_refusal"].mean(), n=len(rows))
