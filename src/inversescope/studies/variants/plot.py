"""Stages `plot_baseline`, `plot_study`, `plot_claims` and `plot_frontier`: from tables to pictures, without torch."""

from __future__ import annotations

from inversescope.context import Context
from inversescope.figures.registry import draw
from inversescope.figures.study import Study

# Imported for what they register.
from inversescope.studies.variants import baseline, claims, frontier, misleads, reported

__all__ = [
    "baseline",
    "claims",
    "frontier",
    "misleads",
    "plot_baseline",
    "plot_claims",
    "plot_frontier",
    "plot_study",
    "reported",
]


def plot_baseline(context: Context) -> None:
    """Draw Figure 5; see `registry.draw`.

    Raises:
        InputError: a table is missing.
    """
    draw("plot_baseline", baseline.BaselineStudy(context))


def plot_study(context: Context) -> None:
    """Draw the study over dimension, training time and seeds, and the ablations; see `registry.draw`.

    Raises:
        InputError: a table is missing, or has no rows at the headline bandwidth.
    """
    draw("plot_study", Study(context))


def plot_claims(context: Context) -> None:
    """Write the table of what one change does, seed by seed; see `registry.draw`. Raises `InputError` without claims.csv."""
    draw("plot_claims", Study(context))


def plot_frontier(context: Context) -> None:
    """Draw what Figure 5 hides: InverseScope beside InversionView; see `registry.draw`.

    Raises:
        InputError: a table is missing.
    """
    draw("plot_frontier", frontier.FrontierStudy(context))
