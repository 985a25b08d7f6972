"""What the bandwidth does: FCR against epsilon, or against the share of the prior in a ball, one curve a site."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap

from inversescope.config.methods import PLAIN
from inversescope.figures.panels import MANY_SITES, key, log_axis, panel_letters, share_axis, spread
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
from inversescope.figures.style import GREY, RED, WIDTH, new_figure
from inversescope.figures.tables import full_cache, select
from inversescope.studies.ioi.shown import IoiStudy

CURVES = {
    "paper": "paper, generated",
    "default": "default, generated",
    "combined": "default, combined",
    "exact": "exact",
}
_LABELLED = 3
_DASHED: Any = (0, (3, 1.5))


@figure("fcr_vs_eps", "plot_figures", title="FCR against the bandwidth")
def fcr_vs_eps(study: IoiStudy) -> Drawing:
    """FCR against the bandwidth, one curve a site: paper, default (one generator for all) and exact.

    The paper's method has points only where a generator was trained. Sites are named that are highest at the headline bandwidth.
    """
    data = as_written(pd.concat([_rates(study, feature) for feature in study.headline]))
    features, ticks = study.headline, sorted(data["nominal"].unique())
    headline = study.config.kernel.headline.value
    drawn = new_figure(WIDTH, 2.1 * len(features) + 0.35)
    axes = drawn.subplots(len(features), len(CURVES), sharex=True, sharey=True, squeeze=False)
    n_layers = int(data["layer"].max()) + 1
    scale = colormaps["viridis"].resampled(n_layers + 1)
    for i, feature in enumerate(features):
        rows = data[data["feature"] == feature]
        at = rows[(rows["curve"] == "exact") & np.isclose(rows["nominal"], headline)]
        ranked = at.sort_values("fcr", ascending=False, kind="stable")
        heads = ranked["group"] == "heads"
        named = [*ranked["site"][heads].head(_LABELLED), *ranked["site"][~heads].head(1)]
        for j, (curve, title) in enumerate(CURVES.items()):
            ax = axes[i, j]
            _curves(ax, rows[rows["curve"] == curve], named, scale)
            ax.axvline(headline, color=GREY, linestyle=":", linewidth=0.8)
            ax.axhline(float(rows["chance"].mean()), color=RED, linewidth=0.8, linestyle="--")
            share_axis(ax)
            log_axis(ax, "x", ticks, fontsize=6.2, rotation=90)
            ax.set_xlim(ticks[0] / 1.2, ticks[-1] * 2.6)
            if i == 0:
                ax.set_title(title)
            ax.set_xlabel(study.axis if i == len(features) - 1 else "")
            ax.set_ylabel(f"{feature} FCR" if j == 0 else "")
    panel_letters(axes.flat)
    shown = range(n_layers) if n_layers <= 8 else range(0, n_layers, max(1, n_layers // 6))
    handles = [
        *(key(f"layer {layer}", scale(layer), line="-") for layer in shown),
        key("head", GREY, line="-"),
        key("residual stream, layer outputs", GREY, line=_DASHED),
        key("chance", RED, line="--", linewidth=0.8),
        key("headline", GREY, line=":", linewidth=0.8),
    ]
    columns = len(handles) if len(handles) <= 8 else -(-len(handles) // 2)
    style = {"ncols": columns, "fontsize": 6.3, "columnspacing": 1.2}
    drawn.legend(handles=handles, loc="outside lower center", **style)
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


def _curves(ax: Axes, rows: pd.DataFrame, named: list[str], scale: Colormap) -> None:
    """One line a site, coloured by layer; heads solid, others dashed; some with intervals and names."""
    ends, many = [], rows["site"].nunique() > MANY_SITES
    alpha = 0.2 if many else 0.75
    for site, line in rows.groupby("site", sort=False):
        line = line.sort_values("nominal")
        colour = scale(int(line["layer"].iloc[0]))
        bold = site in named
        ax.plot(
            line["nominal"],
            line["fcr"],
            color=colour,
            linestyle="-" if line["group"].iloc[0] == "heads" else _DASHED,
            linewidth=1.6 if bold else 0.5 if many else 0.8,
            alpha=1 if bold else alpha,
            marker="o" if len(line) <= 8 and (bold or not many) else None,
            zorder=3 if bold else 2,
            markersize=2,
        )
        if bold:
            band = (line["nominal"], line["ci_low"], line["ci_high"])
            ax.fill_between(*band, color=colour, alpha=0.15, linewidth=0)
            finite = line[line["fcr"].notna()]
            if len(finite):
                ends.append((float(finite["fcr"].iloc[-1]), float(finite["nominal"].iloc[-1]), str(site)))
    ends.sort()
    for (_, where, site), y in zip(ends, spread([end[0] for end in ends], 0.075), strict=True):
        ax.annotate(site, (where, y), xytext=(3, 0), textcoords="offset points", fontsize=5.5, va="center")
