"""Does Appendix B's noise mislead (dimension, training time, seeds), in numbers; and what each option does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.figures.headline import Row, headline_page, number
from inversescope.figures.panels import key, light_grid, near_zero, panel_letters
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written
from inversescope.figures.study import Study, at_headline
from inversescope.figures.style import GREY, WIDTH, new_figure
from inversescope.figures.tables import VARIANTS, t_interval, tidy
from inversescope.studies.variants.reported import compared, label_of, misled_rows

METRICS = {
    "refusal_rate": "refused\n(share of draws)",
    "fcr_error": "|FCR − exact|,\ngenerated",
    "fcr_error_weighted": "|FCR − exact|,\nreweighted",
    "entropy_gap": "entropy gap\nto exact (nats)",
}
#: What the claims are about, and their names in the headline.
CLAIMED = {"refusal_rate": "refusal", "fcr_error": "FCR error"}


def study_means(study: pd.DataFrame) -> pd.DataFrame:
    """Means over sites of one dimension, a row a seed.

    Args:
        study: study.csv (variant, base, seed, steps_multiple, site, dim, bandwidth, and the metrics).

    Returns:
        metric, bandwidth, base, steps_multiple, dim, seed, value; only bandwidths at which all bases are read.
    """
    rows = compared(tidy(study))
    keys = ["metric", "bandwidth", "base", "steps_multiple", "dim", "seed"]
    long = rows.melt([*keys[1:], "site"], list(METRICS), "metric", "value")
    return long.groupby(keys, sort=False)["value"].mean().reset_index()


@figure("ablations", "plot_study", title="Ablations")
def ablations(study: Study) -> Drawing:
    """Every ablation beside its base: refusal, FCR errors and entropy gap, heads and residual sites."""
    rows = tidy(study.table("ablations.csv", "collect_study"))
    rows = at_headline(rows, study.config)
    rows["is_base"] = rows["variant"] == rows["base"]
    rows["base_order"] = rows["base"].map({"paper": 0, "default": 1}).fillna(2)
    by = ["base_order", "is_base", "variant", "group"]
    rows = rows.sort_values(by, ascending=[True, False, True, True], kind="stable")
    about = ["variant", "base", "change", "group"]
    measured = ["refusal_rate", "entropy_gap", "fcr_error", "fcr_error_weighted", "ci_low", "ci_high"]
    data = as_written(rows[[*about, *measured]])
    variants = data.drop_duplicates("variant").set_index("variant")
    # A gap parts the bases.
    gaps = 0.8 * (variants["base"] != variants["base"].shift()).cumsum() - 0.8
    place = dict(zip(variants.index, np.arange(len(variants)) + gaps, strict=True))
    bottom = max(place.values()) + 1
    drawn = new_figure(WIDTH, 0.21 * bottom + 1.1)
    axes = drawn.subplots(1, len(METRICS), sharey=True)
    for ax, metric in zip(axes, METRICS, strict=True):
        for shift, (group, marker) in zip(
            (-0.15, 0.15), {"heads": "o", "residual": "s"}.items(), strict=True
        ):
            _ablated(ax, study, data[data["group"] == group], metric, place, shift, marker)
        ax.set_title(METRICS[metric], fontsize=7)
        light_grid(ax, colour="#eeeeee")
        if metric == "entropy_gap":
            near_zero(ax, "x")
        else:
            ax.set_xlim(left=0)
    names = [
        row.base if variant == row.base else row.change or variant
        for variant, row in zip(variants.index, variants.itertuples(), strict=True)
    ]
    axes[0].set_yticks(list(place.values()), [_fold(str(name)) for name in names], fontsize=6.3)
    for tick, variant in zip(axes[0].get_yticklabels(), place, strict=True):
        if variant in VARIANTS:
            tick.set_fontweight("bold")
    axes[0].set_ylim(bottom - 0.3, -0.7)
    panel_letters(axes)
    handles = [key("heads", GREY, "o"), key("residual stream", GREY, "s", markerfacecolor="white")]
    handles += [key(f"{b} and its ablations", study.colour(b), line="-", linewidth=1) for b in VARIANTS]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return drawn, data


def _ablated(
    ax: Axes,
    study: Study,
    rows: pd.DataFrame,
    metric: str,
    place: dict[str, float],
    shift: float,
    marker: str,
) -> None:
    """Marks of a group of sites, and a line through each base."""
    heads = marker == "o"
    y = rows["variant"].map(place).to_numpy(dtype=float) + shift
    colours = [study.colour(base) for base in rows["base"]]
    if metric == "fcr_error":
        ax.hlines(y, rows["ci_low"], rows["ci_high"], color=colours, linewidth=0.8)
    face = colours if heads else "white"
    style: dict[str, Any] = {"s": 15, "marker": marker, "zorder": 3, "linewidth": 0.8}
    ax.scatter(rows[metric], y, facecolor=face, edgecolor=colours, **style)
    for _, base in rows[rows["variant"] == rows["base"]].iterrows():
        own = [place[variant] for variant in rows.loc[rows["base"] == base["base"], "variant"]]
        ends = (min(own) - 0.4, max(own) + 0.4)
        line: Any = "-" if heads else (0, (2, 2))
        ax.vlines(
            base[metric], *ends, color=study.colour(base["base"]), linewidth=0.7, linestyle=line, alpha=0.5
        )


def _fold(name: str, width: int = 34) -> str:
    """A label on at most two lines."""
    if len(name) <= width:
        return name
    cut = name.rfind(" ", 0, width)
    cut = cut if cut > 0 else width
    rest = name[cut:].strip()
    return name[:cut] + "\n" + (rest if len(rest) <= width else rest[: width - 1] + "…")


def _paired(group: pd.DataFrame, column: str, first: Any, last: Any, confidence: float) -> dict[str, Any]:
    """One value of a column minus another, paired by seed, with t intervals, for refusal and FCR error.

    Returns:
        n_seeds, {metric}_first, {metric}_last, {metric}_difference, {metric}_low, {metric}_high.
    """
    row: dict[str, Any] = {}
    for metric in CLAIMED:
        wide = group[group["metric"] == metric].pivot(index="seed", columns=column, values="value")
        wide = wide.reindex(columns=list(dict.fromkeys([first, last]))).dropna()
        one, two = wide[first], wide[last]
        mean, half = t_interval((two - one).to_numpy(float), confidence)
        found = {
            "first": one.mean(),
            "last": two.mean(),
            "difference": mean,
            "low": mean - half,
            "high": mean + half,
        }
        row |= {"n_seeds": len(one)} | {f"{metric}_{name}": value for name, value in found.items()}
    return row


def misleading_claim(study: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """The claim that the paper's noise misleads, as numbers: paper minus default by seed, with t intervals.

    Returns:
        bandwidth, steps_multiple, dim, n_seeds, then for refusal and fcr_error: paper, default, difference, low, high; `misleads`
        is true where the FCR error of `paper` is above that of `default` with an interval that excludes zero, while its refusal is
        not above by such an interval.
    """
    of = ["bandwidth", "steps_multiple", "dim"]
    rows = pd.DataFrame(
        dict(zip(of, values, strict=True)) | _paired(group, "base", "default", "paper", confidence)
        for values, group in study_means(study).groupby(of)
    )
    rows = rows.rename(columns=lambda name: name.replace("_first", "_default").replace("_last", "_paper"))
    names = [f"{m}_{x}" for m in CLAIMED for x in ("paper", "default", "difference", "low", "high")]
    rows = rows[[*of, "n_seeds", *names]]
    return rows.assign(misleads=(rows["fcr_error_low"] > 0) & ~(rows["refusal_rate_low"] > 0))


def training_claim(study: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """What longer training does, as numbers: the most steps minus the fewest, by seed, with t intervals.

    Returns:
        bandwidth, base, dim, first and last (multiples of the steps), and the columns of `_paired`; `misleads` is true where
        refusal falls while the FCR error rises, both by intervals that exclude zero.
    """
    of, rows = ["bandwidth", "base", "dim"], []
    for values, group in study_means(study).groupby(of):
        ends = {"first": group["steps_multiple"].min(), "last": group["steps_multiple"].max()}
        paired = _paired(group, "steps_multiple", ends["first"], ends["last"], confidence)
        rows.append(dict(zip(of, values, strict=True)) | ends | paired)
    table = pd.DataFrame(rows)
    return table.assign(misleads=(table["refusal_rate_high"] < 0) & (table["fcr_error_low"] > 0))


@table("study_headline", "plot_study", title="Headline numbers of the study over dimension, steps and seeds")
def headline(study: Study) -> Page:
    """Conclusions that are wrong, then both claims, a row a difference."""
    table = study.table("study.csv", "collect_study")
    claims = _claims(table, study.config.fcr.confidence)
    return headline_page([*misled_rows(study), *claims])


def _claims(study: pd.DataFrame, confidence: float) -> Iterator[Row]:
    section = "does Appendix B's noise mislead? paper − default by seed, t intervals"
    for row in misleading_claim(study, confidence).to_dict("records"):
        what = f"{label_of(row['bandwidth'])}, dimension {row['dim']:g}, training {row['steps_multiple']:g}×"
        yield from _differences(section, what, row)
    section = "longer training: most steps − fewest by seed, t intervals"
    for row in training_claim(study, confidence).to_dict("records"):
        where = f"{label_of(row['bandwidth'])}, dimension {row['dim']:g}"
        what = f"{row['base']}, {where}, {row['first']:g}× to {row['last']:g}×"
        yield from _differences(section, what, row)


def _differences(section: str, what: str, row: dict[Any, Any]) -> Iterator[Row]:
    for metric, who in CLAIMED.items():
        ends = {"low": row[f"{metric}_low"], "high": row[f"{metric}_high"], "n": row["n_seeds"]}
        yield number(section, what, who, row[f"{metric}_difference"], **ends)
