"""How figures and tables are written: PNG, PDF and CSV; CSV and Markdown. Equal numbers give equal bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from inversescope.errors import neutral
from inversescope.store import atomic_path, write_table


def as_written(frame: pd.DataFrame) -> pd.DataFrame:
    """Round floats to the six significant digits of the CSV, so that what is drawn is what is written."""
    result = frame.reset_index(drop=True).copy()
    for name in result.columns:
        if pd.api.types.is_float_dtype(result[name]):
            values = result[name].to_numpy(dtype=float, na_value=np.nan)
            result[name] = [float(f"{value:.6g}") for value in values]
    return result


def save_figure(figure: Figure, data: pd.DataFrame, out: Path) -> None:
    """Write a figure as PNG (200 dpi) and PDF (vector), and what it shows as CSV beside them, without date and version.

    Args:
        figure: what was drawn.
        data: the plotted numbers, one row a mark.
        out: path without suffix.
    """
    png, pdf, csv = (out.parent / (out.name + suffix) for suffix in (".png", ".pdf", ".csv"))
    with atomic_path(png) as part:
        figure.savefig(part, format="png", dpi=200, metadata={"Software": None})
    # The layout of the PNG is kept: solving it again would take as long as drawing, and could shift by a hair.
    figure.set_layout_engine("none")
    with atomic_path(pdf) as part:
        metadata = {"CreationDate": None, "Creator": "InverseScope", "Producer": "InverseScope"}
        figure.savefig(part, format="pdf", dpi=300, metadata=metadata)
    write_table(data, csv)


def save_table(frame: pd.DataFrame, text: str, out: Path) -> None:
    """Write a table as CSV, and its text for readers as Markdown.

    Args:
        frame: the table.
        text: Markdown, in which texts of a model are escaped (`markdown`).
        out: path without suffix.
    """
    # Whoever prints the file to a terminal must not be steered by it; raw candidates keep every byte.
    names = frame.select_dtypes(exclude=["number", "bool"]).columns
    plain = {n: frame[n].map(lambda cell: neutral(cell) if isinstance(cell, str) else cell) for n in names}
    write_table(frame.assign(**plain), out.parent / f"{out.name}.csv")
    with atomic_path(out.parent / f"{out.name}.md") as part:
        part.write_text(text.rstrip() + "\n", encoding="utf-8")


def markdown(text: Any) -> str:
    """Text of a model as literal Markdown: markup and control characters escaped, on one line."""
    result = neutral(" ".join(str(text).split()))
    result = result.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_{}[]|#!~":
        result = result.replace(mark, "\\" + mark)
    return result


def markdown_table(frame: pd.DataFrame, form: str = ".3g", forms: Mapping[str, str] | None = None) -> str:
    """A table in Markdown, every cell escaped.

    Args:
        frame: the table; missing values become empty cells, flags marks.
        form: format of floats.
        forms: other formats of single columns' floats.
    """
    forms = forms or {}

    def cell(name: str, value: Any) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
            return ""
        if isinstance(value, bool | np.bool_):
            return "✓" if value else "✗"
        return format(value, forms.get(name, form)) if isinstance(value, float) else markdown(value)

    names = [str(name) for name in frame.columns]
    right = [pd.api.types.is_numeric_dtype(frame[name]) for name in frame.columns]
    rows = [
        [cell(name, value) for name, value in zip(names, row, strict=True)]
        for row in frame.itertuples(index=False, name=None)
    ]
    rule = ["---:" if number else "---" for number in right]
    return "\n".join(_row(cells) for cells in [[markdown(name) for name in names], rule, *rows])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def interval(value: float, low: float = np.nan, high: float = np.nan, form: str = "") -> str:
    """A value with its interval in brackets; the value alone where there is none, a dash without a value.

    Without a format: three decimals, but two digits of what is smaller than .01.
    """
    if not np.isfinite(value):
        return "–"
    form = form or (".2g" if 0 < abs(value) < 0.01 else ".3f")
    return format(value, form) + (f" [{low:{form}}, {high:{form}}]" if np.isfinite(low) else "")
