"""Figures and tables of causal checks: exact FCR of single sites against the effect of patching them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from inversescope.figures.headline import Row, headline_page, number
from inversescope.figures.panels import (
    MANY_SITES,
    cross,
    error_bars,
    heat_map,
    key,
    panel_letters,
    share_axis,
    spread,
)
from inversescope.figures.registry import Drawing, Page, figure, table
from inversescope.figures.save import as_written, interval, markdown_table
from inversescope.figures.study import Study
from inversescope.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    GROUP_MARKER,
    GROUP_TITLE,
    ORANGE,
    PINK,
    RED,
    SKY,
    WIDTH,
    new_figure,
)
from inversescope.figures.tables import group_of
from inversescope.studies.cases.agreement import rank_agreement

COLOURS = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK, GREY)
#: Sites of each kind that a scatter names.
NAMED = 4
#: Sites of the largest effects, and heads of each token, that headline numbers name.
LARGEST, LARGEST_HEADS = 4, 2


def _ranked(name: str, row: Any) -> str:
    return f"{name}: ρ = {interval(row['spearman'], row['low'], row['high'], '.2f')}"


@figure("causes", "plot_causes", title="FCR against causal effect of single sites")
def causes(study: Study) -> Drawing:
    """FCR against effect over sites, a panel a feature that an answer tells of; and effects of all features by site.

    Of more than `MANY_SITES` those with the largest effects, up or down, on any feature are listed, and ranks are by kind of site.
    """
    data = study.table("causes.csv", "check_causes")
    data = as_written(data.assign(group=data["site"].map(group_of)))
    names = list(dict.fromkeys(data["feature"]))
    largest = data["effect"].abs().groupby(data["site"], sort=False).max().nlargest(MANY_SITES).index
    sites = [site for site in dict.fromkeys(data["site"]) if site in largest]
    colour = dict(zip(names, COLOURS, strict=False))
    asked = data[(data["compared"] != "other") & data["fcr"].notna()]
    told = list(dict.fromkeys(asked["feature"]))
    many = data["site"].nunique() > MANY_SITES
    across = 1 if len(told) <= 2 else 2
    rows = -(-len(told) // across)
    drawn = new_figure(WIDTH, max(2.2 * rows + 0.4, 0.15 * len(sites) + 0.8))
    grid = drawn.add_gridspec(rows, across + 1)
    ranks = _ranks_by_kind(study, asked)
    axes: list[Axes] = []
    for i, name in enumerate(told):
        ax = drawn.add_subplot(grid[i // across, i % across], sharey=axes[0] if axes else None)
        part = asked[asked["feature"] == name]
        # Few sites are all named on the right.
        against(ax, part, colour[name], NAMED if many else 0)
        if not many:
            cross(ax, part, "fcr", "effect", colour[name])
        own = ranks[ranks["feature"] == name].to_dict("records")
        ax.set_title("\n".join(_ranked(name + row["kind"], row) for row in own), fontsize=7)
        ax.set_xlabel(f"exact FCR of the {name}")
        ax.set_ylabel("effect of the site (logits)" if i % across == 0 else "")
        axes.append(ax)
    right = drawn.add_subplot(grid[:, -1])
    for i, name in enumerate(names):
        part = data[(data["feature"] == name) & data["site"].isin(sites)]
        y = part["site"].map(sites.index) + 0.7 * ((i + 0.5) / len(names) - 0.5)
        right.plot(part["effect"], y, "o", markersize=3, color=colour[name], label=name)
        error_bars(right, part["effect"], y, part["effect_low"], part["effect_high"], colour[name], "x")
    right.axvline(0, color=GREY, linewidth=0.6)
    right.set_yticks(range(len(sites)), sites, fontsize=6)
    right.set_ylim(len(sites) - 0.4, -0.6)
    right.set_xlabel("effect of the site alone (logits)")
    handles = right.get_legend_handles_labels()[0]
    handles += [key(GROUP_TITLE[g], GREY, GROUP_MARKER[g]) for g in dict.fromkeys(asked["group"])]
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    panel_letters([*axes, right])
    return drawn, data


def _ranks_by_kind(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations over sites with a path to the answer, as `check_causes` found them; by kind where sites are many."""
    if rows["site"].nunique() <= MANY_SITES:
        found = study.table("causes_rank.csv", "check_causes").assign(kind="")
    else:
        settings = study.config.fcr.confidence, study.config.seed
        kinds = {f", {GROUP_TITLE[str(group)]}": part for group, part in rows.groupby("group")}
        found = pd.concat([rank_agreement(part, *settings).assign(kind=kind) for kind, part in kinds.items()])
    return found[found["sites"] == "path"]


def against(ax: Axes, rows: pd.DataFrame, colour: str, most: int = NAMED) -> None:
    """Exact FCR of a feature against the effect of another one: a marker a kind of site, hollow without a path, the furthest named.

    Args:
        rows: a row a site: site, group, path, fcr, effect.
        most: sites of each kind that are named.
    """
    ax.axhline(0, color=GREY, linewidth=0.6)
    size = 2.6 if len(rows) > MANY_SITES else 4
    for (group, path), part in rows.groupby(["group", "path"]):
        style: dict[str, Any] = {
            "markersize": size,
            "alpha": 0.7,
            "markerfacecolor": colour if path else "white",
        }
        ax.plot(part["fcr"], part["effect"], GROUP_MARKER[str(group)], color=colour, **style)
    far = rows["effect"].abs().rank() + rows["fcr"].rank()
    named = rows[far.groupby(rows["group"]).rank(ascending=False, method="first") <= most].sort_values(
        "effect"
    )
    room = float(rows["effect"].max() - rows["effect"].min()) or 1.0
    places = spread([float(one) for one in named["effect"]], 0.07 * room)
    for row, y in zip(named.itertuples(), places, strict=True):
        side = -1 if row.fcr > 0.5 else 1
        style = {"textcoords": "offset points", "fontsize": 5.5, "va": "center"}
        ax.annotate(row.site, (row.fcr, y), xytext=(4 * side, 0), ha="right" if side < 0 else "left", **style)
    share_axis(ax, "x")


def _against_fcr(ax: Axes, x: str, y: str) -> None:
    ax.axhline(0, color=GREY, linewidth=0.6)
    share_axis(ax, "x")
    ax.set_xlabel(x)
    ax.set_ylabel(y)


def _whole_answers(study: Study) -> pd.DataFrame:
    """Rows of answers.csv of all pairs together, whatever was changed."""
    rows = study.table("answers.csv", "trace_answers")
    return as_written(rows[rows["feature"] == "answer"])


@figure("answers", "plot_answers", title="Which sites carry which token of the answer")
def answers(study: Study) -> Drawing:
    """Share of the effect and FCR of each token of the answer, by site; and one against the other."""
    data = _whole_answers(study)
    ranks = study.table("answers_rank.csv", "trace_answers").set_index("feature")
    sites = list(dict.fromkeys(data["site"]))
    names = {k: f"A{k}" for k in sorted(set(data["digit"]))}
    drawn = new_figure(WIDTH, max(2.8, 0.2 * len(sites) + 1.0))
    axes = drawn.subplots(1, 3, width_ratios=[1, 1, 1.5])
    titles = {"share": "share of the effect", "fcr": "exact FCR of the token"}
    for ax, (column, title) in zip(axes, titles.items(), strict=False):
        grid = data.pivot(index="site", columns="digit", values=column).reindex(index=sites, columns=names)
        heat_map(ax, grid.rename(columns=names), "Blues", size=6)
        ax.set_yticks(*(([], []) if column == "fcr" else (ax.get_yticks(), sites)), rotation=0, fontsize=6)
        ax.set_title(title)
        ax.set_xlabel("token of the answer")
    scatter = axes[2]
    for (k, name), colour in zip(names.items(), COLOURS, strict=False):
        part = data[data["digit"] == k]
        scatter.plot(part["fcr"], part["share"], "o", color=colour, label=_ranked(name, ranks.loc[name]))
        cross(scatter, part, "fcr", "share", colour)
    _against_fcr(scatter, "exact FCR of the token", "share of the effect")
    drawn.legend(*scatter.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=6)
    panel_letters(axes)
    return drawn, data


@table("answers", "plot_answers", title="Effect and FCR of each token of the answer, by site")
def answers_table(study: Study) -> Page:
    """Share of the effect and FCR of each token of the answer by site, with intervals."""
    data = _whole_answers(study)
    parts = []
    for k, rows in data.groupby("digit"):
        effect = [interval(r.share, r.share_low, r.share_high, ".2f") for r in rows.itertuples()]
        rate = [interval(r.fcr, r.fcr_low, r.fcr_high, ".2f") for r in rows.itertuples()]
        columns = {f"A{k} effect": effect, f"A{k} FCR": rate}
        parts.append(pd.DataFrame(columns, index=pd.Index(rows["site"], name="site")))
    frame = pd.concat(parts, axis=1).reset_index()
    about = "; ".join(
        f"A{r.digit}: {r.n_pairs} pairs, {r.total:.1f} logits, chance {r.chance:.2f}"
        for r in data.drop_duplicates("digit").itertuples()
    )
    title = "Share of the effect of patching a site where a token of the answer is predicted, and exact FCR of that token there"
    return frame, f"{title} ({about}); 95% intervals.\n\n{markdown_table(frame)}"


@table("causes_headline", "plot_causes", title="Headline numbers of the causal checks")
def causes_headline(study: Study) -> Page:
    """Rank correlation of FCR and effect, and the sites of the largest effects of each feature that an answer tells of."""
    causes = study.table("causes.csv", "check_causes")
    ranks = study.table("causes_rank.csv", "check_causes")
    return headline_page([*_rank_rows(ranks), *_largest(causes[causes["compared"] != "other"])])


def _rank_rows(ranks: pd.DataFrame) -> Iterator[Row]:
    section = "exact FCR against the size of patching's effect: rank correlation over sites"
    who = {"path": "sites with a path to the answer", "all": "all sites"}
    for row in ranks.to_dict("records"):
        yield _rank(section, str(row["feature"]), who[str(row["sites"])], row)


def _rank(section: str, what: str, who: str, row: dict[Any, Any]) -> Row:
    """n: sites of different effects."""
    return number(section, what, who, row["spearman"], low=row["low"], high=row["high"], n=row["n_distinct"])


def _largest(causes: pd.DataFrame) -> Iterator[Row]:
    for feature, part in causes.groupby("feature", sort=False):
        section = f"sites of the largest effects on the answer: {feature}"
        for row in part.sort_values("effect", ascending=False).head(LARGEST).to_dict("records"):
            of = {"n": row["n_pairs"]}
            ends = {"low": row["effect_low"], "high": row["effect_high"], "unit": "logits"}
            yield number(section, row["site"], "effect", row["effect"], **ends, **of)
            yield number(section, row["site"], "share of the whole effect", row["share"], **of)
            rate = {"low": row["fcr_low"], "high": row["fcr_high"], "chance": row["chance"]}
            yield number(section, row["site"], "exact FCR", row["fcr"], **rate, **of)


@table("answers_headline", "plot_answers", title="Headline numbers of each token of the answer")
def answers_headline(study: Study) -> Page:
    """Each token of the answer: agreement of FCR and effect, and the heads that carry it."""
    return headline_page(_answer_rows(study))


def _answer_rows(study: Study) -> Iterator[Row]:
    section = (
        "each token of the answer, where it is predicted: rank correlation of exact FCR and effect over sites"
    )
    for row in study.table("answers_rank.csv", "trace_answers").to_dict("records"):
        yield _rank(section, str(row["feature"]), "sites", row)
    section = "heads of the largest effects on each token of the answer: share of the whole effect"
    data = study.table("answers.csv", "trace_answers")
    heads = data[(data["feature"] == "answer") & data["head"].notna()]
    for digit, part in heads.groupby("digit"):
        for row in part.sort_values("share", ascending=False).head(LARGEST_HEADS).to_dict("records"):
            ends = {"low": row["share_low"], "high": row["share_high"], "n": row["n_pairs"]}
            yield number(section, f"A{digit}: {row['site']}", "share", row["share"], **ends)
