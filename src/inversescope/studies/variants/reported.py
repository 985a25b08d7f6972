"""Where Appendix B's noise misleads: what generators report at each site, beside the exact rate, and what a reader concludes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.config.methods import Bandwidth
from inversescope.figures.headline import Row, number
from inversescope.figures.panels import error_bars, key, panel_letters, share_axis
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written, interval, markdown_table
from inversescope.figures.study import Study
from inversescope.figures.style import BLACK, GREY, RED, WIDTH, new_figure
from inversescope.figures.tables import VARIANTS, lift, sort_sites, t_interval, tidy

#: A feature is told from here on: half of the way from chance to certainty.
TOLD = 0.5
KEYS = ["bandwidth", "steps_multiple", "site", "feature", "base"]
#: The same for all seeds of a row.
_SHARED = ["dim", "epsilon", "share", "chance", "exact", "exact_low", "exact_high"]
_METRICS = ("refusal_rate", "parse_refusal", "fcr", "difference", "entropy_gap")
#: Height of a site's line in the figure, in inches.
_LINE = 0.32


def label_of(bandwidth: str) -> str:
    """A bandwidth, as the column of that name has it, for readers."""
    return Bandwidth.parse(bandwidth).label


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table of the study at the bandwidths at which each of its bases is read."""
    bases = rows.groupby("bandwidth")["base"].nunique()
    return rows[rows["bandwidth"].isin(bases[bases == rows["base"].nunique()].index)]


def readings(rates: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """What is reported of each site and feature, over seeds, and what a reader concludes from it.

    Args:
        rates: study_rates.csv, a row a variant, site, bandwidth and feature.
        confidence: level of the Student t intervals over seeds; with one seed there are none.

    Returns:
        bandwidth, steps_multiple, site, feature, base, dim, epsilon, share, chance, exact, exact_low, exact_high, n_seeds; of each
        metric (refusal_rate, parse_refusal, fcr, difference = fcr - exact, entropy_gap) its mean over seeds, {metric}_low and
        {metric}_high; `reads` (the reported rate is more than half of the way from chance to 1: a reader concludes that the site
        tells the feature), `tells` (the same of the exact rate) and `misled` (these two differ, by an interval of the difference
        that excludes 0). Only bandwidths at which each base of the study is read.
    """
    rates = compared(tidy(rates.assign(difference=rates["fcr"] - rates["exact"])))
    rows = []
    for of, group in rates.groupby(KEYS, sort=False):
        row = dict(zip(KEYS, of, strict=True)) | group[_SHARED].iloc[0].to_dict() | {"n_seeds": len(group)}
        for metric in _METRICS:
            mean, half = t_interval(group[metric].dropna().to_numpy(float), confidence)
            row |= {metric: mean, f"{metric}_low": mean - half, f"{metric}_high": mean + half}
        rows.append(row)
    frame = pd.DataFrame(rows)
    reads, tells = lift(frame) > TOLD, lift(frame.assign(fcr=frame["exact"])) > TOLD
    sure = (frame["difference_low"] > 0) | (frame["difference_high"] < 0)
    frame = frame.assign(reads=reads, tells=tells, misled=(reads != tells) & sure)
    return sort_sites(frame).sort_values(["bandwidth", "dim"], kind="stable").reset_index(drop=True)


@figure("misleads", "plot_study", title="Where Appendix B's noise misleads")
def misleads(study: Study) -> Drawing:
    """Refusal and reported rates beside the exact ones, a line a site, by bandwidth; what would mislead a reader is shaded.

    Of the first two features; the table has all. Open marks: the shortest training; filled ones: the longest.
    """
    data = readings(study.table("study_rates.csv", "collect_study"), study.config.fcr.confidence)
    features = study.features[:2]
    data = as_written(data[data["feature"].isin(features)])
    bandwidths = list(dict.fromkeys(data["bandwidth"]))
    sites = {one: list(dict.fromkeys(data.loc[data["bandwidth"] == one, "site"])) for one in bandwidths}
    panels = ["refusal_rate", *features]
    heights = [len(sites[one]) for one in bandwidths]
    drawn = new_figure(WIDTH, _LINE * sum(heights) + 0.5 * len(bandwidths) + 0.6)
    grid = drawn.subplots(
        len(bandwidths), len(panels), squeeze=False, sharex="col", sharey="row", height_ratios=heights
    )
    for ax, panel in zip(grid[0], panels, strict=True):
        ax.set_title("refused" if panel == "refusal_rate" else f"{panel} FCR", fontsize=6.5)
    for line, one in zip(grid, bandwidths, strict=True):
        for ax, panel in zip(line, panels, strict=True):
            feature = features[0] if panel == "refusal_rate" else panel
            here = data[(data["bandwidth"] == one) & (data["feature"] == feature)]
            _panel(ax, study, here, sites[one], "refusal_rate" if panel == "refusal_rate" else "fcr")
            share_axis(ax, "x")
            ax.tick_params(axis="y", length=0)
        _name_sites(line[0], data[data["bandwidth"] == one], sites[one])
    panel_letters(grid.flat)
    ends = _ends(data)
    handles = [
        key(f"{base}, training {times:g}×", study.colour(base), "o", **_face(study.colour(base), times, ends))
        for base in VARIANTS
        for times in ends
    ]
    handles += [key("exact", BLACK, line="-", linewidth=1.6), key("chance", GREY, line=":", linewidth=0.9)]
    handles.append(key("would mislead a reader", RED, line="-", alpha=0.2, linewidth=6))
    drawn.legend(handles=handles, loc="outside lower center", ncols=4)
    return drawn, data


def _ends(data: pd.DataFrame) -> list[float]:
    """The shortest and the longest training."""
    return list(dict.fromkeys([data["steps_multiple"].min(), data["steps_multiple"].max()]))


def _face(colour: str, times: float, ends: list[float]) -> dict[str, Any]:
    """Marks of the longest training are filled."""
    return {"markersize": 3.6, "markerfacecolor": colour if times == ends[-1] else "white", "zorder": 3}


def _panel(ax: Axes, study: Study, data: pd.DataFrame, sites: list[str], metric: str) -> None:
    """A line a site: both bases after the shortest and the longest training, and the exact rate where rates are shown."""
    ends = _ends(data)
    slots = [(base, times) for base in VARIANTS for times in ends]
    place = {site: y for y, site in enumerate(sites)}
    for k, (base, times) in enumerate(slots):
        shift = 0.7 * ((k + 0.5) / len(slots) - 0.5)
        colour = study.colour(base)
        part = data[(data["base"] == base) & (data["steps_multiple"] == times)]
        y = part["site"].map(place) + shift
        error_bars(ax, part[metric], y, part[f"{metric}_low"], part[f"{metric}_high"], colour, "x")
        ax.plot(part[metric], y, "o", color=colour, **_face(colour, times, ends))
        if metric == "fcr":
            half = 0.35 / len(slots)
            for wrong in y[part["misled"]]:
                ax.axhspan(wrong - half, wrong + half, color=RED, alpha=0.15, linewidth=0, zorder=0)
    if metric == "fcr":
        exact = data.drop_duplicates("site")
        for row in exact.itertuples():
            ends_of = (place[row.site] - 0.42, place[row.site] + 0.42)
            ax.fill_betweenx(ends_of, row.exact_low, row.exact_high, color=BLACK, alpha=0.15, linewidth=0)
            ax.vlines(row.exact, *ends_of, color=BLACK, linewidth=1.6, zorder=2)
        ax.axvline(float(exact["chance"].iloc[0]), color=GREY, linestyle=":", linewidth=0.9)
    for y in range(1, len(sites)):
        ax.axhline(y - 0.5, color="#dddddd", linewidth=0.6)


def _name_sites(ax: Axes, data: pd.DataFrame, sites: list[str]) -> None:
    """Sites with their dimension and the share of the prior in their ball; the bandwidth."""
    about = data.drop_duplicates("site").set_index("site")
    names = [
        f"{site}\n{about.loc[site, 'dim']:g} dim., {_percent(about.loc[site, 'share'])}" for site in sites
    ]
    ax.set_yticks(range(len(sites)), names, fontsize=5.8)
    ax.set_ylim(len(sites) - 0.5, -0.5)
    ax.set_ylabel(label_of(data["bandwidth"].iloc[0]))


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%" if np.isfinite(share) else ""


@table("misleads", "plot_study", title="Where Appendix B's noise misleads, site by site")
def misleads_table(study: Study) -> Page:
    """`readings` of the study; for readers a line a site and feature, both bases side by side."""
    frame = readings(study.table("study_rates.csv", "collect_study"), study.config.fcr.confidence)
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in as_written(frame).to_dict("records"):
        of = tuple(row[name] for name in KEYS[:-1])
        about = {
            "bandwidth": label_of(row["bandwidth"]),
            "training": f"{row['steps_multiple']:g}×",
            "site": f"{row['site']} ({row['dim']:g})",
            "feature": row["feature"],
            "exact": interval(row["exact"], row["exact_low"], row["exact_high"], ".2f"),
        }
        base = row["base"]
        told = "told" if row["reads"] else "not told"
        lines.setdefault(of, about).update(
            {
                f"{base}: refused": interval(
                    row["refusal_rate"], row["refusal_rate_low"], row["refusal_rate_high"], ".2f"
                ),
                f"{base}: reports": interval(row["fcr"], row["fcr_low"], row["fcr_high"], ".2f"),
                f"{base}: a reader concludes": told + (", wrongly" if row["misled"] else ""),
            }
        )
    about_all = (
        "# What generators report, site by site\n\nMeans over seeds with Student t intervals; of the exact rate a bootstrap "
        "interval over target prompts. In brackets behind a site: its dimension. A reader concludes that a feature is told where "
        "the reported rate is more than half of the way from chance to 1. This is wrong where the exact rate says the opposite "
        "and the interval of their difference excludes 0.\n\n"
    )
    return frame, about_all + markdown_table(pd.DataFrame(list(lines.values())))


def misled_rows(study: Study) -> Iterator[Row]:
    """Headline numbers: how many conclusions are wrong, by bandwidth, training and base, and the refusal at just these sites."""
    frame = readings(study.table("study_rates.csv", "collect_study"), study.config.fcr.confidence)
    for (bandwidth, times, base), part in frame.groupby(["bandwidth", "steps_multiple", "base"], sort=False):
        what = f"{label_of(bandwidth)}, training {times:g}×"
        section = "site by site: conclusions about a feature that the exact rate contradicts"
        yield number(section, what, base, part["misled"].sum(), unit="count", n=len(part))
        wrong = part[part["misled"]]
        if len(wrong):
            section = "refusal where a reader would be misled, mean over these sites and features"
            yield number(section, what, base, wrong["refusal_rate"].mean(), n=len(wrong))
