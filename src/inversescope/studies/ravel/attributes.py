"""Stage `classify_attributes` of RAVEL: which attribute does every method read from an activation?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values
from inversescope.store import load_checkpoint, read_json, read_table, write_table
from inversescope.studies.ravel.scores import decisions, from_labels, most_likely, score
from inversescope.studies.ravel.stages import GENERAL, labels_of
from inversescope.workflow import paths

GENERATOR = "inversescope"
#: Bandwidths among which the headline one is chosen.
BANDWIDTHS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
#: Targets of one group are scored together; the two groups are never mixed.
GROUPS = ("seen", "new")


def classify_attributes(context: Context, site: str) -> None:
    """Let every method say which attribute each target's activation encodes, and score them all by one function.

    Methods: both variants of InverseScope (accepted draws; draws that match no template are "null" and count), the exact
    posterior, both autoencoders, linear probe, nearest neighbour, and two without an activation: the prior's shares, and a
    classifier that always says no; `exact_top`, `default_top`, `paper_top` call the most likely attribute alone. Intervals are over
    entities. Writes results/{task}/{model}/attributes/{site}.parquet (decisions) and {site}.csv (scores),
    and results/{task}/{model}/bandwidth/{site}.csv: what the exact posterior reads from validation prompts by bandwidth.
    """
    from inversescope.studies.ravel.probe import linear_probe, nearest_neighbour
    from inversescope.studies.ravel.sae import (
        from_arrays,
        gemma_scope_path,
        read_gemma_scope,
        representatives,
    )

    task, config = context.task, context.config
    kernel, epsilon = config.kernel, config.kernel.epsilon
    names = task.feature_values["attribute"]
    k = len(names)
    label = {split: labels_of(context, split) for split in ("train", "val", "test", "reference")}
    z = {split: np.asarray(context.activations(split, site)) for split in label}
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    n = len(test)
    group = np.where(task.counted(test), *GROUPS)
    said: dict[str, np.ndarray] = {}

    shares = np.bincount(label["reference"], minlength=k) / len(label["reference"])
    said["prior"] = np.broadcast_to(shares, (n, k))
    said["always_no"] = np.zeros((n, k))
    said["exact"] = _posterior(
        z["test"], z["reference"], label["reference"], k, kernel.distance, epsilon, kernel.kind
    )
    everywhere = {variant: ["plain", *config.sampling.decodings] for variant in config.studied_variants}
    for variant, decoding in ((v, d) for v, rules in everywhere.items() for d in rules if d != "noised"):
        method = variant if decoding == "plain" else f"{variant}_{decoding}"
        path = need(context.samples_path(GENERATOR, variant, site), f"sample_prompts (variant {variant})")
        samples = read_table(path)
        samples = samples[(samples["decoding"] == decoding) & np.isclose(samples["epsilon"], epsilon)]
        index = np.where(samples["parsed"].to_numpy(bool), samples["prompt_id"].to_numpy(np.int64), -1)
        drawn = task.features_of(index)["attribute"].astype(np.int64)
        unparsed = np.flatnonzero(index < 0)
        strict = task.features_of_texts(samples["text"].iloc[unparsed].tolist())["attribute"]
        null = np.zeros(len(samples), bool)
        null[unparsed] = strict < 0
        # A draw counts if it was accepted, or if nothing is known but that it matches no template.
        counts = samples["accepted"].to_numpy(bool) | null
        owner = samples["target_id"].to_numpy(np.int64)
        weight = counts.astype(float)
        said[method] = from_labels(np.where(null, -1, drawn), weight, owner, (n, k))
        said[f"{method}_null"] = np.bincount(owner[null], minlength=n) / np.maximum(
            np.bincount(owner, minlength=n), 1
        )
    probe, strength = linear_probe(
        z["train"], label["train"], z["val"], label["val"], config.probe.strengths, config.probe.max_iter
    )
    eye = np.eye(k)
    said["probe"] = eye[probe.predict(z["test"])]
    neighbour = nearest_neighbour(z["train"], label["train"], kernel.distance)
    said["nearest"] = eye[neighbour.predict(z["test"])]
    width = z["train"].shape[1]
    scope = config.models[context.model_name].gemma_scope
    models = {}
    for corpus in context.plan.corpora:
        folder = context.path(paths.AUTOENCODER, corpus=corpus, site=site, file="")
        arrays, _ = load_checkpoint(need(folder / "meta.json", "train_sae").parent)
        models[corpus] = from_arrays(arrays, width, str(folder))
    if scope is not None:
        models[GENERAL] = read_gemma_scope(gemma_scope_path(scope, context.site(site).layer), width)
    for corpus, model in models.items():
        feature, _ = representatives(model, z["train"], label["train"], k)
        said[f"sae_{corpus}"] = (model.only(feature).features(z["test"]) > 0).astype(float)

    # Shares against hard decisions: what the most likely attribute alone would score tells the two apart.
    for name in ("exact", *config.studied_variants):
        said[f"{name}_top"] = most_likely(said[name])
    nulls = {name.removesuffix("_null"): said.pop(name) for name in list(said) if name.endswith("_null")}
    table = pd.concat(
        [decisions(method, group, label["test"], value) for method, value in said.items()], ignore_index=True
    )
    settings = config.fcr
    # Prompts of one entity share its facts, so they stand or fall together.
    entity = task.features_of(test)["entity"]
    scores = score(table, settings.bootstrap, settings.confidence, config.seed, cluster=entity)
    scores["null_draws"] = [
        float(nulls[m][group == g].mean()) if m in nulls else np.nan
        for m, g in zip(scores["method"], scores["group"], strict=True)
    ]
    known: dict[str, object] = {"task": context.task_name, "model": context.model_name, "site": site}
    about = read_json(context.target_dir / "target.json")
    known |= {"layer": context.site(site).layer, "d_model": about["d_model"], "n_layers": about["n_layers"]}
    rows = []
    for value in sorted({*BANDWIDTHS, *kernel.epsilons, epsilon}):
        found = _posterior(
            z["val"], z["reference"], label["reference"], k, kernel.distance, value, kernel.kind
        )
        right = found[np.arange(len(found)), label["val"]]
        rows.append(
            {
                **known,
                "epsilon": value,
                "accuracy": right.mean(),
                "empty": (found.sum(1) == 0).mean(),
                "n": len(found),
            }
        )
    write_table(pd.DataFrame(rows), context.results / "bandwidth" / f"{site}.csv")
    folder = context.results / "attributes"
    write_table(table, folder / f"{site}.parquet")
    scores = pd.DataFrame([known] * len(scores)).join(scores)
    write_table(scores, folder / f"{site}.csv")
    seen = scores[scores["group"] == GROUPS[0]].set_index("method")
    shown = ", ".join(f"{m} {seen.loc[m, 'accuracy']:.3f}/{seen.loc[m, 'macro_f1']:.3f}" for m in seen.index)
    echo(f"classify_attributes {site}: C = {strength:g}; accuracy/macro-F1 {shown}")


def _posterior(
    queries: np.ndarray,
    reference: np.ndarray,
    labels: np.ndarray,
    k: int,
    distance: str,
    epsilon: float,
    kind: str,
    block: int = 16384,
) -> np.ndarray:
    """Kernel-weighted shares (targets, attributes) of reference prompts; zeros where none has weight."""
    metric = distance_of(distance)
    own = metric.prepare(queries)
    mass = np.zeros((len(queries), k))
    for low in range(0, len(reference), block):
        part = slice(low, low + block)
        d = metric.between(own, metric.prepare(np.asarray(reference[part])))
        mass += kernel_values(d, epsilon, kind) @ np.eye(k)[labels[part]]
    total = mass.sum(1, keepdims=True)
    return mass / np.where(total > 0, total, 1.0)
