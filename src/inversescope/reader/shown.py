"""Stages `plot_readers` and `plot_frontier_readers`: how far readers are from the exact posterior, as figure and table."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from inversescope.context import Context, need
from inversescope.errors import InputError
from inversescope.figures.panels import error_bars, light_grid, log_axis, panel_letters, share_axis
from inversescope.figures.registry import Drawing, Page, draw, figure, table
from inversescope.figures.save import as_written, interval, markdown_table, save_figure, save_table
from inversescope.figures.study import Study
from inversescope.figures.style import (
    BLACK,
    GREEN,
    GREY,
    WIDTH,
    new_figure,
    publication_style,
)
from inversescope.figures.tables import VARIANTS
from inversescope.reader.score import ALL, READER, reliability, scores
from inversescope.store import read_table
from inversescope.workflow import paths

#: Colours of the controls that have a curve.
_CONTROLS = {"linear probe": "#882255", "cache": BLACK}
#: What a column of the table is called, and an axis of the figure.
_TITLES = {
    "bits": "cross-entropy above the floor (bits)",
    "told": "share of it told",
    "brier": "Brier score above the floor",
    "calibration": "expected calibration error",
    "off": "confidence off by",
    "right": "top-1",
}
_NARROW = {"bits": "bits", "told": "told", "brier": "Brier", "calibration": "calibration", "right": "top-1"}
_AXES = {
    "bits": "cross-entropy above\nthe floor (bits)",
    "calibration": "expected\ncalibration error",
    "right": "top-1",
}


@dataclass(frozen=True)
class Compared:
    """Judged answers of several readers to the same questions.

    Attributes:
        answers: as `score_readers` writes them.
    """

    study: Study
    answers: pd.DataFrame

    @cached_property
    def _resampling(self) -> tuple[int, float, int]:
        settings = self.study.config.fcr
        return settings.bootstrap, settings.confidence, self.study.config.seed

    @cached_property
    def scores(self) -> pd.DataFrame:
        """`score.scores`, each reader by its name for readers, the best one first."""
        frame = scores(self.answers, *self._resampling)
        order = frame[(frame["group"] == ALL) & (frame["feature"] == ALL)].set_index(READER)["bits"]
        keys = pd.MultiIndex.from_frame(frame[READER])
        frame = frame.assign(name=[self.name(*key) for key in keys], order=order.reindex(keys).to_numpy())
        return frame.sort_values("order", kind="stable").drop(columns="order").reset_index(drop=True)

    @cached_property
    def total(self) -> pd.DataFrame:
        """The scores over all questions."""
        frame = self.scores
        return frame[(frame["group"] == ALL) & (frame["feature"] == ALL)].reset_index(drop=True)

    @cached_property
    def curves(self) -> pd.DataFrame:
        """`score.reliability`, with the readers' names."""
        frame = reliability(self.answers, *self._resampling)
        keys = zip(frame["reader"], frame["estimator"], strict=True)
        return frame.assign(name=[self.name(*key) for key in keys])

    def name(self, reader: str, estimator: str) -> str:
        """What a reader is called."""
        if reader not in self.study.config.variants:
            return f"{reader}, {estimator}" if estimator else reader
        if reader in VARIANTS:
            return f"{reader}, {estimator}"
        return self.study.label(reader) + (", combined" if estimator == "combined" else "")

    def colour(self, reader: str, estimator: str) -> str:
        """Its colour."""
        if reader in self.study.config.variants:
            return self.study.colour(reader)
        return GREEN if estimator else _CONTROLS.get(reader, GREY)


def plot_readers(context: Context) -> None:
    """Draw how far controls and variants are from the exact posterior; see `registry.draw`.

    Raises:
        InputError: nothing was scored.
    """
    draw("plot_readers", Study(context))


def plot_frontier_readers(context: Context) -> None:
    """The same with the frontier's variants of other generators; see `registry.draw`.

    Raises:
        InputError: nothing was scored.
    """
    draw("plot_frontier_readers", Study(context))


def of_study(study: Study) -> Compared:
    """Controls and variants of the main part, at the sites that all of the variants read."""
    return Compared(study, shared(_read(study, "")))


def with_frontier(study: Study) -> Compared:
    """The same beside the frontier's variants of other generators, seeds together, at the frontier's sites."""
    rivals = _read(study, "frontier/")
    about = {name: study.config.variant(name) for name in rivals["reader"].unique()}
    # Runs of fewer steps are for the figure of refusal against seconds.
    most = {one.base: max(o.steps for o in about.values() if o.base == one.base) for one in about.values()}
    last = [name for name, one in about.items() if one.steps == most[one.base]]
    rivals = rivals[rivals["reader"].isin(last)]
    rivals = rivals.assign(reader=rivals["reader"].map({name: about[name].base for name in last}))
    main = _read(study, "")
    asked = shared(rivals)[["site", "feature", "target_id"]].drop_duplicates()
    both = pd.concat([main.merge(asked), rivals], ignore_index=True)
    return Compared(study, shared(both))


def _read(study: Study, group: str) -> pd.DataFrame:
    frame = read_table(need(study.context.path(paths.ANSWERS, group=group), "score_readers"))
    return frame.assign(**{name: frame[name].astype(str) for name in (*READER, "site", "feature")})


def shared(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers to the questions that all readers answer.

    Raises:
        InputError: there is no answer at all.
    """
    if answers.empty:
        raise InputError(
            "No question has an exact answer: no target prompt has a reference prompt within the bandwidth",
            "choose a wider one: kernel.epsilon, or kernel.share",
        )
    keys = ["site", "feature", "target_id"]
    readers = answers.drop_duplicates(READER).shape[0]
    once = answers.drop_duplicates([*READER, *keys])
    asked = once.groupby(keys, sort=False).size().reset_index(name="n")
    return answers.merge(asked.loc[asked["n"] == readers, keys], on=keys)


# ------------------------------------------------------------------------------------------------------ figures and tables
@figure("readers", "plot_readers", title="Readers against the exact posterior")
def readers(study: Study) -> Drawing:
    """Reliability curves, cross-entropy, calibration and top-1 of controls and variants."""
    return drawing(of_study(study))


@table("readers", "plot_readers", title="Scores of readers")
def readers_table(study: Study) -> Page:
    """Scores of controls and variants."""
    return page(of_study(study))


@figure(
    "readers_frontier",
    "plot_frontier_readers",
    title="Readers against the exact posterior, with InversionView",
)
def readers_frontier(study: Study) -> Drawing:
    """The same with InversionView."""
    return drawing(with_frontier(study))


@table("readers_frontier", "plot_frontier_readers", title="Scores of readers, with InversionView")
def readers_frontier_table(study: Study) -> Page:
    """The same with InversionView."""
    return page(with_frontier(study))


def drawing(compared: Compared) -> Drawing:
    """A reliability curve of each reader of activations, and a row of marks for each reader."""
    total, curves = as_written(compared.total), as_written(compared.curves)
    rows = total[total["reader"] != "exact"]
    drawn = new_figure(WIDTH, max(2.7, 0.2 * len(rows) + 0.75))
    grid = drawn.add_gridspec(1, 4, width_ratios=[2.5, 1.25, 1.25, 1.0])
    axes = [drawn.add_subplot(grid[0, 0])]
    axes.append(drawn.add_subplot(grid[0, 1]))
    axes += [drawn.add_subplot(grid[0, k], sharey=axes[1]) for k in (2, 3)]
    _curves(axes[0], compared, curves)
    places = range(len(rows))
    for ax, value in zip(axes[1:], _AXES, strict=True):
        for at, row in zip(places, rows.to_dict("records"), strict=True):
            style = _style(compared, row)
            ends = [row[f"{value}_low"]], [row[f"{value}_high"]]
            error_bars(ax, [row[value]], [at], *ends, style["color"], "x")
            ax.plot(row[value], at, linestyle="", markersize=3.6, **style)
        light_grid(ax, "both")
        ax.set_xlabel(_AXES[value])
        ax.tick_params(axis="y", length=0, labelleft=ax is axes[1])
    for ax, value in zip(axes[1:3], ("bits", "calibration"), strict=True):
        low = float(rows[f"{value}_low"].clip(lower=1e-3).min()) / 1.5
        high = float(rows[f"{value}_high"].max()) * 1.5
        log_axis(ax, "x", _ticks(low, high))
        ax.set_xlim(low, high)
    best = total.loc[total["reader"] == "exact", "right"]
    if len(best):
        axes[3].axvline(float(best.iloc[0]), color=BLACK, linewidth=0.8, linestyle=":")
    share_axis(axes[3], "x")
    axes[1].set_yticks(list(places), [textwrap.fill(name, 30) for name in rows["name"]], fontsize=6.3)
    for label, row in zip(axes[1].get_yticklabels(), rows.to_dict("records"), strict=True):
        label.set_color(_style(compared, row)["color"])
    axes[1].set_ylim(len(rows) - 0.4, -0.6)
    panel_letters(axes)
    return drawn, pd.concat(
        [total.assign(panel="scores"), curves.assign(panel="reliability")], ignore_index=True
    )


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range, and three times these where they are few."""
    powers = [power for power in (0.001, 0.01, 0.1, 1.0, 10.0) if low / 3 <= power <= high]
    few = sum(low <= power for power in powers) < 3
    return [tick for power in powers for tick in (power, 3 * power)[: 1 + few] if low <= tick <= high]


def _style(compared: Compared, row: dict[Any, Any]) -> dict[str, Any]:
    """Colour and mark of a reader: controls are squares; who has generated samples alone is not filled."""
    colour = compared.colour(row["reader"], row["estimator"])
    fill = "white" if row["estimator"] == "generated" else colour
    return {"color": colour, "markerfacecolor": fill, "marker": "o" if row["estimator"] else "s"}


def _curves(ax: Axes, compared: Compared, curves: pd.DataFrame) -> None:
    """Mean exact probability of the first choice against the confidence in it, a line a reader that sees the activation."""
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.6, zorder=1)
    blind = {"exact", "prior", "prompt only", "shuffled activation", "nearest neighbour"}
    for name in compared.total["name"][::-1]:  # the best ones on top
        rows = curves[(curves["name"] == name) & ~curves["reader"].isin(blind)]
        if rows.empty:
            continue
        style = _style(compared, rows.iloc[0].to_dict())
        line = "--" if style["markerfacecolor"] == "white" else "-"
        ax.plot(rows["confidence"], rows["right"], markersize=3, linewidth=1.0, linestyle=line, **style)
        ends = rows["right_low"], rows["right_high"]
        error_bars(ax, rows["confidence"], rows["right"], *ends, style["color"])
    share_axis(ax, "x")
    share_axis(ax)
    ax.set_aspect("equal")
    ax.set(xlabel="confidence in the first choice", ylabel="its exact probability")


def texts(compared: Compared, narrow: bool = False) -> pd.DataFrame:
    """The scores over all questions as they are read, a row a reader; narrow enough for a terminal, with one interval."""
    total = compared.total
    shown = pd.DataFrame({"reader": total["name"]})
    for name, title in (_NARROW if narrow else _TITLES).items():
        plain = f"{name}_low" not in total or (narrow and name != "calibration")
        ends = [] if plain else [f"{name}_low", f"{name}_high"]
        shown[title] = [interval(*row) for row in total[[name, *ends]].to_numpy(float)]
    return shown


def about(compared: Compared) -> str:
    """How much was asked."""
    first = compared.total.iloc[0]
    count = f"{first['n_questions']:,} questions about {first['n_targets']} target prompts"
    return f"{count}, the exact posterior being the truth. docs/score.md says what each column means."


def page(compared: Compared) -> Page:
    """The scores over all questions with their intervals, and what is told by group of sites and by feature."""
    frame = compared.scores
    parts = [about(compared), "", markdown_table(texts(compared))]
    cut = frame[(frame["group"] != ALL) | (frame["feature"] != ALL)]
    if len(cut):
        cut = cut.assign(of=cut["feature"].where(cut["group"] == ALL, cut["group"]))
        wide = cut.pivot_table(index="name", columns="of", values="told", sort=False).reset_index(
            names="reader"
        )
        parts += ["", "Share told, by group of sites and by feature:", "", markdown_table(wide, ".3f")]
    return frame, "\n".join(parts)


def save(compared: Compared, folder: Path) -> None:
    """Write the table and the figure to a folder: readers.csv and .md, readers_figure.png, .pdf and .csv."""
    with publication_style():
        drawn, data = drawing(compared)
        save_figure(drawn, data, folder / "readers_figure")
    frame, text = page(compared)
    save_table(frame, text, folder / "readers")
