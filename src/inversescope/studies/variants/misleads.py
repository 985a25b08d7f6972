"""Where Appendix B's noise misleads (dimension, training time, seeds), and what each option does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.figures.headline import Row, headline_page, number
from inversescope.figures.panels import key, light_grid, near_zero, panel_letters
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written, markdown_table
from inversescope.figures.study import Study, at_headline
from inversescope.figures.style import GREEN, GREY, WIDTH, new_figure
from inversescope.figures.tables import VARIANTS, t_interval, tidy

METRICS = {
    "refusal_rate": "refused\n(share of draws)",
    "fcr_error": "|FCR − exact|,\ngenerated",
    "fcr_error_weighted": "|FCR − exact|,\nreweighted",
    "entropy_gap": "entropy gap\nto exact (nats)",
}
#: What the claims are about, and their names in the headline.
CLAIMED = {"refusal_rate": "refusal", "fcr_error": "FCR error"}


def study_means(study: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Means over sites of one dimension, for each seed, and over seeds with Student's t intervals.

    Args:
        study: study.csv (variant, base, seed, steps_multiple, site, dim, and the metrics).
        confidence: level of the intervals.

    Returns:
        kind (`seed` or `mean`), metric, base, steps_multiple, dim, seed, value, ci_low, ci_high, n_sites,
        n_seeds. With one seed there is no interval.
    """
    rows = tidy(study)
    keys = ["metric", "base", "steps_multiple", "dim"]
    long = rows.melt([*keys[1:], "seed", "site"], list(METRICS), "metric", "value")
    seeds = long.groupby([*keys, "seed"], sort=False)["value"].agg(["mean", "count"]).reset_index()
    seeds = seeds.rename(columns={"mean": "value", "count": "n_sites"}).assign(kind="seed")
    parts = [seeds]
    for of, group in seeds.groupby(keys, sort=False):
        values = group["value"].dropna().to_numpy(dtype=float)
        mean, half = t_interval(values, confidence)
        entry = dict(zip(keys, of, strict=True))
        entry |= {"kind": "mean", "value": mean, "ci_low": mean - half, "ci_high": mean + half}
        entry |= {"n_sites": int(group["n_sites"].min()), "n_seeds": len(values)}
        parts.append(pd.DataFrame([entry]))
    columns = ["kind", *keys, "seed", "value", "ci_low", "ci_high", "n_sites", "n_seeds"]
    return pd.concat(parts, ignore_index=True).reindex(columns=columns)


@figure("misleads", "plot_study", title="Where Appendix B's noise misleads")
def misleads(study: Study) -> Drawing:
    """Where Appendix B's noise misleads: refusal, FCR errors and entropy gap against the site's dimension.

    Small marks are seeds (means over the sites of that dimension), large ones their mean with a 95% t
    interval; columns are training lengths.
    """
    data = as_written(study_means(study.table("study.csv", "collect_study")))
    dims, multiples = sorted(data["dim"].unique()), sorted(data["steps_multiple"].unique())
    drawn = new_figure(WIDTH, 1.75 * len(multiples) + 0.45)
    axes = drawn.subplots(len(multiples), len(METRICS), sharex=True, sharey="col", squeeze=False)
    for i, multiple in enumerate(multiples):
        for j, (metric, title) in enumerate(METRICS.items()):
            ax = axes[i, j]
            rows = data[(data["metric"] == metric) & (data["steps_multiple"] == multiple)]
            for k, base in enumerate(VARIANTS):
                _seeds(ax, rows[rows["base"] == base], dims, (k - 0.5) * 0.24, study.colour(base))
            ax.set_xticks(range(len(dims)), [f"{int(d)}" for d in dims])
            ax.set_xlim(-0.5, len(dims) - 0.5)
            if metric == "entropy_gap":
                near_zero(ax)
            if i == 0:
                ax.set_title(title, fontsize=7)
            if j == 0:
                ax.set_ylabel(f"training {multiple:g}×")
            if i == len(multiples) - 1:
                ax.set_xlabel("dimension of the site")
            light_grid(ax)
    # The interval of a mean of few seeds can be wide; shares are read from zero, and wide intervals are cut
    # at the panel's edge.
    for ax, metric in zip(axes[0], METRICS, strict=True):
        rows = data[data["metric"] == metric]
        value, high = rows["value"].max(), rows["ci_high"].max()
        if metric != "entropy_gap" and np.isfinite(value):  # of some variant something was accepted
            top = min(high, 1.6 * value) if np.isfinite(high) else value
            ax.set_ylim(0, 1.08 * max(value, top, 0.02))
    panel_letters(axes.flat)
    style = {"markersize": 4.5, "linewidth": 1}
    handles = [key(base, study.colour(base), "o", "-", **style) for base in VARIANTS]
    handles.append(key("one seed", GREY, ".", markersize=3))
    handles.append(key("gap within ±0.5", GREEN, line="-", alpha=0.25, linewidth=6))
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return drawn, data


def _seeds(ax: Axes, rows: pd.DataFrame, dims: list[float], shift: float, colour: str) -> None:
    """Means of a base with their intervals, and its seeds beside them."""
    mean, seeds = rows[rows["kind"] == "mean"].sort_values("dim"), rows[rows["kind"] == "seed"]
    x, y = mean["dim"].map(dims.index).to_numpy(dtype=float) + shift, mean["value"]
    ax.plot(x, y, color=colour, linewidth=1, alpha=0.6)
    style: dict[str, Any] = {"markersize": 4.5, "linewidth": 0.9, "capsize": 1.8, "zorder": 3}
    ax.errorbar(x, y, [y - mean["ci_low"], mean["ci_high"] - y], fmt="o", color=colour, **style)
    x = seeds["dim"].map(dims.index) + shift + 0.1
    ax.plot(x, seeds["value"], ".", color=colour, markersize=2.8, alpha=0.7)


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
        steps_multiple, dim, n_seeds, then for refusal and fcr_error: paper, default, difference, low, high; `misleads` is true
        where the FCR error of `paper` is above that of `default` with an interval that excludes zero, while its refusal is not
        above by such an interval.
    """
    seeds = study_means(study, confidence)
    by = seeds[seeds["kind"] == "seed"].groupby(["steps_multiple", "dim"])
    rows = pd.DataFrame(
        {"steps_multiple": multiple, "dim": dim} | _paired(group, "base", "default", "paper", confidence)
        for (multiple, dim), group in by
    )
    rows = rows.rename(columns=lambda name: name.replace("_first", "_default").replace("_last", "_paper"))
    names = [f"{m}_{x}" for m in CLAIMED for x in ("paper", "default", "difference", "low", "high")]
    rows = rows[["steps_multiple", "dim", "n_seeds", *names]]
    return rows.assign(misleads=(rows["fcr_error_low"] > 0) & ~(rows["refusal_rate_low"] > 0))


def training_claim(study: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """What longer training does, as numbers: the most steps minus the fewest, by seed, with t intervals.

    Returns:
        base, dim, first and last (multiples of the steps), and the columns of `_paired`; `misleads` is true where refusal falls
        while the FCR error rises, both by intervals that exclude zero.
    """
    seeds = study_means(study, confidence)
    rows = []
    for (base, dim), group in seeds[seeds["kind"] == "seed"].groupby(["base", "dim"]):
        ends = {"first": group["steps_multiple"].min(), "last": group["steps_multiple"].max()}
        paired = _paired(group, "steps_multiple", ends["first"], ends["last"], confidence)
        rows.append({"base": base, "dim": dim} | ends | paired)
    table = pd.DataFrame(rows)
    return table.assign(misleads=(table["refusal_rate_high"] < 0) & (table["fcr_error_low"] > 0))


@table("misleads", "plot_study", title="Where Appendix B's noise misleads, in numbers")
def misleads_table(study: Study) -> Page:
    """`misleading_claim` of the study."""
    frame = misleading_claim(study.table("study.csv", "collect_study"), study.config.fcr.confidence)
    about = "# Paper minus default, by seed, with t intervals\n\n"
    return frame, about + markdown_table(frame)


@table("study_headline", "plot_study", title="Headline numbers of the study over dimension, steps and seeds")
def headline(study: Study) -> Page:
    """Both claims, a row a difference."""
    table = study.table("study.csv", "collect_study")
    return headline_page(_claims(table, study.config.fcr.confidence))


def _claims(study: pd.DataFrame, confidence: float) -> Iterator[Row]:
    section = "does Appendix B's noise mislead? paper − default by seed, t intervals"
    for row in misleading_claim(study, confidence).to_dict("records"):
        what = f"dimension {row['dim']:g}, training {row['steps_multiple']:g}×"
        yield from _differences(section, what, row)
    section = "longer training: most steps − fewest by seed, t intervals"
    for row in training_claim(study, confidence).to_dict("records"):
        what = f"{row['base']}, dimension {row['dim']:g}, {row['first']:g}× to {row['last']:g}×"
        yield from _differences(section, what, row)


def _differences(section: str, what: str, row: dict[Any, Any]) -> Iterator[Row]:
    for metric, who in CLAIMED.items():
        ends = {"low": row[f"{metric}_low"], "high": row[f"{metric}_high"], "n": row["n_seeds"]}
        yield number(section, what, who, row[f"{metric}_difference"], **ends)
