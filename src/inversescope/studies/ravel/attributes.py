"""Stage `classify_attributes` of RAVEL: which attribute does every method read from an activation?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from inversescope.config.methods import PLAIN, Bandwidth
from inversescope.context import Context, centre_of, echo, need
from inversescope.kernel.bandwidths import epsilons_of_shares
from inversescope.kernel.distances import Distance, distance_of
from inversescope.kernel.kernel import kernel_values
from inversescope.store import check_provenance, load_checkpoint, read_json, write_table
from inversescope.studies.ravel.probe import linear_probe, nearest_neighbour
from inversescope.studies.ravel.sae import from_arrays, representatives
from inversescope.studies.ravel.scores import decisions, from_labels, most_likely, score
from inversescope.studies.ravel.stages import labels_of
from inversescope.tasks.base import Task, of_each
from inversescope.workflow import paths

#: Bandwidths that are compared on validation prompts beside those of the configuration.
COMPARED = [
    *(Bandwidth("epsilon", one) for one in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
    *(Bandwidth("share", one) for one in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1)),
]
#: The exact posterior of the raw and of the centred distance, each at the bandwidth that reads most validation prompts right.
BY_CENTRE = {"exact_raw": False, "exact_centred": True}
#: Targets of one group are scored together; the two groups are never mixed.
GROUPS = ("seen", "new")
#: Reference prompts that are compared with all targets at a time.
BLOCK = 16384


def classify_attributes(context: Context, site: str) -> None:
    """Let every method say which attribute each target's activation encodes, and score them all by one function.

    Methods: both variants of InverseScope (accepted draws; draws that match no template are "null" and count; `paper_template` or
    `paper_entity` is the same by the match that `attributes.match` does not name), the exact posterior, both autoencoders, linear
    probe, nearest neighbour, and two without an activation: the prior's shares, and a classifier that always says no; `exact_top`,
    `default_top`, `paper_top` call the most likely attribute alone. `exact_raw` and `exact_centred` are the exact posterior at the
    best bandwidth of either distance, `nearest_other` the nearest neighbour that is worded otherwise. Intervals are over entities.
    Writes results/{task}/{model}/attributes/{site}.parquet (decisions) and
    {site}.csv (scores), and results/{task}/{model}/bandwidth/{site}.csv: what the exact posterior reads from validation prompts by
    distance (raw or centred) and bandwidth; the best one of each distance is `chosen`.
    """
    task, config, reading = context.task, context.config, Reading(context, site)
    test = context.prompt_ids("test")
    group = np.where(task.counted(test), *GROUPS)
    said = dict(_without_activation(reading))
    said["exact"] = reading.posteriors("test", [context.headline(site)], config.kernel.centred)[0]
    validated = {name: reading.on_validation(centred) for name, centred in BY_CENTRE.items()}
    for name, rows in validated.items():
        best = rows.loc[rows["chosen"], "epsilon"].tolist()
        said[name] = reading.posteriors("test", best, BY_CENTRE[name])[0]
    nulls: dict[str, np.ndarray] = {}
    for method, share, null in _by_generators(reading):
        said[method], nulls[method] = share, null
    said |= dict(_by_readers(reading))
    # Shares against hard decisions: what the most likely attribute alone would score tells the two apart.
    said |= {f"{name}_top": most_likely(said[name]) for name in ("exact", *config.studied_variants)}
    truth = reading.labels["test"]
    parts = [decisions(method, group, truth, decision) for method, decision in said.items()]
    table = pd.concat(parts, ignore_index=True)
    # Prompts of one entity share its facts, so they stand or fall together.
    entity = task.features_of(test)["entity"]
    scores = score(table, config.fcr.bootstrap, config.fcr.confidence, config.seed, cluster=entity)
    scores["null_draws"] = [
        float(nulls[m][group == g].mean()) if m in nulls else np.nan
        for m, g in zip(scores["method"], scores["group"], strict=True)
    ]
    about = read_json(context.target_dir / "target.json")
    known = {"task": context.task_name, "model": context.model_name, "site": site}
    known |= {"layer": context.site(site).layer} | {name: about[name] for name in ("d_model", "n_layers")}
    rows = pd.concat(validated.values(), ignore_index=True)
    write_table(pd.DataFrame([known] * len(rows)).join(rows), context.results / "bandwidth" / f"{site}.csv")
    write_table(table, context.results / "attributes" / f"{site}.parquet")
    scores = pd.DataFrame([known] * len(scores)).join(scores)
    write_table(scores, context.results / "attributes" / f"{site}.csv")
    seen = scores[scores["group"] == GROUPS[0]].set_index("method")
    shown = ", ".join(f"{m} {seen.loc[m, 'accuracy']:.3f}/{seen.loc[m, 'macro_f1']:.3f}" for m in seen.index)
    echo(f"classify_attributes {site}: accuracy/macro-F1 {shown}")


@dataclass(frozen=True)
class Reading:
    """Activations of all splits at a site, and the attributes of their prompts."""

    context: Context
    site: str

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Split -> attribute codes (N,)."""
        return {split: labels_of(self.context, split) for split in ("train", "val", "test", "reference")}

    @cached_property
    def z(self) -> dict[str, np.ndarray]:
        """Split -> activations (N, d) as the target computes them: autoencoders and probe read these."""
        return {
            split: np.asarray(self.context.activations(split, self.site, raw=True)) for split in self.labels
        }

    @property
    def k(self) -> int:
        """Number of attributes."""
        return len(self.context.task.feature_values["attribute"])

    @property
    def metric(self) -> Distance:
        """The distance."""
        return distance_of(self.context.config.kernel.distance)

    def compared(self, split: str, centred: bool) -> np.ndarray:
        """Activations (N, d) of a split, raw or without the mean of the cached ones."""
        return self.z[split] - centre_of(self.z["train"]) if centred else self.z[split]

    def posteriors(self, split: str, epsilons: Sequence[float], centred: bool) -> np.ndarray:
        """Kernel-weighted shares (epsilons, targets, attributes) of reference prompts; zeros where none has weight."""
        kernel, metric, labels = self.context.config.kernel, self.metric, self.labels["reference"]
        own, keys = metric.prepare(self.compared(split, centred)), self.compared("reference", centred)
        mass = np.zeros((len(epsilons), len(own), self.k))
        for low in range(0, len(keys), BLOCK):
            part = slice(low, low + BLOCK)
            d, known = metric.between(own, metric.prepare(keys[part])), np.eye(self.k)[labels[part]]
            for total, epsilon in zip(mass, epsilons, strict=True):
                total += kernel_values(d, epsilon, kernel.kind) @ known
        total = mass.sum(-1, keepdims=True)
        return mass / np.where(total > 0, total, 1.0)

    def on_validation(self, centred: bool) -> pd.DataFrame:
        """What the exact posterior reads from validation prompts, a bandwidth a row."""
        labels, compared = self.labels["val"], sorted({*COMPARED, *self.context.plan.bandwidths})
        # A share of the prior is another epsilon for either distance.
        shares = [one.value for one in compared if one.kind == "share"]
        val, reference = self.compared("val", centred), self.compared("reference", centred)
        of_shares = iter(epsilons_of_shares(self.metric, val, reference, shares))
        epsilons = [one.value if one.kind == "epsilon" else next(of_shares) for one in compared]
        found = self.posteriors("val", epsilons, centred)
        accuracy = found[:, np.arange(len(labels)), labels].mean(1)
        named = [str(one) for one in compared]
        rows = {"centred": centred, "bandwidth": named, "epsilon": epsilons, "accuracy": accuracy}
        rows |= {"empty": (found.sum(2) == 0).mean(1), "n": len(labels)}
        return pd.DataFrame(rows).assign(chosen=np.arange(len(epsilons)) == accuracy.argmax())


def _without_activation(reading: Reading) -> Iterator[tuple[str, np.ndarray]]:
    """The prior's shares, and a classifier that always says no."""
    n, k, reference = len(reading.labels["test"]), reading.k, reading.labels["reference"]
    yield "prior", np.broadcast_to(np.bincount(reference, minlength=k) / len(reference), (n, k))
    yield "always_no", np.zeros((n, k))


def _by_generators(reading: Reading) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Method, shares (targets, attributes) of the draws that count, and each target's share of draws that match no template."""
    context, config, task = reading.context, reading.context.config, reading.context.task
    n, k = len(reading.labels["test"]), reading.k
    rules = [PLAIN, *(rule for rule in config.sampling.decodings if rule != "noised")]
    for variant, decoding in ((v, d) for v in config.studied_variants for d in rules):
        path = context.samples_path(config.variant(variant).generator, variant, reading.site)
        samples = context.read(path, f"sample_prompts (variant {variant})")
        near = np.isclose(samples["epsilon"], context.headline(reading.site, variant))
        samples = samples[near & (samples["decoding"] == decoding)]
        index = np.where(samples["parsed"].to_numpy(bool), samples["prompt_id"].to_numpy(np.int64), -1)
        drawn = task.features_of(index)["attribute"].astype(np.int64)
        unparsed = np.flatnonzero(index < 0)
        texts = samples["text"].iloc[unparsed].tolist()
        # Nothing is known of a draw without a known entity, but its words.
        strange = np.zeros(len(samples), bool)
        strange[unparsed] = task.features_of_texts(texts)["attribute"] < 0
        by_template = np.full(len(samples), -1, np.int64)
        by_template[unparsed] = attributes_by_template(task, texts)
        # A draw counts if it was accepted, or if it is strange.
        weight = (samples["accepted"].to_numpy(bool) | strange).astype(float)
        owner = samples["target_id"].to_numpy(np.int64)
        drawn_of = np.maximum(np.bincount(owner, minlength=n), 1)
        method = variant if decoding == PLAIN else f"{variant}_{decoding}"
        for match, label in (("entity", -1), ("template", by_template)):
            labels = np.where(strange, label, drawn)
            own = method if match == config.attributes.match else f"{method}_{match}"
            if own == method or decoding == PLAIN:
                null = np.bincount(owner[strange & (labels < 0)], minlength=n) / drawn_of
                yield own, from_labels(labels, weight, owner, (n, k)), null


def attributes_by_template(task: Task, texts: Sequence[str]) -> np.ndarray:
    """Attribute codes (N,) of texts by the template that they match, whatever stands for the entity (paper, D.2.4); -1: none.

    Of several templates the one counts that holds most of the text.
    """
    every = task.features_of(np.arange(task.universe))
    template, first = np.unique(every["template"], return_index=True)
    written = [task.slot_values["template"][code] for code in template.tolist()]
    known = zip((text.split("%s") for text in written), every["attribute"][first].tolist(), strict=True)
    longest_first = sorted(known, key=lambda one: -len(one[0][0] + one[0][1]))

    def attribute_of(text: str) -> int:
        for (before, after), attribute in longest_first:
            inside = len(text) > len(before) + len(after)
            if inside and text.startswith(before) and text.endswith(after):
                return int(attribute)
        return -1

    return np.array(of_each(texts, attribute_of), np.int64)


def _by_readers(reading: Reading) -> Iterator[tuple[str, np.ndarray]]:
    """Decisions (targets, attributes) of supervised readers: linear probe, nearest neighbour, features of autoencoders."""
    context, settings, z, labels = reading.context, reading.context.config.probe, reading.z, reading.labels
    eye, train = np.eye(reading.k), (z["train"], labels["train"])
    probe, _ = linear_probe(*train, z["val"], labels["val"], settings.strengths, settings.max_iter)
    yield "probe", eye[probe.predict(z["test"])]
    centred, index = context.config.kernel.centred, {s: context.prompt_ids(s) for s in ("test", "train")}
    own, cached = (reading.compared(split, centred) for split in index)
    test, other = (context.task.features_of(one)["template"] for one in index.values())
    for name, apart in (("nearest", None), ("nearest_other", (test, other))):
        yield name, eye[labels["train"][nearest_neighbour(reading.metric, own, cached, apart)]]
    models, width = {}, z["train"].shape[1]
    kept = {corpus: (paths.AUTOENCODER, corpus) for corpus in context.plan.corpora}
    if context.config.sae.published is not None:
        kept[f"{context.task_name}_published"] = (paths.PUBLISHED, context.task_name)
    for name, (where, corpus) in kept.items():
        folder = context.path(where, corpus=corpus, site=reading.site, file="")
        arrays, meta = load_checkpoint(need(folder / "meta.json", "train_sae").parent)
        check_provenance(meta, folder / "meta.json", target=context.identity)
        models[name] = from_arrays(arrays, width, str(folder))
    for corpus, model in models.items():
        feature, _ = representatives(model, *train, reading.k)
        yield f"sae_{corpus}", (model.only(feature).features(z["test"]) > 0).astype(float)
