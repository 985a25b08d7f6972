"""One publication style for every figure: colours, sizes, and the same bytes for the same numbers."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from inversescope.store import atomic_path, write_table

P = ParamSpec("P")
R = TypeVar("R")

#: Width of a two-column figure and of one column, in inches.
WIDTH, COLUMN = 7.1, 3.4

#: Okabe and Ito's palette: told apart by readers with any common colour blindness, and in grey by lightness.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
GREY = "#767676"

#: Colour of each variant (and of the exact value), the same in every figure.
VARIANT_COLOUR = {
    "paper": RED,
    "default": BLUE,
    "exact": BLACK,
    "inversionview": GREEN,
    "inversionview_noised": PINK,
    "inversionview_wide": ORANGE,
    "inversionview_noised_wide": SKY,
    "inversionview_scratch": GREY,
}
#: Colour and marker of each estimator and control where one variant's are compared.
ESTIMATOR_STYLE = {
    "exact": (BLACK, "_"),
    "combined": (BLUE, "o"),
    "reweighted": (ORANGE, "s"),
    "generated": (SKY, "D"),
    "cache": (GREEN, "^"),
    "mcmc": (PINK, "v"),
    "prior": (GREY, "x"),
    "shuffled": (GREY, "+"),
    "nearest": (GREY, "1"),
    "majority": (GREY, "2"),
}
#: Marker of each group of sites.
GROUP_MARKER = {"heads": "o", "residual": "s", "other": "^"}
GROUP_TITLE = {
    "heads": "attention heads",
    "residual": "residual stream",
    "other": "attention and MLP outputs",
}
FEATURE_COLOUR = {"object": BLUE, "subject": ORANGE}

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "patch.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.dpi": 100,
    "pdf.fonttype": 42,
    "pdf.compression": 6,
    "axes.unicode_minus": True,
    "text.usetex": False,
}


def styled(function: Callable[P, R]) -> Callable[P, R]:
    """Run a plot function under the shared style, whatever the caller's matplotlib settings are."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context():
            mpl.rcdefaults()
            mpl.rcParams.update(sns.axes_style("ticks"))
            mpl.rcParams.update(RC)
            return function(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, laid out without overlaps."""
    engine = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    return figure


def as_written(frame: pd.DataFrame) -> pd.DataFrame:
    """Round floats to the six significant digits of the CSV, so that what is drawn is what is written."""
    result = frame.reset_index(drop=True).copy()
    for name in result.columns:
        if pd.api.types.is_float_dtype(result[name]):
            values = result[name].to_numpy(dtype=float, na_value=np.nan)
            result[name] = [float(f"{value:.6g}") for value in values]
    return result


def save(figure: Figure, data: pd.DataFrame, out: Path) -> list[Path]:
    """Write a figure as PNG (200 dpi) and PDF (vector), and its numbers as CSV beside them.

    The files carry no date and no version: equal numbers give equal bytes.

    Args:
        figure: what was drawn.
        data: the plotted numbers, one row a mark.
        out: path without suffix.

    Returns:
        The three paths.
    """
    png, pdf, csv = (out.parent / (out.name + suffix) for suffix in (".png", ".pdf", ".csv"))
    with atomic_path(png) as part:
        figure.savefig(part, format="png", dpi=200, metadata={"Software": None})
    # The layout of the PNG is kept: solving it again would take as long as drawing, and could shift by a hair.
    figure.set_layout_engine("none")
    with atomic_path(pdf) as part:
        metadata = {"CreationDate": None, "Creator": "InverseScope", "Producer": "InverseScope"}
        figure.savefig(part, format="pdf", dpi=300, metadata=metadata)
    write_table(data, csv)
    return [png, pdf, csv]


def panel_letters(axes: Iterable[Axes], start: int = 0) -> None:
    """Put a, b, c ... at the upper left of each panel, in reading order."""
    for letter, ax in zip(string.ascii_lowercase[start:], axes, strict=False):
        title = ax.get_title() or ax.get_title(loc="left")
        ax.set_title(title, loc="center")
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


def epsilon_label(epsilon: float) -> str:
    """A bandwidth as it is written in titles."""
    return f"ε = {epsilon:g}"
