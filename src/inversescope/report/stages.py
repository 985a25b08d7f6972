"""Stage `make_studies`: the page of all studies but that of indirect object identification, without torch."""

from __future__ import annotations

from inversescope.context import Context


def make_studies(context: Context) -> None:
    """Write results/studies.html and results/tables/studies_headline.{csv,md}, of all experiments.

    Raises:
        InputError: a table of a study is missing.
    """
    from inversescope.report.pages import write_studies

    write_studies(context.root, context.whole or context.config)
