"""Figures and tables by decoration. A figure is one decorated function and its caption, report/NAME.rst:

    @figure("fig4", "plot_figures", title="Figure 4: object and subject FCR of attention heads")
    def fig4(study: Study) -> Drawing:
        ...
        return drawn, data

The stage named there draws it, and the rules plan it: they read names, titles and needs from the source (`workflow.figures`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from inversescope.context import echo
from inversescope.figures.save import save_figure, save_table
from inversescope.figures.study import Study
from inversescope.figures.style import publication_style
from inversescope.workflow.figures import planned
from inversescope.workflow.plan import weights_note

#: A figure, and what it shows, a row a mark.
Drawing = tuple[Figure, pd.DataFrame]
#: A table, and the same for readers, in Markdown.
Page = tuple[pd.DataFrame, str]
_FUNCTIONS: dict[tuple[str, str, str], Callable[[Any], Any]] = {}


def figure(
    name: str, stage: str, *, title: str, needs: dict[str, list[Any]] | None = None
) -> Callable[[Callable[[Any], Drawing]], Callable[[Any], Drawing]]:
    """Register a function that draws a figure of a study.

    Args:
        name: of the caption, and of the files behind the names of task and model.
        stage: the stage that draws it.
        title: for reports; those of the paper's figures begin with "Figure" and the number.
        needs: `variants`, `decodings` or `bandwidths` without which there is no such figure.
    """
    return _register(stage, "figure", name)


def table(
    name: str, stage: str, *, title: str, needs: dict[str, list[Any]] | None = None
) -> Callable[[Callable[[Any], Page]], Callable[[Any], Page]]:
    """Register a function that makes a table of a study; see `figure`."""
    return _register(stage, "table", name)


def _register(stage: str, kind: str, name: str) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        _FUNCTIONS[stage, kind, name] = function
        return function

    return register


def draw(stage: str, study: Study, prefix: str | None = None) -> None:
    """Draw all figures and tables of a stage that the study's configuration allows.

    Writes results/figures/{prefix}{name}.{png,pdf,csv} and results/tables/{prefix}{name}.{csv,md}; the prefix is that of the
    study's task and model if it is absent.

    Raises:
        InputError: a table, or rows that a figure needs, are missing; the message names the rule that makes them.
    """
    context = study.context
    stem = f"{context.task_name}_{context.model_name}_" if prefix is None else prefix
    for one in planned(stage, context.plan):
        echo(f"{stage}: {one.name}")
        out = context.root / "results" / f"{one.kind}s" / f"{stem}{one.name}"
        with publication_style():
            shown, data = _FUNCTIONS[stage, one.kind, one.name](study)
            if one.kind == "figure":
                save_figure(shown, data, out)
            else:
                note = weights_note(context.config, stem)
                save_table(shown, f"{data.rstrip()}\n\n{note}", out)
