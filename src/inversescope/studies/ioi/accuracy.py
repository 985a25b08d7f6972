"""How near the rates are to the truth: scatter, refusal panel, estimators, controls, training curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from inversescope.figures.style import (
    BLACK,
    ESTIMATOR_STYLE,
    FEATURE_COLOUR,
    GREEN,
    GREY,
    GROUP_MARKER,
    GROUP_TITLE,
    PINK,
    RED,
    VARIANT_COLOUR,
    WIDTH,
    as_written,
    error_bars,
    new_figure,
    panel_letters,
    save,
    share_axis,
    styled,
)
from inversescope.figures.tables import (
    MIXED,
    PLAIN,
    estimator_rows,
    fcr_errors,
    full_cache,
    group_of,
    pooled_rmse,
    select,
    sort_sites,
    tidy,
    uncovered_share,
)

VARIANTS = ("paper", "default")


@styled
def plot_scatter(
    fcr: pd.DataFrame, out: Path, epsilon: float, features: tuple[str, ...] = ("object", "subject")
) -> list[Path]:
    """Estimated against exact FCR, a point a site and feature; paper and default, generated and combined.

    Args:
        fcr: fcr.csv.
        out: path without suffix.
        epsilon: headline bandwidth.
        features: plotted features, told apart by colour; groups of sites by marker.

    Raises:
        InputError: if a panel has no rows in fcr.csv.
    """
    fcr = tidy(fcr)
    estimators = ("generated", "combined")
    parts = [
        fcr_errors(fcr, epsilon, list(features), estimator, PLAIN, variant).assign(
            variant=variant, estimator=estimator
        )
        for estimator in estimators
        for variant in VARIANTS
    ]
    data = as_written(pd.concat(parts))
    figure = new_figure(0.82 * WIDTH, 0.82 * WIDTH)
    axes = figure.subplots(len(estimators), len(VARIANTS), sharex=True, sharey=True, squeeze=False)
    for i, estimator in enumerate(estimators):
        for j, variant in enumerate(VARIANTS):
            ax = axes[i, j]
            rows = data[(data["estimator"] == estimator) & (data["variant"] == variant)]
            ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, zorder=1)
            for feature in features:
                colour = FEATURE_COLOUR.get(feature, PINK)
                for group, part in rows[rows["feature"] == feature].groupby("group", sort=False):
                    error_bars(ax, part["exact"], part["fcr"], part["ci_low"], part["ci_high"], colour)
                    error_bars(
                        ax,
                        part["exact"],
                        part["fcr"],
                        part["exact_low"],
                        part["exact_high"],
                        colour,
                        which="x",
                    )
                    ax.plot(
                        part["exact"],
                        part["fcr"],
                        GROUP_MARKER[str(group)],
                        color=colour,
                        markeredgecolor="white",
                        markeredgewidth=0.4,
                        markersize=4.5,
                        zorder=3,
                    )
            errors = [
                f"{GROUP_TITLE[str(g)]}: {part['error'].mean():.3f}"
                for g, part in rows.groupby("group", sort=False)
            ]
            ax.text(
                0.98,
                0.03,
                "mean |FCR − exact|\n" + "\n".join(errors),
                transform=ax.transAxes,
                ha="right",
                va="bottom",
                fontsize=6.5,
            )
            share_axis(ax, "x")
            share_axis(ax, "y")
            ax.set_aspect("equal")
            ax.set_title(f"{variant}, {estimator}")
            ax.set_xlabel("exact FCR" if i == len(estimators) - 1 else "")
            ax.set_ylabel("estimated FCR" if j == 0 else "")
    panel_letters(axes.flat)
    handles = [
        Line2D([], [], color=FEATURE_COLOUR.get(f, PINK), marker=".", linestyle="", markersize=8, label=f)
        for f in features
    ]
    handles += [
        Line2D([], [], color=GREY, marker=GROUP_MARKER[g], linestyle="", label=GROUP_TITLE[g])
        for g in dict.fromkeys(data["group"])
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=0.8, label="estimate = exact"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return save(figure, data, out)


@styled
def plot_refusal(refusal: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Refusal, FCR error and entropy gap of every site side by side: both variants, with and without mixing.

    Args:
        refusal: refusal.csv.
        out: path without suffix.
        epsilon: headline bandwidth.

    Raises:
        InputError: if a variant has no rows.
    """
    refusal = tidy(refusal)
    rows = full_cache(
        select(refusal, "refusal.csv", variant=list(VARIANTS), decoding=[PLAIN, MIXED], epsilon=epsilon)
    )
    for variant in VARIANTS:
        select(rows, "refusal.csv", variant=variant, decoding=PLAIN)
    rows = rows.drop_duplicates(["site", "variant", "decoding"])
    metrics = {
        "refusal_rate": "refused\n(share of draws)",
        "parse_refusal": "not in the prior\n(share of draws)",
        "fcr_error": "|FCR − exact|,\ngenerated",
        "entropy_gap": "entropy gap\n(nats)",
        "bits_generated": "information that\nthe site fixes (bits)",
    }
    keep = [
        "site",
        "group",
        "layer",
        "head",
        "variant",
        "decoding",
        *metrics,
        "bits",
        "ci_low",
        "ci_high",
        "gap_low",
        "gap_high",
        "n_candidates",
    ]
    intervals = {"refusal_rate": ("ci_low", "ci_high"), "entropy_gap": ("gap_low", "gap_high")}
    data = as_written(rows.reindex(columns=keep))
    sites = list(dict.fromkeys(sort_sites(data)["site"]))
    figure = new_figure(WIDTH, 1.05 * len(metrics) + 1.0)
    axes = figure.subplots(len(metrics), 1, sharex=True)
    series = [
        (v, d)
        for v in VARIANTS
        for d in (PLAIN, MIXED)
        if len(data[(data["variant"] == v) & (data["decoding"] == d)])
    ]
    small = len(sites) <= 48
    for ax, (metric, title) in zip(axes, metrics.items(), strict=True):
        for k, (variant, decoding) in enumerate(series):
            part = data[(data["variant"] == variant) & (data["decoding"] == decoding)]
            x = part["site"].map(sites.index).to_numpy() + (k - (len(series) - 1) / 2) * 0.17
            colour = VARIANT_COLOUR[variant]
            if metric in intervals:
                low, high = intervals[metric]
                error_bars(ax, x, part[metric], part[low], part[high], colour)
            ax.plot(
                x,
                part[metric],
                "o",
                color=colour,
                markersize=3.2 if small else 1.8,
                markeredgewidth=0.8,
                markerfacecolor=colour if decoding == PLAIN else "white",
                zorder=3,
            )
            for _, group in part.groupby("group"):
                at = group["site"].map(sites.index)
                ax.hlines(
                    group[metric].mean(),
                    at.min() - 0.45,
                    at.max() + 0.45,
                    color=colour,
                    linewidth=1,
                    linestyle="-" if decoding == PLAIN else (0, (2, 1.5)),
                    alpha=0.7,
                )
        if metric == "bits_generated":
            truth = data.drop_duplicates("site")
            ax.plot(
                truth["site"].map(sites.index),
                truth["bits"],
                "_",
                color=BLACK,
                markersize=9 if small else 4,
                zorder=2,
            )
        ax.set_ylabel(title, fontsize=6.8)
        ax.grid(axis="y", color="#e6e6e6", linewidth=0.5)
        ax.set_axisbelow(True)
        if metric == "entropy_gap":
            ax.axhspan(-0.5, 0.5, color=GREEN, alpha=0.10, linewidth=0)
            ax.axhline(0, color=BLACK, linewidth=0.6)
        elif metric == "refusal_rate":
            ax.set_ylim(
                0, min(1.02, max(0.1, 1.08 * float(np.nanmax(data[["refusal_rate", "ci_high"]].to_numpy()))))
            )
        else:
            ax.margins(y=0.12)
            ax.set_ylim(bottom=0)
    _site_axis(axes[-1], sites)
    for ax in axes:
        _separate(ax, data, sites)
    panel_letters(axes)
    handles = [
        Line2D(
            [],
            [],
            color=VARIANT_COLOUR[v],
            marker="o",
            markersize=4,
            markerfacecolor=VARIANT_COLOUR[v] if d == PLAIN else "white",
            linestyle="-" if d == PLAIN else (0, (2, 1.5)),
            linewidth=1,
            label=f"{v}, " + ("plain decoding" if d == PLAIN else "cache mixing"),
        )
        for v, d in series
    ]
    handles.append(Line2D([], [], color=BLACK, marker="_", linestyle="", markersize=9, label="exact"))
    handles.append(Line2D([], [], color=GREEN, alpha=0.25, linewidth=6, label="gap within ±0.5"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.1, fontsize=6.5
    )
    return save(figure, data, out)


@styled
def plot_estimators(
    fcr: pd.DataFrame,
    coverage: pd.DataFrame,
    out: Path,
    features: tuple[str, ...] = ("object", "subject"),
) -> list[Path]:
    """Error of a cell (one prompt, one site) of cache, reweighted and combined, from dense to sparse caches.

    Rows are cache sizes, columns groups of sites; the bandwidth shrinks to the right, and the last column
    shows how many targets are left without neighbours. Thick: pooled over sites and features; thin: single
    sites.

    Args:
        fcr: fcr.csv.
        coverage: coverage.csv.
        out: path without suffix.
        features: headline features, pooled.

    Raises:
        InputError: if an estimator has no rows.
    """
    fcr, coverage = tidy(fcr), coverage.assign(group=coverage["site"].map(group_of))
    names = ("cache", "reweighted", "combined")
    shown_groups = ["heads", "residual"]
    pieces = [select(estimator_rows(fcr, name, list(features)), group=shown_groups) for name in names]
    sizes = sorted({int(size) for piece in pieces for size in piece["cache"].unique()}, reverse=True)
    parts = []
    for name, piece in zip(names, pieces, strict=True):
        for (size, group, epsilon), rows in piece.groupby(["cache", "group", "epsilon"]):
            common = {"cache_size": size, "group": group, "epsilon": epsilon, "estimator": name}
            parts.append(
                {
                    **common,
                    "kind": "pooled",
                    "cell_rmse": pooled_rmse(rows),
                    "n_cells": int(rows["n_targets"].sum()),
                }
            )
            for site, one in rows.groupby("site", sort=False):
                parts.append(
                    {
                        **common,
                        "kind": "site",
                        "site": site,
                        "cell_rmse": pooled_rmse(one),
                        "n_cells": int(one["n_targets"].sum()),
                    }
                )
    # coverage.csv knows the full cache; of smaller ones the share without neighbour follows from fcr.csv.
    full = coverage[coverage["cache_size"] == sizes[0]].assign(cache=sizes[0])
    smaller = uncovered_share(fcr, list(features))
    shares = pd.concat([full, smaller[smaller["cache"] < sizes[0]]], ignore_index=True)
    for (size, group, epsilon), rows in shares[shares["group"].isin(shown_groups)].groupby(
        ["cache", "group", "epsilon"]
    ):
        for column in ("share_lt1", "share_lt10"):
            if rows[column].notna().any():
                parts.append(
                    {
                        "cache_size": size,
                        "group": group,
                        "epsilon": epsilon,
                        "estimator": column,
                        "kind": "coverage",
                        "share": rows[column].mean(),
                    }
                )
    columns = ["kind", "cache_size", "group", "site", "epsilon", "estimator", "cell_rmse", "n_cells", "share"]
    data = as_written(pd.DataFrame(parts).reindex(columns=columns))
    groups = [g for g in ("heads", "residual") if (data["group"] == g).any()]
    figure = new_figure(WIDTH, 1.9 * len(sizes) + 0.4)
    axes = figure.subplots(len(sizes), len(groups) + 1, sharex=True, squeeze=False)
    top = float(np.nanmax(data["cell_rmse"].to_numpy(dtype=float)))
    low = float(np.nanmin(data["cell_rmse"].replace(0, np.nan).to_numpy(dtype=float)))
    ticks = sorted(data["epsilon"].unique())
    for i, size in enumerate(sizes):
        here = data[data["cache_size"] == size]
        for j, group in enumerate(groups):
            ax = axes[i, j]
            for name in names:
                colour, marker = ESTIMATOR_STYLE[name]
                rows = here[(here["group"] == group) & (here["estimator"] == name)]
                for _, line in rows[rows["kind"] == "site"].groupby("site"):
                    line = line.sort_values("epsilon")
                    # An error of exactly 0 (few cells at all) has no place on a logarithmic axis.
                    thin = line["cell_rmse"].replace(0, np.nan)
                    ax.plot(line["epsilon"], thin, color=colour, linewidth=0.5, alpha=0.3)
                line = rows[rows["kind"] == "pooled"].sort_values("epsilon")
                ax.plot(
                    line["epsilon"],
                    line["cell_rmse"],
                    color=colour,
                    marker=marker,
                    linewidth=1.7,
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                    zorder=3,
                )
            ax.set_yscale("log")
            ax.set_ylim(low / 1.15, top * 1.15)
            marks = [v for v in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if low / 1.15 <= v <= top * 1.15]
            ax.yaxis.set_major_locator(FixedLocator(marks))
            ax.yaxis.set_minor_locator(NullLocator())
            ax.set_yticks(marks, [f"{v:g}".removeprefix("0") for v in marks])
            ax.set_title(f"{GROUP_TITLE[group]}, cache of {size:,}")
            ax.set_ylabel("error of a cell (rms)" if j == 0 else "")
            ax.grid(axis="y", color="#e6e6e6", linewidth=0.5)
        ax = axes[i, len(groups)]
        for group in groups:
            for column, style in (("share_lt1", "-"), ("share_lt10", ":")):
                line = here[(here["group"] == group) & (here["estimator"] == column)].sort_values("epsilon")
                ax.plot(
                    line["epsilon"],
                    line["share"],
                    color=GREY if group == "heads" else PINK,
                    linestyle=style,
                    marker=GROUP_MARKER[group],
                    markersize=3,
                )
        share_axis(ax)
        ax.set_title(f"coverage, cache of {size:,}")
        ax.set_ylabel("share of targets")
    for ax in axes.flat:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticks(ticks, [f"{t:g}".removeprefix("0") for t in ticks])
        ax.set_xlim(ticks[-1] * 1.25, ticks[0] / 1.25)
    for ax in axes[-1]:
        ax.set_xlabel("bandwidth ε (dense → sparse)")
    panel_letters(axes.flat)
    handles = [
        Line2D(
            [],
            [],
            color=ESTIMATOR_STYLE[n][0],
            marker=ESTIMATOR_STYLE[n][1],
            linewidth=1.7,
            label={
                "cache": "cache alone",
                "reweighted": "reweighted (default)",
                "combined": "combined (default)",
            }[n],
        )
        for n in names
    ]
    handles += [
        Line2D([], [], color=GREY, marker="o", markersize=3, label="heads, no neighbour"),
        Line2D([], [], color=PINK, marker="s", markersize=3, label="residual, no neighbour"),
        Line2D([], [], color=GREY, linestyle=":", label="fewer than 10"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.2, fontsize=6.5
    )
    return save(figure, data, out)


@styled
def plot_controls(
    fcr: pd.DataFrame, out: Path, epsilon: float, features: tuple[str, ...] = ("object", "subject")
) -> list[Path]:
    """FCR of every site by every estimator and control beside the exact value, two panels a feature.

    Args:
        fcr: fcr.csv.
        out: path without suffix.
        epsilon: headline bandwidth.
        features: two panels each.

    Raises:
        InputError: if the exact value or a variant has no rows.
    """
    fcr = tidy(fcr)
    key: dict[str, Any] = {"feature": list(features), "epsilon": epsilon}
    rows = full_cache(select(fcr, **key))
    shown = {
        "paper": ["generated", "combined", "prior", "shuffled"],
        "default": ["generated", "combined", "cache", "mcmc", "nearest", "majority"],
    }
    parts = []
    for variant, names in shown.items():
        select(rows, variant=variant, decoding=PLAIN)
        for name in ["exact", *names]:
            part = rows[rows["estimator"] == name]
            part = part[part["variant"].isin(["", variant]) & part["decoding"].isin(["", PLAIN])]
            parts.append(part.drop_duplicates(["site", "feature"]).assign(panel=variant))
    keep = [
        "panel",
        "feature",
        "site",
        "group",
        "estimator",
        "fcr",
        "ci_low",
        "ci_high",
        "chance",
        "n_targets",
    ]
    data = as_written(pd.concat(parts)[keep])
    sites = list(dict.fromkeys(sort_sites(data)["site"]))
    small = len(sites) <= 48
    figure = new_figure(WIDTH, 1.45 * len(features) * len(shown) + 0.9)
    axes = figure.subplots(len(features) * len(shown), 1, sharex=True, sharey=True)
    for ax, (feature, panel) in zip(axes, [(f, p) for f in features for p in shown], strict=True):
        rows = data[(data["feature"] == feature) & (data["panel"] == panel)]
        names = [n for n in ["exact", *shown[panel]] if (rows["estimator"] == n).any()]
        for name in names:
            part = rows[rows["estimator"] == name]
            colour, marker = ESTIMATOR_STYLE[name]
            shift = 0.0 if name == "exact" else (names.index(name) - len(names) / 2) * 0.12
            x = part["site"].map(sites.index).to_numpy() + shift
            if name in ("generated", "combined"):
                error_bars(ax, x, part["fcr"], part["ci_low"], part["ci_high"], colour)
            size = (11 if name == "exact" else 3.6) if small else (4 if name == "exact" else 1.8)
            ax.plot(
                x,
                part["fcr"],
                marker,
                color=colour,
                markersize=size,
                markeredgewidth=1 if small else 0.6,
                zorder=3,
            )
        ax.axhline(float(rows["chance"].mean()), color=RED, linewidth=0.8, linestyle="--")
        share_axis(ax)
        _separate(ax, data, sites)
        ax.set_ylabel(f"{feature} FCR\n({panel})")
    _site_axis(axes[-1], sites)
    panel_letters(axes)
    every = [n for n in ESTIMATOR_STYLE if (data["estimator"] == n).any()]
    handles = [
        Line2D([], [], color=ESTIMATOR_STYLE[n][0], marker=ESTIMATOR_STYLE[n][1], linestyle="", label=n)
        for n in every
    ]
    handles.append(Line2D([], [], color=RED, linestyle="--", linewidth=0.8, label="chance"))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.0, handletextpad=0.2
    )
    return save(figure, data, out)


@styled
def plot_training(curves: dict[str, pd.DataFrame], out: Path) -> list[Path]:
    """Training curves of several variants: loss against step beside its Bayes floor, and the excess.

    Args:
        curves: variant -> training log (step, seconds, loss, bayes_floor).
        out: path without suffix.
    """
    parts = []
    for variant, log in curves.items():
        log = log[["step", "seconds", "loss", "bayes_floor"]].astype(float).sort_values("step")
        # Loss and floor belong to the same batches, so both are smoothed over the same window; a missing
        # floor is the last one.
        window = max(1, len(log) // 20)
        smoothed = log["loss"].rolling(window, min_periods=1, center=True).median()
        floor = log["bayes_floor"].ffill().bfill().rolling(window, min_periods=1, center=True).median()
        parts.append(
            log.assign(variant=variant, bayes_floor=floor, smoothed=smoothed, excess=smoothed - floor)
        )
    data = as_written(pd.concat(parts))
    figure = new_figure(WIDTH, 2.5)
    axes = figure.subplots(1, len(curves) + 1, squeeze=False)[0]
    limits = (
        data["loss"].quantile([0.0, 0.98]).to_numpy(),
        data["bayes_floor"].min(),
        data["bayes_floor"].max(),
    )
    low, high = min(limits[0][0], limits[1]), max(limits[0][1], limits[2])
    for ax, variant in zip(axes, curves, strict=False):
        rows, colour = data[data["variant"] == variant], VARIANT_COLOUR.get(variant, GREY)
        ax.plot(rows["step"], rows["loss"], color=colour, linewidth=0.5, alpha=0.3, label="loss")
        ax.plot(rows["step"], rows["smoothed"], color=colour, label="loss, running median")
        ax.plot(
            rows["step"], rows["bayes_floor"], color=BLACK, linestyle="--", linewidth=1, label="Bayes floor"
        )
        ax.fill_between(
            rows["step"], rows["bayes_floor"], rows["smoothed"], color=colour, alpha=0.08, linewidth=0
        )
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set_title(variant)
        ax.set_xlabel("training step")
        ax.set_ylabel("conditional loss (nats a prompt)" if ax is axes[0] else "")
        ax.legend(loc="upper right")
    for variant in curves:
        rows = data[(data["variant"] == variant) & (data["excess"] > 0)]
        axes[-1].plot(rows["step"], rows["excess"], color=VARIANT_COLOUR.get(variant, GREY), label=variant)
    axes[-1].set_yscale("log")
    axes[-1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[-1].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[-1].yaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_title("excess over the floor")
    axes[-1].set_xlabel("training step")
    axes[-1].set_ylabel("loss − floor (nats)")
    axes[-1].legend(loc="upper right")
    panel_letters(axes)
    return save(figure, data, out)


def _site_axis(ax: Axes, sites: list[str]) -> None:
    """Name the sites below the lowest panel; of many sites only the first of each layer."""
    if len(sites) <= 48:
        ax.set_xticks(range(len(sites)), sites, rotation=60, ha="right", rotation_mode="anchor", fontsize=6.3)
    else:
        marks: list[int] = []
        for index, site in enumerate(sites):
            first = "H" not in site or site.partition("H")[2] in ("0", "0.z")
            if first and (not marks or index - marks[-1] >= len(sites) / 50):
                marks.append(index)
        ax.set_xticks(
            marks,
            [sites[index] for index in marks],
            rotation=60,
            ha="right",
            rotation_mode="anchor",
            fontsize=6,
        )
    ax.tick_params(axis="x", length=0 if len(sites) <= 48 else 2)
    ax.set_xlim(-0.7, len(sites) - 0.3)


def _separate(ax: Axes, data: pd.DataFrame, sites: list[str]) -> None:
    """Part layers by thin lines and groups of sites by a thicker one."""
    info = data.drop_duplicates("site").set_index("site")["group"].to_dict()
    previous = None
    for index, site in enumerate(sites):
        layer = site.partition("H")[0].partition(".")[0]
        if previous is not None and info[site] != previous[0]:
            ax.axvline(index - 0.5, color=BLACK, linewidth=0.7)
        elif previous is not None and info[site] == "heads" and layer != previous[1]:
            ax.axvline(index - 0.5, color="#dddddd", linewidth=0.6, zorder=0)
        previous = (info[site], layer)
