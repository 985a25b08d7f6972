"""A headline number beside its goal."""

from __future__ import annotations

from dataclasses import dataclass

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
