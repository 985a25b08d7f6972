"""Stage `plot_icl`: Figures 7 and 11 and their tables, without torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.fcr.intervals import bootstrap_means
from inversescope.report.page import write_headline
from inversescope.store import read_table, write_table
from inversescope.studies.icl.figures import (
    FEATURES,
    PARTS,
    layer_bands,
    order_of_layers,
    patching_bands,
    plot_task_vectors,
)
from inversescope.studies.icl.headline import headline_icl
from inversescope.workflow import paths

#: Estimators whose rates the table has beside the exact ones.
ESTIMATORS = ("generated", "reweighted", "combined", "cache", "prior", "shuffled", "nearest", "majority")
REFUSED_COLUMNS = "task model variant layer site feature exact proposed generated refused_same refused_other n_candidates".split()
LAYER_COLUMNS = "task model layer site feature estimator variant decoding rate ci_low ci_high chance error n_targets n_ball".split()


def plot_icl(context: Context) -> None:
    """Draw FCR and patching by layer of a model beside its control, and write what the headline numbers are read from.

    Writes results/figures/{task}_{model}_task_vectors.*; results/tables/{task}_{model}_headline.*;
    results/{task}/{model}/layers.csv (rates by layer, feature and estimator at the headline bandwidth, of the control too),
    bands.csv (bands by layer, from FCR and from patching) and refused.csv (`refused_candidates`).
    """
    control = context.plan.target.control
    models = [context.model_name, control] if control else [context.model_name]
    rows, tables, bands = [], [], []
    for model in models:
        here = context.beside(model)
        rates = rates_by_layer(here)
        patching, masking = (
            read_table(need(here.results / f"{name}.csv", "patch_task_vectors"))
            for name in ("patching", "masking")
        )
        rows.append((_title(here), rates, patching, masking))
        tables.append(rates)
        exact = layer_bands(rates[rates["estimator"] == "exact"])
        for source, found in (("fcr", exact), ("patching", patching_bands(patching))):
            first = order_of_layers(found)
            bands.append(
                found.assign(model=model, source=source, first_task=first["task"], first_query=first["query"])
            )
    write_table(pd.concat(tables, ignore_index=True)[LAYER_COLUMNS], context.results / "layers.csv")
    write_table(pd.concat(bands, ignore_index=True), context.results / "bands.csv")
    write_table(refused_candidates(context), context.results / "refused.csv")
    stem = f"{context.task_name}_{context.model_name}"
    plot_task_vectors(rows, context.root / "results" / "figures" / f"{stem}_task_vectors")
    lines = headline_icl(context.root, context.config, context.task_name, context.model_name, cost=False)
    write_headline(lines, context.root / "results" / "tables" / f"{stem}_headline")
    echo(f"plot_icl: {', '.join(models)}")


def _title(context: Context) -> str:
    model = context.config.models[context.model_name]
    if model.source != "trained":
        return context.model_name
    delay = model.training.delay_layers
    return f"{context.model_name} ({f'query delayed, blocks < {delay}' if delay else 'no delay'})"


def refused_candidates(context: Context) -> pd.DataFrame:
    """Whether candidates that share the target's label are refused less often than others: what biases a mean over the accepted.

    Of plain decoding at the headline bandwidth, of candidates in the prior.

    Returns:
        A row a (variant, site, feature), means of targets: `exact`, and the share of candidates with the target's label before
        (`proposed`) and after refusal (`generated`); `refused_same` and `refused_other`, the share of candidates with and without
        it that are refused for their distance.
    """
    task, config = context.task, context.config
    own = task.features_of(context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy())
    rows = []
    for variant in config.studied_variants:
        generator = config.variant(variant).generator
        for site in context.plan.sites_of(variant):
            path = need(context.samples_path(generator, variant, site.label), "sample_prompts")
            columns = ["target_id", "epsilon", "decoding", "prompt_id", "parsed", "accepted"]
            drawn = read_table(path, columns)
            drawn = drawn[
                drawn["parsed"].astype(bool)
                & (drawn["epsilon"] == config.kernel.epsilon)
                & (drawn["decoding"] == "plain")
            ]
            target, accepted = drawn["target_id"].to_numpy(), drawn["accepted"].to_numpy(bool)
            labels = task.features_of(drawn["prompt_id"].to_numpy(np.int64))
            exact = read_table(context.path(paths.EXACT, site=site.label))
            exact = exact[exact["epsilon"] == config.kernel.epsilon]
            for feature in FEATURES:
                same = labels[feature] == own[feature][target]
                rows.append(
                    {
                        "variant": variant,
                        "layer": site.layer,
                        "site": site.label,
                        "feature": feature,
                        "exact": float(exact[f"fcr_{feature}"].mean()),
                        "proposed": float(pd.Series(same).groupby(target).mean().mean()),
                        "generated": float(pd.Series(same[accepted]).groupby(target[accepted]).mean().mean()),
                        "refused_same": 1 - float(accepted[same].mean()) if same.any() else np.nan,
                        "refused_other": 1 - float(accepted[~same].mean()) if not same.all() else np.nan,
                        "n_candidates": len(drawn),
                    }
                )
    table = pd.DataFrame(rows, columns=REFUSED_COLUMNS)
    return table.assign(task=context.task_name, model=context.model_name)


def rates_by_layer(context: Context) -> pd.DataFrame:
    """FCR by site at the headline bandwidth: of task and query, and of what these are made of.

    A row a (site, feature, estimator, variant). The exact rates are read from the reference prompts; what generators and controls
    say comes from fcr.csv, where there are generators.
    """
    kernel, fcr = context.config.kernel, context.config.fcr
    rows = []
    for site in context.plan.sites:
        exact = read_table(need(context.path(paths.EXACT, site=site.label), "compute_exact"))
        exact = exact[exact["epsilon"] == kernel.epsilon].sort_values("target_id")
        for feature in [name for name in FEATURES + PARTS if name in context.task.features]:
            values = exact[f"fcr_{feature}"].to_numpy(float)
            rate, low, high = bootstrap_means(
                values[None], fcr.bootstrap, fcr.confidence, context.config.seed
            )
            rows.append(
                {
                    "layer": site.layer,
                    "site": site.label,
                    "feature": feature,
                    "estimator": "exact",
                    "variant": "",
                    "decoding": "",
                    "rate": rate[0],
                    "ci_low": low[0],
                    "ci_high": high[0],
                    "error": 0.0,
                    "n_targets": len(values),
                    # Reference prompts in the ball around a target, the median one.
                    "n_ball": float(exact["n_ball"].median()),
                }
            )
    table = pd.DataFrame(rows)
    if context.config.studied_variants:
        found = read_table(need(context.results / "fcr.csv", "collect_tables"))
        found = found[
            (found["epsilon"] == kernel.epsilon)
            & found["feature"].isin(FEATURES + PARTS)
            & found["estimator"].isin(ESTIMATORS)
            & found["decoding"].fillna("").isin(["", "plain", "mixed"])
        ].rename(columns={"fcr": "rate"})
        found = found.assign(
            variant=found["variant"].fillna(""),
            decoding=found["decoding"].fillna(""),
            n_ball=found["site"].map(table.groupby("site")["n_ball"].first()),
        )
        table = pd.concat([table, found[[c for c in table.columns if c in found]]], ignore_index=True)
    task = context.task
    return table.assign(
        task=context.task_name,
        model=context.model_name,
        chance=[task.chance(name) for name in table["feature"]],
    )
