"""Parts that panels of many figures share: letters, axes of shares and of sites, intervals, heat maps, keys of legends."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, NullLocator

from inversescope.figures.style import BLACK, GREEN, RED
from inversescope.figures.tables import head_grid

#: Of more sites than these a figure shows some, or pools some; of more marks than these an axis names some.
MANY_SITES = 48


def panel_letters(axes: Iterable[Axes], start: int = 0) -> None:
    """Put a, b, c ... at the upper left of each panel, in reading order."""
    for letter, ax in zip(string.ascii_lowercase[start:], axes, strict=False):
        if not ax.get_title():
            ax.set_title(ax.get_title(loc="left"))
        ax.annotate(
            letter,
            (0, 1),
            xycoords="axes fraction",
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=9,
            fontweight="bold",
            annotation_clip=False,
        )


def share_axis(ax: Axes, which: str = "y", pad: float = 0.03) -> None:
    """Give an axis that shows shares the range 0 to 1 and quarter ticks."""
    getattr(ax, f"set_{which}lim")(-pad, 1 + pad)
    getattr(ax, f"set_{which}ticks")([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])


def error_bars(
    ax: Axes, x: Any, y: Any, low: Any, high: Any, colour: str, which: str = "y", **kwargs: Any
) -> None:
    """Draw intervals as thin lines from `low` to `high` (rows without an interval are left out)."""
    x, y, low, high = (np.asarray(v, dtype=float) for v in (x, y, low, high))
    keep = np.isfinite(low) & np.isfinite(high)
    style = {"linewidth": 0.7, "zorder": 2} | kwargs
    if which == "y":
        ax.vlines(x[keep], low[keep], high[keep], color=colour, **style)
    else:
        ax.hlines(y[keep], low[keep], high[keep], color=colour, **style)


def cross(ax: Axes, rows: pd.DataFrame, x: str, y: str, colour: str) -> None:
    """Draw the intervals of both coordinates of points; those of a column are in its `_low` and `_high`."""
    for of, which in ((y, "y"), (x, "x")):
        error_bars(ax, rows[x], rows[y], rows[f"{of}_low"], rows[f"{of}_high"], colour, which)


def light_grid(ax: Axes, axis: Any = "y", colour: str = "#e6e6e6") -> None:
    """Thin grid lines."""
    ax.grid(axis=axis, color=colour, linewidth=0.5)


def near_zero(ax: Axes, which: str = "y", alpha: float = 0.10) -> None:
    """Mark an entropy gap of 0, and half a nat around it."""
    span, line = (ax.axhspan, ax.axhline) if which == "y" else (ax.axvspan, ax.axvline)
    span(-0.5, 0.5, color=GREEN, alpha=alpha, linewidth=0)
    line(0, color=BLACK, linewidth=0.6)


def bare(value: float) -> str:
    """A number without the zero before its point: .05."""
    return f"{value:g}".removeprefix("0")


def log_axis(ax: Axes, which: str, ticks: Sequence[float], **style: Any) -> None:
    """Make an axis logarithmic, with these ticks alone."""
    getattr(ax, f"set_{which}scale")("log")
    axis = getattr(ax, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    getattr(ax, f"set_{which}ticks")(ticks, [bare(tick) for tick in ticks], **style)


def key(label: str, colour: Any = BLACK, marker: str = "", line: Any = "", **style: Any) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker, linestyle=line, label=label, **style)


def heat_map(
    ax: Axes,
    grid: pd.DataFrame,
    colours: str = "viridis",
    form: str = ".2f",
    size: float | None = 6.5,
    **style: Any,
) -> None:
    """Draw a matrix of shares; cells hold their values, unless `size`, that of their text, is None."""
    notes = np.array(
        [
            [bare_share(value, form) if np.isfinite(value) else "" for value in line]
            for line in grid.to_numpy()
        ]
    )
    ax.set_facecolor("#dddddd")
    sns.heatmap(
        grid,
        ax=ax,
        vmin=0,
        vmax=1,
        cmap=colours,
        cbar=False,
        annot=notes if size else False,
        fmt="",
        annot_kws={"fontsize": size},
        linewidths=0.4,
        linecolor="white",
        square=False,
        **style,
    )
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)


def layers_across(shape: tuple[int, int]) -> bool:
    """Whether layers run to the right: where they are far more than the heads, rows of layers would be flat stripes."""
    return shape[0] > 1.5 * shape[1]


def lines_and_columns(shape: tuple[int, int]) -> tuple[int, int]:
    """Lines and columns of a heat map of a model with these layers and heads."""
    return (shape[1], shape[0]) if layers_across(shape) else shape


def head_map(
    ax: Axes,
    rows: pd.DataFrame,
    shape: tuple[int, int],
    title: str,
    xlabel: bool = True,
    ylabel: bool = True,
    value: str = "fcr",
) -> None:
    """Draw a value of every head of a model; it is written into the cells where these are large enough to read.

    Args:
        rows: a row a head, with columns layer, head and the value.
        shape: layers and heads of the model.
    """
    grid = head_grid(rows, shape, value)
    names = ("layer", "head")
    if layers_across(shape):
        grid, names = grid.T, ("head", "layer")
    heat_map(ax, grid, size=6.5 if grid.shape[1] <= 8 else None)
    ax.set_title(title)
    ax.invert_yaxis()
    for which, n in zip("yx", grid.shape, strict=True):
        marks = range(0, n, 1 if n <= 8 else 2 if n <= 16 else 4)
        getattr(ax, f"set_{which}ticks")([m + 0.5 for m in marks], [str(m) for m in marks], rotation=0)
    ax.tick_params(labelbottom=True)
    ax.set_xlabel(names[1] if xlabel else "")
    ax.set_ylabel(names[0] if ylabel else "")


def frame_heads(ax: Axes, cells: pd.DataFrame, shape: tuple[int, int]) -> None:
    """Frame some cells in red, as the paper does; inside of them, so that neighbouring frames stay apart."""
    for layer, head in zip(cells["layer"], cells["head"], strict=True):
        corner = (int(layer), int(head)) if layers_across(shape) else (int(head), int(layer))
        width = 1.4 if max(shape) <= 16 else 1.0
        style: dict[str, Any] = {"fill": False, "edgecolor": RED, "linewidth": width, "clip_on": False}
        ax.add_patch(Rectangle((corner[0] + 0.05, corner[1] + 0.05), 0.9, 0.9, **style))


def bare_share(value: float, form: str) -> str:
    """A share as it stands in a cell: .97, and .00 for what rounds to it from below."""
    return format(value, form).removeprefix("0").replace("-0.00", ".00")


def site_axis(ax: Axes, sites: list[str], columns: int = 1) -> None:
    """Name the sites below the lowest panel, one of some columns; of many every second or so, from the first of each kind on."""
    step = -(-len(sites) * columns // MANY_SITES)
    kinds = [site.partition(".")[2] for site in sites]
    marks: list[int] = []
    for index, kind in enumerate(kinds):
        if kinds.index(kind) == index or index - marks[-1] >= step:
            if marks and index - marks[-1] < step / 2:
                marks.pop()
            marks.append(index)
    names = [sites[index] for index in marks]
    ax.set_xticks(marks, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=6.3)
    ax.tick_params(axis="x", length=0 if len(marks) == len(sites) else 2)
    ax.set_xlim(-0.7, len(sites) - 0.3)


def part_sites(ax: Axes, data: pd.DataFrame, sites: list[str]) -> None:
    """Part layers by thin lines and groups of sites by a thicker one."""
    group = data.drop_duplicates("site").set_index("site")["group"].to_dict()
    layer = {site: site.partition("H")[0].partition(".")[0] for site in sites}
    several = Counter(layer[site] for site in sites if group[site] == "heads")
    for index, (before, site) in enumerate(zip(sites, sites[1:], strict=False)):
        if group[site] != group[before]:
            ax.axvline(index + 0.5, color=BLACK, linewidth=0.7)
        elif group[site] == "heads" and layer[site] != layer[before] and max(several.values()) > 1:
            ax.axvline(index + 0.5, color="#dddddd", linewidth=0.6, zorder=0)


def spread(values: list[float], gap: float) -> list[float]:
    """Move sorted positions apart, as little as makes neighbours differ by `gap` (least squares)."""
    blocks: list[list[float]] = []  # sum of shifted values, count
    for index, value in enumerate(values):
        blocks.append([value - index * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [blocks[-1][0] + last[0], blocks[-1][1] + last[1]]
    shifted = [block[0] / block[1] for block in blocks for _ in range(int(block[1]))]
    return [value + index * gap for index, value in enumerate(shifted)]
