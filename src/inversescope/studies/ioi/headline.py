"""The headline numbers of a study beside their goals, for the terminal, the report and the README."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from inversescope.config import Config
from inversescope.errors import InputError, neutral
from inversescope.figures.tables import (
    MIXED,
    PLAIN,
    estimator_rows,
    fcr_errors,
    full_cache,
    pooled_rmse,
    select,
    tidy,
    uncovered_share,
)
from inversescope.report.lines import MET, MISSED, NO_GOAL, NOT_MEASURED, Line, judge
from inversescope.store import read_json, read_table
from inversescope.studies.icl.headline import headline_icl
from inversescope.studies.variants.figures import misleading_claim, training_claim
from inversescope.studies.variants.headline import frontier_lines

GROUPS = {"heads": "heads", "residual": "residual sites"}
#: Bandwidths at which the estimators are compared.
ESTIMATOR_EPSILONS = (0.1, 0.02, 0.005)
FCR_GOALS = {"combined": 0.01, "reweighted": 0.02, "generated": 0.04}
REFUSAL_GOALS = {
    ("heads", MIXED): 0.20,
    ("heads", PLAIN): 0.30,
    ("residual", MIXED): 0.12,
    ("residual", PLAIN): 0.12,
}
#: Sparse: at least this share of the targets has no cached neighbour.
SPARSE = 0.1
ENTROPY_GAP, PARSE_REFUSAL = 0.5, 0.03
WALL_MINUTES, MEMORY_GIB = 15.0, 4.0
#: Benchmarks: file stem under results/bench -> (what, column, goal, whether more is better).
BENCH: tuple[tuple[str, str, dict[str, str], str, float, bool], ...] = (
    ("sampling", "sampling: tokens/s over HF generate's", {}, "speed_ratio", 5.0, True),
    (
        "extraction",
        "extraction, prompts drawn from the prior: prompts/s over TransformerLens's fastest",
        {"model": "embedded", "prompts": "draws", "method": "inversescope"},
        "times_fastest_transformer_lens",
        3.0,
        True,
    ),
    (
        "extraction",
        "extraction, unrelated prompts: prompts/s over TransformerLens's fastest",
        {"model": "embedded", "prompts": "unrelated", "method": "inversescope"},
        "times_fastest_transformer_lens",
        3.0,
        True,
    ),
    (
        "extraction",
        "extraction: bytes over TransformerLens's cached results",
        {"model": "embedded", "prompts": "draws", "method": "inversescope"},
        "share_of_transformer_lens_bytes",
        0.1,
        False,
    ),
)


def headline(root: Path, config: Config, task: str, model: str) -> list[Line]:
    """Compute every headline number of a study from its result tables.

    Args:
        root: repository root.
        config: the configuration.
        task: name of the task.
        model: name of the target model.

    Returns:
        Lines in the order in which they are shown; what has not been run says so, with the command.

    Raises:
        InputError: fcr.csv or refusal.csv is missing.
    """
    results = root / "results" / task / model
    fcr, refusal = tidy(_need(results / "fcr.csv")), tidy(_need(results / "refusal.csv"))
    epsilon, features = config.kernel.epsilon, list(config.fcr.features[:2])
    return [
        *_cost(root),
        *_faithfulness(fcr, epsilon, features),
        *_disjoint(fcr, epsilon, features),
        *_cells(fcr, features),
        *_refusal(refusal, epsilon),
        *_claim(results / "study.csv", epsilon, config.fcr.confidence),
        *frontier_lines(root, task, model),
        *_bench(root / "results" / "bench"),
    ]


def show_task(root: Path, config: Config, task: str, console: Console | None = None) -> bool:
    """Print the headline numbers of every study of a task; true if no goal is missed.

    Raises:
        InputError: no experiment reads this task, or a table is missing.
    """
    console = console or Console()
    experiments = [e for e in config.experiments.values() if e.task == task]
    if not experiments:
        known = ", ".join(sorted({e.task for e in config.experiments.values()}))
        raise InputError(
            f"No experiment of the configuration reads the task '{task}'", f"Use one of: {known}"
        )
    good = True
    for experiment in experiments:
        lines = HEADLINES[task](root, config.of(task, experiment.model), task, experiment.model)
        if not lines:  # a control, shown beside another model
            continue
        console.rule(Text(f"{task} / {experiment.model}"), align="left")
        for section in dict.fromkeys(line.section for line in lines):
            console.print(section_table([line for line in lines if line.section == section]))
        for variant in ("paper", "default"):
            _print_examples(console, root, task, experiment.model, variant)
        good &= all(line.verdict != MISSED for line in lines)
    return good


#: Task -> what its headline numbers are.
HEADLINES = {"ioi": headline, "icl_translation": headline_icl}


def section_table(lines: list[Line]) -> Table:
    """The lines of one section as a rich table; a column for `paper` where it has numbers."""
    table = Table(
        title=Text(lines[0].section),
        title_justify="left",
        title_style="bold",
        header_style="dim",
        expand=True,
    )
    beside = any(line.paper for line in lines)
    table.add_column("", ratio=5, overflow="fold")
    table.add_column("default" if beside else "measured", ratio=4, overflow="fold")
    table.add_column("goal", ratio=3, overflow="fold")
    table.add_column("", ratio=2)
    if beside:
        table.add_column("paper", ratio=4, overflow="fold")
    colours = {MET: "green", MISSED: "red", NOT_MEASURED: "yellow", NO_GOAL: ""}
    for line in lines:
        verdict = Text(line.verdict, style=colours[line.verdict])
        table.add_row(
            Text(line.what),
            Text(line.value),
            Text(line.goal),
            verdict,
            *([Text(line.paper)] if beside else []),
        )
    return table


def headline_frame(lines: list[Line]) -> pd.DataFrame:
    """Headline lines as a table: section, what, value, goal, verdict, paper."""
    return pd.DataFrame(
        [asdict(line) for line in lines], columns=["section", "what", "value", "goal", "verdict", "paper"]
    )


def _need(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise InputError(f"{path} does not exist", "Run `make figures` (rule collect_tables)")
    return read_table(path)


def _faithfulness(fcr: pd.DataFrame, epsilon: float, features: list[str]) -> list[Line]:
    """Mean |FCR - exact| for each estimator, decoding and group, `paper` beside `default`."""
    lines = []
    section = f"mean |FCR − exact| over sites and {', '.join(features)}, ε = {epsilon:g}"
    for decoding, how in ((PLAIN, ""), (MIXED, ", cache mixing")):
        for estimator, goal in FCR_GOALS.items():
            means = {}
            for variant in ("default", "paper"):
                rows = fcr[(fcr["variant"] == variant) & (fcr["estimator"] == estimator)]
                if decoding == PLAIN or (rows["decoding"] == decoding).any():
                    errors = fcr_errors(fcr, epsilon, features, estimator, decoding, variant)
                    means[variant] = errors.dropna(subset="error").groupby("group")["error"].mean()
            for group, title in GROUPS.items():
                value = {variant: float(mean.get(group, np.nan)) for variant, mean in means.items()}
                ours = value.get("default", np.nan)
                if not any(np.isfinite(list(value.values()))):
                    continue
                verdict = judge(ours, ours <= goal) if decoding == PLAIN else NO_GOAL
                words = f"≤ {goal:g}" if decoding == PLAIN else ""
                text = {
                    variant: f"{number:.4f}" if np.isfinite(number) else "–"
                    for variant, number in value.items()
                }
                what = f"{estimator}{how}, {title}"
                lines.append(
                    Line(section, what, text.get("default", "–"), words, verdict, text.get("paper", "–"))
                )
    alone = fcr_errors(fcr, epsilon, features, "cache", "", "").dropna(subset="error")
    for group, title in GROUPS.items():
        error = alone.loc[alone["group"] == group, "error"].mean()
        lines.append(Line(section, f"cache alone, no generator, {title}", f"{error:.4f}", "", NO_GOAL))
    return lines


def _disjoint(fcr: pd.DataFrame, epsilon: float, features: list[str]) -> list[Line]:
    """Sites where the intervals of `combined` and `exact` do not meet."""
    value = {}
    for variant in ("default", "paper"):
        rows = fcr_errors(fcr, epsilon, features, "combined", PLAIN, variant)
        apart = rows[(rows["ci_low"] > rows["exact_high"]) | (rows["ci_high"] < rows["exact_low"])]
        names = ", ".join(f"{s} ({f})" for s, f in zip(apart["site"][:4], apart["feature"][:4], strict=True))
        value[variant] = f"{apart['site'].nunique()} of {rows['site'].nunique()}" + (
            f": {names}" if names else ""
        )
    verdict = MET if value["default"].startswith("0 ") else MISSED
    section = f"agreement of combined and exact, ε = {epsilon:g}"
    what = "sites whose intervals are disjoint"
    lines = [Line(section, what, value["default"], "none", verdict, value["paper"])]
    if "error_low" in fcr:
        for variant in value:
            key: dict[str, Any] = {"feature": features, "epsilon": epsilon, "estimator": "combined"}
            rows = full_cache(select(fcr, "fcr.csv", variant=variant, decoding=PLAIN, **key))
            apart = (rows["error_low"] > 0) | (rows["error_high"] < 0)
            value[variant] = f"{int(apart.sum())} of {len(rows)}"
        what = "rates whose paired interval of combined − exact leaves 0 out (1 in 20 by chance)"
        lines.append(Line(section, what, value["default"], "", NO_GOAL, value["paper"]))
    return lines


def _cells(fcr: pd.DataFrame, features: list[str]) -> list[Line]:
    """Error of a single cell of cache, reweighted and combined: full cache, and sparse settings."""
    section = (
        "error of a single cell (rms over sites, features and the targets that each answers; their share in brackets): "
        "combined below cache and reweighted"
    )
    names = ("combined", "cache", "reweighted")
    rows = {name: estimator_rows(fcr, name, features) for name in names}
    rows = {name: part[part["group"].isin(list(GROUPS))] for name, part in rows.items()}
    empty = uncovered_share(fcr, features)
    empty = empty[empty["group"].isin(list(GROUPS))]
    largest = int(rows["combined"]["cache"].max())
    full = select(fcr, estimator="exact", feature=features)
    lines, sparse = [], False
    for size in sorted({int(size) for size in rows["combined"]["cache"]}, reverse=True):
        here = {name: part[part["cache"] == size] for name, part in rows.items()}
        for epsilon in sorted(here["combined"]["epsilon"].unique(), reverse=True):
            uncovered = empty[(empty["cache"] == size) & np.isclose(empty["epsilon"], epsilon)]
            uncovered = uncovered[uncovered["site"].isin(here["combined"]["site"])]
            share = float(uncovered["share_lt1"].mean())
            dense = size == largest and any(np.isclose(epsilon, e) for e in ESTIMATOR_EPSILONS)
            if not dense and not share >= SPARSE:
                continue
            sparse |= share >= SPARSE
            value = {
                name: pooled_rmse(part[np.isclose(part["epsilon"], epsilon)]) for name, part in here.items()
            }
            others = [value[name] for name in names[1:] if np.isfinite(value[name])]
            verdict = judge(value["combined"], bool(others) and value["combined"] < min(others))
            sizes = {
                name: float(part.loc[np.isclose(part["epsilon"], epsilon), "n_targets"].mean())
                for name, part in here.items()
            }
            asked = float(full.loc[np.isclose(full["epsilon"], epsilon), "n_targets"].mean())
            text = ", ".join(
                f"{name} {number:.3f} ({sizes[name] / asked:.0%})" for name, number in value.items()
            )
            what = f"cache of {size:,}, ε = {epsilon:g}, {share:.0%} of targets without neighbour"
            lines.append(Line(section, what, text, "combined lowest", verdict))
    if not sparse:
        what = f"a sparse setting (at least {SPARSE:.0%} of targets without neighbour)"
        lines.append(Line(section, what, "none in fcr.csv", "combined lowest", NOT_MEASURED))
    return lines


def _refusal(refusal: pd.DataFrame, epsilon: float) -> list[Line]:
    """Refusal, its parse part, entropy gap and FCR error, side by side, `paper` beside `default`."""
    section = (
        f"refusal at ε = {epsilon:g}, temperature 1, with entropy gap and FCR error (generated); site means"
    )
    lines = []
    for decoding, how in ((MIXED, "cache mixing"), (PLAIN, "plain")):
        rows = refusal[(refusal["decoding"] == decoding) & np.isclose(refusal["epsilon"], epsilon)]
        by_variant = {
            v: full_cache(rows[rows["variant"] == v]).drop_duplicates("site") for v in ("default", "paper")
        }
        for group, title in GROUPS.items():
            if not (refusal["group"] == group).any():
                continue
            goal = REFUSAL_GOALS[(group, decoding)]
            text, verdict = {}, NOT_MEASURED
            for variant, part in by_variant.items():
                part = part[part["group"] == group]
                rate, gap, error = (
                    float(part[c].mean()) for c in ("refusal_rate", "entropy_gap", "fcr_error")
                )
                text[variant] = f"{rate:.3f} (gap {gap:+.2f}, error {error:.3f})" if len(part) else "no rows"
                if variant == "default":
                    verdict = judge(rate + gap, rate <= goal and abs(gap) <= ENTROPY_GAP)
            words = f"≤ {goal:.2f}, |gap| ≤ {ENTROPY_GAP:g} nats"
            lines.append(
                Line(section, f"refused, {how}, {title}", text["default"], words, verdict, text["paper"])
            )
        share = {v: float(part["parse_refusal"].mean()) for v, part in by_variant.items()}
        text = {v: f"{number:.4f}" if np.isfinite(number) else "no rows" for v, number in share.items()}
        verdict = judge(share["default"], share["default"] < PARSE_REFUSAL)
        lines.append(
            Line(
                section,
                f"not in the prior, {how}, all sites",
                text["default"],
                f"< {PARSE_REFUSAL:g}",
                verdict,
                text["paper"],
            )
        )
    return lines


def _claim(path: Path, epsilon: float, confidence: float) -> list[Line]:
    """Does the paper's noise mislead? Paper minus default, paired by seed."""
    section = "where Appendix B's noise misleads: paper − default by seed, with t intervals"
    goal = "FCR error higher, refusal not"
    if not path.exists():
        return [
            Line(section, "study over dimension, steps and seeds", "not run: make study", goal, NOT_MEASURED)
        ]
    study, lines = read_table(path), []

    def both(row: dict[str, Any]) -> str:
        return ", ".join(
            f"{name} {row[key + '_difference']:+.3f} [{row[key + '_low']:+.3f}, {row[key + '_high']:+.3f}]"
            for name, key in (("FCR error", "fcr_error"), ("refusal", "refusal_rate"))
        )

    for row in misleading_claim(study, epsilon, confidence).to_dict("records"):
        what = f"dimension {row['dim']:g}, training {row['steps_multiple']:g}×, {row['n_seeds']} seeds"
        if row["n_seeds"] < 2:
            decided = "undecided: needs two seeds"
        elif row["misleads"]:
            decided = "wrong without a higher refusal"
        else:
            decided = (
                "wrong, and refuses more" if row["fcr_error_low"] > 0 else "no difference in error shown"
            )
        lines.append(Line(section, what, both(row), decided, NO_GOAL))
    section = "longer training: refusal and FCR error, most steps − fewest by seed, with t intervals"
    for row in training_claim(study, epsilon, confidence).to_dict("records"):
        steps = f"{row['from_multiple']:g}× to {row['to_multiple']:g}×"
        what = f"{row['base']}, dimension {row['dim']:g}, {steps}, {row['n_seeds']} seeds"
        decided = "refuses less, yet more wrong" if row["misleads"] else "not misleading here"
        lines.append(
            Line(
                section,
                what,
                both(row),
                decided if row["n_seeds"] > 1 else "undecided: needs two seeds",
                NO_GOAL,
            )
        )
    return lines


def _cost(root: Path) -> list[Line]:
    """Wall time and peak memory of the study, from results/bench/study.json."""
    section = "cost of this study on 2 cores, from an empty checkout"
    path = root / "results" / "bench" / "study.json"
    if not path.exists():
        return [
            Line(
                section,
                "wall time and peak memory",
                "not measured: make bench",
                f"≤ {WALL_MINUTES:g} min, < {MEMORY_GIB:g} GiB",
                NOT_MEASURED,
            )
        ]
    cost = read_json(path)
    minutes, gib = float(cost["wall_seconds"]) / 60, float(cost["peak_bytes"]) / 2**30
    return [
        Line(
            section,
            "wall time",
            f"{minutes:.1f} min",
            f"≤ {WALL_MINUTES:g} min",
            judge(minutes, minutes <= WALL_MINUTES),
        ),
        Line(section, "peak memory", f"{gib:.2f} GiB", f"< {MEMORY_GIB:g} GiB", judge(gib, gib < MEMORY_GIB)),
    ]


def _bench(folder: Path) -> list[Line]:
    """Ratios against peers, from results/bench/{extraction,sampling}.csv."""
    section = "against peers, in one run"
    lines = []
    for stem, what, where, column, goal, more in BENCH:
        path = folder / f"{stem}.csv"
        words = f"{'≥' if more else '≤'} {goal:g}"
        table = read_table(path) if path.exists() else pd.DataFrame()
        for key, wanted in where.items():
            table = table[table[key] == wanted] if key in table else table.iloc[:0]
        # A peer that was not installed leaves its ratio empty.
        if column not in table or table[column].dropna().empty:
            lines.append(Line(section, what, "not measured: make bench", words, NOT_MEASURED))
            continue
        value = float(table[column].dropna().iloc[0])
        lines.append(
            Line(section, what, f"{value:.3g}", words, judge(value, value >= goal if more else value <= goal))
        )
    return lines


def _print_examples(console: Console, root: Path, task: str, model: str, variant: str) -> None:
    """Print the nearest samples of Table 1, their text as plain text whatever it holds."""
    path = root / "results" / "tables" / f"{task}_{model}_table1.csv"
    if not path.exists():
        return
    rows = read_table(path)
    rows = rows[rows["row"] == variant]
    table = Table(
        title=Text(f"Samples of {variant} (Table 1, first three of each head)"),
        title_justify="left",
        header_style="bold",
    )
    for name in ("head", "d(z, ẑ)", "accepted", "text"):
        table.add_column(name, overflow="fold")
    for _, part in rows.groupby("site", sort=False):
        for _, one in part.head(3).iterrows():
            if not one["n_distinct"]:
                table.add_row(
                    Text(str(one["site"])), "", "", Text("no candidate is in the prior", style="italic")
                )
                continue
            accepted = "yes" if str(one["accepted"]) == "True" else "no"
            distance, text = Text(f"{one['distance']:.3f}"), Text(neutral(str(one["text"])))
            table.add_row(Text(str(one["site"])), distance, accepted, text)
    console.print(table)
