"""Figure 5 and what it hides: refusal of InverseScope and InversionView, beside FCR error, entropy and seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from inversescope.figures.style import (
    BLACK,
    GREEN,
    GREY,
    VARIANT_COLOUR,
    WIDTH,
    as_written,
    epsilon_label,
    new_figure,
    panel_letters,
    save,
    share_axis,
    styled,
)
from inversescope.figures.tables import select, t_interval
from inversescope.store import atomic_path, write_table

#: Marker of each generator, in the order in which they are listed.
MARKER = {
    "paper": "o",
    "default": "s",
    "inversionview": "^",
    "inversionview_noised": "D",
    "inversionview_wide": "P",
    "inversionview_noised_wide": "X",
    "inversionview_scratch": "v",
}
TITLE = {
    "paper": "InverseScope, paper",
    "default": "InverseScope, default",
    "inversionview": "InversionView",
    "inversionview_noised": "InversionView, noise in training",
    "inversionview_wide": "InversionView, as many parameters as default",
    "inversionview_noised_wide": "InversionView, noise and as many parameters",
    "inversionview_scratch": "InversionView, from scratch",
}
#: Panels of Figure 5: each method as published, then each at its best here.
PANELS = (("paper", "inversionview"), ("default", "inversionview_noised"))
BINS = np.linspace(0.0, 1.0, 21)


#: Marker of each decoding setting in the frontier, where colours are generators.
SETTING_MARKER = {
    "plain": "o",
    "cool": "s",
    "cold": "D",
    "noise1": "v",
    "noise4": "^",
    "schedule": ">",
    "mixed": "*",
}


def _order(names: Any) -> list[str]:
    """Generators in the order in which they are listed everywhere."""
    there = set(names)
    return [name for name in MARKER if name in there] + sorted(there - MARKER.keys())


def _headlines(heads: pd.DataFrame, frontier: pd.DataFrame) -> pd.DataFrame:
    """Rows of frontier_heads.csv under each generator's headline setting."""
    first = (
        frontier[frontier["headline"].astype(bool)]
        .drop_duplicates("variant")
        .set_index("variant")["decoding"]
    )
    rows = heads[heads["setting"] == heads["variant"].map(first)]
    return select(rows, "frontier_heads.csv", variant=list(first.index))


@styled
def plot_fig5(heads: pd.DataFrame, frontier: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Figure 5: histogram of refusal over attention heads, logarithmic counts, mean as dashed line; two generators a panel.

    Args:
        heads: frontier_heads.csv.
        frontier: frontier.csv, for each generator's headline setting.
        out: path without suffix.
        epsilon: headline bandwidth.

    Raises:
        InputError: if no generator has a row under its headline setting.
    """
    rows = as_written(_headlines(heads, frontier))
    panels = [[v for v in panel if v in set(rows["variant"])] for panel in PANELS]
    panels = [panel for panel in panels if panel]
    figure = new_figure(WIDTH, 2.5)
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        for variant in panel:
            part = rows[rows["variant"] == variant]
            colour = VARIANT_COLOUR[variant]
            values = part["refusal_rate"].to_numpy(float)
            count, _ = np.histogram(values, BINS)
            ax.stairs(count, BINS, color=colour, fill=True, alpha=0.35, linewidth=0, baseline=0.5)
            ax.stairs(count, BINS, color=colour, linewidth=1.1, baseline=0.5, label="_")
            ax.axvline(values.mean(), color=colour, linestyle="--", linewidth=1.2)
            setting = part["setting"].iloc[0]
            label = f"{TITLE.get(variant, variant)} ({setting}): mean {values.mean():.3f}, worst {values.max():.3f}"
            ax.plot([], [], color=colour, linewidth=4, alpha=0.6, label=label)
        ax.set_yscale("log")
        ax.set_ylim(0.5, max(2.0, 1.6 * len(rows) / rows["variant"].nunique()))
        ticks = [n for n in (1, 2, 5, 10, 20, 50, 100, 200) if n <= ax.get_ylim()[1]]
        ax.set_yticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.set_xlabel(f"share of draws refused, {epsilon_label(epsilon)}")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.3), fontsize=6.5)
        share_axis(ax, "x")
    axes[0].set_ylabel("attention heads")
    panel_letters(axes)
    return save(figure, rows[["generator", "variant", "setting", "site", "refusal_rate", "n_seeds"]], out)


@styled
def plot_refusal_seconds(time: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Refusal and FCR error against seconds of training, the backbone's counted; a line a generator, marks are seeds.

    Args:
        time: frontier_time.csv.
        out: path without suffix.
        epsilon: headline bandwidth.
    """
    keep = "generator variant decoding seed share steps train_seconds backbone_seconds refusal_rate fcr_error".split()
    rows = as_written(time[keep])
    figure = new_figure(WIDTH, 2.6)
    axes = figure.subplots(1, 2, sharex=True)
    titles = {
        "refusal_rate": f"refused (share of draws), {epsilon_label(epsilon)}",
        "fcr_error": "|FCR − exact|",
    }
    for ax, (metric, title) in zip(axes, titles.items(), strict=True):
        for variant in _order(rows["variant"]):
            part = rows[rows["variant"] == variant]
            colour = VARIANT_COLOUR.get(variant, GREY)
            mean = part.groupby("share")[["train_seconds", metric]].mean().sort_index()
            ax.plot(mean["train_seconds"], mean[metric], color=colour, linewidth=1.1)
            ax.plot(
                part["train_seconds"],
                part[metric],
                MARKER.get(variant, "x"),
                color=colour,
                markersize=3.6,
                alpha=0.75,
                markeredgewidth=0,
            )
        ax.set_ylabel(title)
        ax.set_xlabel("seconds of training, the backbone's included")
        ax.set_xlim(left=0)
        ax.set_ylim(bottom=0)
        ax.grid(axis="y", color="#e6e6e6", linewidth=0.5)
    panel_letters(axes)
    figure.legend(handles=_handles(_order(rows["variant"])), loc="outside lower center", ncols=3)
    return save(figure, rows, out)


@styled
def plot_frontier(frontier: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """The frontier: refusal against FCR error and against the entropy gap; a colour a generator, a mark a decoding setting.

    Large marks are means over seeds (filled: the setting under which the generator is quoted), small ones seeds.

    Args:
        frontier: frontier.csv.
        out: path without suffix.
        epsilon: headline bandwidth.
    """
    keep = (
        "generator variant decoding seed headline refusal_rate refusal_low refusal_high fcr_error fcr_error_low fcr_error_high "
        "fcr_error_reweighted entropy_gap worst_refusal parse_refusal train_seconds n_parameters"
    ).split()
    rows = as_written(frontier[keep])
    figure = new_figure(WIDTH, 3.6)
    axes = figure.subplots(1, 2)
    for ax, metric in zip(axes, ("fcr_error", "entropy_gap"), strict=True):
        for variant in _order(rows["variant"]):
            _line(ax, rows[rows["variant"] == variant], variant, metric)
        ax.set_ylabel(f"refused (share of draws), {epsilon_label(epsilon)}")
        ax.set_ylim(bottom=0)
        ax.grid(color="#eeeeee", linewidth=0.5)
    axes[0].set_xlabel("|FCR − exact|, mean over sites and features")
    axes[0].set_xlim(left=0)
    axes[1].set_xlabel("entropy of accepted candidates − exact (nats)")
    axes[1].axvline(0, color=BLACK, linewidth=0.6)
    axes[1].axvspan(-0.5, 0.5, color=GREEN, alpha=0.08, linewidth=0)
    panel_letters(axes)
    settings = [name for name in SETTING_MARKER if name in set(rows["decoding"])]
    marks = [
        Line2D(
            [],
            [],
            color=BLACK,
            marker=SETTING_MARKER[name],
            markerfacecolor="white",
            linestyle="",
            label=name,
        )
        for name in settings
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), handletextpad=0.1)
    generators = [
        Line2D([], [], color=VARIANT_COLOUR.get(v, GREY), linewidth=3, label=TITLE.get(v, v))
        for v in _order(rows["variant"])
    ]
    figure.legend(handles=generators, loc="outside lower center", ncols=2)
    return save(figure, rows, out)


def _line(ax: Axes, rows: pd.DataFrame, variant: str, metric: str) -> None:
    """Settings of one generator, in order of refusal, joined by a line but for cache mixing, which is not the generator's alone."""
    colour = VARIANT_COLOUR.get(variant, GREY)
    rows = rows.assign(headline=rows["headline"].astype(bool))
    mean = rows.groupby("decoding", sort=False).agg(
        {metric: "mean", "refusal_rate": "mean", "headline": "first"}
    )
    mean = mean.sort_values("refusal_rate", kind="stable")
    joined = mean.drop("mixed", errors="ignore")
    ax.plot(joined[metric], joined["refusal_rate"], color=colour, linewidth=0.9, alpha=0.6, zorder=1)
    for name, row in mean.iterrows():
        marker = SETTING_MARKER.get(str(name), "x")
        size = 46 if marker == "*" else 22
        seeds = rows[rows["decoding"] == name]
        if len(seeds) > 1:
            ax.scatter(
                seeds[metric],
                seeds["refusal_rate"],
                s=size / 5,
                marker=marker,
                color=colour,
                alpha=0.45,
                linewidth=0,
            )
        face = colour if row["headline"] else "white"
        ax.scatter(
            row[metric],
            row["refusal_rate"],
            s=size,
            marker=marker,
            facecolor=face,
            edgecolor=colour,
            linewidth=1.0,
            zorder=3,
        )


def _handles(variants: list[str]) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            color=VARIANT_COLOUR.get(v, GREY),
            marker=MARKER.get(v, "x"),
            markersize=4.5,
            linewidth=1,
            label=TITLE.get(v, v),
        )
        for v in variants
    ]


# ------------------------------------------------------------------------------------------------------------------- tables


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
        for other in _order(others["variant"]):
            theirs = others[others["variant"] == other]
            mixing = theirs["decoding"] == "mixed"
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


def write_frontier_matched(frontier: pd.DataFrame, out: Path, confidence: float = 0.95) -> list[Path]:
    """Write `matched` as CSV and as Markdown."""
    table = matched(frontier, confidence)
    lines = [
        "# Refusal at the FCR error of default",
        "",
        "Each setting of InverseScope's `default`, and the least refusal that another generator reaches at an FCR error no "
        "larger, draws shared between two of its settings where that is better; seed by seed, ratios with their Student t "
        "intervals over seeds. “Reached” says in how many seeds any setting is as faithful; the last columns show the most "
        "faithful setting. “With mixing”: our cache mixing is lent to it, beside its own settings.",
        "",
        "| default | FCR error | refused | other | reached | refused | ratio | least FCR error | refused there |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for _, row in table.iterrows():
        interval = f" [{row['ci_low']:.2f}, {row['ci_high']:.2f}]" if np.isfinite(row["ci_low"]) else ""
        ratio = f"{row['ratio']:.2f}{interval}" if np.isfinite(row["ratio"]) else "–"
        refused = f"{row['other_refusal']:.3f}" if np.isfinite(row["other_refusal"]) else "–"
        lines.append(
            f"| {row['reference']} | {row['fcr_error']:.3f} | {row['refusal_rate']:.3f} | {row['other']}"
            f"{', with mixing' if row['lent'] else ''} | "
            f"{row['n_reached']} of {row['n_seeds']} | {refused} | {ratio} | {row['least_error']:.3f} | "
            f"{row['refusal_there']:.3f} |"
        )
    return _write(table, lines, out)


def write_fig5_methods(pairs: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Write frontier_pairs.csv as CSV and as Markdown: mean, worst, heads won, paired interval."""
    lines = [
        "# Refusal of attention heads, pair by pair of generators",
        "",
        f"Raw candidates at {epsilon_label(epsilon)}, each generator under the setting in brackets, means over seeds. "
        "Difference: first minus second, paired by head and target, with a bootstrap interval over targets.",
        "",
        "| first | second | mean | worst | heads won, lost | difference |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for _, row in pairs.iterrows():
        lines.append(
            f"| {row['generator']} ({row['setting']}) | {row['other']} ({row['other_setting']}) | "
            f"{row['mean']:.3f}, {row['other_mean']:.3f} | {row['worst']:.3f}, {row['other_worst']:.3f} | "
            f"{row['share_won']:.0%}, {row['share_lost']:.0%} | "
            f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}] |"
        )
    return _write(pairs, lines, out)


def _write(table: pd.DataFrame, lines: list[str], out: Path) -> list[Path]:
    csv, text = (out.parent / (out.name + suffix) for suffix in (".csv", ".md"))
    write_table(table, csv)
    with atomic_path(text) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [csv, text]
