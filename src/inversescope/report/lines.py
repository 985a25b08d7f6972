"""A headline number beside its goal, and what a study cost in such lines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inversescope.store import read_table

MET, MISSED, NOT_MEASURED, NO_GOAL = "met", "missed", "not measured", ""


@dataclass(frozen=True)
class Line:
    """One headline number: what it is, its value, the goal, whether it is met, and `paper` beside it."""

    section: str
    what: str
    value: str
    goal: str
    verdict: str
    paper: str = ""


def judge(value: float, good: bool) -> str:
    """The verdict on a number: met or missed, not measured where it is not finite."""
    return NOT_MEASURED if not np.isfinite(value) else MET if good else MISSED


#: Cores and memory that the cost of a study is measured against.
CORES, MEMORY_GIB = 2, 6.0


def cost_lines(root: Path, name: str, study: str, minutes: float) -> list[Line]:
    """Processor time and peak memory over all jobs of a study, from results/bench/{name}.csv (`python -m bench.{name}`).

    Args:
        root: repository root.
        name: the benchmark's.
        study: in words.
        minutes: the goal, on `CORES` cores.
    """
    section = f"cost of the whole {study} study"
    path = root / "results" / "bench" / f"{name}.csv"
    if not path.exists():
        what = "processor time and peak memory"
        return [Line(section, what, f"not measured: python -m bench.{name}", "", NOT_MEASURED)]
    table = read_table(path)
    seconds = float(table["cpu_seconds"].sum())
    spent = seconds / 60 / CORES
    gib = CORES * float(table["max_rss_mib"].max()) / 1024
    return [
        Line(
            section,
            f"processor time of {int(table['jobs'].sum())} jobs, shared by {CORES} cores",
            f"{spent:.1f} min ({seconds:.0f} s in all)",
            f"≤ {minutes:g} min",
            judge(spent, spent <= minutes),
        ),
        Line(
            section,
            f"peak memory, {CORES} times the largest job's",
            f"{gib:.2f} GiB",
            f"< {MEMORY_GIB:g} GiB",
            judge(gib, gib < MEMORY_GIB),
        ),
    ]
