"""Layers x heads heatmaps: Figure 2 (with samples beside it), Figure 4 and Figure 9 of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from inversescope.figures.style import (
    BLUE,
    GREY,
    RED,
    WIDTH,
    as_written,
    epsilon_label,
    new_figure,
    panel_letters,
    save,
    styled,
)
from inversescope.figures.tables import best_heads, head_grid, rates, tidy

#: Rows of Figures 4 and 9: what `rates` understands, and the title. Generated beside generated: the combined estimator leans on the
#: cache, so that it alone would compare estimators, not generators.
ROWS = {
    "paper": "paper (generated)",
    "default:generated": "default (generated)",
    "default": "default (combined)",
    "exact": "exact",
}
#: Rows of Figure 2, which has room for three.
FIG2_ROWS = {row: title for row, title in ROWS.items() if row != "default"}
_KEEP = ["layer", "head", "site", "fcr", "ci_low", "ci_high", "chance", "n_targets"]


@styled
def plot_fig4(
    fcr: pd.DataFrame, out: Path, epsilon: float, features: tuple[str, ...] = ("object", "subject")
) -> list[Path]:
    """Figure 4: FCR of every head, a column a feature; rows: see `ROWS`; five best heads framed.

    Args:
        fcr: fcr.csv.
        out: path without suffix.
        epsilon: headline bandwidth.
        features: one column of panels each.

    Raises:
        InputError: if a panel has no rows in fcr.csv.
    """
    fcr = tidy(fcr)
    data = pd.concat([_panel(fcr, row, feature, epsilon) for row in ROWS for feature in features])
    data = as_written(data)
    n_layers, n_heads = int(data["layer"].max()) + 1, int(data["head"].max()) + 1
    width = WIDTH if n_heads >= 8 else 0.4 * WIDTH * len(features)
    height = np.clip(0.62 * width / len(features) * n_layers / n_heads, 1.3, 1.7 if n_heads < 8 else 2.3)
    figure = new_figure(width, len(ROWS) * height + 0.3)
    axes = figure.subplots(len(ROWS), len(features), sharex=True, sharey=True, squeeze=False)
    for i, row in enumerate(ROWS):
        for j, feature in enumerate(features):
            panel = data[(data["row"] == row) & (data["feature"] == feature)]
            _heatmap(axes[i, j], panel, f"{feature}, {ROWS[row]}", xlabel=i == len(ROWS) - 1, ylabel=j == 0)
            _frame(axes[i, j], panel)
    panel_letters(axes.flat)
    _colour_bar(figure, list(axes.flat), float(data["chance"].mean()))
    return save(figure, data, out)


@styled
def plot_fig9(
    fcr: pd.DataFrame,
    out: Path,
    epsilons: list[float],
    paper_variants: dict[float, str],
    feature: str = "object",
) -> list[Path]:
    """Figure 9: object FCR of every head at several bandwidths; rows: see `ROWS`.

    The paper trains and samples at the same bandwidth, so its row uses a variant a bandwidth; `default` is
    one generator.

    Args:
        fcr: fcr.csv.
        out: path without suffix.
        epsilons: one column each.
        paper_variants: bandwidth -> variant that was trained at it; a bandwidth without one is shown as not
            trained.
        feature: which feature's rate.

    Raises:
        InputError: if a panel has no rows in fcr.csv.
    """
    fcr = tidy(fcr)
    parts = []
    for epsilon in epsilons:
        for row in ROWS:
            variant = paper_variants.get(epsilon) if row == "paper" else row
            if variant is not None:
                parts.append(_panel(fcr, variant, feature, epsilon).assign(row=row, variant=variant))
    data = as_written(pd.concat(parts))
    n_layers, n_heads = int(data["layer"].max()) + 1, int(data["head"].max()) + 1
    height = np.clip(0.8 * WIDTH / len(epsilons) * n_layers / n_heads, 1.2, 2.2)
    figure = new_figure(WIDTH, len(ROWS) * height + 0.3)
    axes = figure.subplots(len(ROWS), len(epsilons), sharex=True, sharey=True, squeeze=False)
    for j, epsilon in enumerate(epsilons):
        for i, row in enumerate(ROWS):
            ax = axes[i, j]
            panel = data[(data["row"] == row) & np.isclose(data["epsilon"], epsilon)]
            title = f"{ROWS[row]}, {epsilon_label(epsilon)}"
            if len(panel):
                _heatmap(ax, panel, title, xlabel=i == len(ROWS) - 1, ylabel=j == 0)
                _frame(ax, panel)
            else:
                ax.set_title(title)
                ax.text(
                    0.5,
                    0.5,
                    f"no paper generator\nwas trained at\n{epsilon_label(epsilon)}",
                    transform=ax.transAxes,
                    ha="center",
                    va="center",
                    color=GREY,
                )
    panel_letters(axes.flat)
    _colour_bar(figure, list(axes.flat), float(data["chance"].mean()))
    return save(figure, data, out)


@styled
def plot_fig2(
    fcr: pd.DataFrame, examples: pd.DataFrame, out: Path, epsilon: float, feature: str = "object"
) -> list[Path]:
    """Figure 2: FCR of every head, and beside it samples of P(x; z) for two heads chosen by rule.

    Args:
        fcr: fcr.csv.
        examples: accepted samples of the two heads: site, reason, row (paper, default, exact), seed,
            seed_label, text, label, distance, n_accepted, n_draws (as `samples.fig2_examples` returns them).
        out: path without suffix.
        epsilon: headline bandwidth.
        feature: which feature's rate and labels.

    Raises:
        InputError: if a panel has no rows in fcr.csv.
    """
    fcr = tidy(fcr)
    heat = pd.concat([_panel(fcr, row, feature, epsilon) for row in FIG2_ROWS]).assign(kind="heatmap")
    data = as_written(pd.concat([heat, examples.assign(kind="sample", feature=feature, epsilon=epsilon)]))
    heat, shown = data[data["kind"] == "heatmap"], data[data["kind"] == "sample"]
    sites = list(dict.fromkeys(shown["site"]))
    lines = sum(
        4 + len(shown[shown["site"] == site]) + shown[shown["site"] == site]["row"].nunique()
        for site in sites
    )
    figure = new_figure(WIDTH, max(3 * 1.55 + 0.5, 0.125 * lines + 0.3))
    left, right = cast(Any, figure).subfigures(1, 2, width_ratios=[1.6, WIDTH - 1.6], wspace=0.02)
    axes = left.subplots(len(FIG2_ROWS), 1, sharex=True)
    for i, row in enumerate(FIG2_ROWS):
        panel = heat[heat["row"] == row]
        _heatmap(axes[i], panel, FIG2_ROWS[row], xlabel=i == len(FIG2_ROWS) - 1, ylabel=True)
        for site in sites:
            spot = panel[panel["site"] == site]
            for layer, head in zip(spot["layer"], spot["head"], strict=True):
                axes[i].add_patch(_box(int(head), int(layer), RED))
    panel_letters(axes)
    _colour_bar(left, list(axes), float(heat["chance"].mean()), below=True, label=f"{feature} FCR")
    _write_samples(right, shown, sites, feature)
    return save(figure, data, out)


def _panel(fcr: pd.DataFrame, which: str, feature: str, epsilon: float) -> pd.DataFrame:
    """The heads' rows of one panel, the five best marked."""
    rows = rates(fcr, which, feature, epsilon)
    rows = rows[rows["head"].notna()]
    return rows[_KEEP].assign(
        row=which, feature=feature, epsilon=epsilon, top5=rows["site"].isin(best_heads(rows))
    )


def _heatmap(ax: Axes, panel: pd.DataFrame, title: str, xlabel: bool, ylabel: bool) -> None:
    """Draw one panel; rates are written into the cells where these are large enough to read."""
    grid = head_grid(panel)
    small = grid.shape[1] <= 8
    notes = np.array(
        [[f"{v:.2f}".removeprefix("0") if np.isfinite(v) else "" for v in line] for line in grid.to_numpy()]
    )
    ax.set_facecolor("#dddddd")
    sns.heatmap(
        grid,
        ax=ax,
        vmin=0,
        vmax=1,
        cmap="viridis",
        cbar=False,
        annot=notes if small else False,
        fmt="",
        annot_kws={"fontsize": 6.5},
        linewidths=0.4,
        linecolor="white",
        square=False,
    )
    ax.set_title(title)
    ax.invert_yaxis()
    step_x, step_y = (1 if n <= 8 else 2 if n <= 16 else 4 for n in (grid.shape[1], grid.shape[0]))
    ax.set_xticks(
        np.arange(0, grid.shape[1], step_x) + 0.5,
        [str(v) for v in range(0, grid.shape[1], step_x)],
        rotation=0,
    )
    ax.set_yticks(
        np.arange(0, grid.shape[0], step_y) + 0.5,
        [str(v) for v in range(0, grid.shape[0], step_y)],
        rotation=0,
    )
    ax.tick_params(length=0, labelbottom=True)
    ax.set_xlabel("head" if xlabel else "")
    ax.set_ylabel("layer" if ylabel else "")


def _frame(ax: Axes, panel: pd.DataFrame) -> None:
    """Frame the five best heads in red, as the paper does."""
    best = panel[panel["top5"]]
    for layer, head in zip(best["layer"], best["head"], strict=True):
        ax.add_patch(_box(int(head), int(layer), RED))


def _box(head: int, layer: int, colour: str) -> Rectangle:
    """A frame around one cell, drawn inside of it so that neighbouring frames stay apart."""
    return Rectangle(
        (head + 0.05, layer + 0.05), 0.9, 0.9, fill=False, edgecolor=colour, linewidth=1.4, clip_on=False
    )


def _colour_bar(
    figure: Figure, axes: list[Axes], chance: float, below: bool = False, label: str = ""
) -> None:
    """One scale 0 to 1 for all panels, with the chance level marked."""
    mappable = next(ax.collections[0] for ax in axes if ax.collections)
    bar = figure.colorbar(
        mappable,
        ax=axes,
        location="bottom" if below else "right",
        shrink=0.9 if below else 0.5,
        aspect=25,
        pad=0.03,
    )
    bar.set_label(label or "feature consistency rate")
    bar.set_ticks([0, 0.5, 1] if below else [0, 0.25, 0.5, 0.75, 1])
    bar.outline.set_visible(False)
    if np.isfinite(chance):
        (bar.ax.axvline if below else bar.ax.axhline)(chance, color=RED, linewidth=1.2)
        if below:
            bar.ax.annotate(
                "chance",
                (chance, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="left",
                va="bottom",
                fontsize=6,
                color=RED,
            )
        else:
            bar.ax.annotate(
                "chance",
                (0, chance),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=6,
                color=RED,
            )


def _write_samples(figure: Figure, shown: pd.DataFrame, sites: list[str], feature: str) -> None:
    """Write the samples of each head: text, distance, label; labels that agree with the seed's are ticked."""
    ax = figure.subplots()
    ax.set_axis_off()
    total = sum(
        3.4 + len(shown[shown["site"] == s]) + 1.25 * shown[shown["site"] == s]["row"].nunique()
        for s in sites
    )
    line = 1.0 / total
    y = 1.0
    width = 86

    def put(x: float, text: str, **kwargs: Any) -> None:
        # Text of a model is never read as mathematics, whatever signs it holds.
        style: dict[str, Any] = {"fontsize": 6.0, "va": "top", "transform": ax.transAxes} | kwargs
        ax.text(x, y, text, parse_math=False, **style)

    for letter, site in zip("de", sites, strict=False):
        rows = shown[shown["site"] == site]
        first = rows.iloc[0]
        put(-0.045, letter, fontsize=9, fontweight="bold")
        put(0, f"{site}: {first['reason']}", fontsize=7.5, fontweight="bold")
        y -= 1.35 * line
        put(0, f"x̂ = “{_shorten(first['seed'], width)}”,  f(x̂) = {first['seed_label']}", fontsize=6.6)
        y -= 1.4 * line
        for row in dict.fromkeys(rows["row"]):
            part = rows[rows["row"] == row]
            count = part.iloc[0]
            if row == "exact":
                note = "exact: prompts of the prior within ε, drawn at random"
            else:
                note = f"{row}: {int(count['n_accepted'])} of {int(count['n_draws'])} draws accepted"
            put(0, note, color=GREY)
            put(0.835, "d(z, ẑ)", color=GREY, ha="right")
            put(0.86, f"{feature} f(x)", color=GREY)
            y -= 1.1 * line
            for text, distance, label in zip(part["text"], part["distance"], part["label"], strict=True):
                if isinstance(text, str) and text:
                    same = label == first["seed_label"]
                    put(0.015, _shorten(text, width))
                    put(0.835, f"{distance:.3f}", ha="right")
                    put(
                        0.86,
                        f"{'✓' if same else '✗'} {_shorten(str(label), 14)}",
                        color=BLUE if same else RED,
                    )
                else:
                    put(0.015, "no accepted sample", style="italic", color=GREY)
                y -= line
            y -= 0.15 * line
        y -= 0.65 * line


def _shorten(text: str, width: int) -> str:
    """The text on one line, cut to a width in characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= width else text[: width - 1] + "…"
