"""What became of the faults that were tried: docs/faults.csv, and from it the table of docs/faults.md."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLUMNS = ("kind", "fault", "where", "outcome")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
TRIED: list[dict[str, str]] = []


def tried(kind: str, fault: str, where: str, outcome: str) -> None:
    """Note a fault that was tried, once its test knows what happened."""
    TRIED.append(dict(zip(COLUMNS, (kind, fault, where, outcome), strict=True)))


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: a line for each kind of fault and outcome, with how often and where."""
    count = Counter((r["kind"], r["fault"], r["outcome"]) for r in rows)
    lines = ["| fault | tried | where | what happened |", "| --- | --- | --- | --- |"]
    for (kind, fault, outcome), times in count.items():
        where = dict.fromkeys(
            r["where"] for r in rows if (r["kind"], r["fault"], r["outcome"]) == (kind, fault, outcome)
        )
        lines.append(f"| {fault} | {times} | {', '.join(where)} | {outcome} |")
    return "\n".join(lines)


def write() -> None:
    """Replace the rows of the kinds that were tried now, keep the others, and write the table anew."""
    if not TRIED:
        return
    file, page = DOCS / "faults.csv", DOCS / "faults.md"
    kinds = {row["kind"] for row in TRIED}
    kept = [r for r in csv.DictReader(file.open())] if file.exists() else []
    rows = sorted([r for r in kept if r["kind"] not in kinds] + TRIED, key=lambda r: r["kind"])
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = page.read_text()
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")
