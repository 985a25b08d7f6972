"""Two statements of appendix E in numbers: the same heads at every bandwidth (E.2), and the plateau of Figure 8 (E.1)."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.methods import Bandwidth
from inversescope.fcr.resampling import RESAMPLES, correlations, ends, intervals_of_correlations, resamples
from inversescope.figures.registry import Page, table
from inversescope.figures.save import interval, markdown_table
from inversescope.figures.tables import best_heads
from inversescope.studies.ioi.distance import fig8_table
from inversescope.studies.ioi.heatmaps import ROWS, fig9_rates
from inversescope.studies.ioi.samples import fig8_points
from inversescope.studies.ioi.shown import IoiStudy

#: Distances between which agreement is compared; the paper says that it stays high below the second one.
STEPS = {"near": (0.0, 0.1), "next": (0.1, 0.2), "beyond": (0.2, 0.4)}
#: Columns of `rank_agreement`.
RANKS = (
    *("row", "first", "second", "n_heads", "spearman", "low", "high"),
    *("shared", "change", "change_low", "change_high"),
)


def rank_agreement(rates: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Do heads keep their order from one bandwidth to another?

    Args:
        rates: what Figure 9 shows (row, bandwidth, site, fcr; a row a head).
        confidence: level of the intervals, a percentile bootstrap over heads.

    Returns:
        row, first, second (bandwidths), n_heads (with a rate at both), spearman, low, high; shared: how many of the five best heads
        at the one are among the five best at the other; change, change_low, change_high: second rate minus first, mean over heads.
        Where fewer than two heads have a rate at both, there is no row.
    """
    found: list[dict[str, Any]] = []
    for row, part in rates.groupby("row", sort=False):
        wide = part.pivot(index="site", columns="bandwidth", values="fcr")
        for first, second in combinations(dict.fromkeys(part["bandwidth"]), 2):
            both = wide[[first, second]].dropna()
            if len(both) < 2:
                continue
            values = both.to_numpy(float).T
            heads = np.split(np.arange(len(both)), len(both))
            draws = resamples(heads, np.random.default_rng([seed, 37]))
            low, high = intervals_of_correlations(values[:1], values[1:], draws, confidence)[0]
            change = values[1] - values[0]
            change_low, change_high = ends(change[np.array(draws)].mean(1), confidence)
            best = [set(best_heads(part[part["bandwidth"] == one])) for one in (first, second)]
            found.append(
                {
                    "row": row,
                    "first": first,
                    "second": second,
                    "n_heads": len(both),
                    "spearman": correlations(values[:1], values[1:])[0],
                    "low": low,
                    "high": high,
                    "shared": len(best[0] & best[1]),
                    "change": change.mean(),
                    "change_low": change_low,
                    "change_high": change_high,
                }
            )
    return pd.DataFrame(found, columns=RANKS)


@table(
    "fig9_ranks",
    "plot_figures",
    title="The same heads at every bandwidth?",
    needs={"bandwidths": ["third"]},
)
def fig9_ranks(study: IoiStudy) -> Page:
    """`rank_agreement` of Figure 9."""
    frame = rank_agreement(fig9_rates(study), study.config.fcr.confidence, study.config.seed)
    shown = pd.DataFrame(
        {
            "estimate": frame["row"].map(ROWS),
            "bandwidths": [
                f"{Bandwidth.parse(r.first).label}, {Bandwidth.parse(r.second).label}"
                for r in frame.itertuples()
            ],
            "rank correlation over heads": [
                interval(r.spearman, r.low, r.high, ".2f") for r in frame.itertuples()
            ],
            "of the five best, shared": frame["shared"],
            "second rate − first": [
                interval(r.change, r.change_low, r.change_high, "+.3f") for r in frame.itertuples()
            ],
        }
    )
    about = f"{study.feature} FCR of the same heads at two bandwidths. Intervals: bootstrap over heads."
    return frame, f"# The same heads at every bandwidth?\n\n{about}\n\n{markdown_table(shown)}"


def plateau(data: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Does agreement stay high near the target and fall behind an edge, as in Figure 8?

    Args:
        data: what Figure 8 shows (site, variant, kind, target_id, distance, agreement, n).
        confidence: level of the intervals, a percentile bootstrap over target prompts.

    Returns:
        site, variant, the share of agreeing samples (of `exact`: of all reference prompts) at each of `STEPS` with {step}_low and
        {step}_high (missing for `exact`), and half: the first distance at which the smoothed curve is below one half, missing if it
        never is.
    """
    found = []
    for (site, variant), part in data.groupby(["site", "variant"], sort=False):
        row: dict[str, Any] = {"site": site, "variant": variant}
        points = part[part["kind"].isin(["sample", "exact"])]
        for step, (low, high) in STEPS.items():
            here = points[(points["distance"] >= low) & (points["distance"] < high)]
            weight = here["n"].fillna(1.0).to_numpy(float)
            row[step] = float(np.average(here["agreement"], weights=weight)) if len(here) else np.nan
            row[f"{step}_low"], row[f"{step}_high"] = _ends(here, confidence, seed)
        curve = part[part["kind"] == ("exact" if variant == "exact" else "smoothed")]
        below = curve.loc[curve["agreement"] < 0.5, "distance"]
        found.append(row | {"half": below.min()})
    return pd.DataFrame(found)


def _ends(points: pd.DataFrame, confidence: float, seed: int) -> tuple[float, float]:
    """Ends of the interval of the share of agreeing samples; NaN where samples have no target prompts."""
    own = points.dropna(subset="target_id")
    if own.empty:
        return float("nan"), float("nan")
    sums = own.groupby("target_id")["agreement"].agg(["sum", "count"]).to_numpy(float)
    draws = np.random.default_rng([seed, 41]).integers(len(sums), size=(RESAMPLES, len(sums)))
    total, count = sums[draws].sum(1).T
    return ends(total / count, confidence)


@table(
    "fig8_plateau",
    "plot_figures",
    title="The plateau of Figure 8",
    needs={"decodings": ["noised"]},
)
def fig8_plateau(study: IoiStudy) -> Page:
    """`plateau` of Figure 8."""
    data = fig8_table(fig8_points(study), study.table("exact_agreement.csv", "draw_exact"))
    frame = plateau(data, study.config.fcr.confidence, study.config.seed)
    shown = pd.DataFrame({"head": frame["site"], "": frame["variant"]})
    for step, (low, high) in STEPS.items():
        ends = zip(frame[step], frame[f"{step}_low"], frame[f"{step}_high"], strict=True)
        shown[f"agree at {low:g} to {high:g}"] = [interval(*one, ".2f") for one in ends]
    shown["half agree from"] = frame["half"]
    about = (
        f"Share of samples that keep the {study.feature} of the target prompt, by cosine distance; of `exact`, of all reference "
        "prompts. Intervals: bootstrap over target prompts."
    )
    return frame, f"# The plateau of Figure 8\n\n{about}\n\n{markdown_table(shown)}"
