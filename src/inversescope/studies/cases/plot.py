"""Stages `plot_cases`, `plot_causes`, `plot_answers`: figures and tables of a case study, from tables alone."""

from __future__ import annotations

from inversescope.context import Context
from inversescope.figures.registry import draw
from inversescope.figures.study import Study

# Imported for what they register.
from inversescope.studies.cases import effects, figures, headline
from inversescope.studies.cases.shown import CaseStudy

__all__ = ["effects", "figures", "headline", "plot_answers", "plot_cases", "plot_causes"]


def plot_cases(context: Context) -> None:
    """Draw what the sites of one experiment tell; see `registry.draw`.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    draw("plot_cases", CaseStudy(context))


def plot_causes(context: Context) -> None:
    """Draw FCR against causal effect; see `registry.draw`.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    draw("plot_causes", Study(context))


def plot_answers(context: Context) -> None:
    """Draw which sites carry which token of the answer; see `registry.draw`.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    draw("plot_answers", Study(context))
