"""Headline numbers of the in-context translation study, for `inversescope show icl`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from inversescope.config import Config
from inversescope.errors import InputError
from inversescope.report.lines import MET, MISSED, NO_GOAL, Line, cost_lines
from inversescope.store import read_table
from inversescope.studies.icl.figures import FEATURES, PART_STYLE, QUERY_BAND, TASK_BAND

GATE = 0.95
LARGEST_ERROR, FEWEST_IN_BALL = 0.03, 30
#: Estimators whose largest error is shown, by decoding.
ERRORS = (("generated", "plain"), ("generated", "mixed"), ("reweighted", "plain"), ("combined", "plain"))
#: What is shown of masking.csv, by kind: outcome, words.
MASKING = {
    "returned": ("task", "task rate at the best layer, nothing taken out of the source"),
    "recentred": ("task", "the same, the mean of the best layer instead of its own"),
    "query_removed": ("task", "that, and the query's part taken out"),
    "other_removed": ("task", "control: another query's part taken out"),
    "task_removed": ("task", "control: the task's part taken out too"),
    "vector_only": ("task", "all but the task vector taken out"),
    "remaining": ("share", "length of the task vector that is left"),
    "own": ("accuracy", "linear probe of the task, trained on the layer itself"),
    "carried": ("accuracy", "linear probe of the task, trained on the best layer"),
}
WALL_MINUTES = 10.0


def headline_icl(root: Path, config: Config, task: str, model: str, cost: bool = True) -> list[Line]:
    """Compute the headline numbers of a model and its control from result tables.

    Args:
        root: repository root.
        config: the configuration as the experiment sees it.
        task: `icl_translation`.
        model: the studied target model; that of a control alone has no lines.
        cost: with what the study cost, which is measured apart.

    Raises:
        InputError: a table is missing.
    """
    if not config.studied_variants:
        return []
    results = root / "results" / task / model
    layers, bands = _need(results / "layers.csv"), _need(results / "bands.csv")
    models = [model, *([config.models[model].control] if config.models[model].control else [])]
    lines = [_accuracy(root, config, task, one) for one in models if one]
    own = layers[layers["model"] == model]
    lines += [_separation(own, bands[bands["model"] == model]), *_rates(own), *_errors(own)]
    lines.append(_refused(_need(results / "refused.csv"), own))
    for one in models:
        patching = _need(root / "results" / task / str(one) / "patching.csv")
        lines += _patching(str(one), patching, bands[bands["model"] == one])
        lines += _masking(str(one), _need(root / "results" / task / str(one) / "masking.csv"))
    lines += _labels(results / "label_agreement.csv", config)
    return [*lines, *(cost_lines(root, "icl", "in-context", WALL_MINUTES) if cost else [])]


def _need(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise InputError(
            f"{path} does not exist", "run the study first: snakemake --cores 2 -- icl_translation"
        )
    return read_table(path)


def _judge(good: bool) -> str:
    return MET if good else MISSED


def _interval(row: pd.Series) -> str:
    return f"{row['rate']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _accuracy(root: Path, config: Config, task: str, model: str) -> Line:
    what, path = (
        f"{model}: accuracy on the worst of six tasks",
        root / "results" / task / model / "target_selection.csv",
    )
    if config.models[model].source != "trained" or not path.exists():
        return Line("targets", what, "not trained here", "", NO_GOAL)
    table = read_table(path)
    value = float(table.loc[table["selected"].astype(bool), "accuracy"].iloc[0])
    return Line("targets", what, f"{value:.3f}", f"≥ {GATE:g}", _judge(value >= GATE))


def _separation(layers: pd.DataFrame, bands: pd.DataFrame) -> Line:
    """Layers before the query is anything but absent where the task is not absent and their intervals do not overlap."""
    exact = layers[layers["estimator"] == "exact"].set_index(["layer", "feature"])
    own = bands[bands["source"] == "fcr"].set_index("layer").sort_index()
    red = own.index[own["band"] == QUERY_BAND].tolist()
    green = own.index[own["band"] == TASK_BAND].tolist()
    entered = min(own.index[own["query"] != "absent"], default=np.inf)
    apart = [
        int(layer)
        for layer in own.index
        if layer < entered
        and own.loc[layer, "task"] != "absent"
        and exact.loc[(layer, "task"), "ci_low"] > exact.loc[(layer, "query"), "ci_high"]
    ]
    return Line(
        "FCR at attention outputs",
        "task rises before query, intervals apart",
        f"at layers {apart}; bands: task without query {green}, query present {red}",
        "≥ 1 layer",
        _judge(bool(apart)),
    )


def _rates(layers: pd.DataFrame) -> list[Line]:
    lines = []
    for layer, group in layers[layers["estimator"] == "exact"].groupby("layer"):
        by = group.set_index("feature")
        value = f"task {_interval(by.loc['task'])}, query {_interval(by.loc['query'])}"
        lines.append(Line("FCR at attention outputs", f"exact, layer {layer}", value, "", NO_GOAL))
        parts = [
            f"{words} {_interval(by.loc[name])}"
            for name, (*_, words) in PART_STYLE.items()
            if name in by.index
        ]
        what = f"exact, layer {layer}: what task and query are made of"
        lines.append(Line("FCR at attention outputs", what, ", ".join(parts), "", NO_GOAL))
    return lines


def _errors(layers: pd.DataFrame) -> list[Line]:
    """Largest difference between generated and exact FCR over sites whose exact value has enough prompts."""
    lines = []
    for estimator, decoding in ERRORS:
        values = {}
        for variant in ("default", "paper"):
            part = layers[
                (layers["estimator"] == estimator)
                & (layers["variant"] == variant)
                & (layers["decoding"] == decoding)
                & layers["feature"].isin(FEATURES)
                & (layers["n_ball"] >= FEWEST_IN_BALL)
                & layers["error"].notna()
            ]
            if not part.empty:
                worst = part.loc[part["error"].abs().idxmax()]
                words = f"{worst['error']:+.3f} ({worst['feature']}, {worst['site']})"
                values[variant] = (abs(worst["error"]), words)
        if "default" not in values:
            continue
        size, words = values["default"]
        how = {"plain": "", "mixed": ", cache mixing"}[decoding]
        lines.append(
            Line(
                "FCR at attention outputs",
                f"{estimator} - exact{how}, largest over sites with ≥ {FEWEST_IN_BALL} prompts in the ball",
                words,
                f"≤ {LARGEST_ERROR:g}",
                _judge(size <= LARGEST_ERROR),
                values["paper"][1] if "paper" in values else "",
            )
        )
    return lines


def _refused(refused: pd.DataFrame, layers: pd.DataFrame) -> Line:
    """Refusal of candidates with and without the target's label, where the mean over accepted ones of `default` is furthest off."""
    full = layers.loc[layers["n_ball"] >= FEWEST_IN_BALL, "site"].unique()
    own = refused[(refused["variant"] == "default") & refused["site"].isin(full)].dropna(subset="generated")
    what = "candidates refused with the target's label, with another (site where generated is furthest from exact)"
    section = "FCR at attention outputs"
    if own.empty:
        return Line(section, what, "none was accepted where the ball has enough prompts", "", NO_GOAL)
    worst = own.loc[(own["generated"] - own["exact"]).abs().idxmax()]
    value = (
        f"{worst['refused_same']:.2f}, {worst['refused_other']:.2f} ({worst['feature']}, {worst['site']}); the label's share "
        f"before refusal {worst['proposed']:.3f}, after it {worst['generated']:.3f}, exact {worst['exact']:.3f}"
    )
    return Line(section, what, value, "", NO_GOAL)


def _patching(model: str, patching: pd.DataFrame, bands: pd.DataFrame) -> list[Line]:
    section = f"patching, {model}"
    at = patching.set_index(["kind", "outcome", "layer"]).sort_index()
    plain = patching[patching["kind"] == "residual"]
    lines = []
    for outcome in ("task", "source"):
        one = plain[plain["outcome"] == outcome].sort_values("layer")
        value = ", ".join(f"L{row['layer']} {row['rate']:.2f}" for _, row in one.iterrows())
        lines.append(Line(section, f"rate of {outcome}, by layer", value, "", NO_GOAL))
    last = int(plain["layer"].max())
    best = int(patching.loc[patching["kind"] == "returned", "written"].iloc[0])
    for kind, words in (
        ("masked", f"task rate at layer {last}, query hidden from the source"),
        (
            "forwarded",
            f"task rate, layer {best} written at layer {last}: can layers behind it still read the query?",
        ),
        ("returned", f"task rate, layer {last} written back at layer {best}"),
        (
            "returned_masked",
            f"the same, query hidden from the source: usable task (unpatched {_idle(at):.2f})",
        ),
    ):
        lines.append(Line(section, words, _interval(at.loc[(kind, "task", last)]), "", NO_GOAL))
    orders = {
        source: tuple(bands.loc[bands["source"] == source, ["first_task", "first_query"]].iloc[0])
        for source in ("fcr", "patching")
    }
    said = "; ".join(f"{source}: task {_layer(a)}, query {_layer(b)}" for source, (a, b) in orders.items())
    same = all(_layer(a) == _layer(b) for a, b in zip(*orders.values(), strict=True))
    lines.append(
        Line(section, "first layers, FCR and patching " + ("agree" if same else "differ"), said, "", NO_GOAL)
    )
    return lines


def _masking(model: str, masking: pd.DataFrame) -> list[Line]:
    """By block: what is left of the task in the source's residual stream, and what reads it."""
    lines = []
    for kind, (outcome, words) in MASKING.items():
        one = masking[(masking["kind"] == kind) & (masking["outcome"] == outcome)].sort_values("layer")
        value = ", ".join(
            f"L{row['layer']} {row['rate']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
            for _, row in one.iterrows()
        )
        chance = f"chance {one['chance'].iloc[0]:.2f}: " if outcome != "share" else ""
        lines.append(Line(f"masked or overwritten, {model}", words, chance + value, "", NO_GOAL))
    return lines


def _idle(at: pd.DataFrame) -> float:
    return float(at.loc[("none", "task", -1), "rate"])


def _layer(value: float) -> str:
    return f"L{int(value)}" if np.isfinite(value) else "never"


def _labels(path: Path, config: Config) -> list[Line]:
    section, what = "task labels", "rule and LLM agree"
    if config.labeller is None or not path.exists():
        return [Line(section, what, "no labeller is configured", "", NO_GOAL)]
    one = read_table(path).iloc[0]
    value = f"{one['agreement']:.3f} [{one['ci_low']:.3f}, {one['ci_high']:.3f}] of {one['n_texts']} texts"
    return [Line(section, what, f"{value}, {one['no_label']} answers were no label", "", NO_GOAL)]
