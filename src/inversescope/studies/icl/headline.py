"""Headline numbers of an in-context study: where task and query enter, and what patching finds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from inversescope.config.methods import MIXED, PLAIN
from inversescope.figures.headline import Row, headline_page, number, with_interval
from inversescope.figures.registry import Page, table
from inversescope.figures.tables import DECODINGS, VARIANTS
from inversescope.store import read_table
from inversescope.studies.icl.shown import FEATURES, PARTS, IclStudy

#: Rates are compared at sites with this many reference prompts in the ball.
FEWEST_IN_BALL = 30
#: Estimators whose largest error is shown, by decoding.
ERRORS = (("generated", PLAIN), ("generated", MIXED), ("reweighted", PLAIN), ("combined", PLAIN))
#: What is shown of patching.csv, rates of `task`, by kind.
PATCHING = {
    "residual": "l to l, as in the paper",
    "masked": "l to l, query hidden from the source",
    "forwarded": "best layer to l",
    "returned": "l to best layer",
    "returned_masked": "l to best layer, query hidden from the source",
}
#: What is shown of masking.csv, by kind: outcome, words.
MASKING = {
    "returned": ("task", "as it is"),
    "recentred": ("task", "with the best layer's mean"),
    "query_removed": ("task", "query's part taken out"),
    "above_first": ("difference", "query's part taken out, above layer 0"),
    "other_removed": ("task", "control: another query's part taken out"),
    "task_removed": ("task", "control: query's and task's parts taken out"),
    "vector_only": ("task", "all but the task vector taken out"),
    "remaining": ("share", "length of the task vector that is left"),
    "own": ("accuracy", "linear probe, trained on the layer itself"),
    "carried": ("accuracy", "linear probe, trained on the best layer"),
}


@table("headline", "plot_icl", title="Headline numbers")
def headline(study: IclStudy) -> Page:
    """Headline numbers of a model and its control."""
    rows = [*_accuracy(study), *_rates(study), *_separation(study), *_errors(study), *_refused(study)]
    for model in study.models:
        rows += [*_first_layers(study, model), *_by_task(study, model)]
        rows += [*_patching(study, model), *_masking(study, model)]
    return headline_page([*rows, *_labels(study)])


def _accuracy(study: IclStudy) -> Iterator[Row]:
    for model, context in study.models.items():
        path = context.results / "target_selection.csv"
        if context.config.models[model].source == "trained" and path.exists():
            found = read_table(path)
            value = found.loc[found["selected"].astype(bool), "accuracy"].iloc[0]
            yield number("targets", model, "right answers, worst task", value)


def _rates(study: IclStudy) -> Iterator[Row]:
    """Rates of task and query by layer, exact and drawn; of what they are made of the exact ones."""
    rates = study.layers[study.context.model_name]
    exact = rates[rates["estimator"] == "exact"]
    known = exact.set_index(["layer", "feature"])["rate"]
    drawn = rates[(rates["estimator"] == "generated") & (rates["decoding"] == PLAIN)]
    for feature in FEATURES + PARTS:
        rows = [exact, *(drawn[drawn["variant"] == v] for v in VARIANTS if feature in FEATURES)]
        for part in rows:
            for row in part[part["feature"] == feature].to_dict("records"):
                more = with_interval(row, "rate") | {"n": row["n_targets"]}
                more |= {"exact": known[row["layer"], feature]}
                section = f"FCR at attention outputs: {feature.replace('_', ' ')}"
                yield number(section, f"layer {row['layer']}", row["variant"] or "exact", **more)


def separation(rates: pd.DataFrame, bands: pd.DataFrame) -> list[int]:
    """Layers before the query is anything but absent where the task is not absent and their intervals do not overlap.

    Args:
        rates: exact rows of `rates_by_layer`.
        bands: `layer_bands` of them.
    """
    exact, own = rates.set_index(["layer", "feature"]), bands.set_index("layer").sort_index()
    entered = min(own.index[own["query"] != "absent"], default=np.inf)
    there = own.index[(own.index < entered) & (own["task"] != "absent")]
    low, high = exact["ci_low"], exact["ci_high"]
    return [int(layer) for layer in there if low[layer, "task"] > high[layer, "query"]]


def _separation(study: IclStudy) -> Iterator[Row]:
    model = study.context.model_name
    rates, bands = study.layers[model], study.bands
    bands = bands[(bands["model"] == model) & (bands["source"] == "fcr")]
    apart = separation(rates[rates["estimator"] == "exact"], bands)
    what = "task rises before query, intervals apart" + (
        f" (layers {', '.join(map(str, apart))})" if apart else ""
    )
    yield number("FCR at attention outputs: layers", what, model, len(apart), unit="count", n=len(bands))


def _errors(study: IclStudy) -> Iterator[Row]:
    """Largest difference between an estimate and the exact FCR over sites whose exact value has enough prompts."""
    rates = study.layers[study.context.model_name]
    rates = rates[rates["feature"].isin(FEATURES) & (rates["n_ball"] >= FEWEST_IN_BALL)].dropna(
        subset="error"
    )
    section = f"estimate − exact, furthest of sites with at least {FEWEST_IN_BALL} prompts in the ball"
    for estimator, decoding in ERRORS:
        how = f"{estimator}, {DECODINGS[decoding]}"
        of = rates[(rates["estimator"] == estimator) & (rates["decoding"] == decoding)]
        for variant in VARIANTS:
            part = of[of["variant"] == variant]
            if len(part):
                yield number(
                    section, how, variant, part.loc[part["error"].abs().idxmax(), "error"], n=len(part)
                )


def _refused(study: IclStudy) -> Iterator[Row]:
    """Refusal of candidates with and without the target's label, where the mean over accepted ones of `default` is furthest off."""
    rates = study.layers[study.context.model_name]
    full = rates.loc[rates["n_ball"] >= FEWEST_IN_BALL, "site"].unique()
    rows = study.table("refused.csv", "plot_icl")
    rows = rows[(rows["variant"] == "default") & rows["site"].isin(full)].dropna(subset="generated")
    if rows.empty:
        return
    worst = rows.loc[(rows["generated"] - rows["exact"]).abs().idxmax()]
    section = "candidates of default that share the target's label, where generated is furthest from exact"
    what = f"{worst['feature']}, {worst['site']}"
    shown = {"refused_same": "refused", "refused_other": "others refused"}
    shown |= {"proposed": "share before refusal", "generated": "share after refusal", "exact": "exact"}
    for column, who in shown.items():
        yield number(section, what, who, worst[column], n=worst["n_candidates"])


def _first_layers(study: IclStudy, model: str) -> Iterator[Row]:
    bands = study.bands[study.bands["model"] == model].drop_duplicates("source").set_index("source")
    for source, row in bands.iterrows():
        for feature in FEATURES:
            section = "first layer at which task and query are present (none if they never are)"
            yield number(section, f"{model}, by {source}", feature, row[f"first_{feature}"])


def best_layers(by_task: pd.DataFrame) -> pd.DataFrame:
    """Each task's layer at which patching gives the target's answer most often, and what it gives there.

    Args:
        by_task: patching_by_task.csv.

    Returns:
        asked, layer; few_shot and zero_shot, how often the model answers rightly with and without shots; patched, the rate of the
        target's answer at that layer, with ci_low, ci_high and n_pairs; source, that of the source's output two layers later (at
        the last one, if there are fewer).
    """
    rows = []
    for asked, own in by_task.groupby("asked", sort=False):
        alone = own[own["layer"] < 0].set_index(["kind", "outcome"])["rate"]
        layers = own[own["kind"] == "residual"].pivot(index="layer", columns="outcome", values="rate")
        best = int(layers["task"].idxmax())
        at = own[(own["kind"] == "residual") & (own["outcome"] == "task") & (own["layer"] == best)].iloc[0]
        row = {"asked": asked, "layer": best, "few_shot": alone["few_shot", "source"]}
        row |= {"zero_shot": alone["none", "task"], "patched": at["rate"]}
        row |= {name: at[name] for name in ("ci_low", "ci_high", "n_pairs")}
        rows.append(row | {"source": layers["source"][min(best + 2, int(layers.index.max()))]})
    return pd.DataFrame(rows)


def _by_task(study: IclStudy, model: str) -> Iterator[Row]:
    """Of each task: right answers, and the layer where patching works best."""
    section = f"task by task, {model}: right answers, and patching at the task's best layer"
    for row in best_layers(study.patched(model, "patching_by_task")).to_dict("records"):
        told = {
            "with shots": "few_shot",
            "without shots": "zero_shot",
            "source's output two layers later": "source",
        }
        for who, column in told.items():
            yield number(section, row["asked"], who, row[column], n=row["n_pairs"])
        more = {"low": row["ci_low"], "high": row["ci_high"], "n": row["n_pairs"]}
        yield number(
            section, row["asked"], f"target's answer, patched at layer {row['layer']}", row["patched"], **more
        )


def _patching(study: IclStudy, model: str) -> Iterator[Row]:
    patching = study.patched(model, "patching")
    idle = patching[patching["kind"] == "none"].set_index("outcome")["rate"]
    for kind, outcome in [("residual", "source"), *((kind, "task") for kind in PATCHING)]:
        rows = patching[(patching["kind"] == kind) & (patching["outcome"] == outcome)].sort_values("layer")
        what = "source's output" if outcome == "source" else "task"
        section = f"patching, {model}: rate of the {what}; chance is the rate without patching"
        for row in rows.to_dict("records"):
            more = with_interval(row, "rate") | {"n": row["n_pairs"], "chance": idle[outcome]}
            yield number(section, PATCHING[kind], f"layer {row['layer']}", **more)


def _masking(study: IclStudy, model: str) -> Iterator[Row]:
    """By block: what is left of the task in the source's residual stream, and what reads it."""
    masking = study.patched(model, "masking")
    for kind, (outcome, words) in MASKING.items():
        rows = masking[(masking["kind"] == kind) & (masking["outcome"] == outcome)].sort_values("layer")
        for row in rows.to_dict("records"):
            section = f"masked or overwritten, {model}: task rate at the best layer, and what reads the task"
            more = with_interval(row, "rate") | {"n": row["n_queries"]}
            yield number(section, words, f"layer {row['layer']}", **more)


def _labels(study: IclStudy) -> Iterator[Row]:
    if study.config.labeller is None:
        return
    row = study.table("label_agreement.csv", "label_tasks").iloc[0]
    yield number(
        "task labels", "rule and chat model agree", "", **with_interval(row, "agreement"), n=row["n_texts"]
    )
