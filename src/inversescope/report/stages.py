"""Stage `make_studies`: the page of all studies but that of indirect object identification, without torch."""

from __future__ import annotations

from pathlib import Path

from inversescope.config import Config


def make_studies(root: Path, config: Config) -> None:
    """Write results/studies.html and results/tables/studies_headline.{csv,md}.

    Args:
        root: repository root.
        config: the whole configuration, not as one experiment sees it.

    Raises:
        InputError: a table of a study is missing.
    """
    from inversescope.report.pages import write_studies

    write_studies(root, config)
