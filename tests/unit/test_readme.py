"""The README shows what the workflow wrote."""

from __future__ import annotations

import re
from pathlib import Path

from inversescope.report.readme import TABLE, with_headline

ROOT = Path(__file__).parents[2]


def test_the_headline_table_is_the_one_that_the_workflow_wrote() -> None:
    """`python -m inversescope.report.readme` mends a difference."""
    readme = (ROOT / "README.md").read_text()
    assert with_headline(readme, (ROOT / TABLE).read_text()) == readme


def test_every_picture_and_page_that_the_readme_names_is_in_the_repository() -> None:
    """Links to files of the repository lead somewhere."""
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 10
    for link in links:
        assert link.startswith("http") or (ROOT / link).exists(), link
