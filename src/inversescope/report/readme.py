"""Keep the README's headline table equal to the one of the adopted run: `python -m inversescope.report.readme`."""

from __future__ import annotations

import sys
from pathlib import Path

START, END = "<!-- headline: start -->", "<!-- headline: end -->"
TABLE = Path("docs/results/tables/ioi_gpt2-embedded_headline.md")


def with_headline(readme: str, table: str) -> str:
    """The README with the table between its markers. Raises `ValueError` if a marker is missing."""
    before, rest = readme.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{table.strip()}\n{END}{after}"


def main(root: Path = Path(".")) -> int:
    """Rewrite README.md; returns the exit status."""
    path = root / "README.md"
    path.write_text(with_headline(path.read_text(), (root / TABLE).read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
