"""Stages `plot_icl` and `plot_labels`: Figures 7 and 11 and their tables, without torch."""

from __future__ import annotations

from inversescope.context import Context
from inversescope.figures.registry import draw

# Imported for what they register.
from inversescope.studies.icl import headline, task_vectors
from inversescope.studies.icl.shown import IclStudy

__all__ = ["headline", "plot_icl", "plot_labels", "task_vectors"]


def plot_icl(context: Context) -> None:
    """Write the study's tables (`IclStudy.write`), and draw FCR and patching by layer of a model beside its control.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    study = IclStudy(context)
    study.write()
    draw("plot_icl", study)


def plot_labels(context: Context) -> None:
    """Draw Figures 7 and 11 with the chat model's labels as the task feature.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    draw("plot_labels", IclStudy(context))
