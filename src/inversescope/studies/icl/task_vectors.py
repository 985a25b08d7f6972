"""Figures 7 and 11: FCR of task and query by layer, patching by layer with its controls, and the bands that follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.config.methods import PLAIN
from inversescope.context import Context
from inversescope.figures.panels import error_bars, panel_letters, share_axis
from inversescope.figures.registry import Drawing, figure
from inversescope.figures.save import as_written
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
    new_figure,
)
from inversescope.studies.icl.shown import (
    FEATURES,
    QUERY_BAND,
    TASK_BAND,
    IclStudy,
    layer_bands,
    patching_bands,
    rates_by_layer,
)

#: Style of a line: colour, marker, line, label.
Style = tuple[str, str, Any, str]
FEATURE_COLOUR = {"task": BLUE, "query": ORANGE}
PART_STYLE: dict[str, Style] = {
    "source_language": (SKY, "", (0, (1, 1)), "source language"),
    "target_language": (SKY, "", (0, (4, 1.5)), "target language"),
    "concept": (ORANGE, "", (0, (4, 1.5)), "query's concept"),
    "kind": (GREY, "", (0, (4, 1.5)), "table of words"),
}
#: Patching outcomes in the paper's colours: target's answer under the source's task, source's own output.
OUTCOME_STYLE = {"task": (GREEN, "target's answer"), "source": (RED, "source's output")}
BAND_COLOUR = {TASK_BAND: GREEN, QUERY_BAND: RED}
#: Controls, by kind of patching.
CONTROL_STYLE: dict[str, Style] = {
    "residual": (GREEN, "o", "-", "l to l, as in the paper"),
    "masked": (BLUE, "s", "--", "l to l, query hidden"),
    "forwarded": (GREY, "x", ":", "best layer to l"),
    "returned": (SKY, "^", "-", "l to best layer"),
    "returned_masked": (PINK, "D", "--", "l to best, query hidden"),
}
#: What is taken out of the residual stream after block l before it is written at the best layer, always with that layer's mean.
MASKING_STYLE: dict[str, Style] = {
    "recentred": (SKY, "^", "-", "nothing"),
    "query_removed": (GREEN, "o", "-", "query's part"),
    "other_removed": (GREY, "x", ":", "another query's part"),
    "task_removed": (PINK, "D", "--", "query's and task's parts"),
    "vector_only": (BLUE, "s", "--", "all but the task vector"),
}
VARIANT_MARKER = {"default": "o", "paper": "s"}
ROW = ("patching", "patching: controls", "masked or not")


#: Panels of a line of the figure by task.
_ACROSS = 3


@figure("tasks_patched", "plot_icl", title="Patching by layer, task by task")
def tasks_patched(study: IclStudy) -> Drawing:
    """Figure 7's patching, a panel a task: the target's answer and the source's output by layer, in the studied model."""
    by_task = as_written(study.patched(study.context.model_name, "patching_by_task"))
    names = list(dict.fromkeys(by_task["asked"]))
    lines = -(-len(names) // _ACROSS)
    drawn = new_figure(WIDTH, 0.6 + 1.45 * lines)
    axes = drawn.subplots(lines, _ACROSS, sharex=True, sharey=True, squeeze=False).ravel()
    for ax, name in zip(axes, names, strict=False):
        own = by_task[by_task["asked"] == name]
        for outcome, (colour, label) in OUTCOME_STYLE.items():
            rows = own[own["outcome"] == outcome]
            _points(ax, rows[rows["kind"] == "residual"], colour, "o", label, "-")
        shown = own.set_index(["kind", "outcome"])["rate"]
        style: dict[str, Any] = {"linewidth": 0.7, "linestyle": "--", "zorder": 1}
        ax.axhline(shown["few_shot", "source"], color=BLACK, label="right answers with shots", **style)
        _level(ax, float(shown["none", "task"]), GREEN, "target's answer, without patching")
        ax.set_title(name)
        _layer_axis(ax, own.loc[own["layer"] >= 0, "layer"])
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    for ax in axes[-_ACROSS:]:
        ax.set_xlabel("layer l")
    for ax in axes[::_ACROSS]:
        ax.set_ylabel("rate")
    panel_letters(axes[: len(names)])
    drawn.legend(handles=_keys(axes[: len(names)]), loc="outside lower center", ncols=4)
    return drawn, by_task


@figure("task_vectors", "plot_icl", title="Figures 7 and 11: task and query by layer, and patching")
def task_vectors(study: IclStudy) -> Drawing:
    """Figure 7 (Figure 11 for Llama), of the studied model and its plain control.

    First row: FCR of task and query at the attention outputs, exact and generated, a panel a generator at its bandwidth. Then a
    row a model: patching of the residual stream; the same with the query hidden, or between layers; and whether the task is masked
    by the query or overwritten.
    """
    told = [(model, *one) for model, context in study.models.items() for one in _told_by(study, context)]
    drawn = new_figure(WIDTH, 2.9 + 1.7 * len(study.models))
    grid = drawn.add_gridspec(1 + len(study.models), 3 * len(told))
    top: list[Axes] = []
    parts = []
    for i, (model, name, rates) in enumerate(told):
        ax = drawn.add_subplot(grid[0, 3 * i : 3 * i + 3])
        bands = layer_bands(rates[rates["estimator"] == "exact"])
        _fcr(ax, rates)
        _bands(ax, bands)
        ax.set_title(name)
        top.append(ax)
        panel = name.replace("\n", ": ")
        parts += [
            rates.assign(panel=panel, target=model),
            bands.assign(panel=f"{panel}: bands", target=model),
        ]
    top[0].set_ylabel("FCR")
    below = []
    for i, (model, context) in enumerate(study.models.items()):
        patching, masking = (as_written(study.patched(model, name)) for name in ("patching", "masking"))
        bands = patching_bands(patching)
        width = len(told)
        line = [drawn.add_subplot(grid[1 + i, k * width : (k + 1) * width]) for k in range(3)]
        _patching(line[0], patching)
        _bands(line[0], bands)
        _controls(line[1], patching, CONTROL_STYLE, "none", "without patching")
        _controls(line[2], masking, MASKING_STYLE, "query_removed", "query's part, first layer")
        line[0].set_ylabel(f"{_title(context).replace(' (', chr(10) + '(')}\nrate")
        below.append(line)
        shown = {"patching": patching, "masking": masking, "bands from patching": bands}
        parts += [part.assign(panel=panel, target=model) for panel, part in shown.items()]
    for ax, name in zip(below[0], ROW, strict=True):
        ax.set_title(name)
    panel_letters([*top, *(ax for line in below for ax in line)])
    handles = _keys(top)
    drawn.legend(handles=handles, loc="outside upper center", ncols=-(-len(handles) // 3))
    # Below the axis's numbers and label, whatever the height of a panel.
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 4}
    for column in zip(*below, strict=True):
        title = "l to best layer, taken out:" if column[0] is below[0][2] else None
        column[-1].legend(handles=_keys(column), title=title, **place)
    for ax in (*top, *below[-1]):
        ax.set_xlabel("layer l")
    return drawn, pd.concat(parts, ignore_index=True)


def _told_by(study: IclStudy, context: Context) -> list[tuple[str, pd.DataFrame]]:
    """Panels of FCR of one model: a title, and exact rates with those of one generator beside them, at its bandwidth."""
    rates = as_written(study.layers[context.model_name])
    exact = rates[rates["estimator"] == "exact"]
    ours = [name for name in ("default", "paper") if name in set(rates["variant"])]
    if not ours:
        return [(f"{context.model_name}\nexact at {study.config.kernel.headline.label}", exact)]
    known = study.fcr[(study.fcr["estimator"] == "exact") & study.fcr["feature"].isin(exact["feature"])]
    known = as_written(known.rename(columns={"fcr": "rate"}))
    panels = []
    for name in ours:
        at = known[known["bandwidth"] == study.bandwidth_of(name)].drop_duplicates(["site", "feature"])
        drawn = rates[(rates["variant"] == name) & (rates["estimator"] == "generated")]
        drawn = drawn[drawn["decoding"] == PLAIN]
        title = f"{context.model_name}\nexact and {name} at {study.config.headline_of(name).label}"
        panels.append((title, pd.concat([at.reindex(columns=exact.columns), drawn])))
    return panels


@figure("tasks_labelled", "plot_labels", title="Figures 7 and 11 with the task by a chat model's labels")
def tasks_labelled(study: IclStudy) -> Drawing:
    """Figure 7 as the paper defines it (D.3.3): left, FCR of the task by a chat model's labels, and of the query; right, patching.

    Filled: of all draws, "mix" and "null" among their labels; hollow: of accepted draws. Grey: share of all draws called "mix".
    """
    context = study.context
    rates = as_written(rates_by_layer(context))
    patching = as_written(study.patched(context.model_name, "patching"))
    labelled = as_written(study.table("labelled.csv", "rate_labels"))
    drawn = new_figure(WIDTH, 3.3)
    left, right = drawn.subplots(1, 2, sharey=True)
    exact = rates[rates["estimator"] == "exact"]
    query = rates[(rates["estimator"] == "generated") & (rates["decoding"] == PLAIN)]
    query = query[query["feature"] == "query"]
    for feature in FEATURES:
        own, colour = exact[exact["feature"] == feature], FEATURE_COLOUR[feature]
        _exact(left, own, colour, feature)
        _level(left, float(own["chance"].iloc[0]), colour, f"{feature}, chance")
    by_model = labelled[labelled["labels"] == "llm"]
    for variant, marker in VARIANT_MARKER.items():
        _points(left, query[query["variant"] == variant], ORANGE, marker, f"query, {variant}")
        for draws, face in (("all", BLUE), ("accepted", "none")):
            rows = by_model[(by_model["variant"] == variant) & (by_model["draws"] == draws)]
            rows = rows.sort_values("layer")
            _points(left, rows, BLUE, marker, f"task, {variant}, {draws} draws", markerfacecolor=face)
            if draws == "all":
                mix: dict[str, Any] = {"marker": marker, "markersize": 2, "linewidth": 0.7}
                left.plot(rows["layer"], rows["mix"], color=GREY, label=f"called mix, {variant}", **mix)
    _layer_axis(left, exact["layer"])
    bands = patching_bands(patching)
    _patching(right, patching)
    _bands(right, bands)
    left.set_ylabel(f"{context.model_name}\nrate")
    for ax, name in ((left, "FCR by layer, task by a chat model"), (right, "patching")):
        ax.set_title(name)
        ax.set_xlabel("layer l")
        share_axis(ax)
    panel_letters([left, right])
    drawn.legend(handles=_keys([left, right]), loc="outside lower center", ncols=4)
    shown = {"fcr": pd.concat([exact, query]), "labelled": labelled, "patching": patching}
    parts = [part.assign(panel=panel) for panel, part in shown.items()]
    parts.append(bands.assign(panel="bands from patching"))
    return drawn, pd.concat(parts, ignore_index=True)


def _title(context: Context) -> str:
    """A model, and how it was trained, where it was trained here."""
    model = context.config.models[context.model_name]
    if model.source != "trained":
        return context.model_name
    delay = model.training.delay_layers
    return f"{context.model_name} ({f'query delayed, blocks < {delay}' if delay else 'no delay'})"


def _bands(ax: Axes, bands: pd.DataFrame) -> None:
    """Bands as a strip above a panel."""
    for layer, band in zip(bands["layer"], bands["band"], strict=True):
        if band:
            where: dict[str, Any] = {"ymin": 1.01, "ymax": 1.05, "clip_on": False, "linewidth": 0}
            ax.axvspan(layer - 0.5, layer + 0.5, color=BAND_COLOUR[band], alpha=0.5, label=band, **where)
    _layer_axis(ax, bands["layer"])


def _layer_axis(ax: Axes, layers: pd.Series) -> None:
    every = sorted(set(layers.astype(int)))
    ax.set_xticks(every[:: max(1, round(len(every) / 9))])
    ax.set_xlim(every[0] - 0.5, every[-1] + 0.5)
    share_axis(ax)


def _keys(axes: Iterable[Axes]) -> list[Any]:
    """Entries of a legend: what is drawn in some panels, each label once."""
    drawn = [pair for ax in axes for pair in zip(*ax.get_legend_handles_labels(), strict=True)]
    return list({label: handle for handle, label in drawn}.values())


def _exact(ax: Axes, rows: pd.DataFrame, colour: str, name: str) -> None:
    """Exact rates by layer as bars, in their intervals."""
    ax.hlines(rows["rate"], rows["layer"] - 0.4, rows["layer"] + 0.4, color=colour, label=f"{name}, exact")
    height = rows["ci_high"] - rows["ci_low"]
    ax.bar(rows["layer"], height, 0.8, rows["ci_low"], color=colour, alpha=0.2, linewidth=0)


def _points(
    ax: Axes, rows: pd.DataFrame, colour: str, marker: str, label: str, line: Any = "", **style: Any
) -> None:
    """Rates by layer with their intervals."""
    rows = rows.sort_values("layer")
    style = {"markersize": 3, "zorder": 3} | style
    ax.plot(rows["layer"], rows["rate"], color=colour, marker=marker, linestyle=line, label=label, **style)
    error_bars(ax, rows["layer"], rows["rate"], rows["ci_low"], rows["ci_high"], colour)


def _moved(ax: Axes, rows: pd.DataFrame, level: float, *style: Any, **more: Any) -> None:
    """Rates from the first to the last layer whose interval leaves out a level, and one beside each; nothing if there is none."""
    rows = rows.sort_values("layer")
    moved = np.flatnonzero((rows["ci_low"] > level) | (rows["ci_high"] < level))
    if len(moved):
        _points(ax, rows.iloc[max(0, moved[0] - 1) : moved[-1] + 2], *style, **more)


def _level(ax: Axes, rate: float, colour: str, label: str) -> None:
    """Chance, or the rate without patching."""
    ax.axhline(rate, color=colour, linewidth=0.7, linestyle=":", zorder=1, label=label)


def _fcr(ax: Axes, rates: pd.DataFrame) -> None:
    exact, generated = (rates[rates["estimator"] == name] for name in ("exact", "generated"))
    for feature in FEATURES:
        colour, known = FEATURE_COLOUR[feature], exact[exact["feature"] == feature]
        _exact(ax, known, colour, feature)
        own = generated[generated["feature"] == feature]
        if len(own):
            _points(ax, own, colour, "o", f"{feature}, generated", markeredgecolor=BLACK, markeredgewidth=0.4)
        _level(ax, float(known["chance"].iloc[0]), colour, f"{feature}, chance")
    for feature, (colour, _, line, label) in PART_STYLE.items():
        part = exact[exact["feature"] == feature]
        if len(part):
            ends = part["layer"] - 0.4, part["layer"] + 0.4
            ax.hlines(part["rate"], *ends, color=colour, linestyle=line, linewidth=0.9, label=label)


def _patching(ax: Axes, patching: pd.DataFrame) -> None:
    for outcome, (colour, name) in OUTCOME_STYLE.items():
        own = patching[patching["outcome"] == outcome]
        idle = float(own.loc[own["kind"] == "none", "rate"].iloc[0])
        _moved(ax, own[own["kind"] == "residual"], idle, colour, "o", name, "-")
        attention = own[own["kind"] == "attention"]
        _moved(ax, attention, idle, colour, "s", f"{name}, by attention", ":", markerfacecolor="none")
        _level(ax, idle, colour, f"{name}, without patching")


def _controls(ax: Axes, rows: pd.DataFrame, styles: dict[str, Style], beside: str, words: str) -> None:
    """Rates of the target's answer by kind of patching, where they leave the level that a kind has at its first layer."""
    own = rows[rows["outcome"] == "task"].sort_values("layer")
    level = float(own.loc[own["kind"] == beside, "rate"].iloc[0])
    for kind, (colour, marker, line, label) in styles.items():
        _moved(ax, own[own["kind"] == kind], level, colour, marker, label, line)
    _level(ax, level, BLACK, words)
    _layer_axis(ax, own.loc[own["layer"] >= 0, "layer"])
