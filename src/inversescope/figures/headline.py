"""Headline numbers: computed once, by the stage that plots a study, and read from its CSV by the terminal, the report and docs/.

A number is a row: `section`, `what` it is, `who` it belongs to (a variant, an estimator, a method), `value` with the interval `low`
to `high`, `unit` ("" for rates and shares, `count` for a number out of `n`), `n` sites, targets, pairs or seeds behind it, and
`chance` and the `exact` value beside it. A field that does not apply is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from inversescope.figures.save import interval, markdown_table
from inversescope.store import read_table
from inversescope.workflow.figures import Shown

COLUMNS = ["section", "what", "who", "value", "low", "high", "unit", "n", "chance", "exact"]

Row = dict[str, Any]


def number(section: str, what: str, who: str, value: Any, **more: Any) -> Row:
    """One headline number; `more` may hold low, high, unit, n, chance and exact."""
    return {"section": section, "what": what, "who": who, "value": float(value), **more}


def with_interval(row: Any, value: str = "fcr", low: str = "ci_low", high: str = "ci_high") -> Row:
    """Value and interval of a row of a table, and its chance level where it has one."""
    found = {"value": row[value], "low": row[low], "high": row[high]}
    return found | ({"chance": row["chance"]} if "chance" in row else {})


def headline_page(rows: Iterable[Row]) -> tuple[pd.DataFrame, str]:
    """Headline numbers as a table, and in Markdown."""
    frame = pd.DataFrame(list(rows), columns=COLUMNS)
    frame = frame.assign(unit=frame["unit"].astype(object).fillna(""), n=frame["n"].astype("Int64"))
    parts = [f"**{title}**\n\n{markdown_table(table)}\n" for title, table in by_section(frame).items()]
    return frame, "\n".join(parts)


def by_section(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Headline numbers as readers see them: for each section a line a `what`, a column a `who`, chance and exact values behind."""
    result = {}
    for title, part in frame.groupby("section", sort=False):
        lines = {what: {"": what} for what in part["what"]}
        for row in part.to_dict("records"):
            lines[row["what"]][row["who"] or "value"] = _cell(row)
        # Where the exact value is one of those that are compared, it is not said twice.
        besides = [name for name in ("chance", "exact") if name not in set(part["who"])]
        for beside in besides:
            known = part.dropna(subset=beside).drop_duplicates("what")
            for what, value in zip(known["what"], known[beside], strict=True):
                lines[what][beside] = f"{value:.3f}"
        names = ["", *dict.fromkeys(who or "value" for who in part["who"]), *besides]
        table = pd.DataFrame(list(lines.values())).reindex(columns=names)
        result[str(title)] = table.dropna(axis=1, how="all").fillna("")
    return result


def _cell(row: Row) -> str:
    if row["unit"] == "count":
        return f"{row['value']:,.0f} of {row['n']:,}"
    text = interval(row["value"], row["low"], row["high"])
    return f"{text} {row['unit']}".strip()


def headline_files(root: Path, prefix: str, drawn: Iterable[Shown]) -> list[Path]:
    """Tables of a study's headline numbers, the main one first.

    Args:
        root: repository root.
        prefix: how names of the study's files begin: `{task}_{model}_`, or `ravel_`.
        drawn: what is drawn of it. A file of another part is of another run.
    """
    names = dict.fromkeys(["headline", *(one.name for one in drawn if one.caption == "headline")])
    return [root / "results" / "tables" / f"{prefix}{name}.csv" for name in names]


def read_headlines(files: Sequence[Path]) -> pd.DataFrame | None:
    """Headline numbers of a study, all of its parts that are there; None if the main one, the first, is not."""
    if not files[0].exists():
        return None
    frame = pd.concat([read_table(file) for file in files if file.exists()], ignore_index=True)
    text = ["section", "what", "who", "unit"]
    return frame.assign(**{name: frame[name].astype(object).fillna("").astype(str) for name in text})
