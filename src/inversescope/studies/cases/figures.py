"""Figures and tables of InversionView's case studies: what sites tell along the computation, by generator and by distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.figures.panels import error_bars, key, panel_letters, share_axis
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written, markdown_table
from inversescope.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, WIDTH, new_figure
from inversescope.studies.cases.shown import CaseStudy

#: Rates of fewer target prompts with any accepted candidate are drawn hollow.
FEW_TARGETS = 10
DISTANCE_STYLE = {
    "cosine": (BLUE, "o"),
    "normalised_euclidean": (ORANGE, "s"),
    "standardised": (GREEN, "^"),
}


@figure("sites", "plot_cases", title="FCR, refusal and FCR error along the computation, by generator")
def sites(study: CaseStudy) -> Drawing:
    """FCR of the headline features at each site in order of computation, exact and drawn; refusal and FCR error below."""
    features, order = study.features, study.order
    rates = _headline_rows(study)
    refused = as_written(study.refused)
    variants = [name for name in study.shown if name in set(rates["by"])]
    drawn = new_figure(WIDTH, 1.75 * (len(features) + 2) + 0.6)
    axes = drawn.subplots(len(features) + 2, 1, sharex=True, squeeze=False)[:, 0]
    place = {site: x for x, site in enumerate(order)}
    shift = {name: 0.16 * (i - (len(variants) - 1) / 2) for i, name in enumerate(variants)}
    shown = []
    for ax, feature in zip(axes, features, strict=False):
        part = rates[(rates["feature"] == feature) & rates["site"].isin(order)]
        for one in part[part["by"] == "exact"].itertuples():
            ends = [place[one.site] - 0.4, place[one.site] + 0.4]
            ax.fill_between(ends, one.ci_low, one.ci_high, color=BLACK, alpha=0.12, linewidth=0)
            ax.hlines(one.fcr, *ends, color=BLACK, linewidth=1.4)
        for name in variants:
            own, colour = part[part["by"] == name], study.colour(name)
            x = own["site"].map(place) + shift[name]
            few = own["n_targets"] < FEW_TARGETS
            _marks(ax, x, own["fcr"], few, colour, name)
            error_bars(ax, x, own["fcr"], own["ci_low"], own["ci_high"], colour)
        ax.axhline(float(part["chance"].iloc[0]), color=GREY, linestyle=":", linewidth=0.9)
        share_axis(ax)
        ax.set_ylabel(f"{feature} FCR")
        shown.append(part.assign(quantity="fcr", value=part["fcr"]))
    for ax, column, title in zip(
        axes[-2:], ("refusal_rate", "fcr_error"), ("refusal rate", "|FCR error|"), strict=True
    ):
        for name in variants:
            own, colour = (
                refused[(refused["variant"] == name) & refused["site"].isin(order)],
                study.colour(name),
            )
            x = own["site"].map(place) + shift[name]
            told = rates[rates["by"] == name].groupby("site")["n_targets"].min()
            few = (own["site"].map(told).fillna(0) < FEW_TARGETS) & (column == "fcr_error")
            _marks(ax, x, own[column], few, colour)
            if column == "refusal_rate":
                error_bars(ax, x, own[column], own["ci_low"], own["ci_high"], colour)
            else:  # the interval is that of the refusal
                own = own.assign(ci_low=np.nan, ci_high=np.nan)
            shown.append(own.assign(by=name, quantity=column, value=own[column], feature=""))
        ax.set_ylabel(title)
        ax.set_ylim(bottom=0)
    share_axis(axes[-2])
    axes[-1].set_xticks(range(len(order)), order, rotation=30, ha="right")
    axes[-1].set_xlim(-0.6, len(order) - 0.4)
    handles, labels = axes[0].get_legend_handles_labels()
    handles += [axes[0].plot([], [], color=BLACK)[0], axes[0].plot([], [], color=GREY, linestyle=":")[0]]
    drawn.legend(handles, [*labels, "exact, 95% interval", "chance"], loc="outside upper center", ncols=6)
    panel_letters(axes)
    columns = ["site", "feature", "by", "quantity", "value", "ci_low", "ci_high", "n_targets"]
    return drawn, pd.concat(shown, ignore_index=True)[columns]


def _headline_rows(study: CaseStudy) -> pd.DataFrame:
    """Exact and generated rates, the first decoding of each variant; `by` names whose they are."""
    rows = study.rates[study.rates["feature"].isin(study.features)]
    exact = rows[rows["estimator"] == "exact"].assign(by="exact")
    generated = rows[rows["estimator"] == "generated"]
    both = pd.concat([exact, generated.assign(by=generated["variant"])])
    return as_written(both.drop_duplicates(["site", "feature", "by"]))


def _marks(ax: Axes, x: pd.Series, y: pd.Series, few: pd.Series, colour: str, label: str = "") -> None:
    """Marks, hollow where few targets stand behind them."""
    ax.plot(x[few], y[few], "o", color=colour, markerfacecolor="white")
    ax.plot(x[~few], y[~few], "o", color=colour, label=label or None)


@figure("distances", "plot_cases", title="Three distances at equal shares of the prior")
def distances(study: CaseStudy) -> Drawing:
    """FCR under each distance, overlap of the balls, and spread of their sizes, at each site."""
    data = as_written(study.table("distances.csv", "compare_distances"))
    features = study.features
    order = [site for site in study.order if site in set(data["site"])]
    place = {site: x for x, site in enumerate(order)}
    panels = {(feature, "fcr"): f"{feature} FCR" for feature in features}
    panels |= {(features[0], "overlap"): "overlap with cosine", (features[0], "spread"): "SD of log10 share"}
    drawn = new_figure(WIDTH, 1.6 * len(panels) + 0.7)
    axes = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, ((feature, column), title) in zip(axes, panels.items(), strict=True):
        for i, (name, (colour, marker)) in enumerate(DISTANCE_STYLE.items()):
            part = data[(data["distance"] == name) & (data["feature"] == feature)]
            x = part["site"].map(place) + 0.16 * (i - 1)
            ax.plot(x, part[column], marker, color=colour, label=name.replace("_", " "))
            if column == "fcr":
                error_bars(ax, x, part["fcr"], part["ci_low"], part["ci_high"], colour)
                error_bars(
                    ax, x + 0.07, part["fcr_matched"], part["matched_low"], part["matched_high"], colour
                )
                ax.plot(x + 0.07, part["fcr_matched"], marker, color=colour, markerfacecolor="white")
        if column == "fcr":
            ax.axhline(float(part["chance"].iloc[0]), color=GREY, linestyle=":", linewidth=0.9)
        if column == "spread":
            ax.set_ylim(bottom=0)
        else:
            share_axis(ax, pad=0.06)
        ax.set_ylabel(title)
    axes[-1].set_xticks(range(len(order)), order, rotation=30, ha="right")
    handles = axes[0].get_legend_handles_labels()[0]
    handles.append(key("balls of equal size", GREY, "o", markerfacecolor="white"))
    drawn.legend(handles=handles, loc="outside upper center", ncols=4)
    panel_letters(axes)
    return drawn, data.drop(columns=data.filter(like="refusal_").columns)


@figure(
    "completeness", "plot_cases", title="Generator probability against distance, and recall of the preimage"
)
def completeness(study: CaseStudy) -> Drawing:
    """Log probability of known prompts under each generator against their distance, and expected recall as draws grow."""
    points = study.completeness(".parquet")
    points = points[points["variant"].isin(study.shown)]
    variants = list(dict.fromkeys(points["variant"]))
    rows = len(variants) // 3 + 1
    drawn = new_figure(WIDTH, 0.6 + 2.1 * rows)
    grid = drawn.add_gridspec(rows, 3)
    shown: list[pd.DataFrame] = []
    axes: list[Axes] = []
    for i, name in enumerate(variants):
        shared = axes[0] if axes else None
        ax = drawn.add_subplot(grid[i // 3, i % 3], sharex=shared, sharey=shared)
        axes.append(ax)
        part = as_written(points[points["variant"] == name])
        thinned = part.iloc[:: max(1, len(part) // 3000)]
        style: dict[str, Any] = {"markersize": 1.5, "alpha": 0.4, "rasterized": True}
        for inside, colour in ((False, GREY), (True, study.colour(name))):
            one = thinned[thinned["inside"] == inside]
            ax.plot(one["distance"], one["log_q"], ".", color=colour, **style)
        ax.set_title(name)
        ax.set_xlabel("true distance")
        ax.set_ylabel("log q (nats)" if i % 3 == 0 else "")
        shown.append(thinned.assign(panel="points"))
    low, high = np.quantile(points["log_q"], [0.005, 1.0])
    axes[0].set_ylim(low - 2, high + 2)
    axes.append(drawn.add_subplot(grid[len(variants) // 3, len(variants) % 3]))
    shown.append(_recall(axes[-1], study, variants[0]).assign(panel="recall"))
    panel_letters(axes)
    drawn.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return drawn, pd.concat(shown, ignore_index=True)


def _recall(ax: Axes, study: CaseStudy, first: str) -> pd.DataFrame:
    """Draw the expected recall of every generator, and the ideal one; returns what is drawn."""
    recall = study.completeness("_recall.csv")
    means = as_written(
        recall.groupby(["variant", "draws"], sort=False)[["recall", "ideal"]].mean().reset_index()
    )
    others = [name for name in dict.fromkeys(means["variant"]) if name not in study.shown]
    colours = dict(zip(others, (SKY, PINK, ORANGE), strict=False))
    for (name, part), marker in zip(means.groupby("variant", sort=False), "os^Dvx", strict=False):
        colour = colours.get(str(name), study.colour(str(name)))
        style: dict[str, Any] = {"marker": marker, "markerfacecolor": "none", "linewidth": 0.8}
        ax.plot(part["draws"], part["recall"], color=colour, label=name, **style)
    part = means[means["variant"] == first]
    ax.plot(part["draws"], part["ideal"], "--", color=BLACK, label="draws from P(x; z)")
    ax.set(xscale="log", yscale="log", xlabel="draws", ylabel="expected recall of the preimage")
    return means


def size_table(study: CaseStudy) -> pd.DataFrame:
    """Parameters, refusal, FCR error, entropy gap and completeness of each generator, from the smallest to the largest."""
    measured = ["refusal_rate", "fcr_error", "entropy_gap"]
    means = study.refused.groupby("variant")[measured].mean().reset_index()
    rows = study.completeness("_sizes.csv").merge(means, on="variant", how="left")
    found = ["recall_1000", "ideal_1000", "missed", "spearman", "n_prompts"]
    rows = rows.sort_values("n_parameters", kind="stable")
    return rows[["variant", "n_parameters", *measured, *found]]


@table("sizes", "plot_cases", title="Completeness and size of the generators")
def sizes(study: CaseStudy) -> Page:
    """`size_table` of the study."""
    frame = as_written(size_table(study))
    about = f"Completeness and size of the generators at {study.bandwidth_label}, means over sites."
    return frame, f"{about}\n\n{markdown_table(frame)}"


@table("cases", "plot_cases", title="FCR of the headline features by site and generator")
def cases(study: CaseStudy) -> Page:
    """The headline features' rates by site: exact, every generator, the cache, `combined`, and chance."""
    features, order = study.features, study.order
    rows = study.rates[study.rates["feature"].isin(features) & study.rates["site"].isin(order)]
    rows = rows[rows["estimator"].isin(["exact", "cache", "generated", "combined", "shuffled", "prior"])]
    alone = rows["variant"] == ""
    rows = rows.assign(who=rows["estimator"].where(alone, rows["estimator"] + " " + rows["variant"]))
    rows = rows.drop_duplicates(["feature", "site", "who"])
    text = [f"{r.fcr:.3f} [{r.ci_low:.3f}, {r.ci_high:.3f}]" for r in rows.itertuples()]
    wide = rows.assign(text=text).pivot(index=["feature", "site"], columns="who", values="text")
    first = [name for name in ("exact", "cache") if name in wide]
    wide = wide[[*first, *sorted(set(wide.columns) - set(first))]]
    wide = wide.loc[sorted(wide.index, key=lambda key: (features.index(key[0]), order.index(key[1])))]
    chance = rows.drop_duplicates("feature").set_index("feature")["chance"].astype(float)
    wide.insert(0, "chance", chance.loc[wide.index.get_level_values("feature")].to_numpy())
    frame = wide.reset_index()
    about = f"FCR at {study.bandwidth_label}, 95% intervals over target prompts."
    return frame, f"{about}\n\n{markdown_table(frame, '.3f')}"
