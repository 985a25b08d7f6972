"""Headline numbers of InversionView's case studies beside their goals: `inversescope show inversionview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.text import Text

from inversescope.config import Config, load_config
from inversescope.figures.tables import tidy
from inversescope.report.lines import MISSED, NO_GOAL, NOT_MEASURED, Line, judge
from inversescope.store import read_json, read_table
from inversescope.studies.ioi.headline import section_table
from inversescope.studies.variants.headline import frontier_lines

#: What these experiments are asked.
ACCURACY, NEAR_CHANCE, NEAR_ONE, AGREEMENT = 0.99, 0.15, 0.9, 0.03


def show_cases(root: Path, config: Config, console: Console | None = None) -> bool:
    """Print the headline numbers of counting and addition on every model, the published one's too, of the frontier and of IOI's
    causal checks; true if no goal is missed."""
    console = console or Console()
    good = True
    for (task, model), whole in with_published(root, config).items():
        experiment, own = whole.experiment(task, model), whole.of(task, model)
        if task in ("counting", "addition"):
            lines = case_lines(root, own, task, model)
        elif task == "ioi":
            lines = frontier_lines(root, task, model)
            lines += _causes(root / "results" / task / model, task) if experiment.patched else []
        else:
            continue
        console.rule(Text(f"{experiment.task} / {experiment.model}"), align="left")
        for section in dict.fromkeys(line.section for line in lines):
            console.print(section_table([line for line in lines if line.section == section]))
        good &= not any(line.verdict == MISSED for line in lines)
    return good


def with_published(root: Path, config: Config) -> dict[tuple[str, str], Config]:
    """Task and model of each experiment, the published counting model's first, and the configuration that it belongs to."""
    files = [root / "config" / name for name in ("config.yaml", "published.yaml")]
    wholes = [load_config(files), config] if all(file.exists() for file in files) else [config]
    return {(e.task, e.model): whole for whole in wholes for e in whole.experiments.values()}


def case_lines(root: Path, config: Config, task: str, model: str) -> list[Line]:
    """Headline numbers of one case study; what has not been run says so."""
    results = root / "results" / task / model
    if not (results / "fcr.csv").exists():
        published = config.models[model].source == "checkpoint"
        where = "CONFIG=config/published.yaml " if published else ""
        command = f"not run: make figures {where}STUDIES={task}"
        return [Line("case study", "tables", command, "", NOT_MEASURED)]
    fcr = tidy(read_table(results / "fcr.csv"))
    epsilon = config.kernel.epsilon
    fcr = fcr[np.isclose(fcr["epsilon"], epsilon)]
    lines = _accuracy(root, config, task, model)
    lines += _circuit(fcr, epsilon) if task == "counting" else []
    lines += _agreement(fcr, config, epsilon, goal=task == "addition")
    lines += _causes(results, task)
    if task == "addition":
        lines += _answers(results)
    return lines + _completeness(results, task, epsilon)


def _accuracy(root: Path, config: Config, task: str, model: str) -> list[Line]:
    path = root / "data" / task / model / "target" / "target.json"
    results = root / "results" / task / model
    table = results / "target_import.csv"
    settings = config.models[model]
    if settings.source == "checkpoint":
        found = float(read_table(table)["accuracy"].iloc[0]) if table.exists() else float("nan")
        return [
            Line(
                "target",
                "right answers, fresh prompts",
                f"{found:.4f}",
                f"≥ {ACCURACY}",
                judge(found, found >= ACCURACY),
            )
        ]
    found = float("nan")
    if path.exists():
        found = float(read_json(path)["accuracy"])
    elif (results / "target_selection.csv").exists():
        chosen = read_table(results / "target_selection.csv")
        found = float(chosen.loc[chosen["selected"], "accuracy"].iloc[0])
    gate = settings.training.gate_accuracy
    return [
        Line(
            "target",
            "right answers, held-out prompts",
            f"{found:.4f}",
            f"≥ {ACCURACY} (gate {gate})",
            judge(found, found >= ACCURACY),
        )
    ]


def _rate(fcr: pd.DataFrame, site: str, feature: str) -> tuple[str, float, float, float]:
    rows = fcr[(fcr["site"] == site) & (fcr["feature"] == feature) & (fcr["estimator"] == "exact")]
    if rows.empty:
        return "not read", float("nan"), float("nan"), float("nan")
    one = rows.iloc[0]
    text = f"{one['fcr']:.3f} [{one['ci_low']:.3f}, {one['ci_high']:.3f}]"
    return text, float(one["fcr"]), float(one["ci_low"]), float(one["ci_high"])


def _circuit(fcr: pd.DataFrame, epsilon: float) -> list[Line]:
    """Counting: the count is formed at the target letter, sharpened by MLP 0, and moved to the colon by the head of layer 1."""
    section = f"the count along the computation, exact FCR at ε = {epsilon:g}"
    chance = float(fcr.loc[fcr["feature"] == "count", "chance"].iloc[0])
    lines = []
    before, value, _, _ = _rate(fcr, "L0.resid_post@colon", "count")
    limit = chance + NEAR_CHANCE
    goal = f"≤ {limit:.2f} (chance {chance:.2f})"
    lines.append(
        Line(
            section,
            "colon, before the head of layer 1",
            before,
            goal,
            judge(value, value <= limit),
        )
    )
    for what, site in (
        ("colon, output of the head of layer 1", "L1H0@colon"),
        ("colon, behind that head", "L1.resid_mid@colon"),
        ("colon, at the end", "L1.resid_post@colon"),
    ):
        text, value, _, _ = _rate(fcr, site, "count")
        lines.append(Line(section, what, text, f"≥ {NEAR_ONE}", judge(value, value >= NEAR_ONE)))
    mid, m, _, top = _rate(fcr, "L0.resid_mid@target", "count")
    post, p, low, _ = _rate(fcr, "L0.resid_post@target", "count")
    lines.append(
        Line(
            section,
            "target letter, before and behind MLP 0",
            f"{mid} → {post}",
            "sharper: intervals apart",
            judge(p - m, low > top),
        )
    )
    return lines


def _agreement(fcr: pd.DataFrame, config: Config, epsilon: float, goal: bool) -> list[Line]:
    section = f"error against the exact FCR at ε = {epsilon:g}: mean and largest over sites and features"
    lines = []
    for estimator in ("cache", "combined", "generated", "reweighted"):
        rows = fcr[fcr["estimator"] == estimator]
        for variant in [v for v in ("", *config.studied_variants) if v in set(rows["variant"])]:
            part = rows[rows["variant"] == variant].drop_duplicates(["site", "feature"])
            error = part["error"].abs()
            text = "none: no candidate was accepted anywhere"
            if error.notna().any():
                worst = part.loc[error.idxmax()]
                text = f"{error.mean():.3f}, {error.max():.3f} ({worst['feature']} at {worst['site']})"
            judged = goal and estimator in ("combined", "generated") and variant == "default"
            verdict = judge(float(error.max()), float(error.max()) <= AGREEMENT) if judged else NO_GOAL
            lines.append(
                Line(
                    section,
                    f"{estimator} {variant}".strip(),
                    text,
                    f"largest ≤ {AGREEMENT}" if judged else "",
                    verdict,
                )
            )
    return lines


#: Of a table that lacks what is shown.
EARLIER = "made by an earlier version: run it again"
#: Feature of which a task's causal agreement is asked. Of addition it is asked token by token (`_answers`): the first digit of the
#: sum, which `check_causes` reads, tells little of the operands' later digits.
ASKED = {"counting": "count", "ioi": "object"}
LEADING = {**ASKED, "addition": "F1"}


def _causes(results: Path, task: str) -> list[Line]:
    section = "causal checks: exact FCR against the size of patching's effect, over sites"
    path = results / "causes_rank.csv"
    if not path.exists():
        return [Line(section, "rank correlation", "not run", "interval above 0", NOT_MEASURED)]
    lines = []
    ranks = read_table(path)
    if "n_distinct" not in ranks:
        return [Line(section, "rank correlation", EARLIER, "interval above 0", NOT_MEASURED)]
    for row in ranks.to_dict("records"):
        asked = row["sites"] == "path" and row["feature"] == ASKED.get(task)
        where = "sites with a path to the answer" if row["sites"] == "path" else "sites"
        lines.append(_rank_line(section, f"rank correlation, {row['feature']}", row, where, asked))
    causes = read_table(results / "causes.csv")
    leading = causes[causes["feature"] == LEADING[task]]
    for row in leading.sort_values("effect", ascending=False).head(4).to_dict("records"):
        interval = f"[{row['effect_low']:.2f}, {row['effect_high']:.2f}]"
        text = f"{row['effect']:.2f} {interval} logits, {row['share']:.0%} of all; FCR {row['fcr']:.2f}"
        lines.append(Line(section, f"largest effects, {row['feature']}: {row['site']}", text, "", NO_GOAL))
    return lines


def _rank_line(section: str, what: str, row: dict[Any, Any], where: str, asked: bool) -> Line:
    distinct = f" ({row['n_distinct']} different)" if row["n_distinct"] < row["n_sites"] else ""
    text = f"{row['spearman']:.2f} [{row['low']:.2f}, {row['high']:.2f}], {row['n_sites']} {where}{distinct}"
    verdict = judge(row["spearman"], row["low"] > 0) if asked else NO_GOAL
    return Line(section, what, text, "interval above 0" if asked else "", verdict)


def _answers(results: Path) -> list[Line]:
    """Each token of the answer: agreement of FCR and effect, and the heads that carry it."""
    section = "each digit of the sum, where it is predicted: exact FCR against effect, and the heads of the largest effects"
    path = results / "answers_rank.csv"
    if not path.exists():
        return [Line(section, "rank correlation", "not run", "interval above 0", NOT_MEASURED)]
    lines = [
        _rank_line(section, f"rank correlation, {row['feature']}", row, "sites", True)
        for row in read_table(path).to_dict("records")
    ]
    answers = read_table(results / "answers.csv")
    heads = answers[(answers["feature"] == "answer") & answers["head"].notna()]
    for digit, part in heads.groupby("digit"):
        best = part.sort_values("share", ascending=False).head(2).to_dict("records")
        text = "; ".join(
            f"{r['site']} {r['share']:.2f} [{r['share_low']:.2f}, {r['share_high']:.2f}]" for r in best
        )
        lines.append(Line(section, f"share of the effect, A{digit}", text, "", NO_GOAL))
    return lines


def _completeness(results: Path, task: str, epsilon: float) -> list[Line]:
    """Completeness of each generator, from the smallest to the largest."""
    section = "completeness: preimage missed (under a tenth of its probability); recall at 1000 draws, beside P(x; z)'s own"
    path = results / "completeness_sizes.csv"
    if not path.exists():
        return [Line(section, "generators", "not run", "", NOT_MEASURED)]
    sizes = read_table(path)
    if "spearman" not in sizes:
        return [Line(section, "generators", EARLIER, "", NOT_MEASURED)]
    refusal = tidy(read_table(results / "refusal.csv"))
    refusal = refusal[np.isclose(refusal["epsilon"], epsilon)].drop_duplicates(["site", "variant"])
    means = refusal.groupby("variant")[["refusal_rate", "fcr_error"]].mean()
    lines = []
    for row in sizes.sort_values("n_parameters", kind="stable").to_dict("records"):
        name = row["variant"]
        beside = (
            f"; refusal {means.loc[name, 'refusal_rate']:.3f}, FCR error {means.loc[name, 'fcr_error']:.3f}, "
            f"ρ(log q, distance) {row['spearman']:.2f}"
        )
        lines.append(
            Line(
                section,
                f"{name}, {row['n_parameters']:,} parameters",
                f"{row['missed']:.3f}; {row['recall_1000']:.4f} / {row['ideal_1000']:.4f}{beside}",
                "",
                NO_GOAL,
            )
        )
    # Where even draws from P(x; z) find next to nothing, a small difference says nothing: so the largest of all numbers of draws.
    recall = read_table(results / "completeness_recall.csv")
    for name, part in recall.groupby("variant", sort=False):
        short = part["ideal"] - part["recall"]
        worst = part.loc[short.idxmax()]
        judged = task == "addition" and name == "default"
        text = f"{short.max():.3f} ({worst['site']}, {worst['draws']:,} draws: {worst['recall']:.3f} of {worst['ideal']:.3f})"
        goal, verdict = (
            (f"≤ {AGREEMENT}", judge(short.max(), short.max() <= AGREEMENT)) if judged else ("", NO_GOAL)
        )
        what = f"{name}: largest shortfall of recall behind P(x; z)'s own, over sites and draws"
        lines.append(Line(section, what, text, goal, verdict))
    return lines
