"""What the bandwidth does: FCR against epsilon, one curve a site."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from inversescope.figures.style import (
    GREY,
    RED,
    WIDTH,
    as_written,
    new_figure,
    panel_letters,
    save,
    share_axis,
    styled,
)
from inversescope.figures.tables import PLAIN, full_cache, select, tidy

_LABELLED = 3


@styled
def plot_fcr_vs_eps(
    fcr: pd.DataFrame,
    out: Path,
    paper_variants: dict[float, str],
    features: tuple[str, ...] = ("object", "subject"),
    epsilon: float = 0.1,
) -> list[Path]:
    """FCR against the bandwidth, one curve a site: paper, default (one generator for all) and exact.

    Args:
        fcr: fcr.csv.
        out: path without suffix.
        paper_variants: bandwidth -> variant of the paper's method that was trained at it; its curves have
            points only there.
        features: one row of panels each.
        epsilon: headline bandwidth, marked, and where the labelled sites are ranked.

    Raises:
        InputError: if a panel has no rows in fcr.csv.
    """
    fcr = tidy(fcr)
    columns = {
        "paper": "paper, generated",
        "default": "default, generated",
        "combined": "default, combined",
        "exact": "exact",
    }
    parts = []
    for feature in features:
        exact = select(fcr, estimator="exact", feature=feature).drop_duplicates(["site", "epsilon"])
        parts.append(exact.assign(curve="exact"))
        for curve, estimator in (("default", "generated"), ("combined", "combined")):
            rows = select(fcr, variant="default", estimator=estimator, decoding=PLAIN, feature=feature)
            parts.append(full_cache(rows).assign(curve=curve))
        for value, variant in sorted(paper_variants.items()):
            rows = select(
                fcr, variant=variant, estimator="generated", decoding=PLAIN, feature=feature, epsilon=value
            )
            parts.append(full_cache(rows).assign(curve="paper"))
    keep = [
        "curve",
        "feature",
        "site",
        "group",
        "layer",
        "epsilon",
        "fcr",
        "ci_low",
        "ci_high",
        "chance",
        "variant",
        "estimator",
    ]
    data = as_written(pd.concat(parts)[keep])
    figure = new_figure(WIDTH, 2.1 * len(features) + 0.35)
    axes = figure.subplots(len(features), len(columns), sharex=True, sharey=True, squeeze=False)
    n_layers = int(data["layer"].max()) + 1
    scale = colormaps["viridis"].resampled(n_layers + 1)
    for i, feature in enumerate(features):
        rows = data[data["feature"] == feature]
        at = rows[(rows["curve"] == "exact") & np.isclose(rows["epsilon"], epsilon)]
        ranked = at.sort_values("fcr", ascending=False, kind="stable")
        labelled = list(ranked[ranked["group"] == "heads"]["site"].head(_LABELLED))
        labelled += list(ranked[ranked["group"] != "heads"]["site"].head(1))
        for j, (curve, title) in enumerate(columns.items()):
            ax = axes[i, j]
            _curves(ax, rows[rows["curve"] == curve], labelled, scale)
            ax.axvline(epsilon, color=GREY, linestyle=":", linewidth=0.8)
            ax.axhline(float(rows["chance"].mean()), color=RED, linewidth=0.8, linestyle="--")
            share_axis(ax)
            ax.set_xscale("log")
            ticks = sorted(data["epsilon"].unique())
            ax.xaxis.set_major_locator(FixedLocator(ticks))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xticks(ticks, [f"{t:g}".removeprefix("0") for t in ticks], fontsize=6.2, rotation=90)
            ax.set_xlim(ticks[0] / 1.2, ticks[-1] * 2.6)
            if i == 0:
                ax.set_title(title)
            ax.set_xlabel("bandwidth ε" if i == len(features) - 1 else "")
            ax.set_ylabel(f"{feature} FCR" if j == 0 else "")
    panel_letters(axes.flat)
    _legend(figure, scale, n_layers)
    return save(figure, data, out)


def _curves(ax: Axes, rows: pd.DataFrame, labelled: list[str], scale: Colormap) -> None:
    """One line a site, coloured by layer; heads solid, others dashed; some with intervals and names."""
    ends = []
    alpha = 0.75 if rows["site"].nunique() <= 40 else 0.35
    for site, line in rows.groupby("site", sort=False):
        line = line.sort_values("epsilon")
        colour = scale(int(line["layer"].iloc[0]))
        style = "-" if line["group"].iloc[0] == "heads" else (0, (3, 1.5))
        bold = site in labelled
        ax.plot(
            line["epsilon"],
            line["fcr"],
            color=colour,
            linestyle=style,
            linewidth=1.6 if bold else 0.8,
            alpha=1 if bold else alpha,
            marker="o" if len(line) <= 8 else None,
            markersize=2,
        )
        if bold:
            ax.fill_between(
                line["epsilon"], line["ci_low"], line["ci_high"], color=colour, alpha=0.15, linewidth=0
            )
            finite = line[line["fcr"].notna()]
            if len(finite):
                ends.append((float(finite["fcr"].iloc[-1]), float(finite["epsilon"].iloc[-1]), str(site)))
    ends.sort()
    for (_, where, site), y in zip(ends, _spread([end[0] for end in ends], 0.075), strict=True):
        ax.annotate(site, (where, y), xytext=(3, 0), textcoords="offset points", fontsize=5.5, va="center")


def _spread(values: list[float], gap: float) -> list[float]:
    """Move sorted positions apart, as little as makes neighbours differ by `gap` (least squares)."""
    blocks: list[list[float]] = []  # sum of shifted values, count
    for index, value in enumerate(values):
        blocks.append([value - index * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    shifted = [block[0] / block[1] for block in blocks for _ in range(int(block[1]))]
    return [value + index * gap for index, value in enumerate(shifted)]


def _legend(figure: Figure, scale: Colormap, n_layers: int) -> None:
    """A legend for layers and groups below the panels."""
    shown = range(n_layers) if n_layers <= 8 else range(0, n_layers, max(1, n_layers // 6))
    handles = [Line2D([], [], color=scale(layer), label=f"layer {layer}") for layer in shown]
    handles += [
        Line2D([], [], color=GREY, label="head"),
        Line2D([], [], color=GREY, linestyle=(0, (3, 1.5)), label="residual stream, layer outputs"),
        Line2D([], [], color=RED, linestyle="--", linewidth=0.8, label="chance"),
        Line2D([], [], color=GREY, linestyle=":", linewidth=0.8, label="headline ε"),
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(len(handles), 8),
        fontsize=6.3,
        columnspacing=1.2,
    )
