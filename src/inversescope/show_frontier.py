"""The frontier's headline numbers: what InversionView refuses where it is as faithful as `default`."""

from __future__ import annotations

from pathlib import Path

from inversescope.show_lines import NOT_MEASURED, Line, judge
from inversescope.store import read_table

#: `default` against InversionView at the same FCR error: times the mean refusal, share of the worst head's.
TIMES, WORST = 2.0, 0.6


def frontier_lines(root: Path, task: str, model: str) -> list[Line]:
    """InversionView's refusal where it is as faithful as `default` (headline setting), and worst heads, from `make study`.

    The goals: at least twice the mean refusal, and `default`'s worst head at most .6 of its."""
    results, tables = root / "results" / task / model, root / "results" / "tables"
    section = "Figure 5 and what it hides: refusal of heads where InversionView is as faithful as default"
    path = tables / f"{task}_{model}_frontier_matched.csv"
    if not path.exists():
        return [Line(section, "frontier", "not run: make study", f"≥ {TIMES:g} times", NOT_MEASURED)]
    rows = read_table(path)
    frontier = read_table(results / "frontier.csv")
    frontier = frontier[frontier["headline"] & (frontier["share"] == 1)]
    # Settings of InverseScope are VARIANT/SETTING.
    name = (
        frontier["setting"]
        .str.split("/")
        .str[0]
        .where(frontier["generator"] == "inversescope", frontier["generator"])
    )
    worst = frontier.groupby(name)["worst_refusal"].mean()
    lines = []
    own = rows[rows["reference"] == "plain"]
    for row in own.to_dict("records"):
        other = row["other"]
        if not other.startswith("inversionview"):
            continue
        ours = f"default {row['refusal_rate']:.3f} at error {row['fcr_error']:.3f}"
        if row["n_reached"]:
            text = f"{row['ratio']:.2f} times ({row['other_refusal']:.3f}; {ours}), {row['n_reached']} of {row['n_seeds']} seeds"
            verdict = judge(row["ratio"], row["ratio"] >= TIMES)
        else:
            # It has no setting that is as faithful: then its refusal there is beyond that of its most faithful one.
            times = row["refusal_there"] / row["refusal_rate"]
            text = (
                f"never as faithful in {row['n_seeds']} seed(s): least error {row['least_error']:.3f}, refusing "
                f"{row['refusal_there']:.3f}, {times:.2f} times ({ours})"
            )
            verdict = judge(times, times >= TIMES)
        lines.append(Line(section, f"{other}: mean refusal", text, f"≥ {TIMES:g} times", verdict))
        if other in worst and "default" in worst:
            share = float(worst["default"] / worst[other])
            lines.append(
                Line(
                    section,
                    f"{other}: worst head, default's over its",
                    f"{share:.2f} ({worst['default']:.3f} / {worst[other]:.3f}, each under its headline setting)",
                    f"≤ {WORST:g}",
                    judge(share, share <= WORST),
                )
            )
    return lines
