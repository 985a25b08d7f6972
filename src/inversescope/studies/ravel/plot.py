"""Stage `plot_ravel`: the tables, figures and samples of RAVEL over all of its models; nothing here imports torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.store import read_json, read_table, write_table
from inversescope.studies.ravel.figures import (
    plot_confusion,
    plot_layers,
    plot_sizes,
    write_samples,
    write_table2,
)
from inversescope.studies.ravel.scores import confusion

GENERATOR = "inversescope"
VARIANTS = ("paper", "default")
#: Samples a (variant, kind): the first ones, so that nobody picks.
SHOWN = 4
#: Tables that are gathered over models and sites: stem -> folder or file of a model.
TABLES = {"scores": "attributes", "bandwidth": "bandwidth", "saes": "sae"}


def plot_ravel(context: Context) -> None:
    """Gather the scores of all RAVEL experiments, and draw Figures 6 and 10, Table 2, confusion and samples.

    Writes results/ravel/{scores,bandwidth,saes,refusal,rates,targets}.csv, results/figures/ravel_{fig6,fig6_new,fig10,confusion}.*
    and results/tables/ravel_{table2,samples}.*.

    Raises:
        InputError: a table is missing; the message names the rule that makes it.
    """
    root = context.root
    experiments = context.config.experiments.values()
    contexts = [context.beside(e.model) for e in experiments if e.task == context.task_name]
    gathered: dict[str, pd.DataFrame] = {}
    for name, folder in TABLES.items():
        parts = []
        for one in contexts:
            rule = "train_sae" if name == "saes" else "classify_attributes"
            for site in one.plan.sites:
                rows = read_table(need(one.results / folder / f"{site.label}.csv", rule))
                parts.append(rows if "model" in rows else rows.assign(model=one.model_name, layer=site.layer))
        gathered[name] = pd.concat(parts, ignore_index=True)
    for name, file in {"refusal": "refusal.csv", "rates": "fcr.csv"}.items():
        parts = [read_table(need(c.results / file, "collect_tables")) for c in contexts]
        gathered[name] = pd.concat(parts, ignore_index=True)
    rates = gathered["rates"]
    gathered["rates"] = rates[rates["feature"] == "attribute"]
    representative = {
        c.model_name: c.plan.settings.representative or [site.layer for site in c.plan.sites]
        for c in contexts
    }
    targets = []
    for one in contexts:
        about = read_json(need(one.target_dir / "target.json", "select_target / fetch_target"))
        row = {key: about.get(key) for key in ("d_model", "n_layers", "accuracy", "accuracy_held_out")}
        targets.append({"model": one.model_name, **row})
    gathered["targets"] = pd.DataFrame(targets).astype({"accuracy": float, "accuracy_held_out": float})
    for name, rows in gathered.items():
        write_table(rows, root / "results" / context.task_name / f"{name}.csv")

    figures, tables = root / "results" / "figures", root / "results" / "tables"
    scores = gathered["scores"]
    plot_layers(scores, figures / "ravel_fig6", "seen")
    plot_layers(scores, figures / "ravel_fig6_new", "new")
    plot_sizes(scores, representative, figures / "ravel_fig10")
    write_table2(
        pd.DataFrame(
            {
                "model": row["model"],
                "layers": ", ".join(map(str, representative[row["model"]])),
                "of": row["n_layers"],
                "width": row["d_model"],
            }
            for row in targets
        ),
        tables / "ravel_table2",
    )
    largest = max(zip(contexts, targets, strict=True), key=lambda pair: pair[1]["d_model"])[0]
    own = representative[largest.model_name]
    layers = list(dict.fromkeys([own[0], own[-1]]))
    names = largest.task.feature_values["attribute"]
    plot_confusion(_confusions(largest, layers, names), names, figures / "ravel_confusion")
    samples = _samples(largest, layers)
    about = (
        f"Prompts that InverseScope draws for targets of {largest.model_name}, the first of each kind: right ones, accepted ones "
        "of another attribute, refused ones, and ones that match no template (null)."
    )
    write_samples(samples, tables / "ravel_samples", about)
    echo(f"plot_ravel: {len(contexts)} models, {len(scores)} scores")


def _confusions(context: Context, layers: list[int], names: list[str]) -> pd.DataFrame:
    """Confusion of `default` and of the exact posterior at some layers, prompts in seen templates."""
    parts = []
    for layer in layers:
        site = next(s for s in context.plan.sites if s.layer == layer)
        path = need(context.results / "attributes" / f"{site.label}.parquet", "classify_attributes")
        table = read_table(path)
        for method in ("default", "exact"):
            part = table[(table["method"] == method) & (table["group"] == "seen")]
            matrix = confusion(part, len(names))
            for i, truth in enumerate(names):
                for j, called in enumerate([*names, "null"]):
                    parts.append(
                        {
                            "panel": f"{method}, layer {layer}",
                            "truth": truth,
                            "called": called,
                            "share": matrix[i, j],
                        }
                    )
    return pd.DataFrame(parts)


def _samples(context: Context, layers: list[int]) -> pd.DataFrame:
    """The first drawn prompts of each kind, a layer and variant."""
    epsilon, task = context.config.kernel.epsilon, context.task
    prompts = context.prompts("test")
    rows = []
    for layer in layers:
        site = next(s for s in context.plan.sites if s.layer == layer)
        for variant in VARIANTS:
            path = need(
                context.samples_path(GENERATOR, variant, site.label), f"sample_prompts (variant {variant})"
            )
            drawn = read_table(path)
            drawn = drawn[(drawn["decoding"] == "plain") & np.isclose(drawn["epsilon"], epsilon)]
            drawn = drawn.drop_duplicates(["target_id", "text"])
            truth = prompts["feature_attribute"].astype(str).to_numpy()[drawn["target_id"]]
            own = drawn["feature_attribute"].astype(str).to_numpy() == truth
            matched = task.features_of_texts(drawn["text"].tolist())["attribute"] >= 0
            accepted = drawn["accepted"].to_numpy(bool)
            kinds = {
                "right": accepted & own,
                "another attribute": accepted & ~own,
                "refused": ~accepted & matched,
                "null": ~matched,
            }
            for kind, mask in kinds.items():
                for _, draw in drawn[mask].drop_duplicates("target_id").head(SHOWN).iterrows():
                    rows.append(
                        {
                            "layer": layer,
                            "variant": variant,
                            "kind": kind,
                            "target": prompts["text"].iloc[int(draw["target_id"])],
                            "drawn": draw["text"],
                            "distance": float(draw["distance"]),
                        }
                    )
    return pd.DataFrame(rows)
