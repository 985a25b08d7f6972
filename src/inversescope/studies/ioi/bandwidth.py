"""What the bandwidth does: FCR against epsilon, or against the share of the prior in a ball."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.config.methods import PLAIN
from inversescope.figures.panels import error_bars, key, log_axis, panel_letters, share_axis, spread
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
from inversescope.figures.style import BLUE, GREEN, GREY, GROUP_TITLE, ORANGE, RED, WIDTH, new_figure
from inversescope.figures.tables import full_cache, select
from inversescope.studies.ioi.shown import IoiStudy

CURVES = {
    "paper": "paper, generated",
    "default": "default, generated",
    "combined": "default, combined",
    "exact": "exact",
}
#: Sites of each group that are named.
_NAMED = 2
#: Height of a name, as a rate.
_LINE = 0.075
_COLOUR = {"heads": BLUE, "residual": ORANGE, "other": GREEN}


@figure("fcr_vs_eps", "plot_figures", title="FCR against the bandwidth")
def fcr_vs_eps(study: IoiStudy) -> Drawing:
    """FCR against the bandwidth, by group of sites and at some of them: paper, default (one generator for all) and exact.

    The paper's method has points only where a generator was trained. Sites are named that are highest at the headline bandwidth.
    """
    data = as_written(pd.concat([_rates(study, feature) for feature in study.headline]))
    features, ticks = study.headline, sorted(data["nominal"].unique())
    headline = study.config.kernel.headline.value
    drawn = new_figure(WIDTH, 2.1 * len(features) + 0.35)
    axes = drawn.subplots(len(features), len(CURVES), sharex=True, sharey=True, squeeze=False)
    for line, feature in zip(axes, features, strict=True):
        rows = data[data["feature"] == feature]
        at = rows[(rows["curve"] == "exact") & np.isclose(rows["nominal"], headline)]
        ranked = at.sort_values("fcr", ascending=False, kind="stable").groupby("group", sort=False)
        named = ranked["site"].apply(lambda sites: sites.head(_NAMED)).tolist()
        for ax, (curve, title) in zip(line, CURVES.items(), strict=True):
            _curves(ax, rows[rows["curve"] == curve], named)
            ax.axvline(headline, color=GREY, linestyle=":", linewidth=0.8)
            ax.axhline(float(rows["chance"].mean()), color=RED, linewidth=0.8, linestyle="--")
            share_axis(ax)
            ax.set_xlim(ticks[0] / 1.2, ticks[-1] * 2.6)
            log_axis(ax, "x", ticks, fontsize=6.2, rotation=90)
            if ax in axes[0]:
                ax.set_title(title)
            if ax in axes[-1]:
                ax.set_xlabel(study.axis)
        line[0].set_ylabel(f"{feature} FCR")
    panel_letters(axes.flat)
    handles = [
        key(GROUP_TITLE[group], _COLOUR[group], line="-") for group in _COLOUR if group in set(data["group"])
    ]
    handles += [
        key("median and quartiles of sites", GREY, line="-", linewidth=6, alpha=0.3),
        key("chance", RED, line="--", linewidth=0.8),
        key("headline", GREY, line=":", linewidth=0.8),
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=6.3)
    return drawn, data


def _rates(study: IoiStudy, feature: str) -> pd.DataFrame:
    """Rates of every curve of a feature, by site and bandwidth."""
    fcr = study.on_axis(study.fcr)
    exact = select(fcr, estimator="exact", feature=feature).drop_duplicates(["site", "nominal"])
    parts = [exact.assign(curve="exact")]
    plain = {"decoding": PLAIN, "feature": feature}
    for curve, estimator in (("default", "generated"), ("combined", "combined")):
        rows = select(fcr, variant="default", estimator=estimator, **plain)
        parts.append(full_cache(rows).assign(curve=curve))
    for bandwidth, variant in sorted(study.paper_variants.items()):
        if bandwidth.kind != study.config.kernel.headline.kind:
            continue
        rows = select(fcr, variant=variant, estimator="generated", nominal=bandwidth.value, **plain)
        parts.append(full_cache(rows).assign(curve="paper"))
    keep = "curve feature site group layer nominal epsilon share fcr ci_low ci_high chance variant estimator".split()
    return pd.concat(parts)[keep]


def _curves(ax: Axes, rows: pd.DataFrame, named: list[str]) -> None:
    """Median and quartiles of each group of sites; some sites with intervals and names."""
    ends = []
    for group, part in rows.groupby("group", sort=False):
        low, median, high = (part.groupby("nominal")["fcr"].quantile(q) for q in (0.25, 0.5, 0.75))
        colour = _COLOUR[group]
        ax.fill_between(low.index, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.vlines(low.index, low, high, color=colour, alpha=0.3, linewidth=2)
        ax.plot(median.index, median, "_--", color=colour, linewidth=1)
    # A site all of whose draws were refused has no curve.
    told = rows[rows["site"].isin(named) & rows["fcr"].notna()]
    for site, line in told.groupby("site", sort=False):
        line = line.sort_values("nominal")
        colour = _COLOUR[line["group"].iloc[0]]
        ax.plot(line["nominal"], line["fcr"], color=colour, marker="o", markersize=2.5, zorder=3)
        error_bars(ax, line["nominal"], line["fcr"], line["ci_low"], line["ci_high"], colour)
        ends.append((float(line["fcr"].iloc[-1]), float(line["nominal"].iloc[-1]), str(site)))
    ends.sort()
    for k, ((_, where, site), y) in enumerate(
        zip(ends, spread([end[0] for end in ends], _LINE), strict=True)
    ):
        place = (where, min(y, 1 - _LINE * (len(ends) - 1 - k)))  # none above the panel
        ax.annotate(site, place, xytext=(3, 0), textcoords="offset points", fontsize=5.5, va="center")
