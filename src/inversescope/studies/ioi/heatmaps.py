"""Layers x heads heat maps: Figure 2 (with samples beside it), Figure 4 and Figure 9 of the paper."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inversescope.figures.panels import (
    frame_heads,
    head_map,
    key,
    layers_across,
    lines_and_columns,
    panel_letters,
)
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
from inversescope.figures.style import BLUE, GREY, RED, WIDTH, new_figure
from inversescope.figures.tables import best_heads, rates
from inversescope.studies.ioi.samples import fig2_examples
from inversescope.studies.ioi.shown import IoiStudy

#: Rows of Figures 4 and 9: what `rates` understands, and the title. Generated beside generated: the combined estimator leans on the
#: cache, so that it alone would compare estimators, not generators.
ROWS = {
    "paper": "paper (generated)",
    "default:generated": "default (generated)",
    "default": "default (combined)",
    "exact": "exact",
}
#: Rows of Figure 2, which has room for three.
FIG2_ROWS = [row for row in ROWS if row != "default"]
_KEEP = ["layer", "head", "site", "fcr", "ci_low", "ci_high", "chance", "n_targets"]


@figure("fig4", "plot_figures", title="Figure 4: object and subject FCR of attention heads")
def fig4(study: IoiStudy) -> Drawing:
    """FCR of every head, a column a feature; rows: see `ROWS`; five best heads framed."""
    columns = {feature: feature for feature in study.headline}
    data = pd.concat(
        [_panel(study.fcr, row, feature, _shown(study, row)) for row in ROWS for feature in study.headline]
    )
    data = as_written(data)
    lines, across = lines_and_columns(study.shape)
    width = WIDTH if across >= 8 else 0.4 * WIDTH * len(columns)
    height = np.clip(0.62 * width / len(columns) * lines / across, 1.3, 1.7 if across < 8 else 2.3)
    drawn = new_figure(width, len(ROWS) * height + 0.5)
    _grid(drawn, data, study.shape, "feature", columns, lambda row, name: f"{name}, {_title(study, row)}")
    return drawn, data


@figure(
    "fig9",
    "plot_figures",
    title="Figure 9: object FCR at three bandwidths",
    needs={"bandwidths": ["third"]},
)
def fig9(study: IoiStudy) -> Drawing:
    """Object FCR of every head at the headline bandwidth and its neighbours; rows: see `ROWS`.

    The paper trains and samples at the same bandwidth, so its row uses a variant a bandwidth, and is empty where none was trained;
    `default` is one generator. A row that has less than half of the heads at every bandwidth is left out.
    """
    data = fig9_rates(study)
    most = data.groupby(["row", "bandwidth"]).size().groupby("row").max()
    data = data[data["row"].map(most) >= most["exact"] / 2]
    rows = data["row"].nunique()
    lines, across = lines_and_columns(study.shape)
    height = np.clip(0.8 * WIDTH / 3 * lines / across, 1.0, 2.2)
    drawn = new_figure(WIDTH, rows * height + 0.5)
    columns = {str(one): one.label.removesuffix(" of the prior") for one in study.three_bandwidths}
    _grid(drawn, data, study.shape, "bandwidth", columns, lambda row, name: f"{ROWS[row]}, {name}")
    return drawn, data


def fig9_rates(study: IoiStudy) -> pd.DataFrame:
    """What Figure 9 shows: `_KEEP`, row, feature, epsilon, top5, variant, bandwidth; a row a head, row of panels and bandwidth."""
    parts = []
    for bandwidth in study.three_bandwidths:
        for row in ROWS:
            variant = study.paper_variants.get(bandwidth) if row == "paper" else row
            if variant is not None:
                panel = _panel(study.fcr, variant, study.feature, str(bandwidth))
                parts.append(panel.assign(row=row, variant=variant, bandwidth=str(bandwidth)))
    return as_written(pd.concat(parts))


@figure("fig2", "plot_figures", title="Figure 2: object FCR of attention heads, with samples")
def fig2(study: IoiStudy) -> Drawing:
    """FCR of every head, and beside or below it samples of P(x; z) for the heads of `IoiStudy.beside_map`."""
    feature, examples = study.feature, fig2_examples(study)
    heat = pd.concat([_panel(study.fcr, row, feature, _shown(study, row)) for row in FIG2_ROWS])
    examples = examples.assign(
        kind="sample", feature=feature, epsilon=examples["site"].map(study.context.headline)
    )
    data = as_written(pd.concat([heat.assign(kind="heatmap"), examples]))
    heat, shown = data[data["kind"] == "heatmap"], data[data["kind"] == "sample"]
    parts = [part for _, part in shown.groupby("site", sort=False)]
    lines = sum(4 + len(part) + part["row"].nunique() for part in parts)
    text, wide = 0.125 * lines + 0.3, layers_across(study.shape)
    if wide:
        drawn = new_figure(WIDTH, 1.35 + text)
        maps, beside = cast(Any, drawn).subfigures(2, 1, height_ratios=[1.35, text])
        axes = maps.subplots(1, len(FIG2_ROWS), sharey=True)
    else:
        drawn = new_figure(WIDTH, max(3 * 1.55 + 0.5, text))
        maps, beside = cast(Any, drawn).subfigures(1, 2, width_ratios=[1.6, WIDTH - 1.6], wspace=0.02)
        axes = maps.subplots(len(FIG2_ROWS), 1, sharex=True)
    for i, row in enumerate(FIG2_ROWS):
        panel = heat[heat["row"] == row]
        last = wide or i == len(FIG2_ROWS) - 1
        head_map(axes[i], panel, study.shape, _title(study, row), xlabel=last, ylabel=not wide or i == 0)
        frame_heads(axes[i], panel[panel["site"].isin(shown["site"])], study.shape)
    panel_letters(axes)
    chance = float(heat["chance"].mean())
    place = {"location": "right", "aspect": 9} if wide else {"location": "bottom", "shrink": 0.9}
    _colour_bar(maps, list(axes), chance, f"{feature} FCR", **place)
    _write_samples(beside, parts, feature)
    return drawn, data


def _shown(study: IoiStudy, row: str) -> str:
    """The bandwidth at which a row is shown: that of its variant."""
    return study.bandwidth_of(row.partition(":")[0].removeprefix("exact"))


def _title(study: IoiStudy, row: str) -> str:
    """Title of a row, with its variant's bandwidth if that is not the headline's."""
    variant, title = row.partition(":")[0], ROWS[row]
    return title if row == "exact" else title.replace(variant, study.at_bandwidth(variant))


def _panel(fcr: pd.DataFrame, which: str, feature: str, bandwidth: str) -> pd.DataFrame:
    """The heads' rows of one panel, the five best marked."""
    rows = rates(fcr, which, feature, bandwidth)
    rows = rows[rows["head"].notna()]
    best = rows["site"].isin(best_heads(rows))
    return rows[_KEEP].assign(row=which, feature=feature, epsilon=rows["epsilon"], top5=best)


def _grid(
    drawn: Figure,
    data: pd.DataFrame,
    shape: tuple[int, int],
    column: str,
    columns: dict[Any, str],
    title: Any,
) -> None:
    """Draw a panel for each of `ROWS` of which there is data and each value of a column, with one colour bar."""
    rows = [row for row in ROWS if (data["row"] == row).any()]
    axes = drawn.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for i, row in enumerate(rows):
        for j, (value, name) in enumerate(columns.items()):
            panel = data[(data["row"] == row) & (data[column] == value)]
            told = f"{row}: not trained at {name}" if panel.empty else title(row, name)
            head_map(axes[i, j], panel, shape, told, xlabel=i == len(rows) - 1, ylabel=j == 0)
            frame_heads(axes[i, j], panel[panel["top5"]], shape)
    panel_letters(axes.flat)
    framed = key("the five highest heads of a panel", RED, "s", markerfacecolor="none", markersize=6)
    drawn.legend(handles=[framed], loc="outside lower center")
    _colour_bar(drawn, list(axes.flat), float(data["chance"].mean()))


def _colour_bar(
    drawn: Figure,
    axes: list[Axes],
    chance: float,
    label: str = "feature consistency rate",
    **place: Any,
) -> None:
    """One scale 0 to 1 for all panels, with the chance level marked; by default beside them at half their height."""
    bar = drawn.colorbar(
        axes[0].collections[0],
        ax=axes,
        pad=0.03,
        **({"aspect": 25} | (place or {"location": "right", "shrink": 0.5})),
    )
    below = bar.orientation == "horizontal"
    bar.set_label(label)
    bar.set_ticks([0, 0.5, 1] if place else [0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)
    if not np.isfinite(chance):
        return
    style: dict[str, Any] = {"textcoords": "offset points", "fontsize": 6, "color": RED}
    if below:
        bar.ax.axvline(chance, color=RED, linewidth=1.2)
        where: dict[str, Any] = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (0, 1.5),
            "ha": "left",
            "va": "bottom",
        }
        bar.ax.annotate("chance", (chance, 1), **where, **style)
    else:
        bar.ax.axhline(chance, color=RED, linewidth=1.2)
        where = {"xycoords": ("axes fraction", "data"), "xytext": (-2, 0), "ha": "right", "va": "center"}
        bar.ax.annotate("chance", (0, chance), **where, **style)


def _write_samples(drawn: Figure, parts: list[pd.DataFrame], feature: str) -> None:
    """Write the samples of each head: text, distance, label; labels that agree with the seed's are ticked."""
    ax = drawn.subplots()
    ax.set_axis_off()
    line = 1.0 / sum(3.4 + len(part) + 1.25 * part["row"].nunique() for part in parts)
    y, width = 1.0, 86

    def put(x: float, text: str, **kwargs: Any) -> None:
        # Text of a model is never read as mathematics, whatever signs it holds.
        style: dict[str, Any] = {"fontsize": 6.0, "va": "top", "transform": ax.transAxes} | kwargs
        ax.text(x, y, text, parse_math=False, **style)

    for letter, rows in zip("defghij", parts, strict=False):
        first = rows.iloc[0]
        put(-0.045, letter, fontsize=9, fontweight="bold")
        put(0, f"{first['site']}: {first['reason']}", fontsize=7.5, fontweight="bold")
        y -= 1.35 * line
        put(0, f"x̂ = “{_shorten(first['seed'], width)}”,  f(x̂) = {first['seed_label']}", fontsize=6.6)
        y -= 1.4 * line
        for row, part in rows.groupby("row", sort=False):
            count = part.iloc[0]
            note = "exact: prompts of the prior within ε, drawn at random"
            if row != "exact":
                note = f"{row}: {int(count['n_accepted'])} of {int(count['n_draws'])} draws accepted"
            put(0, note, color=GREY)
            put(0.835, "d(z, ẑ)", color=GREY, ha="right")
            put(0.86, f"{feature} f(x)", color=GREY)
            y -= 1.1 * line
            for one in part.itertuples():
                if isinstance(one.text, str) and one.text:
                    same = one.label == first["seed_label"]
                    mark, colour = ("✓", BLUE) if same else ("✗", RED)
                    put(0.015, _shorten(one.text, width))
                    put(0.835, f"{one.distance:.3f}", ha="right")
                    put(0.86, f"{mark} {_shorten(str(one.label), 14)}", color=colour)
                else:
                    put(0.015, "no accepted sample", style="italic", color=GREY)
                y -= line
            y -= 0.15 * line
        y -= 0.65 * line


def _shorten(text: str, width: int) -> str:
    """The text on one line, cut to a width in characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 1] + "…"
