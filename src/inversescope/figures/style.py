"""One publication style for every figure: colours, sizes, and the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

#: Width of a two-column figure, in inches.
WIDTH = 7.1

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


@contextmanager
def publication_style() -> Iterator[None]:
    """Draw, and save, under the shared style, whatever the caller's matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(sns.axes_style("ticks"))
        mpl.rcParams.update(RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, laid out without overlaps."""
    engine = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), layout=engine)
    FigureCanvasAgg(figure)
    return figure
