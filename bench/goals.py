"""Goals that were set before the runs, and whether they are met: `python -m bench goals`.

Each row of goals.csv names tables below results/, conditions on the rows that count (patterns, parted by semicolons), a column,
what is taken over these rows (`top 4`: the fourth highest), and a limit. A limit `who=NAME` compares each row with that of NAME
beside it. Headline numbers have further columns: `size` (of the value, whatever its sign), `error` (of the value against the
exact one) and `above_chance`.
"""

from __future__ import annotations

import operator
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
from bench.tables import options

from inversescope.figures.save import markdown_table
from inversescope.store import read_json, read_table, write_table

GOALS = Path(__file__).with_name("goals.csv")
RELATIONS = {"≤": operator.le, "<": operator.lt, "≥": operator.ge, ">": operator.gt}


def rows_of(results: Path, table: str, where: str) -> pd.DataFrame:
    """Rows of all tables of a pattern that meet the conditions; none if nothing was run."""
    files = sorted(results.glob(table))
    frames = [
        pd.DataFrame([read_json(f)]) if f.suffix == ".json" else read_table(f).assign(file=f.name)
        for f in files
    ]
    rows = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    for condition in where.split(";") if where and len(rows) else ():
        column, _, pattern = condition.partition("=")
        rows = rows[[fnmatchcase(str(value), pattern) for value in rows[column]]]
    if "value" in rows:
        value = rows["value"]
        beside = {"error": (value - rows["exact"]).abs(), "above_chance": value - rows["chance"]}
        rows = rows.assign(size=value.abs(), **beside)
    return rows


def judge(goal: dict[str, str], results: Path) -> dict[str, object]:
    """A goal, what was measured, and whether it is met; `not measured` where there is no row."""
    rows, column = rows_of(results, goal["table"], goal["where"]), goal["column"]
    rows = rows.dropna(subset=column) if column in rows else pd.DataFrame()
    told = {"study": goal["study"], "goal": goal["goal"], "limit": f"{goal['relation']} {goal['limit']}"}
    if rows.empty:
        return told | {"measured": "", "verdict": "not measured"}
    good, values = RELATIONS[goal["relation"]], rows[column].astype(float)
    if goal["limit"].startswith("who="):
        of = goal["where"].split(";")
        other = ";".join([*(part for part in of if not part.startswith("who=")), goal["limit"]])
        key = ["file", "section", "what"]
        both = rows.merge(
            rows_of(results, goal["table"], other)[[*key, "value"]], on=key, suffixes=("", "_other")
        )
        met = good(both["value"], both["value_other"])
        return told | {
            "measured": f"{int(met.sum())} of {len(met)}",
            "verdict": "met" if met.all() else "missed",
        }
    over, _, count = goal["over"].partition(" ")  # "top 4": the fourth highest
    measured = float(values.nlargest(int(count)).min() if count else values.agg(over))
    return told | {
        "measured": f"{measured:.4g}",
        "verdict": "met" if good(measured, float(goal["limit"])) else "missed",
    }


def judged(results: Path) -> pd.DataFrame:
    """All goals, what was measured below a folder of results, and the verdicts."""
    goals = pd.read_csv(GOALS, dtype=str, keep_default_na=False).to_dict("records")
    return pd.DataFrame([judge(goal, results) for goal in goals])


def main() -> None:
    """Print all goals in Markdown, and write them where asked."""
    parser = options((__doc__ or "").splitlines()[0], "goals")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="docs/results: the last full run"
    )
    arguments = parser.parse_args()
    table = judged(arguments.results)
    print(markdown_table(table))
    if arguments.out is not None:
        write_table(table, arguments.out)


if __name__ == "__main__":
    main()
