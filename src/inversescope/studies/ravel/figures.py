"""Figures and tables of RAVEL: accuracy by layer (Figure 6), by size (Figure 10), Table 2, confusion, samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from inversescope.config.methods import PLAIN
from inversescope.context import need
from inversescope.figures.panels import error_bars, key, light_grid, panel_letters, share_axis
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written, markdown_table
from inversescope.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, RED, SKY, WIDTH, new_figure
from inversescope.figures.tables import VARIANTS
from inversescope.store import read_table
from inversescope.studies.ravel.scores import confusion as confusion_matrix
from inversescope.studies.ravel.shown import RavelStudy

#: Method -> name, colour, marker, line; in the order of legends. The first four are drawn on top.
METHODS: dict[str, tuple[str, str, str, Any]] = {
    "default": ("InverseScope, default", BLUE, "o", "-"),
    "paper": ("InverseScope, paper", RED, "o", "-"),
    "default_mixed": ("default, cache mixing", BLUE, "D", ":"),
    "exact": ("exact posterior", BLACK, "_", "--"),
    "sae_ravel": ("SAE (RAVEL)", ORANGE, "s", "-"),
    "sae_ravel_published": ("SAE (RAVEL), published sparsity", ORANGE, "D", "--"),
    "sae_general": ("SAE (General)", PINK, "s", "-"),
    "probe": ("linear probe", GREEN, "^", "-"),
    "nearest": ("nearest neighbour", SKY, "v", "-"),
    "nearest_other": ("nearest neighbour in another template", SKY, "v", ":"),
    "exact_raw": ("exact posterior, raw", BLACK, "o", "-"),
    "exact_centred": ("exact posterior, centred", ORANGE, "o", "-"),
    "prior": ("prior, no activation", GREY, "x", ":"),
    "always_no": ("always no", GREY, "", (0, (1, 1))),
}
#: Methods that the figure about wordings is about: how near prompts are in the same words and in others.
WORDED = ("exact_raw", "exact_centred", "nearest", "nearest_other", "prior")
#: Those of Figure 6, and what is drawn of each metric.
READERS = tuple(m for m in METHODS if m not in ("exact_raw", "exact_centred", "nearest_other"))
METRICS = {
    "accuracy": ("accuracy", READERS[:-1]),
    "macro_f1": ("macro-F1", READERS[:-1]),
    "accuracy_one_vs_rest": ("accuracy of single\ndecisions", READERS),
}
#: Methods of Figure 10.
BY_SIZE = ["default", "paper", "exact", "sae_ravel", "probe"]
#: Samples a variant and kind: the first ones, so that nobody picks.
SHOWN = 4


@figure("fig6", "plot_ravel", title="Figure 6: attributes read by layer, all methods")
def fig6(study: RavelStudy) -> Drawing:
    """Scores by layer of prompts in templates of the prior."""
    return _by_layer(study, [Panel("seen", metric, *about) for metric, about in METRICS.items()])


@figure("fig6_new", "plot_ravel", title="Figure 6 for templates outside of the prior")
def fig6_new(study: RavelStudy) -> Drawing:
    """Scores by layer of prompts in templates that the prior does not have."""
    return _by_layer(study, [Panel("new", metric, *about) for metric, about in METRICS.items()])


@figure("wordings", "plot_ravel", title="Attribute or wording? Raw and centred distance")
def wordings(study: RavelStudy) -> Drawing:
    """Accuracy by layer of the exact posterior at its best bandwidth, and of nearest neighbours in the same words and in others."""
    titles = {"seen": "accuracy, templates\nof the prior", "new": "accuracy, other\ntemplates"}
    return _by_layer(study, [Panel(group, "accuracy", title, WORDED) for group, title in titles.items()])


class Panel(NamedTuple):
    """A row of a figure by layer: which targets, which score, what it is called, and the methods."""

    group: str
    metric: str
    title: str
    methods: tuple[str, ...]


def _by_layer(study: RavelStudy, panels: list[Panel]) -> Drawing:
    """Scores by layer (of the residual stream after it), a column a target, the widest first, with intervals."""
    scores = study.gathered("scores")
    told = {method for panel in panels for method in panel.methods}
    groups = [panel.group for panel in panels]
    data = as_written(scores[scores["group"].isin(groups) & scores["method"].isin(told)])
    models = list(dict.fromkeys(data.sort_values("d_model", ascending=False, kind="stable")["model"]))
    drawn = new_figure(WIDTH, 1.75 * len(panels) + 0.8)
    axes = drawn.subplots(len(panels), len(models), sharey="row", sharex="col", squeeze=False)
    present = [m for m in METHODS if (data["method"] == m).any()]
    for i, (group, metric, title, methods) in enumerate(panels):
        for j, model in enumerate(models):
            ax, rows = axes[i, j], data[(data["model"] == model) & (data["group"] == group)]
            for k, method in enumerate(present):
                if method not in methods:
                    continue
                _, colour, marker, line = METHODS[method]
                part = rows[rows["method"] == method].sort_values("layer")
                layer, y = part["layer"].to_numpy(float), part[metric]
                x = layer + 0.02 * (k - len(present) / 2) * max(1.0, np.ptp(layer) / 4)
                style = {"linestyle": line, "markersize": 3.2, "zorder": 4 if k < 4 else 3}
                ax.plot(x, y, color=colour, marker=marker, **style)
                error_bars(ax, x, y, part[f"{metric}_low"], part[f"{metric}_high"], colour)
            if metric == "accuracy_one_vs_rest":
                ax.set_ylim(top=1.005)
            else:
                share_axis(ax, "y")
            light_grid(ax)
            ax.set_axisbelow(True)
            if i == 0:
                ax.set_title(f"{model}\nwidth {rows['d_model'].iloc[0]}", fontsize=7.5)
            if j == 0:
                ax.set_ylabel(title)
            if i == len(panels) - 1:
                ax.set_xlabel("layer")
                layers = sorted(rows["layer"].unique())
                ax.set_xticks(layers if len(layers) < 9 else layers[::4])
    panel_letters(axes.flat)
    _legend(drawn, present)
    return drawn, data


def _legend(drawn: Figure, methods: list[str]) -> None:
    handles = [key(*METHODS[method], markersize=4) for method in methods]
    wide = sum(len(METHODS[method][0]) for method in methods) > 90
    columns = -(-len(handles) // 2) if wide else len(handles)
    drawn.legend(handles=handles, loc="outside lower center", ncols=columns)


@figure("fig10", "plot_ravel", title="Figure 10: attributes read by size of the target")
def fig10(study: RavelStudy) -> Drawing:
    """Accuracy at representative layers, a panel a model, and its mean over them by width (right).

    A line joins models that are read at the same bandwidth: others differ in more than their width.
    """
    scores, representative = study.gathered("scores"), study.representative
    data = scores[(scores["group"] == "seen") & scores["method"].isin(BY_SIZE)]
    keep = [layer in representative[model] for layer, model in zip(data["layer"], data["model"], strict=True)]
    data = as_written(data[keep].sort_values(["d_model", "layer"]))
    models, sizes = (list(dict.fromkeys(data[name])) for name in ("model", "d_model"))
    drawn = new_figure(WIDTH, 2.9)
    widths = [len(representative[model]) for model in models]
    *panels, right = axes = drawn.subplots(1, len(models) + 1, sharey=True, width_ratios=[*widths, 4])
    for method in BY_SIZE:
        _, colour, marker, line = METHODS[method]
        own = data[data["method"] == method]
        style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 3.4}
        for ax, model in zip(panels, models, strict=True):
            part = own[own["model"] == model]
            x, y = part["layer"], part["accuracy"]
            ax.plot(x, y, **style)
            error_bars(ax, x, y, part["accuracy_low"], part["accuracy_high"], colour)
            ax.set_title("\n".join(model.rsplit("-", 1)), fontsize=6.5)
            ax.set_xticks(representative[model])
            ax.margins(x=0.12)
        for alike in study.alike:
            mean = own[own["model"].isin(alike)].groupby("d_model")["accuracy"].mean()
            right.plot([sizes.index(size) for size in mean.index], mean, **style)
    panels[len(panels) // 2].set_xlabel("representative layer")
    panels[0].set_ylabel("accuracy")
    right.set_xticks(range(len(sizes)), sizes)
    right.set_title("mean of\nthese layers", fontsize=6.5)
    right.set_xlabel("width")
    for ax in axes:
        share_axis(ax, "y")
        light_grid(ax)
        ax.set_axisbelow(True)
    panel_letters(axes)
    _legend(drawn, BY_SIZE)
    return drawn, data


@figure("confusion", "plot_ravel", title="Confusion of attributes")
def confusion(study: RavelStudy) -> Drawing:
    """Confusion by attribute of the widest target: a row the attribute of the target, a column what it is called."""
    names = study.widest.context.task.feature_values["attribute"]
    data = as_written(_confusions(study, names))
    panels = list(dict.fromkeys(data["panel"]))
    rows = -(-len(panels) // 2)
    drawn = new_figure(WIDTH, 3.1 * rows + 0.6)
    axes = drawn.subplots(rows, 2, squeeze=False, sharex=True, sharey=True)
    short = [name.replace(":", ": ") for name in names]
    for ax, panel in zip(axes.flat, panels, strict=False):
        part = data[data["panel"] == panel].pivot(index="truth", columns="called", values="share")
        part = part.reindex(index=names, columns=[*names, "null"])
        image = ax.imshow(part.to_numpy(float), vmin=0, vmax=1, cmap="Blues")
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
    drawn.colorbar(image, ax=axes, shrink=0.5, label="share of calls")
    return drawn, data


def _confusions(study: RavelStudy, names: list[str]) -> pd.DataFrame:
    """Confusion of `default` and of the exact posterior at the shown layers, prompts in seen templates.

    Returns:
        panel, truth, called ("null" for none), share.
    """
    parts = []
    for layer in study.shown_layers:
        path = study.widest.context.results / "attributes" / f"{study.shown_site(layer)}.parquet"
        decisions = read_table(need(path, "classify_attributes"))
        for method in ("default", "exact"):
            of = decisions[(decisions["method"] == method) & (decisions["group"] == "seen")]
            matrix = pd.DataFrame(confusion_matrix(of, len(names)), names, [*names, "null"])
            long = (
                matrix.rename_axis("truth").reset_index().melt("truth", var_name="called", value_name="share")
            )
            order = {"truth": pd.Categorical(long["truth"], names)}
            long = long.assign(**order).sort_values("truth", kind="stable").astype({"truth": str})
            parts.append(long.assign(panel=f"{method}, layer {layer}"))
    return pd.concat(parts, ignore_index=True)[["panel", "truth", "called", "share"]]


@table("table2", "plot_ravel", title="Table 2: representative layers")
def table2(study: RavelStudy) -> Page:
    """Representative layers and width of each model."""
    targets = study.gathered("targets")
    layers = [", ".join(map(str, study.representative[model])) for model in targets["model"]]
    frame = targets[["model"]].assign(layers=layers, of=targets["n_layers"], width=targets["d_model"])
    about = "Representative layers and width of the residual stream (the paper's Table 2)."
    return frame, f"{about}\n\n{markdown_table(frame)}"


@table("samples", "plot_ravel", title="Samples and failures of RAVEL")
def samples(study: RavelStudy) -> Page:
    """The first drawn prompts of each kind, at the shown layers of the widest target, a variant."""
    own, task = study.widest, study.widest.context.task
    prompts = own.context.prompts("test")
    parts = []
    for layer in study.shown_layers:
        for variant in VARIANTS:
            drawn = own.samples(variant, study.shown_site(layer), PLAIN)
            drawn = drawn.drop_duplicates(["target_id", "text"])
            truth = prompts["feature_attribute"].astype(str).to_numpy()[drawn["target_id"]]
            same = drawn["feature_attribute"].to_numpy() == truth
            matched = task.features_of_texts(drawn["text"].tolist())["attribute"] >= 0
            accepted = drawn["accepted"].to_numpy(bool)
            kinds = {
                "right": accepted & same,
                "another attribute": accepted & ~same,
                "refused": ~accepted & matched,
                "null": ~matched,
            }
            for kind, mask in kinds.items():
                few = drawn[mask].drop_duplicates("target_id").head(SHOWN)
                parts.append(few.assign(layer=layer, variant=variant, kind=kind))
    frame = pd.concat(parts, ignore_index=True).rename(columns={"text": "drawn"})
    frame["target"] = prompts["text"].to_numpy()[frame["target_id"].astype(int)]
    frame = frame[["layer", "variant", "kind", "target", "drawn", "distance"]]
    about = (
        f"Prompts that InverseScope draws for targets of {own.context.model_name}, the first of each kind: right ones, "
        "accepted ones of another attribute, refused ones, and ones that match no template (null)."
    )
    return frame, f"{about}\n\n{markdown_table(frame, '.3f')}"
