"""Heads that tell each feature, beside what patching them does to the answer; and do heads that tell a name also move it?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from inversescope.context import Context
from inversescope.errors import InputError
from inversescope.figures.headline import Row, headline_page, number, with_interval
from inversescope.figures.panels import error_bars, panel_letters, share_axis
from inversescope.figures.registry import Drawing, Page, draw, figure, table
from inversescope.figures.save import as_written, interval, markdown_table
from inversescope.figures.study import EXACT_RATES, Study
from inversescope.figures.style import BLACK, BLUE, GREY, ORANGE, WIDTH, new_figure
from inversescope.figures.tables import CERTAIN, best_heads
from inversescope.studies.cases.agreement import rank_agreement
from inversescope.studies.cases.effects import against

#: Heads of each feature that are shown.
SHOWN = 5
COLOURS = (BLUE, ORANGE)
_EFFECT = ("effect", "effect_low", "effect_high", "share")


class HeadStudy(Study):
    """The experiment's heads at the last token: exact rates, and effects of patching where it has sites to patch."""

    @property
    def told(self) -> pd.DataFrame:
        """Exact rates of heads at the last token, a row a head and feature."""
        rates = self.table(EXACT_RATES, "plot_layers")
        rows = rates[(rates["group"] == "heads") & (rates["position"] == "last")]
        if rows.empty:
            name = self.context.plan.name
            raise InputError(f"experiment {name} reads no head at the last token", "add L*H* to its sites")
        return rows

    @property
    def effects(self) -> pd.DataFrame:
        """Rows of causes.csv of these heads; none where nothing is patched."""
        if not self.context.plan.settings.patched:
            return pd.DataFrame(columns=["site", "feature", "compared", "path", "same_as", *_EFFECT])
        causes = self.table("causes.csv", "check_causes")
        return causes[causes["site"].isin(self.told["site"])]

    @property
    def moved(self) -> list[str]:
        """Features of whose counterfactuals the effects are."""
        return list(dict.fromkeys(self.effects["feature"]))

    def both(self) -> pd.DataFrame:
        """A row a head and feature of which both are known: exact FCR and the effect on what this feature answers."""
        effects = self.effects[self.effects["compared"] != "other"]
        columns = ["site", "feature", "path", "same_as", *_EFFECT]
        rates = self.told[["site", "feature", "fcr", "ci_low", "ci_high", "chance"]]
        return rates.merge(effects[columns], on=["site", "feature"]).dropna(subset="fcr")

    def agreement(self) -> pd.DataFrame:
        """`rank_agreement` of FCR and effect over the heads, a row a feature."""
        both = self.both()
        if both.empty:
            return pd.DataFrame(columns=["feature", "spearman", "low", "high", "n_distinct"])
        found = rank_agreement(both, self.config.fcr.confidence, self.config.seed)
        return found[(found["sites"] == "all") & (found["feature"] != "mean")]

    def best(self) -> pd.DataFrame:
        """The highest heads of each feature, from the highest, with the effects of every counterfactual beside them.

        Returns:
            feature, rank, site, layer, head, fcr, ci_low, ci_high, chance, epsilon, share, n_targets; of each patched feature F
            effect_F, effect_F_low, effect_F_high (logits) and effect_F_share (of the difference between both runs).
        """
        told = self.told
        parts = []
        for feature, rows in told.groupby("feature", sort=False):
            ranked = rows.set_index("site").loc[best_heads(rows, SHOWN)].reset_index()
            parts.append(ranked.assign(feature=feature, rank=range(1, len(ranked) + 1)))
        keep = "feature rank site layer head fcr ci_low ci_high chance epsilon share n_targets".split()
        table = pd.concat(parts, ignore_index=True)[keep]
        for feature, rows in self.effects.groupby("feature", sort=False):
            names = {name: name.replace("effect", f"effect_{feature}") for name in _EFFECT}
            names["share"] = f"effect_{feature}_share"
            table = table.merge(rows[["site", *_EFFECT]].rename(columns=names), on="site", how="left")
        return table


def plot_heads(context: Context) -> None:
    """Draw the heads that tell each feature beside their effects; see `registry.draw`.

    Raises:
        InputError: a table is missing, or no head is read at the last token.
    """
    draw("plot_heads", HeadStudy(context))


@figure("heads", "plot_heads", title="Heads that tell each feature, and what patching them does")
def heads(study: HeadStudy) -> Drawing:
    """The highest heads of each feature: exact FCR, effects of patching; and one against the other over all heads."""
    best, both, moved = as_written(study.best()), as_written(study.both()), study.moved
    features = list(dict.fromkeys(best["feature"]))
    gap = best["feature"].map(features.index) * 0.6
    best = best.assign(at=np.arange(len(best)) + gap)
    asked = [name for name in moved if name in set(both["feature"])]
    rows = max(1, len(asked))
    drawn = new_figure(WIDTH if moved else WIDTH / 2, max(0.125 * float(best["at"].max()) + 0.8, 2.2 * rows))
    widths = [1.5, *([1.0] * len(moved)), *([2.4] * bool(asked))]
    grid = drawn.add_gridspec(rows, len(widths), width_ratios=widths)
    axes = [drawn.add_subplot(grid[:, 0])]
    axes += [drawn.add_subplot(grid[:, 1 + i], sharey=axes[0]) for i in range(len(moved))]
    _rates(axes[0], best, features)
    for ax, feature, colour in zip(axes[1:], moved, COLOURS, strict=False):
        name = f"effect_{feature}"
        ax.axvline(0, color=GREY, linewidth=0.6)
        error_bars(ax, best[name], best["at"], best[f"{name}_low"], best[f"{name}_high"], colour, "x")
        ax.plot(best[name], best["at"], "o", color=colour, markersize=3)
        ax.tick_params(labelleft=False, left=False)
        ax.set_xlabel(f"effect of another\n{feature} (logits)")
    ranks = study.agreement().set_index("feature")
    for i, (feature, colour) in enumerate(zip(asked, COLOURS, strict=False)):
        ax = drawn.add_subplot(grid[i, -1])
        against(ax, both[both["feature"] == feature].assign(group="heads"), colour)
        ax.set_xlabel(f"exact FCR of the {feature}")
        ax.set_ylabel(f"effect of another {feature} (logits)")
        rank = ranks.loc[feature]
        ax.set_title(f"ρ = {interval(rank['spearman'], rank['low'], rank['high'], '.2f')}", fontsize=7)
        axes.append(ax)
    panel_letters(axes)
    data = pd.concat([best.drop(columns="at").assign(panel="best"), both.assign(panel="all")])
    return drawn, data.reset_index(drop=True)


def _rates(ax: Axes, best: pd.DataFrame, features: list[str]) -> None:
    """Exact rates of the highest heads, feature by feature, with chance levels."""
    error_bars(ax, best["fcr"], best["at"], best["ci_low"], best["ci_high"], BLACK, "x")
    ax.plot(best["fcr"], best["at"], "o", color=BLACK, markersize=3)
    for feature in features:
        part = best[best["feature"] == feature]
        top, low = part["at"].min(), part["at"].max()
        ax.vlines(part["chance"].iloc[0], top - 0.4, low + 0.4, color=GREY, linestyle=":", linewidth=0.9)
        style: dict[str, Any] = {"ha": "right", "va": "center", "rotation": 90, "fontsize": 6.5}
        ax.annotate(feature, (-0.36, (top + low) / 2), xycoords=("axes fraction", "data"), **style)
    ax.set_yticks(best["at"], best["site"], fontsize=5.8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(float(best["at"].max()) + 0.7, -0.7)
    share_axis(ax, "x")
    ax.set_xlabel("exact FCR")


@table("heads", "plot_heads", title="Heads that tell each feature, beside their effects")
def heads_table(study: HeadStudy) -> Page:
    """`HeadStudy.best`, and for readers the rank correlations below it."""
    frame = study.best()
    rate = [interval(r.fcr, r.ci_low, r.ci_high, ".2f") for r in frame.itertuples()]
    shown = frame[["feature", "site", "chance"]].assign(FCR=rate)
    for feature in study.moved:
        name = f"effect_{feature}"
        ends = zip(frame[name], frame[f"{name}_low"], frame[f"{name}_high"], strict=True)
        shown[f"effect of another {feature} (logits)"] = [interval(*one, ".2f") for one in ends]
    lines = [
        f"- {row['what']}: {interval(row['value'], row['low'], row['high'], '.2f')}" for row in _ranks(study)
    ]
    about = "Heads with the highest exact FCR of each feature, beside what patching them does to the answer."
    ranks = (
        ["", "Rank correlation over heads of exact FCR and size of the effect:", "", *lines] if lines else []
    )
    return frame, "\n".join([about, "", markdown_table(shown, ".3f"), *ranks])


@table("heads_headline", "plot_heads", title="Headline numbers of heads")
def heads_headline(study: HeadStudy) -> Page:
    """The highest head of each feature, how many tell it for certain, and rank correlations over heads."""
    return headline_page([*_highest(study), *_ranks(study)])


def _highest(study: HeadStudy) -> Iterator[Row]:
    told = study.told
    for row in study.best().query("rank == 1").to_dict("records"):
        section = "the head that tells each feature best: exact FCR"
        what = f"{row['feature']}: {row['site']}"
        yield number(section, what, "exact", n=row["n_targets"], **with_interval(row))
        of = told.loc[told["feature"] == row["feature"], "fcr"]
        section = f"heads with an exact FCR of {CERTAIN:g} or more"
        yield number(section, row["feature"], "heads", (of >= CERTAIN).sum(), unit="count", n=len(of))


def _ranks(study: HeadStudy) -> Iterator[Row]:
    section = "exact FCR against the size of patching's effect: rank correlation over heads"
    for row in study.agreement().to_dict("records"):
        ends = {"low": row["low"], "high": row["high"], "n": row["n_distinct"]}
        yield number(section, str(row["feature"]), "heads", row["spearman"], **ends)
