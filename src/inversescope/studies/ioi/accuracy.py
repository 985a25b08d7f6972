"""How near the rates are to the truth: scatter, refusal and errors by site, estimators, controls, training curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from inversescope.config.methods import MIXED, PLAIN
from inversescope.context import need
from inversescope.figures.panels import (
    MANY_SITES,
    error_bars,
    key,
    light_grid,
    log_axis,
    near_zero,
    panel_letters,
    part_sites,
    share_axis,
    site_axis,
)
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
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
    WIDTH,
    new_figure,
)
from inversescope.figures.tables import (
    VARIANTS,
    estimator_rows,
    fcr_errors,
    full_cache,
    group_of,
    pooled_rmse,
    select,
    sort_sites,
    telling_sites,
    uncovered_share,
)
from inversescope.store import read_table
from inversescope.studies.ioi.shown import IoiStudy

_DASHED: Any = (0, (2, 1.5))


@figure("scatter", "plot_figures", title="Estimated against exact FCR")
def scatter(study: IoiStudy) -> Drawing:
    """Estimated against exact FCR, a point a site and feature; paper and default, generated and combined."""
    estimators, features = ("generated", "combined"), study.headline
    panels = [(i, j, e, v) for i, e in enumerate(estimators) for j, v in enumerate(VARIANTS)]
    parts = [
        fcr_errors(study.fcr, study.bandwidth_of(variant), features, estimator, PLAIN, variant).assign(
            variant=variant, estimator=estimator
        )
        for _, _, estimator, variant in panels
    ]
    data = as_written(pd.concat(parts))
    drawn = new_figure(0.82 * WIDTH, 0.82 * WIDTH)
    axes = drawn.subplots(len(estimators), len(VARIANTS), sharex=True, sharey=True, squeeze=False)
    for i, j, estimator, variant in panels:
        ax = axes[i, j]
        rows = data[(data["estimator"] == estimator) & (data["variant"] == variant)]
        _diagonal(ax, rows, features)
        by_group = rows.groupby("group", sort=False)["error"].mean()
        errors = [f"{GROUP_TITLE[str(group)]}: {error:.3f}" for group, error in by_group.items()]
        text = "mean |FCR − exact|\n" + "\n".join(errors)
        ax.text(0.98, 0.03, text, transform=ax.transAxes, ha="right", va="bottom", fontsize=6.5)
        ax.set_title(f"{variant}, {estimator}, {study.config.headline_of(variant).label}")
        ax.set_xlabel("exact FCR" if i == len(estimators) - 1 else "")
        ax.set_ylabel("estimated FCR" if j == 0 else "")
    panel_letters(axes.flat)
    handles = [key(f, FEATURE_COLOUR.get(f, PINK), ".", markersize=8) for f in features]
    handles += [key(GROUP_TITLE[g], GREY, GROUP_MARKER[g]) for g in dict.fromkeys(data["group"])]
    handles.append(key("estimate = exact", GREY, line="-", linewidth=0.8))
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return drawn, data


def _diagonal(ax: Axes, rows: pd.DataFrame, features: list[str]) -> None:
    """Points with the intervals of both rates, of many sites without; groups of sites by marker, features by colour."""
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, zorder=1)
    many = rows["site"].nunique() > MANY_SITES
    style: dict[str, Any] = {
        "s": 5 if many else 18,
        "linewidth": 0.4,
        "alpha": 0.6 if many else 1.0,
        "zorder": 3,
    }
    for group, part in rows.groupby("group", sort=False):
        # One call for both features, site by site: neither covers the other.
        colours = [FEATURE_COLOUR.get(feature, PINK) for feature in part["feature"]]
        edge = colours if many else "white"
        ax.scatter(
            part["exact"],
            part["fcr"],
            marker=GROUP_MARKER[str(group)],
            color=colours,
            edgecolor=edge,
            **style,
        )
    for feature in () if many else features:
        part = rows[rows["feature"] == feature]
        x, y, colour = part["exact"], part["fcr"], FEATURE_COLOUR.get(feature, PINK)
        error_bars(ax, x, y, part["ci_low"], part["ci_high"], colour)
        error_bars(ax, x, y, part["exact_low"], part["exact_high"], colour, which="x")
    share_axis(ax, "x")
    share_axis(ax, "y")
    ax.set_aspect("equal")


#: Panels of `refusal`: column, title, columns of its interval.
REFUSAL_PANELS: dict[str, tuple[str, tuple[str, str]]] = {
    "refusal_rate": ("refused\n(share of draws)", ("ci_low", "ci_high")),
    "parse_refusal": ("not in the prior\n(share of draws)", ("parse_low", "parse_high")),
    "fcr_error": ("|FCR − exact|,\ngenerated", ("error_low", "error_high")),
    "entropy_gap": ("entropy gap\n(nats)", ("gap_low", "gap_high")),
    "bits_generated": ("information that\nthe site fixes (bits)", ("bits_low", "bits_high")),
}


@figure("refusal", "plot_figures", title="Refusal, FCR error and entropy gap by site")
def refusal(study: IoiStudy) -> Drawing:
    """Refusal, FCR error and entropy gap of every site, with and without mixing; a column a bandwidth, with its variants."""
    rows = select(study.refusals, "refusal.csv", variant=list(VARIANTS), decoding=[PLAIN, MIXED])
    # `paper` first, and plain decoding.
    rows = full_cache(rows).sort_values(["variant", "decoding"], ascending=False, kind="stable")
    for variant in VARIANTS:
        select(rows, "refusal.csv", variant=variant, decoding=PLAIN)
    rows = rows.drop_duplicates(["site", "variant", "decoding"]).merge(_error_ends(study), how="left")
    about = ["site", "group", "layer", "head", "variant", "decoding", "bandwidth"]
    ends = [end for _, bounds in REFUSAL_PANELS.values() for end in bounds]
    keep = [*about, *REFUSAL_PANELS, "bits", *ends, "n_candidates"]
    rows = rows.reindex(columns=keep).assign(n_sites=1)
    pooled = rows["site"].nunique() > MANY_SITES
    data = as_written(_by_layer(rows) if pooled else rows)
    sites = list(dict.fromkeys(sort_sites(data)["site"]))
    columns: dict[str, list[str]] = {}
    for variant in VARIANTS:
        columns.setdefault(study.bandwidth_of(variant), []).append(variant)
    drawn = new_figure(WIDTH, 1.05 * len(REFUSAL_PANELS) + 1.0)
    axes = drawn.subplots(len(REFUSAL_PANELS), len(columns), sharex=True, sharey="row", squeeze=False)
    for j, (bandwidth, variants) in enumerate(columns.items()):
        own = data[data["bandwidth"] == bandwidth]
        for ax, (metric, (title, _)) in zip(axes[:, j], REFUSAL_PANELS.items(), strict=True):
            _by_site(ax, study, own, metric, sites)
            if metric == "bits_generated":
                truth, size = own.drop_duplicates("site"), max(5, 360 / len(sites) / len(columns))
                x = truth["site"].map(sites.index)
                ax.plot(x, truth["bits"], "_", color=BLACK, markersize=size, zorder=2)
            _refusal_axis(ax, metric, title if j == 0 else "", data)
            part_sites(ax, data, sites)
        axes[0, j].set_title(f"{' and '.join(variants)} at {study.config.headline_of(variants[0]).label}")
        site_axis(axes[-1, j], sites, len(columns))
    panel_letters(axes.flat)
    handles = []
    for variant, decoding in data[["variant", "decoding"]].drop_duplicates().itertuples(index=False):
        colour, plain = study.colour(variant), decoding == PLAIN
        style = {"markersize": 4, "markerfacecolor": colour if plain else "white", "linewidth": 1}
        name = f"{variant}, " + ("plain decoding" if plain else "cache mixing")
        handles.append(key(name, colour, "o", "-" if plain else _DASHED, **style))
    handles.append(key("exact", BLACK, "_", markersize=9))
    handles.append(key("gap within ±0.5", GREEN, line="-", alpha=0.25, linewidth=6))
    style = {"ncols": len(handles), "columnspacing": 1.1, "fontsize": 6.5}
    drawn.legend(handles=handles, loc="outside upper center", **style)
    return drawn, data


def _by_site(ax: Axes, study: IoiStudy, data: pd.DataFrame, metric: str, sites: list[str]) -> None:
    """A metric of each series at each site, with its interval, and means by group as lines."""
    low, high = REFUSAL_PANELS[metric][1]
    series = data.groupby(["variant", "decoding"], sort=False)
    for k, ((variant, decoding), part) in enumerate(series):
        x = part["site"].map(sites.index).to_numpy() + (k - (len(series) - 1) / 2) * 0.17
        colour, plain = study.colour(str(variant)), decoding == PLAIN
        error_bars(ax, x, part[metric], part[low], part[high], colour)
        style: dict[str, Any] = {"markersize": 3.2 if len(sites) <= MANY_SITES else 2, "markeredgewidth": 0.8}
        ax.plot(
            x,
            part[metric],
            "o",
            color=colour,
            markerfacecolor=colour if plain else "white",
            zorder=3,
            **style,
        )
        for _, group in part.groupby("group"):
            at = group["site"].map(sites.index)
            line: dict[str, Any] = {"linewidth": 1, "linestyle": "-" if plain else _DASHED, "alpha": 0.7}
            mean = float(np.average(group[metric], weights=group["n_sites"]))
            ax.hlines(mean, at.min() - 0.45, at.max() + 0.45, color=colour, **line)


def _error_ends(study: IoiStudy) -> pd.DataFrame:
    """Least and greatest |FCR - exact| within the intervals of the differences, as means over the headline features, by site."""
    rows = study.rates[
        (study.rates["estimator"] == "generated") & study.rates["feature"].isin(study.features)
    ]
    ends = full_cache(rows)[["error_low", "error_high"]]
    high = ends.abs().max(axis=1)
    low = ends.abs().min(axis=1).where(ends.prod(axis=1) > 0, 0)
    keys = ["site", "variant", "decoding"]
    rows = rows.loc[ends.index, keys].assign(error_low=low, error_high=high)
    return rows.groupby(keys, sort=False).mean().reset_index()


def _by_layer(rows: pd.DataFrame) -> pd.DataFrame:
    """Heads of a layer as one row, `L3H*`: their means, and the lowest and the highest of them as ends of the interval."""
    is_head = rows["group"] == "heads"
    layers = rows[is_head].groupby(["group", "layer", "variant", "decoding", "bandwidth"], sort=False)
    pooled = layers[[*REFUSAL_PANELS, "bits"]].mean()
    for metric, (_, (low, high)) in REFUSAL_PANELS.items():
        pooled[low], pooled[high] = layers[metric].min(), layers[metric].max()
    pooled = pooled.join(layers[["n_candidates", "n_sites"]].sum()).reset_index()
    names = "L" + pooled["layer"].astype(int).astype(str) + "H*"
    return pd.concat([pooled.assign(site=names), rows[~is_head]], ignore_index=True)[list(rows.columns)]


def _refusal_axis(ax: Axes, metric: str, title: str, data: pd.DataFrame) -> None:
    ax.set_ylabel(title, fontsize=6.8)
    light_grid(ax)
    ax.set_axisbelow(True)
    if metric == "entropy_gap":
        near_zero(ax)
    elif metric == "refusal_rate":
        top = 1.08 * float(np.nanmax(data[["refusal_rate", "ci_high"]].to_numpy()))
        ax.set_ylim(0, min(1.02, max(0.1, top)))
    else:
        ax.margins(y=0.12)
        ax.set_ylim(bottom=0)


def _of(rows: pd.DataFrame, **conditions: Any) -> pd.DataFrame:
    """Rows with these values; none is no error."""
    for name, value in conditions.items():
        rows = rows[rows[name] == value]
    return rows


#: What `estimators` compares, and how the legend calls it.
COMPARED = {"cache": "cache alone", "reweighted": "reweighted (default)", "combined": "combined (default)"}
_ESTIMATOR_GROUPS = ["heads", "residual"]


def estimator_table(study: IoiStudy) -> pd.DataFrame:
    """Error of a cell by estimator, cache size, group of sites and bandwidth, and how many targets have neighbours.

    Returns:
        kind (`pooled` over sites, `site`, `coverage`), cache_size, group, site, nominal (epsilon, or share of the prior),
        estimator, cell_rmse, n_cells, share (of the targets with less than one or ten neighbours, in rows of coverage).
    """
    fcr, features = study.on_axis(study.fcr), study.headline
    pieces = {name: select(estimator_rows(fcr, name, features), group=_ESTIMATOR_GROUPS) for name in COMPARED}
    parts: list[dict[str, Any]] = []

    def add(key: Any, name: str, rows: pd.DataFrame, **more: Any) -> None:
        wrong = {"cell_rmse": pooled_rmse(rows), "n_cells": int(rows["n_targets"].sum())}
        parts.append(dict(zip(_KEYS, key, strict=True)) | {"estimator": name} | wrong | more)

    for name, piece in pieces.items():
        for key_, rows in piece.groupby(["cache", "group", "nominal"]):
            add(key_, name, rows, kind="pooled")
            for site, one in rows.groupby("site", sort=False):
                add(key_, name, one, kind="site", site=site)
    # coverage.csv knows the full cache; of smaller ones the share without neighbour follows from fcr.csv.
    full = max(int(piece["cache"].max()) for piece in pieces.values())
    known = study.on_axis(study.table("coverage.csv", "collect_tables"))
    known = known[known["cache_size"] == full].assign(cache=full, group=known["site"].map(group_of))
    smaller = study.on_axis(uncovered_share(fcr, features))
    shares = pd.concat([known, smaller[smaller["cache"] < full]], ignore_index=True)
    shares = shares[shares["group"].isin(_ESTIMATOR_GROUPS)]
    for key_, rows in shares.groupby(["cache", "group", "nominal"]):
        for column in ("share_lt1", "share_lt10"):
            if rows[column].notna().any():
                row = dict(zip(_KEYS, key_, strict=True)) | {"estimator": column, "kind": "coverage"}
                parts.append(row | {"share": rows[column].mean()})
    columns = ["kind", "cache_size", "group", "site", "nominal", "estimator", "cell_rmse", "n_cells", "share"]
    return pd.DataFrame(parts).reindex(columns=columns)


_KEYS = ("cache_size", "group", "nominal")


@figure("estimators", "plot_figures", title="Error of a single cell, from dense to sparse caches")
def estimators(study: IoiStudy) -> Drawing:
    """Error of a cell (one prompt, one site) of cache, reweighted and combined, from dense to sparse caches.

    Rows are cache sizes, columns groups of sites; the bandwidth shrinks to the right, and the last column
    shows how many targets are left without neighbours. Thick: pooled over sites and features; thin: single
    sites.
    """
    data = as_written(estimator_table(study))
    sizes = sorted(data.loc[data["kind"] == "pooled", "cache_size"].unique(), reverse=True)
    groups = [g for g in _ESTIMATOR_GROUPS if (data["group"] == g).any()]
    drawn = new_figure(WIDTH, 1.9 * len(sizes) + 0.4)
    axes = drawn.subplots(len(sizes), len(groups) + 1, sharex=True, squeeze=False)
    # An error of exactly 0 (few cells at all) has no place on a logarithmic axis.
    wrong = data["cell_rmse"].replace(0, np.nan)
    limits = (float(wrong.min()) / 1.15, float(data["cell_rmse"].max()) * 1.15)
    ticks = sorted(data["nominal"].unique())
    for i, size in enumerate(sizes):
        here = data[data["cache_size"] == size]
        for ax, group in zip(axes[i], groups, strict=False):
            _cell_errors(ax, here[here["group"] == group], limits)
            ax.set_title(f"{GROUP_TITLE[group]}, cache of {size:,}")
            ax.set_ylabel("error of a cell (rms)" if group == groups[0] else "")
        ax = axes[i, -1]
        for group in groups:
            for column, line in (("share_lt1", "-"), ("share_lt10", ":")):
                rows = _of(here, group=group, estimator=column).sort_values("nominal")
                style = {"color": GREY if group == "heads" else PINK, "marker": GROUP_MARKER[group]}
                ax.plot(rows["nominal"], rows["share"], linestyle=line, markersize=3, **style)
        share_axis(ax)
        ax.set_title(f"coverage, cache of {size:,}")
        ax.set_ylabel("share of targets")
    for ax in axes.flat:
        log_axis(ax, "x", ticks)
        ax.set_xlim(ticks[-1] * 1.25, ticks[0] / 1.25)
    for ax in axes[-1]:
        ax.set_xlabel(f"{study.axis} (dense → sparse)")
    panel_letters(axes.flat)
    handles = [key(label, *ESTIMATOR_STYLE[n], "-", linewidth=1.7) for n, label in COMPARED.items()]
    handles += [
        key("heads, no neighbour", GREY, "o", "-", markersize=3),
        key("residual, no neighbour", PINK, "s", "-", markersize=3),
        key("fewer than 10", GREY, line=":"),
    ]
    layout = {"ncols": len(handles), "columnspacing": 1.2, "fontsize": 6.5}
    drawn.legend(handles=handles, loc="outside lower center", **layout)
    return drawn, data


def _cell_errors(ax: Axes, rows: pd.DataFrame, limits: tuple[float, float]) -> None:
    """Errors of a group of sites by bandwidth, pooled and site by site."""
    for name in COMPARED:
        colour, marker = ESTIMATOR_STYLE[name]
        own = rows[rows["estimator"] == name]
        sites = own[own["kind"] == "site"]
        faint: dict[str, Any] = {"linewidth": 0.5, "alpha": min(0.3, 6 / max(1, sites["site"].nunique()))}
        for _, line in sites.groupby("site"):
            line = line.sort_values("nominal")
            ax.plot(line["nominal"], line["cell_rmse"].replace(0, np.nan), color=colour, **faint)
        line = own[own["kind"] == "pooled"].sort_values("nominal")
        style: dict[str, Any] = {"linewidth": 1.7, "markeredgecolor": "white", "markeredgewidth": 0.5}
        ax.plot(line["nominal"], line["cell_rmse"], color=colour, marker=marker, zorder=3, **style)
    marks = [v for v in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if limits[0] <= v <= limits[1]]
    log_axis(ax, "y", marks)
    ax.set_ylim(*limits)
    light_grid(ax)


#: Panels of `controls`: variant -> what stands beside the exact value.
CONTROL_PANELS = {
    "paper": ["generated", "combined", "prior", "shuffled"],
    "default": ["generated", "combined", "cache", "mcmc", "nearest", "majority"],
}


@figure("controls", "plot_figures", title="FCR beside its controls")
def controls(study: IoiStudy) -> Drawing:
    """FCR of every site by every estimator and control beside the exact value, two panels a feature.

    All rates of a panel are at the bandwidth of its variant.
    """
    parts = []
    for variant, names in CONTROL_PANELS.items():
        key_: dict[str, Any] = {"feature": study.headline, "bandwidth": study.bandwidth_of(variant)}
        rows = full_cache(select(study.fcr, **key_))
        select(rows, variant=variant, decoding=PLAIN)
        own = rows[rows["variant"].isin(["", variant]) & rows["decoding"].isin(["", PLAIN])]
        for name in ["exact", *names]:
            part = own[own["estimator"] == name].drop_duplicates(["site", "feature"])
            parts.append(part.assign(panel=variant))
    keep = "panel bandwidth feature site group estimator fcr ci_low ci_high chance n_targets".split()
    exact = select(study.rates, estimator="exact", feature=study.headline)
    sites = telling_sites(exact, MANY_SITES)
    data = pd.concat(parts)[keep]
    data = as_written(data[data["site"].isin(sites)])
    panels = [(feature, panel) for feature in study.headline for panel in CONTROL_PANELS]
    drawn = new_figure(WIDTH, 1.45 * len(panels) + 0.9)
    axes = drawn.subplots(len(panels), 1, sharex=True, sharey=True)
    for ax, (feature, panel) in zip(axes, panels, strict=True):
        rows = _of(data, feature=feature, panel=panel)
        _beside_exact(ax, rows, CONTROL_PANELS[panel], sites)
        ax.axhline(float(rows["chance"].mean()), color=RED, linewidth=0.8, linestyle="--")
        share_axis(ax)
        part_sites(ax, data, sites)
        ax.set_ylabel(f"{feature} FCR\n{panel},\n{study.config.headline_of(panel).label}")
    site_axis(axes[-1], sites)
    panel_letters(axes)
    handles = [key(n, *style) for n, style in ESTIMATOR_STYLE.items() if (data["estimator"] == n).any()]
    handles.append(key("chance", RED, line="--", linewidth=0.8))
    style = {"ncols": len(handles), "columnspacing": 1.0, "handletextpad": 0.2}
    drawn.legend(handles=handles, loc="outside upper center", **style)
    return drawn, data


def _beside_exact(ax: Axes, rows: pd.DataFrame, shown: list[str], sites: list[str]) -> None:
    """Marks of the estimators at each site, those of the generator's with intervals."""
    names = [n for n in ["exact", *shown] if (rows["estimator"] == n).any()]
    for k, name in enumerate(names):
        part = rows[rows["estimator"] == name]
        colour, marker = ESTIMATOR_STYLE[name]
        shift = 0.0 if name == "exact" else (k - len(names) / 2) * 0.12
        x = part["site"].map(sites.index).to_numpy() + shift
        if name in ("generated", "combined"):
            error_bars(ax, x, part["fcr"], part["ci_low"], part["ci_high"], colour)
        size = 11 if name == "exact" else 3.6
        style: dict[str, Any] = {"markersize": size, "markeredgewidth": 1, "zorder": 3}
        ax.plot(x, part["fcr"], marker, color=colour, **style)


def training_table(study: IoiStudy) -> pd.DataFrame:
    """Training logs of both variants: step, loss, Bayes floor, smoothed loss, and its excess over the floor."""
    parts = []
    for variant in VARIANTS:
        path = study.context.training_log(study.config.variant(variant).generator, variant)
        log = read_table(need(path, f"train_generator (variant {variant})"))
        log = log.reindex(columns=["step", "loss", "bayes_floor"]).astype(float).sort_values("step")
        # Loss and floor belong to the same batches, so both are smoothed over the same window; a missing
        # floor is the last one. Training without any floor leaves out its column.
        window = max(1, len(log) // 20)
        smoothed = log["loss"].rolling(window, min_periods=1, center=True).median()
        floor = log["bayes_floor"].ffill().bfill().rolling(window, min_periods=1, center=True).median()
        parts.append(
            log.assign(variant=variant, bayes_floor=floor, smoothed=smoothed, excess=smoothed - floor)
        )
    return pd.concat(parts)


@figure("training", "plot_figures", title="Training curves beside the Bayes floor")
def training(study: IoiStudy) -> Drawing:
    """Training curves of both variants: loss against step beside its Bayes floor, and the excess."""
    data = as_written(training_table(study))
    drawn = new_figure(WIDTH, 2.5)
    axes = drawn.subplots(1, len(VARIANTS) + 1, squeeze=False)[0]
    floor, (least, most) = data["bayes_floor"], data["loss"].quantile([0.0, 0.98])
    low, high = min(least, floor.min()), max(most, floor.max())
    for ax, variant in zip(axes, VARIANTS, strict=False):
        rows, colour = data[data["variant"] == variant], study.colour(variant)
        step, smoothed, floor = rows["step"], rows["smoothed"], rows["bayes_floor"]
        ax.plot(step, rows["loss"], color=colour, linewidth=0.5, alpha=0.3, label="loss")
        ax.plot(step, smoothed, color=colour, label="loss, running median")
        ax.plot(step, floor, color=BLACK, linestyle="--", linewidth=1, label="Bayes floor")
        ax.fill_between(step, floor, smoothed, color=colour, alpha=0.08, linewidth=0)
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        ax.set_title(variant)
        ax.set_ylabel("conditional loss (nats a prompt)" if ax is axes[0] else "")
        above = rows[rows["excess"] > 0]
        axes[-1].plot(above["step"], above["excess"], color=colour, label=variant)
    excess = axes[-1]
    excess.set_yscale("log")
    excess.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    excess.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    excess.yaxis.set_minor_formatter(NullFormatter())
    excess.set_title("excess over the floor")
    excess.set_ylabel("loss − floor (nats)")
    for ax in axes:
        ax.set_xlabel("training step")
        ax.legend(loc="upper right")
    panel_letters(axes)
    return drawn, data
