"""Figures and tables of RAVEL: accuracy by layer (Figure 6), by size (Figure 10), Table 2, confusion, samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
from inversescope.store import atomic_path, write_table
from inversescope.studies.ioi.samples import markdown

#: Figures and tables of `plot_ravel`: name -> title.
FIGURES = {
    "fig6": "Figure 6: attributes read by layer, all methods",
    "fig6_new": "Figure 6 for templates outside of the prior",
    "fig10": "Figure 10: attributes read by size of the target",
    "confusion": "Confusion of attributes",
}
TABLES = {"table2": "Table 2: representative layers", "samples": "Samples and failures of RAVEL"}

#: Method -> name, colour, marker, line; in the order of legends. The first four are drawn on top.
METHODS: dict[str, tuple[str, str, str, Any]] = {
    "default": ("InverseScope, default", BLUE, "o", "-"),
    "paper": ("InverseScope, paper", RED, "o", "-"),
    "default_mixed": ("default, cache mixing", BLUE, "D", ":"),
    "exact": ("exact posterior", BLACK, "_", "--"),
    "sae_ravel": ("SAE (RAVEL)", ORANGE, "s", "-"),
    "sae_general": ("SAE (General)", PINK, "s", "-"),
    "probe": ("linear probe", GREEN, "^", "-"),
    "nearest": ("nearest neighbour", SKY, "v", "-"),
    "prior": ("prior, no activation", GREY, "x", ":"),
    "always_no": ("always no", GREY, "", (0, (1, 1))),
}
#: What is drawn of each metric: title, methods that are left out.
PANELS = {
    "accuracy": ("accuracy", ("always_no",)),
    "macro_f1": ("macro-F1", ("always_no",)),
    "accuracy_one_vs_rest": ("accuracy of single\ndecisions", ()),
}
GROUP_TITLE = {"seen": "templates of the prior, new entities", "new": "new templates, new entities"}


@styled
def plot_layers(scores: pd.DataFrame, out: Path, group: str) -> list[Path]:
    """Figure 6: scores by layer, a column a target size, a row a metric, all methods, with intervals.

    Args:
        scores: results/ravel/scores.csv.
        out: path without suffix.
        group: `seen` or `new`; the other one is a figure of its own.
    """
    data = as_written(scores[scores["group"] == group])
    models = list(dict.fromkeys(data.sort_values(["d_model", "model"])["model"]))
    figure = new_figure(WIDTH, 1.75 * len(PANELS) + 0.8)
    axes = figure.subplots(len(PANELS), len(models), sharey="row", sharex="col", squeeze=False)
    present = [m for m in METHODS if (data["method"] == m).any()]
    for i, (metric, (title, without)) in enumerate(PANELS.items()):
        for j, model in enumerate(models):
            ax = axes[i, j]
            rows = data[data["model"] == model]
            for k, method in enumerate(present):
                if method in without:
                    continue
                _, colour, marker, line = METHODS[method]
                part = rows[rows["method"] == method].sort_values("layer")
                layer = part["layer"].to_numpy(float)
                x = layer + 0.02 * (k - len(present) / 2) * max(1.0, np.ptp(layer) / 4)
                top = 4 if k < 4 else 3
                ax.plot(
                    x, part[metric], color=colour, marker=marker, linestyle=line, markersize=3.2, zorder=top
                )
                error_bars(ax, x, part[metric], part[f"{metric}_low"], part[f"{metric}_high"], colour)
            if metric == "accuracy_one_vs_rest":
                ax.set_ylim(top=1.005)
            else:
                share_axis(ax, "y")
            ax.grid(axis="y", color="#e6e6e6", linewidth=0.5)
            ax.set_axisbelow(True)
            if i == 0:
                ax.set_title(f"{model}\nwidth {rows['d_model'].iloc[0]}", fontsize=7.5)
            if j == 0:
                ax.set_ylabel(title)
            if i == len(PANELS) - 1:
                ax.set_xlabel("layer (residual stream after it)")
                layers = sorted(rows["layer"].unique())
                ax.set_xticks(layers if len(layers) < 9 else layers[::4])
    panel_letters(axes.flat)
    _legend(figure, present)
    return save(figure, data, out)


@styled
def plot_sizes(scores: pd.DataFrame, representative: dict[str, list[int]], out: Path) -> list[Path]:
    """Figure 10: accuracy at representative layers of each model (left), and its mean over them by width (right).

    Args:
        scores: results/ravel/scores.csv; prompts in seen templates are shown.
        representative: model -> layers (Table 2).
        out: path without suffix.
    """
    shown = ["default", "paper", "exact", "sae_ravel", "probe"]
    data = scores[(scores["group"] == "seen") & scores["method"].isin(shown)]
    keep = [layer in representative[model] for layer, model in zip(data["layer"], data["model"], strict=True)]
    data = data[keep].sort_values(["d_model", "layer"])
    data = as_written(data.assign(rank=data.groupby(["model", "method"]).cumcount()))
    models = list(dict.fromkeys(data["model"]))
    figure = new_figure(WIDTH, 2.9)
    left, right = figure.subplots(1, 2)
    width = max(len(layers) for layers in representative.values()) + 1
    for method in shown:
        _, colour, marker, line = METHODS[method]
        for j, model in enumerate(models):
            part = data[(data["model"] == model) & (data["method"] == method)]
            x = j * width + part["rank"].to_numpy(float)
            left.plot(x, part["accuracy"], color=colour, marker=marker, linestyle=line, markersize=3.4)
            error_bars(left, x, part["accuracy"], part["accuracy_low"], part["accuracy_high"], colour)
        mean = data[data["method"] == method].groupby("d_model")["accuracy"].mean()
        right.plot(mean.index, mean, color=colour, marker=marker, linestyle=line, markersize=4)
    ticks, labels = [], []
    for j, model in enumerate(models):
        for rank, layer in enumerate(representative[model]):
            ticks.append(j * width + rank)
            labels.append(f"L{layer}")
        left.text(
            j * width + (len(representative[model]) - 1) / 2,
            0.02,
            model,
            ha="center",
            va="bottom",
            fontsize=6,
        )
    left.set_xticks(ticks, labels, fontsize=6)
    left.set_xlabel("representative layer")
    left.set_ylabel("accuracy")
    right.set_xscale("log")
    widths = sorted(data["d_model"].unique())
    right.set_xticks(widths, [str(w) for w in widths])
    right.minorticks_off()
    right.set_xlabel("width of the residual stream")
    right.set_ylabel("mean accuracy over these layers")
    for ax in (left, right):
        share_axis(ax, "y")
        ax.grid(axis="y", color="#e6e6e6", linewidth=0.5)
        ax.set_axisbelow(True)
    panel_letters([left, right])
    _legend(figure, shown)
    return save(figure, data, out)


@styled
def plot_confusion(matrices: pd.DataFrame, names: list[str], out: Path) -> list[Path]:
    """Confusion matrices by attribute: a row the attribute of the target, a column what it is called.

    Args:
        matrices: columns panel, truth, called ("null" for none), share.
        names: attributes, in order.
        out: path without suffix.
    """
    data = as_written(matrices)
    panels = list(dict.fromkeys(data["panel"]))
    columns = 2
    figure = new_figure(WIDTH, 3.1 * -(-len(panels) // columns) + 0.6)
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False, sharex=True, sharey=True)
    image = None
    short = [name.replace(":", ": ") for name in names]
    for ax, panel in zip(axes.flat, panels, strict=False):
        part = data[data["panel"] == panel].pivot(index="truth", columns="called", values="share")
        image = ax.imshow(
            part.reindex(index=names, columns=[*names, "null"]).to_numpy(float), vmin=0, vmax=1, cmap="Blues"
        )
        ax.set_title(panel)
        ax.set_xticks(range(len(names) + 1), [*short, "null"], rotation=90, fontsize=5.5)
        ax.set_yticks(range(len(names)), short, fontsize=5.5)
        for spine in ax.spines.values():
            spine.set_visible(True)
    for ax in axes[-1]:
        ax.set_xlabel("called")
    for ax in axes[:, 0]:
        ax.set_ylabel("attribute of the target")
    for ax in list(axes.flat)[len(panels) :]:
        ax.set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.5, label="share of calls")
    return save(figure, data, out)


def write_table2(rows: pd.DataFrame, out: Path) -> list[Path]:
    """Table 2: representative layers and width of each model, as CSV and Markdown."""
    return _write(rows, out, "Representative layers and width of the residual stream (the paper's Table 2).")


def write_samples(rows: pd.DataFrame, out: Path, about: str) -> list[Path]:
    """Drawn prompts of targets, right ones and failures, as CSV and Markdown."""
    return _write(rows, out, about)


def _write(rows: pd.DataFrame, out: Path, about: str) -> list[Path]:
    csv, md = (out.parent / (out.name + suffix) for suffix in (".csv", ".md"))
    write_table(rows, csv)

    def cell(value: object) -> str:
        return f"{value:.3f}" if isinstance(value, float) else markdown(str(value))

    lines = [about, "", "| " + " | ".join(rows.columns) + " |", "|" + " --- |" * len(rows.columns)]
    lines += ["| " + " | ".join(cell(v) for v in row) + " |" for row in rows.itertuples(index=False)]
    with atomic_path(md) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [csv, md]


def _legend(figure: object, methods: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=c, marker=m, linestyle=line, markersize=4, label=name)
        for name, c, m, line in (METHODS[method] for method in methods)
    ]
    columns = -(-len(handles) // 2) if len(handles) > 5 else len(handles)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)  # type: ignore[attr-defined]
