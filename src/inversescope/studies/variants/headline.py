"""The frontier's headline numbers: what InversionView refuses where it is as faithful as `default`."""

from __future__ import annotations

from pathlib import Path

from inversescope.report.lines import NOT_MEASURED, Line, judge
from inversescope.store import read_table

#: `default` against InversionView at the same FCR error: times the mean refusal, share of the worst head's.
TIMES, WORST = 2.0, 0.6
#: Decoding settings of `default` that are held against InversionView.
REFERENCES = {"plain": "plain", "mixed": "cache mixing"}


def frontier_lines(root: Path, task: str, model: str) -> list[Line]:
    """InversionView's refusal where it is as faithful as `default`, plain or with cache mixing, and worst heads, from the frontier.

    The goals: at least twice the mean refusal, and `default`'s worst head at most .6 of its. They are asked too where InversionView
    is lent our cache mixing, which tells the generator from the decoding."""
    results, tables = root / "results" / task / model, root / "results" / "tables"
    section = (
        "Figure 5 and what it hides: refusal of heads at default's FCR error; worst heads, whatever the error"
    )
    path = tables / f"{task}_{model}_frontier_matched.csv"
    if not path.exists():
        return [
            Line(
                section,
                "frontier",
                "not run: make figures STUDIES=frontier",
                f"≥ {TIMES:g} times",
                NOT_MEASURED,
            )
        ]
    rows = read_table(path)
    frontier = read_table(results / "frontier.csv")
    frontier = frontier[frontier["share"] == 1]
    heads = frontier[frontier["headline"]].groupby("variant")["worst_refusal"].mean()
    mixed = frontier[frontier["decoding"] == "mixed"].groupby("variant")["worst_refusal"].mean()
    ours = frontier[frontier["variant"] == "default"].groupby("decoding")["worst_refusal"].mean()
    lines = []
    for row in rows.to_dict("records"):
        other, reference = row["other"], row["reference"]
        if reference not in REFERENCES or not other.startswith("inversionview"):
            continue
        own = f"default {row['refusal_rate']:.3f} at error {row['fcr_error']:.3f}"
        if row["n_reached"]:
            times = row["ratio"]
            text = f"{times:.2f} times ({row['other_refusal']:.3f}; {own}), {row['n_reached']} of {row['n_seeds']} seeds"
        else:
            # It has no setting that is as faithful: then its refusal there is beyond that of its most faithful one.
            times = row["refusal_there"] / row["refusal_rate"]
            text = (
                f"never as faithful in {row['n_seeds']} seed(s): least error {row['least_error']:.3f}, refusing "
                f"{row['refusal_there']:.3f}, {times:.2f} times ({own})"
            )
        against = f"default, {REFERENCES[reference]}, against {other}{' with our cache mixing' if row['lent'] else ''}"
        lines.append(
            Line(
                section, f"{against}: mean refusal", text, f"≥ {TIMES:g} times", judge(times, times >= TIMES)
            )
        )
        theirs = mixed if row["lent"] else heads
        if other in theirs and reference in ours:
            share = float(ours[reference] / theirs[other])
            setting = "with mixing" if row["lent"] else "its headline setting"
            lines.append(
                Line(
                    section,
                    f"{against}: worst head, ours over its",
                    f"{share:.2f} ({ours[reference]:.3f} / {theirs[other]:.3f}, {setting})",
                    f"≤ {WORST:g}",
                    judge(share, share <= WORST),
                )
            )
    return lines
