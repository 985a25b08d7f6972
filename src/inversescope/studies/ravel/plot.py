"""Stage `plot_ravel`: the tables, figures and samples of RAVEL over all of its models; nothing here imports torch."""

from __future__ import annotations

from inversescope.context import Context
from inversescope.figures.registry import draw

# Imported for what they register.
from inversescope.studies.ravel import figures, headline
from inversescope.studies.ravel.shown import RavelStudy

__all__ = ["figures", "headline", "plot_ravel"]


def plot_ravel(context: Context) -> None:
    """Gather the tables of all RAVEL experiments (`RavelStudy.gather`), and draw its figures and tables; see `registry.draw`.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    study = RavelStudy(context)
    study.gather()
    draw("plot_ravel", study, prefix="ravel_")
