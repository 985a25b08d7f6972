"""Rows that figures ask of result tables: selection, order of sites, heads chosen by rule, pooled errors, intervals by seed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student

from inversescope.config.methods import MIXED, PLAIN
from inversescope.errors import InputError
from inversescope.workflow.plan import VARIANTS as VARIANTS

_TEXT = (
    "task",
    "model",
    "generator",
    "variant",
    "site",
    "feature",
    "estimator",
    "decoding",
    "base",
    "change",
    "kind",
    "group",
    "bandwidth",
)
_GROUP_ORDER = {"heads": 0, "residual": 1, "other": 2}
#: Places of a layer in the residual stream, by depth.
_DEPTH = {"resid_pre": 0, "resid_mid": 1, "resid_post": 2}

#: Decodings that are compared, in words.
DECODINGS = {PLAIN: "plain", MIXED: "cache mixing"}
#: A site tells a feature for certain from this exact rate on.
CERTAIN = 0.95


def group_of(site: str) -> str:
    """Group of a site: `heads`, `residual` (the residual stream), or `other` (layer outputs)."""
    if re.match(r"L\d+H", site):
        return "heads"
    return "residual" if ".resid_" in site else "other"


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """Bring a result table into the form that the figures use.

    Text columns hold "" where a field is empty; `group` says which group of sites a row belongs to; `cache`
    is the number of cached prompts that the row's estimator or generator could use (0 for none). Rows are in
    the order of sites.
    """
    frame = frame.copy()
    for name in set(_TEXT) & set(frame.columns):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    if "cache_size" in frame:
        frame["cache"] = frame["cache_size"].astype(float).fillna(0).astype(int)
    if "site" in frame:
        if "group" not in frame:
            frame["group"] = frame["site"].map(group_of)
        frame = sort_sites(frame)
    return frame.reset_index(drop=True)


def sort_sites(frame: pd.DataFrame) -> pd.DataFrame:
    """Sort rows as sites are listed everywhere: heads, then the residual stream by depth, then layer outputs."""
    number = frame["site"].str.extract(r"^L(?P<layer>\d+)(?:H(?P<head>\d+))?").astype(float)
    keys = pd.DataFrame(
        {
            "group": frame["group"].map(_GROUP_ORDER)
            if "group" in frame
            else frame["site"].map(group_of).map(_GROUP_ORDER),
            "layer": number["layer"],
            "head": number["head"].fillna(-1),
            "depth": frame["site"].str.partition(".")[2].map(_DEPTH).fillna(-1),
            "site": frame["site"],
        },
        index=frame.index,
    )
    return frame.loc[keys.sort_values(list(keys.columns), kind="stable").index]


def select(frame: pd.DataFrame, table: str = "fcr.csv", **conditions: Any) -> pd.DataFrame:
    """Rows of a tidy table that meet all conditions (a list: any of its values).

    Raises:
        InputError: if there is none; the message names the table and the conditions.
    """
    keep = pd.Series(True, index=frame.index)
    for name, wanted in conditions.items():
        values = wanted if isinstance(wanted, list | tuple | set) else [wanted]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            column = frame[name].to_numpy(dtype=float, na_value=np.nan)
            keep &= np.any([np.isclose(column, value, rtol=1e-6, atol=1e-12) for value in values], axis=0)
        else:
            keep &= frame[name].isin(list(values))
    if not keep.any():
        listing = ", ".join(f"{name} = {value}" for name, value in conditions.items())
        raise InputError(
            f"{table} has no row with {listing}", "Run sample_prompts, estimate_fcr and collect_tables for it"
        )
    return frame[keep]


def full_cache(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the study's full cache: those of the largest size, and those that depend on no cache."""
    largest = frame["cache"].max()
    return frame[(frame["cache"] == largest) | (frame["cache"] == 0)]


def rates(fcr: pd.DataFrame, which: str, feature: str, bandwidth: str, decoding: str = PLAIN) -> pd.DataFrame:
    """One row a site: `paper` as the paper estimates it, `default` by its headline estimator, or `exact`.

    Args:
        fcr: tidy fcr.csv.
        which: `exact`; a variant (then `default` and its ablations use `combined`, all others `generated`);
            or `VARIANT:ESTIMATOR`.
        feature: name of the feature.
        bandwidth: as in the column of that name.
        decoding: how candidates were drawn; ignored for `exact`.

    Raises:
        InputError: if there is no such row.
    """
    if which == "exact":
        rows = select(fcr, estimator="exact", feature=feature, bandwidth=bandwidth)
    else:
        variant, _, estimator = which.partition(":")
        estimator = estimator or ("combined" if variant.startswith("default") else "generated")
        key: dict[str, Any] = {"feature": feature, "bandwidth": bandwidth, "decoding": decoding}
        rows = select(fcr, variant=variant, estimator=estimator, **key)
        rows = full_cache(rows)
    return rows.drop_duplicates("site").reset_index(drop=True)


def head_grid(rows: pd.DataFrame, shape: tuple[int, int], value: str = "fcr") -> pd.DataFrame:
    """Matrix of a value over all layers and heads of a model of this shape (NaN where not read)."""
    rows = rows[rows["head"].notna()]
    grid = rows.pivot_table(index="layer", columns="head", values=value, aggfunc="first", dropna=False)
    grid.index, grid.columns = grid.index.astype(int), grid.columns.astype(int)
    return grid.reindex(index=range(shape[0]), columns=range(shape[1])).astype(float)


def lift(rows: pd.DataFrame) -> pd.Series:
    """What is told beyond chance: (FCR - chance) / (1 - chance), 0 at chance and 1 where the feature never differs."""
    return (rows["fcr"] - rows["chance"]) / (1 - rows["chance"]).clip(lower=1e-9)


def telling_sites(exact: pd.DataFrame, most: int) -> list[str]:
    """Sites that a figure has room for, in order: all of them, or the most telling heads and others evenly by layer.

    Args:
        exact: exact rates of some features, a row a site and feature.
        most: half of them are heads, those with the highest lift of any of the features.
    """
    exact = sort_sites(exact)
    sites = list(dict.fromkeys(exact["site"]))
    if len(sites) <= most:
        return sites
    heads = exact[exact["head"].notna()]
    best = lift(heads).groupby(heads["site"], sort=False).max().nlargest(most // 2)
    others = [site for site in sites if site not in set(heads["site"])]
    picks = np.linspace(0, len(others) - 1, min(most // 2, len(others))).round().astype(int)
    shown = {*best.index, *(others[pick] for pick in picks)}
    return [site for site in sites if site in shown]


def best_heads(rows: pd.DataFrame, n: int = 5) -> list[str]:
    """Labels of the n heads with the highest FCR; ties go to the earlier site."""
    heads = rows[rows["head"].notna() & rows["fcr"].notna()]
    return list(heads.sort_values("fcr", ascending=False, kind="stable")["site"].head(n))


def highest_and_median_head(exact: pd.DataFrame) -> list[str]:
    """The heads with the highest and the (lower) median exact FCR; one head if there is only one."""
    ranked = best_heads(exact, len(exact))
    if not ranked:
        raise InputError(
            "fcr.csv has no exact value of any attention head",
            "Read at least one head (sites: L*H*) and run compute_exact",
        )
    return list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2]]))


def example_heads(fcr: pd.DataFrame, features: list[str], bandwidth: str) -> dict[str, str]:
    """Choose three heads for Table 1 by rule, from exact values alone, each with the reason.

    The heads are: highest FCR of the first feature; highest of the second; and, as the paper's L9H3, the head
    of which some *other* feature leads the headline features most, both as lift (FCR - chance) / (1 -
    chance).

    Returns:
        label -> reason, at most three entries (fewer if the target has fewer heads).
    """
    exact = select(fcr, estimator="exact", bandwidth=bandwidth)
    exact = exact[exact["head"].notna()].drop_duplicates(["site", "feature"])
    chosen: dict[str, str] = {}
    for feature in features[:2]:
        ranked = [
            site for site in best_heads(exact[exact["feature"] == feature], len(exact)) if site not in chosen
        ]
        if ranked:
            chosen[ranked[0]] = f"highest exact {feature} FCR" + (" of the others" if chosen else "")
    table = exact.assign(lift=lift(exact)).pivot_table(
        index="site", columns="feature", values="lift", sort=False
    )
    others = [name for name in table.columns if name not in features]
    rest = table.loc[[site for site in table.index if site not in chosen]]
    if others and len(rest):
        lead = rest[others].max(axis=1) - rest[[name for name in features if name in rest]].max(axis=1)
        site = str(lead.idxmax())
        chosen[site] = f"{rest.loc[site, others].idxmax()} leads {' and '.join(features)} most (exact values)"
    return chosen


def fcr_errors(
    fcr: pd.DataFrame, bandwidth: str, features: list[str], estimator: str, decoding: str, variant: str
) -> pd.DataFrame:
    """|FCR - exact| for each site and headline feature of one variant's estimator, with the full cache.

    Returns:
        site, group, feature, fcr, ci_low, ci_high, exact, exact_low, exact_high, error.

    Raises:
        InputError: if either side has no rows.
    """
    key: dict[str, Any] = {"feature": features, "bandwidth": bandwidth}
    rows = full_cache(select(fcr, variant=variant, estimator=estimator, decoding=decoding, **key))
    exact = select(fcr, estimator="exact", **key).drop_duplicates(["site", "feature"])
    columns = ["site", "group", "feature", "fcr", "ci_low", "ci_high"]
    names = {"fcr": "exact", "ci_low": "exact_low", "ci_high": "exact_high"}
    joined = rows.drop_duplicates(["site", "feature"])[columns].merge(
        exact[["site", "feature", *names]].rename(columns=names), on=["site", "feature"], how="inner"
    )
    return joined.assign(error=(joined["fcr"] - joined["exact"]).abs())


def pooled_rmse(rows: pd.DataFrame) -> float:
    """Root mean square error over the single cells of many rows: cell_rmse pooled by n_targets."""
    rows = rows[rows["cell_rmse"].notna()]
    weight = rows["n_targets"].to_numpy(dtype=float)
    if weight.sum() == 0:
        return float("nan")
    return float(np.sqrt(np.average(np.square(rows["cell_rmse"].to_numpy(dtype=float)), weights=weight)))


def t_interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Mean of values (n,), one a seed, and half the width of its Student t interval; NaN for fewer than two."""
    if len(values) < 2:
        return float(values[0]) if len(values) else np.nan, np.nan
    half = student.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def estimator_rows(fcr: pd.DataFrame, estimator: str, features: list[str]) -> pd.DataFrame:
    """Rows of `cache`, `reweighted` or `combined` by cache size: of `default`, and of its variants with smaller caches.

    Args:
        fcr: tidy fcr.csv.
        estimator: one of the three.
        features: headline features.

    Returns:
        One row a site, bandwidth, feature and cache size, plain decoding.

    Raises:
        InputError: there is no row.
    """
    rows = select(fcr, estimator=estimator, feature=features)
    largest = fcr["cache"].max()
    if estimator == "cache":
        rows = rows[rows["variant"].eq("") | (rows["cache"] < largest)]
    else:
        smaller = rows["variant"].str.startswith("default") & (rows["cache"] < largest)
        rows = rows[(rows["decoding"] == PLAIN) & (rows["variant"].eq("default") | smaller)]
    # Where two variants share a small cache, the one with the shorter name is the one without a further change.
    order = rows.assign(length=rows["variant"].str.len()).sort_values("length", kind="stable").index
    kept = rows.loc[order].drop_duplicates(["site", "bandwidth", "feature", "cache"])
    return select(kept.sort_index(), estimator=estimator)


def uncovered_share(fcr: pd.DataFrame, features: list[str]) -> pd.DataFrame:
    """Share of targets without any cached neighbour, from the targets at which `cache` is missing.

    Args:
        fcr: tidy fcr.csv.
        features: headline features (all give the same share).

    Returns:
        site, group, epsilon, share, bandwidth, cache, share_lt1; every cache size that fcr.csv holds.
    """
    rows = estimator_rows(fcr, "cache", features[:1])
    exact = select(fcr, estimator="exact", feature=features[0]).drop_duplicates(["site", "bandwidth"])
    joined = rows.merge(
        exact[["site", "bandwidth", "n_targets"]], on=["site", "bandwidth"], suffixes=("", "_exact")
    )
    joined["share_lt1"] = 1 - joined["n_targets"] / joined["n_targets_exact"]
    return joined[["site", "group", "epsilon", "share", "bandwidth", "cache", "share_lt1"]]


def parsed_mask(samples: pd.DataFrame) -> np.ndarray:
    """Which candidates are in the prior: `parsed` as flags, or as prompt numbers with -1 for none."""
    parsed = samples["parsed"]
    return parsed.to_numpy(dtype=bool) if pd.api.types.is_bool_dtype(parsed) else parsed.to_numpy() >= 0
