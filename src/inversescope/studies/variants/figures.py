"""Where Appendix B's noise misleads (dimension, training time, seeds), and what each option does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from inversescope.figures.style import (
    BLACK,
    GREEN,
    GREY,
    VARIANT_COLOUR,
    WIDTH,
    as_written,
    new_figure,
    panel_letters,
    save,
    styled,
)
from inversescope.figures.tables import select, t_interval, tidy

METRICS = {
    "refusal_rate": "refused\n(share of draws)",
    "fcr_error": "|FCR − exact|,\ngenerated",
    "fcr_error_weighted": "|FCR − exact|,\nreweighted",
    "entropy_gap": "entropy gap\nto exact (nats)",
}
_BASES = ("paper", "default")


def study_means(study: pd.DataFrame, epsilon: float, confidence: float = 0.95) -> pd.DataFrame:
    """Means over sites of one dimension, for each seed, and over seeds with Student's t intervals.

    Args:
        study: study.csv (variant, base, seed, steps_multiple, site, dim, epsilon, and the metrics).
        epsilon: bandwidth that is read.
        confidence: level of the intervals.

    Returns:
        kind (`seed` or `mean`), metric, base, steps_multiple, dim, seed, value, ci_low, ci_high, n_sites,
        n_seeds. With one seed there is no interval.

    Raises:
        InputError: if there is no row at that bandwidth.
    """
    rows = select(tidy(study), "study.csv", epsilon=epsilon)
    keys = ["base", "steps_multiple", "dim"]
    long = rows.melt([*keys, "seed", "site"], list(METRICS), "metric", "value")
    seeds = long.groupby(["metric", *keys, "seed"], sort=False)["value"].agg(["mean", "count"]).reset_index()
    seeds = seeds.rename(columns={"mean": "value", "count": "n_sites"}).assign(kind="seed")
    parts = [seeds]
    for key, group in seeds.groupby(["metric", *keys], sort=False):
        values = group["value"].dropna().to_numpy(dtype=float)
        mean, half = t_interval(values, confidence)
        entry = dict(zip(["metric", *keys], key, strict=True))
        entry |= {"kind": "mean", "value": mean, "ci_low": mean - half, "ci_high": mean + half}
        entry |= {"n_sites": int(group["n_sites"].min()), "n_seeds": len(values)}
        parts.append(pd.DataFrame([entry]))
    columns = ["kind", "metric", *keys, "seed", "value", "ci_low", "ci_high", "n_sites", "n_seeds"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


@styled
def plot_misleads(study: pd.DataFrame, out: Path, epsilon: float) -> list[Path]:
    """Where Appendix B's noise misleads: refusal, FCR errors and entropy gap against the site's dimension.

    Small marks are seeds (means over the sites of that dimension), large ones their mean with a 95% t
    interval; columns are training lengths.

    Args:
        study: study.csv.
        out: path without suffix.
        epsilon: headline bandwidth.

    Raises:
        InputError: if there is no row at that bandwidth.
    """
    data = as_written(study_means(study, epsilon))
    dims, multiples = sorted(data["dim"].unique()), sorted(data["steps_multiple"].unique())
    figure = new_figure(WIDTH, 1.75 * len(multiples) + 0.45)
    axes = figure.subplots(len(multiples), len(METRICS), sharex=True, sharey="col", squeeze=False)
    for i, multiple in enumerate(multiples):
        for j, (metric, title) in enumerate(METRICS.items()):
            ax = axes[i, j]
            rows = data[(data["metric"] == metric) & (data["steps_multiple"] == multiple)]
            for k, base in enumerate(_BASES):
                colour, shift = VARIANT_COLOUR[base], (k - 0.5) * 0.24
                mean = rows[(rows["base"] == base) & (rows["kind"] == "mean")].sort_values("dim")
                x = mean["dim"].map(dims.index).to_numpy(dtype=float) + shift
                ax.plot(x, mean["value"], color=colour, linewidth=1, alpha=0.6)
                ax.errorbar(
                    x,
                    mean["value"],
                    [mean["value"] - mean["ci_low"], mean["ci_high"] - mean["value"]],
                    fmt="o",
                    color=colour,
                    markersize=4.5,
                    linewidth=0.9,
                    capsize=1.8,
                    zorder=3,
                )
                one = rows[(rows["base"] == base) & (rows["kind"] == "seed")]
                ax.plot(
                    one["dim"].map(dims.index) + shift + 0.1,
                    one["value"],
                    ".",
                    color=colour,
                    markersize=2.8,
                    alpha=0.7,
                )
            ax.set_xticks(range(len(dims)), [f"{int(d)}" for d in dims])
            ax.set_xlim(-0.5, len(dims) - 0.5)
            if metric == "entropy_gap":
                ax.axhspan(-0.5, 0.5, color=GREEN, alpha=0.10, linewidth=0)
                ax.axhline(0, color=BLACK, linewidth=0.6)
            if i == 0:
                ax.set_title(title, fontsize=7)
            if j == 0:
                ax.set_ylabel(f"training {multiple:g}×")
            if i == len(multiples) - 1:
                ax.set_xlabel("dimension of the site")
            ax.grid(axis="y", color="#e6e6e6", linewidth=0.5)
    # The interval of a mean of few seeds can be wide; shares are read from zero, and wide intervals are cut
    # at the panel's edge.
    for j, metric in enumerate(METRICS):
        if metric != "entropy_gap":
            values = data.loc[data["metric"] == metric, "value"].max()
            high = data.loc[data["metric"] == metric, "ci_high"].max()
            if np.isnan(values):  # nothing of any variant was accepted
                continue
            axes[0, j].set_ylim(
                0, 1.08 * max(values, min(high, 1.6 * values) if np.isfinite(high) else values, 0.02)
            )
    panel_letters(axes.flat)
    handles = [
        Line2D([], [], color=VARIANT_COLOUR[b], marker="o", markersize=4.5, linewidth=1, label=b)
        for b in _BASES
    ]
    handles += [
        Line2D([], [], color=GREY, marker=".", markersize=3, linestyle="", label="one seed"),
        Line2D([], [], color=GREEN, alpha=0.25, linewidth=6, label="gap within ±0.5"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return save(figure, data, out)


@styled
def plot_ablations(ablations: pd.DataFrame, out: Path) -> list[Path]:
    """Every ablation beside its base: refusal, FCR errors and entropy gap, heads and residual sites.

    Args:
        ablations: ablations.csv.
        out: path without suffix.
    """
    rows = ablations.copy()
    rows["change"] = rows["change"].astype(object).where(rows["change"].notna(), "").astype(str)
    rows["is_base"] = rows["variant"] == rows["base"]
    rows["base_order"] = rows["base"].map({"paper": 0, "default": 1}).fillna(2)
    rows = rows.sort_values(
        ["base_order", "is_base", "variant", "group"], ascending=[True, False, True, True], kind="stable"
    )
    keep = [
        "variant",
        "base",
        "change",
        "group",
        "refusal_rate",
        "entropy_gap",
        "fcr_error",
        "fcr_error_weighted",
        "ci_low",
        "ci_high",
    ]
    data = as_written(rows[keep])
    variants = list(dict.fromkeys(data["variant"]))
    position = {}
    y = 0.0
    for index, variant in enumerate(variants):
        base = data.loc[data["variant"] == variant, "base"].iloc[0]
        if index and base != data.loc[data["variant"] == variants[index - 1], "base"].iloc[0]:
            y += 0.8
        position[variant] = y
        y += 1
    metrics = ["refusal_rate", "fcr_error", "fcr_error_weighted", "entropy_gap"]
    figure = new_figure(WIDTH, 0.21 * y + 1.1)
    axes = figure.subplots(1, len(metrics), sharey=True)
    markers = {"heads": "o", "residual": "s"}
    for ax, metric in zip(axes, metrics, strict=True):
        for k, group in enumerate(markers):
            part = data[data["group"] == group]
            at = part["variant"].map(position).to_numpy(dtype=float) + (k - 0.5) * 0.3
            colours = [VARIANT_COLOUR.get(base, GREY) for base in part["base"]]
            if metric == "fcr_error":
                ax.hlines(at, part["ci_low"], part["ci_high"], color=colours, linewidth=0.8)
            ax.scatter(
                part[metric],
                at,
                s=15,
                marker=markers[group],
                zorder=3,
                linewidth=0.8,
                facecolor=colours if group == "heads" else "white",
                edgecolor=colours,
            )
            for base in part.loc[part["variant"] == part["base"], "variant"]:
                own = [
                    position[v] for v in variants if (data.loc[data["variant"] == v, "base"] == base).any()
                ]
                value = part.loc[part["variant"] == base, metric].iloc[0]
                ax.vlines(
                    value,
                    min(own) - 0.4,
                    max(own) + 0.4,
                    color=VARIANT_COLOUR.get(base, GREY),
                    linewidth=0.7,
                    linestyle="-" if group == "heads" else (0, (2, 2)),
                    alpha=0.5,
                )
        ax.set_title(METRICS[metric], fontsize=7)
        ax.grid(axis="y", color="#eeeeee", linewidth=0.5)
        if metric == "entropy_gap":
            ax.axvspan(-0.5, 0.5, color=GREEN, alpha=0.10, linewidth=0)
            ax.axvline(0, color=BLACK, linewidth=0.6)
        else:
            ax.set_xlim(left=0)
    names = []
    for variant in variants:
        row = data[data["variant"] == variant].iloc[0]
        names.append(str(row["base"]) if variant == row["base"] else f"{row['change'] or variant}")
    axes[0].set_yticks([position[v] for v in variants], [_fold(name) for name in names], fontsize=6.3)
    for tick, variant in zip(axes[0].get_yticklabels(), variants, strict=True):
        if variant in _BASES:
            tick.set_fontweight("bold")
    axes[0].set_ylim(y - 0.3, -0.7)
    panel_letters(axes)
    handles = [
        Line2D([], [], color=GREY, marker="o", linestyle="", label="heads"),
        Line2D(
            [], [], color=GREY, marker="s", markerfacecolor="white", linestyle="", label="residual stream"
        ),
        *[
            Line2D([], [], color=VARIANT_COLOUR[b], linewidth=1, label=f"{b} and its ablations")
            for b in _BASES
        ],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return save(figure, data, out)


def misleading_claim(study: pd.DataFrame, epsilon: float, confidence: float = 0.95) -> pd.DataFrame:
    """The claim that the paper's noise misleads, as numbers: paper minus default by seed, with t intervals.

    Returns:
        steps_multiple, dim, n_seeds, then for refusal and fcr_error: paper, default, difference, ci_low,
        ci_high; `misleads` is true where the FCR error of `paper` is above that of `default` with an interval
        that excludes zero, while its refusal is not above by such an interval.
    """
    seeds = study_means(study, epsilon, confidence)
    seeds = seeds[seeds["kind"] == "seed"]
    rows = []
    for key, group in seeds.groupby(["steps_multiple", "dim"]):
        row: dict[str, Any] = dict(
            zip(("steps_multiple", "dim"), cast(tuple[float, float], key), strict=True)
        )
        for metric in ("refusal_rate", "fcr_error"):
            table = group[group["metric"] == metric].pivot(index="seed", columns="base", values="value")
            table = table.reindex(columns=list(_BASES)).dropna()
            gap = (table["paper"] - table["default"]).to_numpy(dtype=float)
            mean, half = t_interval(gap, confidence)
            row |= {
                "n_seeds": len(gap),
                f"{metric}_paper": table["paper"].mean(),
                f"{metric}_default": table["default"].mean(),
            }
            row |= {f"{metric}_difference": mean, f"{metric}_low": mean - half, f"{metric}_high": mean + half}
        row["misleads"] = bool(row["fcr_error_low"] > 0 and not row["refusal_rate_low"] > 0)
        rows.append(row)
    return pd.DataFrame(rows)


def training_claim(study: pd.DataFrame, epsilon: float, confidence: float = 0.95) -> pd.DataFrame:
    """What longer training does, as numbers: the most steps minus the fewest, by seed, with t intervals.

    Returns:
        base, dim, from_multiple, to_multiple, n_seeds, then for refusal_rate and fcr_error: {metric}_from, {metric}_to,
        {metric}_difference, {metric}_low, {metric}_high; `misleads` is true where refusal falls while the FCR error rises,
        both by intervals that exclude zero.
    """
    seeds = study_means(study, epsilon, confidence)
    seeds = seeds[seeds["kind"] == "seed"]
    rows = []
    for key, group in seeds.groupby(["base", "dim"]):
        few, many = group["steps_multiple"].min(), group["steps_multiple"].max()
        row: dict[str, Any] = dict(zip(("base", "dim"), cast(tuple[str, float], key), strict=True))
        row |= {"from_multiple": few, "to_multiple": many}
        for metric in ("refusal_rate", "fcr_error"):
            part = group[group["metric"] == metric]
            table = part.pivot(index="seed", columns="steps_multiple", values="value").dropna()
            mean, half = t_interval((table[many] - table[few]).to_numpy(dtype=float), confidence)
            row |= {
                "n_seeds": len(table),
                f"{metric}_from": table[few].mean(),
                f"{metric}_to": table[many].mean(),
            }
            row |= {f"{metric}_difference": mean, f"{metric}_low": mean - half, f"{metric}_high": mean + half}
        row["misleads"] = bool(row["refusal_rate_high"] < 0 and row["fcr_error_low"] > 0)
        rows.append(row)
    return pd.DataFrame(rows)


def _fold(name: str, width: int = 34) -> str:
    """A label on at most two lines."""
    if len(name) <= width:
        return name
    cut = name.rfind(" ", 0, width)
    cut = cut if cut > 0 else width
    rest = name[cut:].strip()
    return name[:cut] + "\n" + (rest if len(rest) <= width else rest[: width - 1] + "…")
