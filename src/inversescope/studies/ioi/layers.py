"""What each layer tells: exact rates of all features along the residual stream and by head, before any generator is trained."""

from __future__ import annotations

from itertools import groupby
from typing import Any, cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.figures.panels import (
    bare_share,
    frame_heads,
    head_map,
    layers_across,
    lines_and_columns,
    panel_letters,
    share_axis,
    spread,
)
from inversescope.figures.registry import Drawing, Page, draw, figure, table
from inversescope.figures.save import as_written, markdown_table
from inversescope.figures.study import EXACT_RATES, Study
from inversescope.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, WIDTH, new_figure
from inversescope.figures.tables import CERTAIN, best_heads, lift
from inversescope.store import write_table

#: Features in the order in which a prompt brings them up, the names last, and their colours and lines.
FEATURES: dict[str, tuple[str, Any]] = {
    "item": (GREEN, "-"),
    "place": (PINK, "-"),
    "template": (GREY, "-"),
    "order": (BLACK, "-"),
    "first": (SKY, (0, (3, 1.5))),
    "second": (RED, (0, (3, 1.5))),
    "subject": (ORANGE, "-"),
    "object": (BLUE, "-"),
}
#: Where a point of the residual stream stands, in layers, from the end of its layer.
_PLACE = {"resid_pre": -1.0, "resid_mid": -0.5, "resid_post": 0.0}
#: Heads of a feature that are framed.
_FRAMED = 3
#: A head that tells less than this beyond chance reads as .00, and is not framed.
_VISIBLE = 0.005
_TEXT_GAP = 0.048


def plot_layers(context: Context) -> None:
    """Draw what each layer tells; see `registry.draw`.

    Writes results/{task}/{model}/exact_rates.parquet too (`Study.exact`), for the figure of heads.

    Raises:
        InputError: exact values of a site are missing, or no site at the last token is a head or in the residual stream.
    """
    study = Study(context)
    write_table(study.exact, context.results / EXACT_RATES)
    draw("plot_layers", study)


@figure("layers", "plot_layers", title="What each layer tells")
def layers(study: Study) -> Drawing:
    """Exact FCR of each feature along the residual stream, and by head as a share of the way from chance to 1."""
    data = _rates(study)
    stream, heads = _stream(data), data[data["group"] == "heads"]
    features = _features(data)
    across, shape = (2 if layers_across(study.shape) else 4), lines_and_columns(study.shape)
    lines = -(-len(features) // across)
    panel = 0.88 * WIDTH / across * shape[0] / shape[1]
    heights = [2.6 * bool(len(stream)), (lines * (panel + 0.42) + 0.2) * bool(len(heads))]
    drawn = new_figure(WIDTH, sum(heights))
    shown = [height for height in heights if height]
    parts = list(cast(Any, drawn).subfigures(len(shown), 1, height_ratios=shown, squeeze=False)[:, 0])
    axes: list[Axes] = []
    if len(stream):
        axes.append(_along(parts.pop(0), stream, features))
    if len(heads):
        axes += _by_head(parts.pop(0), heads, features, study.shape, across)
    panel_letters(axes)
    return drawn, data


@table("layers", "plot_layers", title="What each layer tells, along the residual stream")
def layers_table(study: Study) -> Page:
    """Exact FCR of each feature along the residual stream; for readers a line a site, and below it where each feature is told."""
    data = _stream(_rates(study)).drop(columns=["group", "head", "told", "at"])
    features = _features(data)
    wide = data.pivot(index="site", columns="feature", values="fcr")
    wide = wide.reindex(index=list(dict.fromkeys(data["site"])), columns=features)
    lines = [f"- {name}: {_where(wide[name])}" for name in features]
    bandwidth = study.config.kernel.headline.label
    about = f"Exact FCR along the residual stream, {bandwidth}. Below: where it is {CERTAIN:g} or more."
    return data, "\n".join([about, "", markdown_table(wide.reset_index(), ".2f"), "", *lines])


def _where(rates: pd.Series) -> str:
    """The sites at which a rate is `CERTAIN` or more, the first and the last of each run of them; else the site of the highest."""
    runs = [
        [str(site) for site, _ in part]
        for certain, part in groupby(rates.items(), lambda one: bool(one[1] >= CERTAIN))
        if certain
    ]
    told = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return ", ".join(told) or f"nowhere; the highest is {rates.max():.2f}, at {rates.fillna(0).idxmax()}"


def _rates(study: Study) -> pd.DataFrame:
    """Exact rates of heads and of the residual stream at the last token; `told`: how far a rate is on the way from chance to 1.

    Raises:
        InputError: none of these sites is read.
    """
    rates = study.exact[study.exact["position"] == "last"]
    rates = rates[rates["feature"].isin(FEATURES) & rates["group"].isin(["heads", "residual"])]
    if rates.empty:
        raise InputError(
            f"experiment {study.context.plan.name} reads no head and no residual stream at the last token",
            "add L*H* or L*.resid_post to its sites",
        )
    rates = rates.assign(told=lift(rates))
    keep = "group site layer head feature fcr ci_low ci_high chance told epsilon share n_targets".split()
    return as_written(rates[keep])


def _features(data: pd.DataFrame) -> list[str]:
    """Features of which there are rates, in the order in which they are shown."""
    return [name for name in FEATURES if name in set(data["feature"])]


def _stream(data: pd.DataFrame) -> pd.DataFrame:
    """Rates of the residual stream in its order, with its place in layers (`at`)."""
    data = data[data["group"] == "residual"]
    kind = data["site"].str.partition(".")[2]
    return data.assign(at=data["layer"] + kind.map(_PLACE)).sort_values("at", kind="stable")


def _along(drawn: Figure, data: pd.DataFrame, features: list[str]) -> Axes:
    """A line a feature along the residual stream, named at its end; chance levels at the left."""
    ax = drawn.subplots()
    low, high = data["at"].min(), data["at"].max()
    room = max(1.0, high - low)  # of the axis; words stand to the left and right of it
    ends: list[tuple[float, str]] = []
    for name in features:
        part, (colour, line) = data[data["feature"] == name], FEATURES[name]
        marker = "o" if len(part) <= 16 else None
        ax.plot(part["at"], part["fcr"], color=colour, linestyle=line, marker=marker, markersize=2.5)
        ax.fill_between(part["at"], part["ci_low"], part["ci_high"], color=colour, alpha=0.13, linewidth=0)
        ends.append((float(part["fcr"].iloc[-1]), name))
    ends.sort()
    # The lowest names stand no lower than the axis does.
    heights = spread([max(value, k * _TEXT_GAP) for k, (value, _) in enumerate(ends)], _TEXT_GAP)
    for (_, name), y in zip(ends, heights, strict=True):
        ax.text(high + 0.012 * room, y, name, color=FEATURES[name][0], fontsize=7, va="center")
    chance = data.drop_duplicates("feature").groupby("chance")["feature"].agg(list)
    heights = spread([float(level) for level in chance.index], _TEXT_GAP)
    for level, names, y in zip(chance.index, chance, heights, strict=True):
        ax.hlines(level, low - 0.015 * room, high, color=GREY, linewidth=0.6, linestyle=":", zorder=1)
        told = ", ".join(name for name in features if name in names)
        ax.text(low - 0.025 * room, y, told, color=GREY, fontsize=5.5, ha="right", va="center")
    top = heights[-1] + _TEXT_GAP
    ax.text(low - 0.025 * room, top, "chance of", color=GREY, fontsize=5.5, ha="right", va="center")
    share_axis(ax)
    ax.set_xlim(low - 0.25 * room, high + 0.12 * room)
    step = 1 if high - low <= 12 else 2 if high - low <= 24 else 4
    marks = [*([-1.0] if low < 0 else []), *range(0, int(high) + 1, step)]
    ax.set_xticks(marks, ["in" if mark < 0 else f"{mark:g}" for mark in marks])
    ax.set_xlabel("residual stream at the last token, after layer")
    ax.set_ylabel("exact FCR")
    return ax


def _by_head(
    drawn: Figure, data: pd.DataFrame, features: list[str], shape: tuple[int, int], across: int
) -> list[Axes]:
    """A heat map a feature: how far each head's rate is on the way from chance (0) to 1; the highest heads framed and one named."""
    lines = -(-len(features) // across)
    axes = drawn.subplots(lines, across, sharex=True, sharey=True, squeeze=False)
    for number, (ax, name) in enumerate(zip(axes.flat, features, strict=False)):
        part = data[data["feature"] == name]
        best = part[part["site"].isin(best_heads(part, _FRAMED))]
        first = best.sort_values("fcr", ascending=False, kind="stable").iloc[0]
        title = f"{name}: {first['site']} {bare_share(first['fcr'], '.2f')}"
        certain = int((part["fcr"] >= CERTAIN).sum())
        if certain > _FRAMED:
            title += f", {certain} heads ≥ {bare_share(CERTAIN, '.2f')}"
        best = best[best["told"] >= _VISIBLE]
        lowest = number + across >= len(features)
        head_map(ax, part, shape, title, xlabel=lowest, ylabel=number % across == 0, value="told")
        frame_heads(ax, best, shape)
    for ax in axes.flat[len(features) :]:
        ax.set_axis_off()
    shown = list(axes.flat[: len(features)])
    bar = drawn.colorbar(
        shown[0].collections[0], ax=list(axes.flat), location="right", shrink=0.5, aspect=25, pad=0.02
    )
    bar.set_label("(FCR − chance) / (1 − chance)")
    bar.set_ticks([0, 0.5, 1])
    bar.outline.set_visible(False)
    return shown
