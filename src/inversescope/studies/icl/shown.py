"""What the in-context study shows: rates by layer of a model and its control, layer bands by rule, refusal by label."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from inversescope.config.methods import MIXED, PLAIN
from inversescope.context import Context, need
from inversescope.fcr.intervals import bootstrap_means
from inversescope.figures.study import Study, at_headline
from inversescope.store import read_table, write_table
from inversescope.workflow import paths

FEATURES = ("task", "query")
#: What task and query have in them, each a feature of its own: languages, the concept, the table of words.
PARTS = ("source_language", "target_language", "concept", "kind")
#: Estimators whose rates stand beside the exact ones.
ESTIMATORS = ("generated", "reweighted", "combined", "cache", "prior", "shuffled", "nearest", "majority")
REFUSED_COLUMNS = "task model variant layer site feature exact proposed generated refused_same refused_other n_candidates".split()
LAYER_COLUMNS = "task model layer site feature estimator variant decoding rate ci_low ci_high chance error n_targets n_ball".split()
#: Bands: the task is there without the query; the query is there.
TASK_BAND, QUERY_BAND = "task without query", "query present"
#: A rate is absent where its interval lies below this share of the way from chance to 1.
NEAR_CHANCE = 0.1


def presence(low: pd.Series, high: pd.Series, chance: pd.Series) -> pd.Series:
    """`present` where the 95% interval lies above the middle between chance and 1, `absent` where it lies about at chance or
    below, else `unclear`."""
    there, near = (1 + chance) / 2, chance + NEAR_CHANCE * (1 - chance)
    said = np.where(low > there, "present", np.where(high < near, "absent", "unclear"))
    return pd.Series(said, index=low.index)


def layer_bands(rates: pd.DataFrame) -> pd.DataFrame:
    """Layer bands by rule: green where `task` is present and `query` absent, red where `query` is present (see `presence`).

    Args:
        rates: a row a (layer, feature), feature one of `task` and `query`: rate, ci_low, ci_high, chance.

    Returns:
        layer, task, query (`present`, `absent` or `unclear`), band ("" for neither).
    """
    state = rates.assign(state=presence(rates["ci_low"], rates["ci_high"], rates["chance"]))
    wide = state.pivot(index="layer", columns="feature", values="state").reset_index()
    there, away = wide["task"] == "present", wide["query"] == "absent"
    band = np.where(wide["query"] == "present", QUERY_BAND, np.where(there & away, TASK_BAND, ""))
    return pd.DataFrame({"layer": wide["layer"], "task": wide["task"], "query": wide["query"], "band": band})


def patching_bands(patching: pd.DataFrame) -> pd.DataFrame:
    """The same rule for patching: the task's translation stands for the task, the source's output for the query."""
    plain = patching[(patching["kind"] == "residual") & patching["outcome"].isin(["task", "source"])]
    idle = patching[patching["kind"] == "none"].set_index("outcome")["rate"]
    stands = plain["outcome"].map({"task": "task", "source": "query"})
    return layer_bands(plain.assign(feature=stands, chance=plain["outcome"].map(idle)))


def order_of_layers(bands: pd.DataFrame) -> dict[str, float]:
    """First layer at which task and query are present; NaN where they never are."""
    there = {name: bands.loc[bands[name] == "present", "layer"] for name in FEATURES}
    return {name: float(layers.min()) if len(layers) else np.nan for name, layers in there.items()}


def rates_by_layer(context: Context) -> pd.DataFrame:
    """FCR by site at the headline bandwidth: of task and query, and of what these are made of.

    The exact rates are read from the reference prompts; what generators and controls say comes from fcr.csv, where there are
    generators.

    Returns:
        `LAYER_COLUMNS`, a row a (site, feature, estimator, variant, decoding). `n_ball`: reference prompts in the ball around a
        target, the median one.
    """
    config = context.config
    names = [name for name in FEATURES + PARTS if name in context.task.features]
    rows = []
    for site in context.plan.sites:
        exact = read_table(need(context.path(paths.EXACT, site=site.label), "compute_exact"))
        exact = exact[exact["epsilon"] == context.headline(site.label)].sort_values("target_id")
        for feature in names:
            values = exact[f"fcr_{feature}"].to_numpy(float)
            means = bootstrap_means(values[None], config.fcr.bootstrap, config.fcr.confidence, config.seed)
            row: dict[str, Any] = dict(
                zip(("rate", "ci_low", "ci_high"), (float(one[0]) for one in means), strict=True)
            )
            row |= {"layer": site.layer, "site": site.label, "feature": feature, "estimator": "exact"}
            row |= {"variant": "", "decoding": "", "error": 0.0}
            rows.append(row | {"n_targets": len(values), "n_ball": float(exact["n_ball"].median())})
    table = pd.DataFrame(rows)
    if config.studied_variants:
        found = read_table(need(context.results / "fcr.csv", "collect_tables"))
        found = found.fillna({"variant": "", "decoding": ""}).rename(columns={"fcr": "rate"})
        found = at_headline(found, config)
        found = found[
            found["feature"].isin(names)
            & found["estimator"].isin(ESTIMATORS)
            & found["decoding"].isin(["", PLAIN, MIXED])
        ]
        found["n_ball"] = found["site"].map(table.groupby("site")["n_ball"].first())
        table = pd.concat([table, found[[c for c in table.columns if c in found]]], ignore_index=True)
    chance = [context.task.chance(name) for name in table["feature"]]
    return table.assign(task=context.task_name, model=context.model_name, chance=chance)[LAYER_COLUMNS]


class IclStudy(Study):
    """A model beside its control, which has no generators.

    Attributes:
        models: context of each, the studied one first.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        whole, task = self.config, context.task_name
        control = whole.models[context.model_name].control
        names = [context.model_name, *([control] if control else [])]
        self.models = {name: Context(context.root, whole.of(task, name), task, name) for name in names}

    def write(self) -> None:
        """Write results/{task}/{model}/layers.csv (`rates_by_layer`, of the control too), bands.csv (bands by layer, from FCR and
        from patching) and refused.csv (`refused_candidates`)."""
        results = self.context.results
        write_table(pd.concat(self.layers.values(), ignore_index=True), results / "layers.csv")
        write_table(self.bands, results / "bands.csv")
        write_table(refused_candidates(self), results / "refused.csv")

    @cached_property
    def layers(self) -> dict[str, pd.DataFrame]:
        """Model -> `rates_by_layer`."""
        return {name: rates_by_layer(one) for name, one in self.models.items()}

    def patched(self, model: str, name: str) -> pd.DataFrame:
        """patching.csv, patching_by_task.csv or masking.csv of one of the models."""
        return read_table(need(self.models[model].results / f"{name}.csv", "patch_task_vectors"))

    @cached_property
    def bands(self) -> pd.DataFrame:
        """Bands of each model by layer, from FCR and from patching, with the first layers of task and query."""
        parts = []
        for model, rates in self.layers.items():
            exact = layer_bands(rates[rates["estimator"] == "exact"])
            for source, found in (
                ("fcr", exact),
                ("patching", patching_bands(self.patched(model, "patching"))),
            ):
                first = {f"first_{name}": layer for name, layer in order_of_layers(found).items()}
                parts.append(found.assign(model=model, source=source, **first))
        return pd.concat(parts, ignore_index=True)


def refused_candidates(study: IclStudy) -> pd.DataFrame:
    """Whether candidates that share the target's label are refused less often than others: what biases a mean over the accepted.

    Of plain decoding at the headline bandwidth, of candidates in the prior.

    Returns:
        A row a (variant, site, feature), means of targets: `exact`, and the share of candidates with the target's label before
        (`proposed`) and after refusal (`generated`); `refused_same` and `refused_other`, the share of candidates with and without
        it that are refused for their distance.
    """
    context, task = study.context, study.context.task
    own = task.features_of(context.prompt_ids("test"))
    rows = []
    for variant in study.config.studied_variants:
        for site in context.plan.sites_of(variant):
            drawn = study.samples(variant, site.label, PLAIN)
            drawn = drawn[drawn["parsed"].astype(bool)]
            target, accepted = drawn["target_id"].to_numpy(), drawn["accepted"].to_numpy(bool)
            labels = task.features_of(drawn["prompt_id"].to_numpy(np.int64))
            exact = study.table(f"exact/{site.label}.parquet", "compute_exact")
            exact = exact[exact["epsilon"] == context.headline(site.label, variant)]
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
