"""In-context learning (Figures 7 and 11): FCR of task and query by layer, patching by layer, and the bands that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch as Swatch

from inversescope.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    WIDTH,
    as_written,
    error_bars,
    new_figure,
    panel_letters,
    save,
    share_axis,
    styled,
)

FEATURES = ("task", "query")
FEATURE_COLOUR = {"task": BLUE, "query": ORANGE}
#: What task and query are made of, each a feature of its own: two languages; the source language and the concept.
PART_STYLE: dict[str, tuple[str, Any, str]] = {
    "source_language": (SKY, (0, (1, 1)), "source language"),
    "target_language": (SKY, (0, (4, 1.5)), "target language"),
    "concept": (ORANGE, (0, (4, 1.5)), "query's concept"),
}
PARTS = tuple(PART_STYLE)
#: Patching outcomes in the paper's colours: target's translation under the source's task, source's own output.
OUTCOME_COLOUR = {"task": GREEN, "source": RED}
#: Bands: the task is there without the query; the query is there.
TASK_BAND, QUERY_BAND = "task without query", "query present"
BAND_COLOUR = {TASK_BAND: GREEN, QUERY_BAND: RED}
#: Controls: kind of patching -> colour, marker, line style, label.
CONTROL_STYLE: dict[str, tuple[str, str, Any, str]] = {
    "residual": (GREEN, "o", "-", "l to l, as in the paper"),
    "masked": (BLUE, "s", "--", "l to l, query hidden"),
    "forwarded": (GREY, "x", ":", "best layer to l"),
    "returned": (SKY, "^", "-", "l to best layer"),
    "returned_masked": (PINK, "D", "--", "l to best, query hidden"),
}
#: What is taken out of the residual stream after block l before it is written at the best layer, always with that layer's mean:
#: style and label likewise.
MASKING_STYLE: dict[str, tuple[str, str, Any, str]] = {
    "recentred": (SKY, "^", "-", "nothing"),
    "query_removed": (GREEN, "o", "-", "query's part"),
    "other_removed": (GREY, "x", ":", "another query's part"),
    "task_removed": (PINK, "D", "--", "query's and task's parts"),
    "vector_only": (BLUE, "s", "--", "all but the task vector"),
}


COLUMNS = ("FCR by layer", "patching", "patching: controls", "masked or not")
#: A rate is absent where its interval lies below this share of the way from chance to 1.
NEAR_CHANCE = 0.1


def presence(low: pd.Series, high: pd.Series, chance: pd.Series) -> pd.Series:
    """`present` where the 95% interval lies above the middle between chance and 1, `absent` where it lies about at chance or
    below, else `unclear`."""
    there, near = (1 + chance) / 2, chance + NEAR_CHANCE * (1 - chance)
    return pd.Series(
        np.where(low > there, "present", np.where(high < near, "absent", "unclear")), index=low.index
    )


def layer_bands(rates: pd.DataFrame) -> pd.DataFrame:
    """Layer bands by rule: green where `task` is present and `query` absent, red where `query` is present.

    A rate is present where its interval lies above the middle between its chance level and 1, absent where it lies below a tenth
    of the way from chance to 1.

    Args:
        rates: a row a (layer, feature), feature one of `task` and `query`: rate, ci_low, ci_high, chance.

    Returns:
        layer, task, query (`present`, `absent` or `unclear`), band ("" for neither).
    """
    state = rates.assign(state=presence(rates["ci_low"], rates["ci_high"], rates["chance"]))
    wide = state.pivot(index="layer", columns="feature", values="state").reset_index()
    there, away = wide["task"] == "present", wide["query"] == "absent"
    band = np.where(wide["query"] == "present", QUERY_BAND, np.where(there & away, TASK_BAND, ""))
    return pd.DataFrame({"layer": wide["layer"], "task": wide["task"], "query": wide["query"], "band": band})


def patching_bands(patching: pd.DataFrame) -> pd.DataFrame:
    """The same rule for patching: the task's translation stands for the task, the source's output for the query."""
    plain = patching[(patching["kind"] == "residual") & patching["outcome"].isin(["task", "source"])]
    idle = patching[patching["kind"] == "none"].set_index("outcome")["rate"]
    rates = plain.assign(
        feature=plain["outcome"].map({"task": "task", "source": "query"}), chance=plain["outcome"].map(idle)
    )
    return layer_bands(rates)


def order_of_layers(bands: pd.DataFrame) -> dict[str, float]:
    """First layer at which task and query are present; NaN where they never are."""
    return {
        name: float(bands.loc[bands[name] == "present", "layer"].min())
        if (bands[name] == "present").any()
        else float("nan")
        for name in FEATURES
    }


@styled
def plot_task_vectors(
    rows: list[tuple[str, pd.DataFrame, pd.DataFrame, pd.DataFrame]], out: Path
) -> list[Path]:
    """Draw Figure 7 (Figure 11 for Llama): a row a target model, the studied one and its plain control.

    First column: FCR of task and query at the attention outputs, exact and as generated by `paper` and `default`. Second: patching
    of the residual stream. Third: the same with the query hidden, or between layers. Fourth: whether the task is masked by the
    query or overwritten.

    Args:
        rows: title, rates (layer, feature, estimator, variant, rate, ci_low, ci_high, chance), patching.csv and masking.csv of
            each model.
        out: path without suffix.

    Returns:
        Paths of PNG, PDF and CSV.
    """
    figure = new_figure(WIDTH, 0.75 + 1.85 * len(rows))
    axes = np.atleast_2d(figure.subplots(len(rows), 4, sharey=True))
    parts = []
    for line, (title, *tables) in zip(axes, rows, strict=True):
        rates, patching, masking = map(as_written, tables)
        exact = rates[rates["estimator"] == "exact"]
        bands, patched = layer_bands(exact), patching_bands(patching)
        _bands(line[0], bands)
        _bands(line[1], patched)
        _fcr(line[0], rates)
        _patching(line[1], patching)
        _controls(line[2], patching, CONTROL_STYLE)
        _controls(line[3], masking, MASKING_STYLE)
        line[0].set_ylabel(f"{title.replace(' (', chr(10) + '(')}\nrate")
        parts += [
            rates.assign(panel="fcr", target=title),
            patching.assign(panel="patching", target=title),
            masking.assign(panel="masking", target=title),
            bands.assign(panel="bands from FCR", target=title),
            patched.assign(panel="bands from patching", target=title),
        ]
    for ax, name in zip(axes[0], COLUMNS, strict=True):
        ax.set_title(name)
    for ax in axes.ravel():
        share_axis(ax)
    for ax in axes[-1]:
        ax.set_xlabel("layer l")
    panel_letters(axes.ravel())
    _legends(figure, axes)
    return save(figure, pd.concat(parts, ignore_index=True), out)


def _bands(ax: Axes, bands: pd.DataFrame) -> None:
    for layer, band in zip(bands["layer"], bands["band"], strict=True):
        if band:
            ax.axvspan(layer - 0.5, layer + 0.5, color=BAND_COLOUR[band], alpha=0.12, linewidth=0, zorder=0)
    ax.set_xticks(_ticks(bands["layer"]))
    ax.set_xlim(bands["layer"].min() - 0.5, bands["layer"].max() + 0.5)


def _ticks(layers: pd.Series) -> list[int]:
    every = sorted(set(layers.astype(int)))
    return every[:: max(1, round(len(every) / 9))]


def _fcr(ax: Axes, rates: pd.DataFrame) -> None:
    for feature, (colour, style, _) in PART_STYLE.items():
        part = rates[(rates["feature"] == feature) & (rates["estimator"] == "exact")].sort_values("layer")
        ax.plot(part["layer"], part["rate"], color=colour, linestyle=style, linewidth=0.9, zorder=2)
    for feature in FEATURES:
        colour = FEATURE_COLOUR[feature]
        own = rates[rates["feature"] == feature]
        exact = own[own["estimator"] == "exact"].sort_values("layer")
        ax.plot(exact["layer"], exact["rate"], color=colour, zorder=3)
        error_bars(ax, exact["layer"], exact["rate"], exact["ci_low"], exact["ci_high"], colour)
        ax.axhline(float(exact["chance"].iloc[0]), color=colour, linewidth=0.5, linestyle=":", zorder=1)
        for variant, shift, marker, fill in (("default", -0.13, "o", colour), ("paper", 0.13, "s", "none")):
            one = own[
                (own["estimator"] == "generated") & (own["variant"] == variant) & (own["decoding"] == "plain")
            ]
            ax.scatter(
                one["layer"] + shift,
                one["rate"],
                s=14,
                marker=marker,
                color=colour,
                facecolors=fill,
                linewidth=0.8,
                zorder=4,
            )
            error_bars(ax, one["layer"] + shift, one["rate"], one["ci_low"], one["ci_high"], colour)


def _patching(ax: Axes, patching: pd.DataFrame) -> None:
    for outcome, colour in OUTCOME_COLOUR.items():
        own = patching[patching["outcome"] == outcome]
        for kind, marker, style, fill in (("residual", "o", "-", colour), ("attention", "s", ":", "none")):
            one = own[own["kind"] == kind].sort_values("layer")
            ax.plot(
                one["layer"],
                one["rate"],
                color=colour,
                linestyle=style,
                marker=marker,
                markerfacecolor=fill,
                zorder=3,
            )
            error_bars(ax, one["layer"], one["rate"], one["ci_low"], one["ci_high"], colour)
        idle = own[own["kind"] == "none"]["rate"]
        ax.axhline(float(idle.iloc[0]), color=colour, linewidth=0.5, linestyle=":", zorder=1)


def _controls(ax: Axes, patching: pd.DataFrame, styles: dict[str, tuple[str, str, Any, str]]) -> None:
    own = patching[patching["outcome"] == "task"]
    idle = float(own.loc[own["kind"] == "none", "rate"].iloc[0])
    ax.axhline(idle, color=GREEN, linewidth=0.5, linestyle=":", zorder=1)
    for kind, (colour, marker, style, _) in styles.items():
        one = own[own["kind"] == kind].sort_values("layer")
        ax.plot(one["layer"], one["rate"], color=colour, linestyle=style, marker=marker, zorder=3)
        error_bars(ax, one["layer"], one["rate"], one["ci_low"], one["ci_high"], colour)
    ax.set_xticks(_ticks(own.loc[own["layer"] >= 0, "layer"]))
    ax.set_xlim(-0.5, own["layer"].max() + 0.5)


def _legends(figure, axes: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    left = [Line2D([], [], color=colour, label=name) for name, colour in FEATURE_COLOUR.items()]
    left += [
        Line2D([], [], color=colour, linestyle=style, linewidth=0.9, label=name)
        for colour, style, name in PART_STYLE.values()
    ]
    left += [
        Line2D([], [], color=BLACK, marker="o", linestyle="", label="default"),
        Line2D([], [], color=BLACK, marker="s", markerfacecolor="none", linestyle="", label="paper"),
        Line2D([], [], color=BLACK, linestyle=":", linewidth=0.5, label="chance"),
    ]
    middle = [
        Line2D([], [], color=GREEN, label="target's translation"),
        Line2D([], [], color=RED, label="source's output"),
        Line2D([], [], color=BLACK, marker="o", label="residual stream"),
        Line2D(
            [], [], color=BLACK, marker="s", markerfacecolor="none", linestyle=":", label="attention output"
        ),
        *(Swatch(color=colour, alpha=0.15, linewidth=0, label=name) for name, colour in BAND_COLOUR.items()),
    ]
    controls, masking = (
        [
            Line2D([], [], color=colour, marker=marker, linestyle=style, label=label)
            for colour, marker, style, label in styles.values()
        ]
        for styles in (CONTROL_STYLE, MASKING_STYLE)
    )
    columns: list[list[Any]] = [left, middle, controls, masking]
    for ax, handles, title in zip(
        axes[-1], columns, (None, None, None, "l to best, taken out:"), strict=True
    ):
        ax.legend(
            handles=handles,
            title=title,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.27),
            columnspacing=0.8,
        )
