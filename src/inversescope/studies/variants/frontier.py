"""The frontier: refusal of InverseScope and InversionView, beside FCR error, entropy and seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from inversescope.config.methods import MIXED, PLAIN
from inversescope.fcr.intervals import wilson
from inversescope.fcr.resampling import RESAMPLES, ends
from inversescope.figures.headline import Row, headline_page, number
from inversescope.figures.panels import (
    key,
    light_grid,
    near_zero,
    panel_letters,
)
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written, interval, markdown_table
from inversescope.figures.study import Study
from inversescope.figures.style import BLACK, WIDTH, new_figure
from inversescope.figures.tables import DECODINGS, select, t_interval
from inversescope.studies.variants.baseline import histograms

#: Markers of generators, in the order in which the configuration lists them.
MARKERS = "os^DPXv"
#: Panels of `refusal_heads`: each method as published, then each at its best here.
PANELS = (("paper", "inversionview"), ("default", "inversionview_noised"))
#: Marker of each decoding setting in the frontier, where colours are generators.
SETTING_MARKER = {
    PLAIN: "o",
    "cool": "s",
    "cold": "D",
    "noise1": "v",
    "noise4": "^",
    "schedule": ">",
    MIXED: "*",
}


class FrontierStudy(Study):
    """The experiment, with the tables of `collect_frontier`."""

    def order(self, names: Iterable[str]) -> list[str]:
        """Generators in the order in which the configuration lists them."""
        there = set(names)
        return [name for name in self.config.variants if name in there]

    @property
    def frontier(self) -> pd.DataFrame:
        """A row a generator, setting and seed."""
        return self.table("frontier.csv", "collect_frontier")

    @property
    def heads(self) -> pd.DataFrame:
        """Refusal by site, generator and setting."""
        return self.table("frontier_heads.csv", "collect_frontier")


def _headlines(study: FrontierStudy) -> pd.DataFrame:
    """Rows of frontier_heads.csv under each generator's headline setting."""
    rows = study.frontier[study.frontier["headline"].astype(bool)].drop_duplicates("variant")
    first = rows.set_index("variant")["decoding"]
    heads = study.heads[study.heads["setting"] == study.heads["variant"].map(first)]
    return select(heads, "frontier_heads.csv", variant=list(first.index))


@figure(
    "refusal_heads",
    "plot_frontier",
    title="Refusal of attention heads, by generator, after equal training time",
)
def refusal_heads(study: FrontierStudy) -> Drawing:
    """Figure 5 over seeds, two generators a panel."""
    rows = as_written(_headlines(study))
    return histograms(study, rows, PANELS), rows[
        ["generator", "variant", "setting", "site", "refusal_rate", "n_seeds"]
    ]


@figure("refusal_seconds", "plot_frontier", title="Refusal against seconds of training")
def refusal_seconds(study: FrontierStudy) -> Drawing:
    """Refusal and FCR error against seconds of training, the backbone's counted; a line a generator, marks are seeds."""
    time = study.table("frontier_time.csv", "collect_frontier")
    about = "generator variant decoding seed share steps train_seconds backbone_seconds".split()
    rows = as_written(time[[*about, "refusal_rate", "fcr_error"]])
    variants = study.order(rows["variant"])
    marker = dict(zip(variants, MARKERS, strict=False))
    drawn = new_figure(WIDTH, 2.6)
    axes = drawn.subplots(1, 2, sharex=True)
    refused = f"refused (share of draws), {study.bandwidth_label}"
    titles = {"refusal_rate": refused, "fcr_error": "|FCR − exact|"}
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        for variant in variants:
            part, colour = rows[rows["variant"] == variant], study.colour(variant)
            mean = part.groupby("share")[["train_seconds", metric]].mean().sort_index()
            ax.plot(mean["train_seconds"], mean[metric], color=colour, linewidth=1.1)
            style = {"color": colour, "markersize": 3.6, "alpha": 0.75, "markeredgewidth": 0}
            ax.plot(part["train_seconds"], part[metric], marker.get(variant, "x"), **style)
        ax.set_ylabel(title)
        ax.set_xlabel("seconds of training, the backbone's included")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        light_grid(ax)
    panel_letters(axes)
    style = {"line": "-", "markersize": 4.5, "linewidth": 1}
    handles = [key(study.label(v), study.colour(v), marker.get(v, "x"), **style) for v in variants]
    drawn.legend(handles=handles, loc="outside lower center", ncols=3)
    return drawn, rows


@figure("frontier", "plot_frontier", title="The frontier: refusal against FCR error and entropy gap")
def frontier(study: FrontierStudy) -> Drawing:
    """Refusal against FCR error and against the entropy gap; a colour a generator, a mark a decoding setting.

    Large marks are means over seeds (filled: the setting under which the generator is quoted), small ones seeds.
    """
    keep = (
        "generator variant decoding seed headline refusal_rate refusal_low refusal_high fcr_error fcr_error_low fcr_error_high "
        "fcr_error_reweighted entropy_gap worst_refusal parse_refusal train_seconds n_parameters"
    ).split()
    rows = as_written(study.frontier[keep])
    variants = study.order(rows["variant"])
    drawn = new_figure(WIDTH, 3.6)
    axes = drawn.subplots(1, 2)
    for ax, metric in zip(axes, ("fcr_error", "entropy_gap"), strict=True):
        for variant in variants:
            _line(ax, rows[rows["variant"] == variant], study.colour(variant), metric)
        ax.set_ylabel(f"refused (share of draws), {study.bandwidth_label}")
        ax.set_ylim(bottom=0)
        light_grid(ax, "both", "#eeeeee")
    axes[0].set_xlabel("|FCR − exact|, mean over sites and features")
    axes[0].set_xlim(left=0)
    axes[1].set_xlabel("entropy of accepted candidates − exact (nats)")
    near_zero(axes[1], "x", alpha=0.08)
    panel_letters(axes)
    settings = [name for name in SETTING_MARKER if name in set(rows["decoding"])]
    marks = [key(name, BLACK, SETTING_MARKER[name], markerfacecolor="white") for name in settings]
    drawn.legend(handles=marks, loc="outside upper center", ncols=len(marks), handletextpad=0.1)
    generators: list[Line2D] = [key(study.label(v), study.colour(v), line="-", linewidth=3) for v in variants]
    drawn.legend(handles=generators, loc="outside lower center", ncols=2)
    return drawn, rows


def _line(ax: Axes, rows: pd.DataFrame, colour: str, metric: str) -> None:
    """Settings of one generator, in order of refusal, joined by a line but for cache mixing, which is not the generator's alone."""
    rows = rows.assign(headline=rows["headline"].astype(bool))
    mean = rows.groupby("decoding", sort=False).agg(
        {metric: "mean", "refusal_rate": "mean", "headline": "first"}
    )
    mean = mean.sort_values("refusal_rate", kind="stable")
    joined = mean.drop(MIXED, errors="ignore")
    ax.plot(joined[metric], joined["refusal_rate"], color=colour, linewidth=0.9, alpha=0.6, zorder=1)
    for name, row in mean.iterrows():
        marker = SETTING_MARKER.get(str(name), "x")
        size = 46 if marker == "*" else 22
        seeds = rows[rows["decoding"] == name]
        if len(seeds) > 1:
            style: dict[str, Any] = {"s": size / 5, "marker": marker, "alpha": 0.45, "linewidth": 0}
            ax.scatter(seeds[metric], seeds["refusal_rate"], color=colour, **style)
        face = colour if row["headline"] else "white"
        style = {"s": size, "marker": marker, "linewidth": 1.0, "zorder": 3}
        ax.scatter(row[metric], row["refusal_rate"], facecolor=face, edgecolor=colour, **style)


def least_refusal(error: np.ndarray, refusal: np.ndarray, limit: float) -> float:
    """Least refusal that settings (n,) reach at an FCR error of at most `limit`.

    Draws may be shared between two settings, which attains what lies between them; NaN if no setting is as faithful.
    """
    inside = error <= limit
    if not inside.any():
        return float("nan")
    best = float(refusal[inside].min())
    for i in np.flatnonzero(inside):
        for j in np.flatnonzero(~inside):
            share = (limit - error[i]) / (error[j] - error[i])
            best = min(best, float(refusal[i] + share * (refusal[j] - refusal[i])))
    return best


def matched(frontier: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Refusal of every generator at the FCR error of `default`, seed by seed.

    Args:
        frontier: frontier.csv.
        confidence: level of the Student t intervals of the logarithm of the ratio over seeds.

    Returns:
        reference (setting of default), fcr_error, refusal_rate (of default), other, lent (False: the other's own settings;
        True: cache mixing beside these, which is ours), n_seeds, n_reached (seeds in which some setting of the other is as
        faithful), other_refusal (least, mean over those), least_error (of any of its settings, mean over seeds), refusal_there,
        ratio (other_refusal / refusal_rate, geometric mean), ci_low, ci_high.
    """
    rows = []
    ours = frontier[frontier["variant"] == "default"]
    others = frontier[frontier["variant"] != "default"]
    for setting in dict.fromkeys(ours["decoding"]):
        own = ours[ours["decoding"] == setting].set_index("seed")
        for other in dict.fromkeys(others["variant"]):
            theirs = others[others["variant"] == other]
            mixing = theirs["decoding"] == MIXED
            rows.append(_at_error(setting, own, other, theirs[~mixing], confidence) | {"lent": False})
            if mixing.any():
                rows.append(_at_error(setting, own, other, theirs, confidence) | {"lent": True})
    columns = (
        "reference fcr_error refusal_rate other lent n_seeds n_reached other_refusal least_error refusal_there ratio "
        "ci_low ci_high"
    )
    return pd.DataFrame(rows, columns=columns.split())


def _at_error(
    setting: str, own: pd.DataFrame, other: str, theirs: pd.DataFrame, confidence: float
) -> dict[str, object]:
    """One row of `matched`: `default` under one setting, a row a seed, against another generator's settings."""
    reached, ratios, least, there, seeds = [], [], [], [], 0
    for seed, part in theirs.groupby("seed"):
        if seed not in own.index:
            continue
        seeds += 1
        error, refusal = part["fcr_error"].to_numpy(float), part["refusal_rate"].to_numpy(float)
        least.append(error.min())
        there.append(refusal[error.argmin()])
        value = least_refusal(error, refusal, float(own.loc[seed, "fcr_error"]))
        if np.isfinite(value):
            reached.append(value)
            ratios.append(np.log(value / own.loc[seed, "refusal_rate"]))
    middle, half = t_interval(np.array(ratios, float), confidence)
    return {
        "reference": setting,
        "fcr_error": own["fcr_error"].mean(),
        "refusal_rate": own["refusal_rate"].mean(),
        "other": other,
        "n_seeds": seeds,
        "n_reached": len(reached),
        "other_refusal": np.mean(reached) if reached else np.nan,
        "least_error": np.mean(least) if least else np.nan,
        "refusal_there": np.mean(there) if there else np.nan,
        "ratio": np.exp(middle),
        "ci_low": np.exp(middle - half),
        "ci_high": np.exp(middle + half),
    }


@table("frontier_matched", "plot_frontier", title="Refusal at the FCR error of default")
def frontier_matched(study: FrontierStudy) -> Page:
    """`matched` of the study."""
    frame = matched(study.frontier, study.config.fcr.confidence)
    about = (
        "Each setting of InverseScope's `default`, and the least refusal that another generator reaches at an FCR error no "
        "larger, draws shared between two of its settings where that is better; seed by seed, ratios with their Student t "
        "intervals over seeds. “Reached” says in how many seeds any setting is as faithful; the last columns show the most "
        "faithful setting. “With mixing”: our cache mixing is lent to it, beside its own settings."
    )
    shown = pd.DataFrame(
        {
            "default": frame["reference"],
            "FCR error": frame["fcr_error"],
            "default refuses": frame["refusal_rate"],
            "other": frame["other"].where(~frame["lent"], frame["other"] + ", with mixing"),
            "reached": [f"{a} of {b}" for a, b in zip(frame["n_reached"], frame["n_seeds"], strict=True)],
            "other refuses": frame["other_refusal"],
            "ratio": [interval(r.ratio, r.ci_low, r.ci_high, ".2f") for r in frame.itertuples()],
            "least FCR error": frame["least_error"],
            "refused there": frame["refusal_there"],
        }
    )
    return frame, f"# Refusal at the FCR error of default\n\n{about}\n\n{markdown_table(shown, '.3f')}"


@table("fig5_methods", "plot_frontier", title="Refusal of attention heads, pair by pair of generators")
def fig5_methods(study: FrontierStudy) -> Page:
    """frontier_pairs.csv: mean, worst, heads won, paired interval."""
    pairs = study.table("frontier_pairs.csv", "collect_frontier")
    about = (
        f"Raw candidates at {study.bandwidth_label}, each generator under the setting in brackets, means over seeds. "
        "Difference: first minus second, paired by head and target, with a bootstrap interval over targets."
    )
    rows = [
        {
            "first": f"{row.generator} ({row.setting})",
            "second": f"{row.other} ({row.other_setting})",
            "mean": f"{row.mean:.3f}, {row.other_mean:.3f}",
            "worst": f"{row.worst:.3f}, {row.other_worst:.3f}",
            "heads won, lost": f"{row.share_won:.0%}, {row.share_lost:.0%}",
            "difference": interval(row.difference, row.ci_low, row.ci_high, "+.3f"),
        }
        for row in pairs.itertuples()
    ]
    shown = markdown_table(pd.DataFrame(rows))
    return pairs, f"# Refusal of attention heads, pair by pair of generators\n\n{about}\n\n{shown}"


def heads_won(heads: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """At how many heads each variant of InverseScope refuses less than each of InversionView.

    Args:
        heads: what `refusal_heads` shows (generator, variant, site, refusal_rate).
        confidence: level of the intervals: Wilson's of the share, a percentile bootstrap over heads of the difference.

    Returns:
        variant, other, n_heads, won, share_won with share_low and share_high, difference (variant - other, mean over heads) with
        low and high, and worst (the largest difference at a head).
    """
    wide = heads.pivot(index="site", columns="variant", values="refusal_rate")
    ours = list(dict.fromkeys(heads.loc[heads["generator"] == "inversescope", "variant"]))
    others = [name for name in dict.fromkeys(heads["variant"]) if name not in ours]
    rows = []
    for variant, other in product(ours, others):
        difference = (wide[variant] - wide[other]).dropna().to_numpy(float)
        rng = np.random.default_rng([seed, 43])
        draws = rng.integers(len(difference), size=(RESAMPLES, len(difference)))
        low, high = ends(difference[draws].mean(1), confidence)
        won = float((difference < 0).mean())
        share_low, share_high = wilson(won, len(difference), confidence)
        rows.append(
            {
                "variant": variant,
                "other": other,
                "n_heads": len(difference),
                "won": int((difference < 0).sum()),
                "share_won": won,
                "share_low": share_low,
                "share_high": share_high,
                "difference": difference.mean(),
                "low": low,
                "high": high,
                "worst": difference.max(),
            }
        )
    return pd.DataFrame(rows)


@table("heads_won", "plot_frontier", title="Heads at which InverseScope refuses less than InversionView")
def heads_won_table(study: FrontierStudy) -> Page:
    """`heads_won` of `refusal_heads`."""
    frame = heads_won(as_written(_headlines(study)), study.config.fcr.confidence, study.config.seed)
    shown = pd.DataFrame(
        {
            "InverseScope": frame["variant"],
            "InversionView": frame["other"],
            "heads won": [f"{row.won} of {row.n_heads}" for row in frame.itertuples()],
            "share": [interval(r.share_won, r.share_low, r.share_high, ".2f") for r in frame.itertuples()],
            "difference": [interval(r.difference, r.low, r.high, "+.3f") for r in frame.itertuples()],
            "at its worst head": frame["worst"],
        }
    )
    about = (
        "Refusal at the headline settings, means over seeds. Intervals: Wilson's, and bootstrap over heads."
    )
    title = "Heads at which InverseScope refuses less than InversionView"
    return frame, f"# {title}\n\n{about}\n\n{markdown_table(shown)}"


@table("frontier_headline", "plot_frontier", title="Headline numbers of the frontier")
def headline(study: FrontierStudy) -> Page:
    """What other generators refuse where they are as faithful as `default`, and each one's worst head."""
    return headline_page([*_matched(study), *_worst(study)])


def _matched(study: FrontierStudy) -> Iterator[Row]:
    for row in matched(study.frontier, study.config.fcr.confidence).to_dict("records"):
        if row["reference"] not in DECODINGS:
            continue
        section = f"refusal of heads, times that of default ({DECODINGS[row['reference']]}), at an FCR error no larger"
        what = f"{row['other']}{', with our cache mixing' if row['lent'] else ''}"
        ends = {"low": row["ci_low"], "high": row["ci_high"], "n": row["n_reached"]}
        yield number(section, what, "ratio", row["ratio"], **ends)
        # Where it has no setting that is as faithful, its refusal there is beyond that of its most faithful one.
        yield number(section, what, "seeds reached", row["n_reached"], unit="count", n=row["n_seeds"])
        there = row["refusal_there"] / row["refusal_rate"]
        yield number(section, what, "ratio at its least error", there, n=row["n_seeds"])
        yield number(section, what, "least error", row["least_error"], n=row["n_seeds"])
        yield number(section, what, "default's error", row["fcr_error"], n=row["n_seeds"])


def _worst(study: FrontierStudy) -> Iterator[Row]:
    section = "refusal of the worst head, mean over seeds"
    rows = study.frontier[study.frontier["share"] == 1]
    settings = {"headline setting": rows["headline"].astype(bool)}
    settings["cache mixing"] = rows["decoding"] == MIXED
    for what, chosen in settings.items():
        by = rows[chosen].groupby("variant")["worst_refusal"]
        for who in study.order(by.groups):
            yield number(section, what, who, by.mean()[who], n=int(by.count()[who]))
