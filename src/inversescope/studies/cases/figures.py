"""Figures of InversionView's case studies: what sites tell along the computation, and what they do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    VARIANT_COLOUR,
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

#: Figures and tables of `plot_causes`, `plot_answers` and `plot_cases`: name -> title.
CAUSE_FIGURES = {"causes": "FCR against causal effect of single sites"}
ANSWER_FIGURES = {"answers": "Which sites carry which token of the answer"}
ANSWER_TABLES = {"answers": "Effect and FCR of each token of the answer, by site"}
CASE_FIGURES = {
    "sites": "FCR, refusal and FCR error along the computation, by generator",
    "distances": "Three distances at equal shares of the prior",
    "completeness": "Generator probability against distance, and recall of the preimage",
}
CASE_TABLES = {
    "cases": "FCR of the headline features by site and generator",
    "sizes": "Completeness and size of the generators",
}
#: Rates of fewer target prompts with any accepted candidate are drawn hollow.
FEW_TARGETS = 10
_DISTANCE_STYLE = {
    "cosine": (BLUE, "o"),
    "normalised_euclidean": (ORANGE, "s"),
    "standardised": (GREEN, "^"),
}
_COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, GREY)


def _headline_rows(fcr: pd.DataFrame, epsilon: float, features: list[str]) -> pd.DataFrame:
    """Exact and generated rates at the headline bandwidth, the first decoding of each variant; `by` names whose they are."""
    rows = fcr[np.isclose(fcr["epsilon"], epsilon) & fcr["feature"].isin(features)]
    exact = rows[rows["estimator"] == "exact"].assign(by="exact")
    generated = rows[rows["estimator"] == "generated"]
    generated = generated.assign(by=generated["variant"])
    return pd.concat([exact, generated]).drop_duplicates(["site", "feature", "by"])


@styled
def plot_sites(
    fcr: pd.DataFrame, refusal: pd.DataFrame, order: list[str], features: list[str], epsilon: float, out: Path
) -> list[Path]:
    """FCR of the headline features at each site in order of computation, exact and by each generator; refusal and FCR error below.

    Args:
        fcr, refusal: tidy tables of one study.
        order: sites from left to right.
        features: a panel each.
        epsilon: headline bandwidth.
        out: path without suffix.
    """
    rates = as_written(_headline_rows(fcr, epsilon, features))
    refused = refusal[np.isclose(refusal["epsilon"], epsilon)].drop_duplicates(["site", "variant"])
    refused = as_written(refused)
    variants = [v for v in VARIANT_COLOUR if v in set(rates["by"]) and v != "exact"]
    figure = new_figure(WIDTH, 1.75 * (len(features) + 2) + 0.6)
    axes = figure.subplots(len(features) + 2, 1, sharex=True, squeeze=False)[:, 0]
    place = {site: x for x, site in enumerate(order)}
    shift = {name: 0.16 * (i - (len(variants) - 1) / 2) for i, name in enumerate(variants)}
    drawn = []
    for ax, feature in zip(axes, features, strict=False):
        part = rates[(rates["feature"] == feature) & rates["site"].isin(order)]
        for _, one in part[part["by"] == "exact"].iterrows():
            x = place[one["site"]]
            ax.fill_between(
                [x - 0.4, x + 0.4], one["ci_low"], one["ci_high"], color=BLACK, alpha=0.12, linewidth=0
            )
            ax.hlines(one["fcr"], x - 0.4, x + 0.4, color=BLACK, linewidth=1.4)
        for name in variants:
            own = part[part["by"] == name]
            x = own["site"].map(place) + shift[name]
            few = (own["n_targets"] < FEW_TARGETS).to_numpy()
            ax.plot(x, own["fcr"], "o", color=VARIANT_COLOUR[name], markerfacecolor="white")
            ax.plot(x[~few], own["fcr"][~few], "o", color=VARIANT_COLOUR[name], label=name)
            error_bars(ax, x, own["fcr"], own["ci_low"], own["ci_high"], VARIANT_COLOUR[name])
        ax.axhline(float(part["chance"].iloc[0]), color=GREY, linestyle=":", linewidth=0.9)
        share_axis(ax)
        ax.set_ylabel(f"{feature} FCR")
        drawn.append(part.assign(quantity="fcr", value=part["fcr"]))
    for ax, column, title in (
        (axes[-2], "refusal_rate", "refusal rate"),
        (axes[-1], "fcr_error", "|FCR error|"),
    ):
        for name in variants:
            own = refused[(refused["variant"] == name) & refused["site"].isin(order)]
            x = own["site"].map(place) + shift[name]
            told = rates[rates["by"] == name].groupby("site")["n_targets"].min()
            few = (own["site"].map(told).fillna(0) < FEW_TARGETS).to_numpy() & (column == "fcr_error")
            ax.plot(x[few], own[column][few], "o", color=VARIANT_COLOUR[name], markerfacecolor="white")
            ax.plot(x[~few], own[column][~few], "o", color=VARIANT_COLOUR[name])
            if column == "refusal_rate":
                error_bars(ax, x, own[column], own["ci_low"], own["ci_high"], VARIANT_COLOUR[name])
            rows = own.assign(by=name, quantity=column, value=own[column], feature="")
            if column != "refusal_rate":
                rows = rows.assign(ci_low=np.nan, ci_high=np.nan)  # the interval is that of the refusal
            drawn.append(rows)
        ax.set_ylabel(title)
        ax.set_ylim(bottom=0)
    share_axis(axes[-2])
    axes[-1].set_xticks(range(len(order)), order, rotation=30, ha="right")
    axes[-1].set_xlim(-0.6, len(order) - 0.4)
    handles, labels = axes[0].get_legend_handles_labels()
    handles += [axes[0].plot([], [], color=BLACK)[0], axes[0].plot([], [], color=GREY, linestyle=":")[0]]
    figure.legend(handles, [*labels, "exact, 95% interval", "chance"], loc="outside upper center", ncols=6)
    panel_letters(axes)
    columns = ["site", "feature", "by", "quantity", "value", "ci_low", "ci_high", "n_targets"]
    return save(figure, pd.concat(drawn, ignore_index=True)[columns], out)


@styled
def plot_effects(causes: pd.DataFrame, ranks: pd.DataFrame, out: Path) -> list[Path]:
    """FCR against effect over sites, for features that an answer tells of; and effects of all features by site.

    Args:
        causes, ranks: tables of `check_causes`.
        out: path without suffix.
    """
    data = as_written(causes)
    told = data[data["compared"] != "other"]
    names = list(dict.fromkeys(data["feature"]))
    colour = dict(zip(names, _COLOURS, strict=False))
    sites = list(dict.fromkeys(data["site"]))
    figure = new_figure(WIDTH, max(3.4, 0.15 * len(sites) + 1.2))
    left, right = figure.subplots(1, 2)
    for name, part in told.groupby("feature", sort=False):
        row = ranks[(ranks["feature"] == name) & (ranks["sites"] == "path")].iloc[0]
        label = f"{name}: ρ = {row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        on, off = part[part["path"]], part[~part["path"]]
        left.plot(on["fcr"], on["effect"], "o", color=colour[name], label=label)
        left.plot(off["fcr"], off["effect"], "o", markerfacecolor="white", color=colour[name])
        error_bars(left, part["fcr"], part["effect"], part["effect_low"], part["effect_high"], colour[name])
        error_bars(left, part["fcr"], part["effect"], part["fcr_low"], part["fcr_high"], colour[name], "x")
    left.axhline(0, color=GREY, linewidth=0.6)
    share_axis(left, "x")
    left.set_xlabel("exact FCR of the feature")
    left.set_ylabel("effect: change of the logit difference")
    for i, name in enumerate(names):
        part = data[data["feature"] == name]
        y = part["site"].map({site: k for k, site in enumerate(sites)}) + 0.7 * ((i + 0.5) / len(names) - 0.5)
        right.plot(part["effect"], y, "o", markersize=3, color=colour[name], label=name)
        error_bars(right, part["effect"], y, part["effect_low"], part["effect_high"], colour[name], "x")
    right.axvline(0, color=GREY, linewidth=0.6)
    right.set_yticks(range(len(sites)), sites, fontsize=6)
    right.set_ylim(len(sites) - 0.4, -0.6)
    right.set_xlabel("effect of the site alone (logits)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=6)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=6)
    panel_letters([left, right])
    return save(figure, data, out)


@styled
def plot_digits(answers: pd.DataFrame, ranks: pd.DataFrame, out: Path) -> list[Path]:
    """Share of the effect and FCR of each token of the answer, by site; and one against the other.

    Args:
        answers, ranks: tables of `trace_answers`.
        out: path without suffix.
    """
    data = as_written(answers[answers["feature"] == "answer"])
    sites = list(dict.fromkeys(data["site"]))
    digits = sorted(set(data["digit"]))
    names = [f"A{k}" for k in digits]
    figure = new_figure(WIDTH, max(2.8, 0.2 * len(sites) + 1.0))
    axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.5])
    for ax, column, title in (
        (axes[0], "share", "share of the effect"),
        (axes[1], "fcr", "exact FCR of the token"),
    ):
        table = data.pivot(index="site", columns="digit", values=column).reindex(index=sites, columns=digits)
        ax.imshow(table.to_numpy(float), vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for i, row in enumerate(table.to_numpy(float)):
            for j, value in enumerate(row):
                dark = value > 0.6
                text = f"{value:.2f}".replace("-0.00", "0.00")
                ax.text(j, i, text, ha="center", va="center", fontsize=6, color="white" if dark else BLACK)
        ax.set_xticks(range(len(names)), names)
        ax.set_yticks(range(len(sites)), sites if column == "share" else [], fontsize=6)
        ax.set_title(title)
        ax.set_xlabel("token of the answer")
    scatter = axes[2]
    for k, name, colour in zip(digits, names, _COLOURS, strict=False):
        part = data[data["digit"] == k]
        row = ranks[ranks["feature"] == name].iloc[0]
        label = f"{name}: ρ = {row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        scatter.plot(part["fcr"], part["share"], "o", color=colour, label=label)
        error_bars(scatter, part["fcr"], part["share"], part["share_low"], part["share_high"], colour)
        error_bars(scatter, part["fcr"], part["share"], part["fcr_low"], part["fcr_high"], colour, "x")
    scatter.axhline(0, color=GREY, linewidth=0.6)
    share_axis(scatter, "x")
    scatter.set_xlabel("exact FCR of the token")
    scatter.set_ylabel("share of the effect")
    figure.legend(*scatter.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6)
    panel_letters(axes)
    return save(figure, data, out)


def write_answers(answers: pd.DataFrame, out: Path) -> list[Path]:
    """Write share of the effect and FCR of each token of the answer by site, with intervals; CSV and Markdown."""
    data = as_written(answers[answers["feature"] == "answer"])
    parts = []
    for k, of_digit in data.groupby("digit"):
        both = [
            (
                f"{r.share:.2f} [{r.share_low:.2f}, {r.share_high:.2f}]",
                f"{r.fcr:.2f} [{r.fcr_low:.2f}, {r.fcr_high:.2f}]",
            )
            for r in of_digit.itertuples()
        ]
        columns = [f"A{k} effect", f"A{k} FCR"]
        parts.append(pd.DataFrame(both, columns=columns, index=pd.Index(of_digit["site"], name="site")))
    first = data.drop_duplicates("digit")
    about = "; ".join(
        f"A{r.digit}: {r.n_pairs} pairs, {r.total:.1f} logits, chance {r.chance:.2f}"
        for r in first.itertuples()
    )
    title = "Share of the effect of patching a site where a token of the answer is predicted, and exact FCR of that token there"
    return _write_table(pd.concat(parts, axis=1).reset_index(), f"{title} ({about}); 95% intervals.", out)


def _write_table(table: pd.DataFrame, title: str, out: Path) -> list[Path]:
    """A table as CSV and, below its title, as Markdown."""
    csv, markdown = out.parent / (out.name + ".csv"), out.parent / (out.name + ".md")
    write_table(table, csv)
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + " --- |" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row) + " |")
    with atomic_path(markdown) as part:
        part.write_text("\n".join([title, "", *lines, ""]))
    return [csv, markdown]


@styled
def plot_distances(
    table: pd.DataFrame, order: list[str], features: list[str], shown: list[str], out: Path
) -> list[Path]:
    """FCR under each distance, overlap of the balls, spread of their sizes, and refusal judged anew, at each site.

    Args:
        table: of `compare_distances`.
        order: sites from left to right.
        features: a panel each.
        shown: variants whose refusal has a panel.
        out: path without suffix.
    """
    data = as_written(table)
    order = [site for site in order if site in set(data["site"])]
    place = {site: x for x, site in enumerate(order)}
    refusals = [f"refusal_{name}" for name in shown]
    panels = [
        *((feature, "fcr") for feature in features),
        ("", "overlap"),
        ("", "spread"),
        *(("", name) for name in refusals),
    ]
    figure = new_figure(WIDTH, 1.35 * len(panels) + 0.7)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    names = {"overlap": "overlap with cosine", "spread": "SD of log10 share"}
    for ax, (feature, column) in zip(axes, panels, strict=True):
        for i, (name, (colour, marker)) in enumerate(_DISTANCE_STYLE.items()):
            part = data[(data["distance"] == name) & (data["feature"] == (feature or features[0]))]
            x = part["site"].map(place) + 0.16 * (i - 1)
            ax.plot(x, part[column], marker, color=colour, label=name.replace("_", " "))
            if column == "fcr":
                error_bars(ax, x, part["fcr"], part["ci_low"], part["ci_high"], colour)
                ax.plot(x + 0.07, part["fcr_matched"], marker, color=colour, markerfacecolor="white")
        if column == "fcr":
            ax.axhline(float(part["chance"].iloc[0]), color=GREY, linestyle=":", linewidth=0.9)
        if column != "spread":
            share_axis(ax)
        label = column.replace("refusal_", "refusal, ")
        ax.set_ylabel(f"{feature} FCR" if feature else names.get(column, label))
    axes[-1].set_xticks(range(len(order)), order, rotation=30, ha="right")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    panel_letters(axes)
    return save(figure, data, out)


@styled
def plot_completeness(points: pd.DataFrame, recall: pd.DataFrame, shown: list[str], out: Path) -> list[Path]:
    """Log probability of known prompts under each generator against their distance, and expected recall as draws grow.

    Args:
        points, recall: tables of `check_completeness`.
        shown: variants that have a panel; the recall of all is drawn.
        out: path without suffix.
    """
    points = points[points["variant"].isin(shown)]
    variants = list(dict.fromkeys(points["variant"]))
    figure = new_figure(WIDTH, 2.3 + 1.9 * ((len(variants) + 2) // 3))
    grid = figure.add_gridspec((len(variants) + 2) // 3 + 1, 3)
    drawn: list[pd.DataFrame] = []
    axes: list[Axes] = []
    for i, name in enumerate(variants):
        ax = figure.add_subplot(
            grid[i // 3, i % 3], sharex=axes[0] if axes else None, sharey=axes[0] if axes else None
        )
        axes.append(ax)
        part = as_written(points[points["variant"] == name])
        thinned = part.iloc[:: max(1, len(part) // 3000)]
        for inside, colour, label in (
            (False, GREY, "outside the ball"),
            (True, VARIANT_COLOUR.get(name, BLUE), "inside"),
        ):
            one = thinned[thinned["inside"] == inside]
            ax.plot(
                one["distance"],
                one["log_q"],
                ".",
                color=colour,
                markersize=1.5,
                alpha=0.4,
                label=label,
                rasterized=True,
            )
        ax.set_title(name)
        ax.set_xlabel("true distance")
        ax.set_ylabel("log q (nats)" if i % 3 == 0 else "")
        drawn.append(thinned.assign(panel="points"))
    low, high = np.quantile(points["log_q"], [0.005, 1.0])
    axes[0].set_ylim(low - 2, high + 2)
    ax = figure.add_subplot(grid[-1, :])
    axes.append(ax)
    means = recall.groupby(["variant", "draws"], sort=False)[["recall", "ideal"]].mean().reset_index()
    means = as_written(means)
    every = list(dict.fromkeys(means["variant"]))
    others = [name for name in every if name not in VARIANT_COLOUR]
    for name in every:
        part = means[means["variant"] == name]
        colour = VARIANT_COLOUR.get(name) or (SKY, PINK, ORANGE)[others.index(name) % 3]
        ax.plot(part["draws"], part["recall"], "o-", color=colour, label=name)
    part = means[means["variant"] == variants[0]]
    ax.plot(part["draws"], part["ideal"], "--", color=BLACK, label="draws from P(x; z)")
    ax.set_xscale("log")
    share_axis(ax)
    ax.set_xlabel("draws")
    ax.set_ylabel("expected recall of the preimage")
    ax.legend(loc="upper left", ncols=2)
    panel_letters(axes)
    drawn.append(means.assign(panel="recall"))
    return save(figure, pd.concat(drawn, ignore_index=True), out)


def write_sizes(sizes: pd.DataFrame, refusal: pd.DataFrame, epsilon: float, out: Path) -> list[Path]:
    """Write parameters, training, refusal, FCR error, entropy gap and completeness of each generator; CSV and Markdown."""
    rows = refusal[np.isclose(refusal["epsilon"], epsilon)].drop_duplicates(["site", "variant"])
    means = rows.groupby("variant")[["refusal_rate", "fcr_error", "entropy_gap"]].mean().reset_index()
    table = sizes.merge(means, on="variant", how="left").sort_values("n_parameters", kind="stable")
    columns = ["variant", "n_parameters", "train_seconds", "refusal_rate", "fcr_error", "entropy_gap"]
    table = as_written(table[[*columns, "recall_1000", "ideal_1000", "missed", "spearman", "n_prompts"]])
    title = f"Completeness and size of the generators at ε = {epsilon:g}, means over sites."
    return _write_table(table, title, out)


def write_cases(
    fcr: pd.DataFrame, order: list[str], features: list[str], epsilon: float, out: Path
) -> list[Path]:
    """Write the headline features' rates by site: exact, every generator, the cache, `combined`, and chance; CSV and Markdown."""
    rows = fcr[np.isclose(fcr["epsilon"], epsilon) & fcr["feature"].isin(features) & fcr["site"].isin(order)]
    wanted = rows["estimator"].isin(["exact", "cache", "generated", "combined", "shuffled", "prior"])
    rows = rows[wanted].copy()
    rows["who"] = np.where(
        rows["variant"] == "", rows["estimator"], rows["estimator"] + " " + rows["variant"]
    )
    rows = rows.drop_duplicates(["feature", "site", "who"])
    text = [
        f"{v:.3f} [{a:.3f}, {b:.3f}]"
        for v, a, b in zip(rows["fcr"], rows["ci_low"], rows["ci_high"], strict=True)
    ]
    table = rows.assign(text=text).pivot(index=["feature", "site"], columns="who", values="text")
    first = [name for name in ("exact", "cache") if name in table]
    table = table[[*first, *sorted(set(table.columns) - set(first))]]
    places = {(feature, site): (features.index(feature), order.index(site)) for feature, site in table.index}
    table = table.loc[sorted(table.index, key=places.__getitem__)]
    table.insert(
        0, "chance", [float(rows.loc[rows["feature"] == f, "chance"].iloc[0]) for f, _ in table.index]
    )
    flat = table.reset_index()
    csv, markdown = out.parent / (out.name + ".csv"), out.parent / (out.name + ".md")
    write_table(flat, csv)
    lines = ["| " + " | ".join(map(str, flat.columns)) + " |", "|" + " --- |" * len(flat.columns)]
    for row in flat.itertuples(index=False):
        cells = [
            f"{v:.3f}" if isinstance(v, float) else "" if v is None else str(v).replace("|", "\\|")
            for v in row
        ]
        lines.append("| " + " | ".join(cells) + " |")
    with atomic_path(markdown) as part:
        part.write_text(
            f"FCR at ε = {epsilon:g}, 95% intervals over target prompts.\n\n" + "\n".join(lines) + "\n"
        )
    return [csv, markdown]
