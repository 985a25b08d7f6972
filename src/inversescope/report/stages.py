"""Stages `make_report` and `make_studies`: pages of what the other stages made, without torch."""

from __future__ import annotations

from inversescope.context import Context
from inversescope.report.page import write_report, write_studies


def make_report(context: Context) -> None:
    """Write results/report.html, the page of a study on indirect object identification.

    Raises:
        InputError: a table of `plot_figures` is missing; what other stages draw is named as not run instead.
    """
    write_report(context)


def make_studies(context: Context) -> None:
    """Write results/studies.html, the page of all other studies.

    Raises:
        InputError: a table of a study is missing.
    """
    write_studies(context.root, context.whole or context.config)
