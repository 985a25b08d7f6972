"""Stages `label_tasks` and `rate_labels`: tasks of prompts by a chat model (paper, D.3.3), compared with the rule's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from inversescope.config.methods import PLAIN
from inversescope.config.targets import LabellerConfig, ModelConfig
from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.fcr.intervals import bootstrap_means
from inversescope.progress import Progress
from inversescope.sites import Site
from inversescope.store import identity, read_json, read_table, write_table
from inversescope.streams import stream
from inversescope.studies.icl.labeller import Labeller
from inversescope.targets.files import hashes_of
from inversescope.targets.sources import Location, locate
from inversescope.tasks.few_shot import MIX, NULL
from inversescope.workflow import paths


def label_tasks(context: Context) -> None:
    """Label the test prompts and distinct candidates by a chat model (D.3.3), and compare with the rule.

    Writes results/{task}/{model}/labels.parquet (text, rule, llm) and label_agreement.csv: the share of texts on which both
    agree, on all texts and by the rule's label, with a binomial interval, and how many answers were no label.

    Raises:
        InputError: no labeller is configured, or it cannot be loaded or has no chat template.
    """
    config, task = context.config.labeller, context.task
    if config is None:
        raise InputError(
            "there is no labeller in the configuration",
            "set labeller.model to an entry of 'models', or labeller.path to a chat model",
        )
    texts = _texts(context, config.max_texts)
    progress = Progress("label_tasks", len(texts), echo)
    got = _labeller(context, config)(texts, lambda done, _: progress(done))
    rules = [task.feature_values["task"][code] for code in task.features_of_texts(texts)["task"]]
    frame = pd.DataFrame({"text": texts, "rule": rules, "llm": got.labels})
    write_table(frame, context.results / "labels.parquet")
    rows = [_agreement("all", frame, context.config.fcr.confidence) | {"no_label": got.refused}]
    for label, group in frame.groupby("rule", sort=True):
        rows.append(_agreement(str(label), group, context.config.fcr.confidence) | {"no_label": ""})
    write_table(pd.DataFrame(rows), context.results / "label_agreement.csv")
    echo(
        f"label_tasks: {len(texts)} texts ({got.cached} known), {got.refused} answers were no label, "
        f"agreement {rows[0]['agreement']:.3f}"
    )


LABELLED_COLUMNS = (
    "task model variant layer site labels draws rate ci_low ci_high mix null n_targets n_draws".split()
)


def rate_labels(context: Context) -> None:
    """FCR of the task, and shares of draws called `mix` and `null`, by the chat model's labels and by the rule's (D.3.3).

    The first `labeller.targets` target prompts are looked at, and of each their first `labeller.draws` draws of plain decoding.
    Writes results/{task}/{model}/labelled.csv: a row a (variant, site, `labels`: llm or rule, `draws`: all or accepted). A draw
    that mixes tasks is not in the prior, so it is among all draws alone.

    Raises:
        InputError: there is no labeller, it cannot be loaded, or candidates are missing.
    """
    config, task, plan = context.config.labeller, context.task, context.plan
    if config is None or not config.targets:
        raise InputError("no draws are to be labelled in the configuration", "set labeller.targets")
    prompts = context.prompts("test", columns=["text"])["text"].tolist()[: config.targets]
    drawn = pd.concat(
        [
            _drawn(context, config, variant, site)
            for variant in plan.studied
            for site in plan.sites_of(variant)
        ],
        ignore_index=True,
    )
    texts = list(dict.fromkeys([*prompts, *drawn["text"]]))
    progress = Progress("rate_labels", len(texts), echo)
    found = {"llm": _labeller(context, config)(texts, lambda done, _: progress(done)).labels}
    names = np.array(task.feature_values["task"])
    found["rule"] = names[task.features_of_texts(texts)["task"]].tolist()
    rows: list[dict[str, Any]] = []
    for by, labels in found.items():
        known = dict(zip(texts, labels, strict=True))
        own = np.array([known[text] for text in prompts])
        told = drawn.assign(label=drawn["text"].map(known))
        told["same"] = told["label"].to_numpy() == own[told["target_id"]]
        for draws, part in (("all", told), ("accepted", told[told["accepted"]])):
            for (variant, site), one in part.groupby(["variant", "site"], sort=False):
                about = {"variant": variant, "site": site, "labels": by, "draws": draws}
                rows.append(about | _rate(context, one, len(prompts)))
    table = pd.DataFrame(rows).assign(task=context.task_name, model=context.model_name)
    table["layer"] = table["site"].map({site.label: site.layer for site in plan.sites})
    write_table(table[LABELLED_COLUMNS], context.results / "labelled.csv")
    echo(f"rate_labels: {len(texts)} texts, {len(table)} rates")


def _drawn(context: Context, config: LabellerConfig, variant: str, site: Site) -> pd.DataFrame:
    """The draws of a variant at a site that are labelled: variant, site, target_id, text, accepted."""
    path = context.samples_path(context.plan.generator_of(variant), variant, site.label)
    columns = ["target_id", "draw", "text", "decoding", "epsilon", "accepted"]
    rows = read_table(need(path, "sample_prompts"), columns)
    rows = rows[
        (rows["decoding"] == PLAIN) & np.isclose(rows["epsilon"], context.headline(site.label, variant))
    ]
    rows = rows[(rows["target_id"] < config.targets) & (rows["draw"] < config.draws)]
    rows = rows.astype({"accepted": bool, "target_id": int})
    return rows[["target_id", "text", "accepted"]].assign(variant=variant, site=site.label)


def _rate(context: Context, rows: pd.DataFrame, targets: int) -> dict[str, Any]:
    """Mean over targets of the share of their draws with their own label, with its interval, and shares of two labels."""
    settings = context.config.fcr
    values = rows.groupby("target_id")["same"].mean().reindex(range(targets)).to_numpy(float)
    means = bootstrap_means(values[None], settings.bootstrap, settings.confidence, context.config.seed)
    rate = {name: float(one[0]) for name, one in zip(("rate", "ci_low", "ci_high"), means, strict=True)}
    shares = {name: float((rows["label"] == name).mean()) for name in (MIX, NULL)}
    return rate | shares | {"n_targets": int(np.isfinite(values).sum()), "n_draws": len(rows)}


def _texts(context: Context, most: int) -> list[str]:
    """The test prompts, and distinct candidates of every variant and site in equal parts, `most` in all."""
    texts = dict.fromkeys(context.prompts("test", columns=["text"])["text"])
    config, plan = context.config, context.plan
    read = [(variant, site.label) for variant in plan.studied for site in plan.sites_of(variant)]
    for variant, label in read:
        path = context.samples_path(plan.generator_of(variant), variant, label)
        drawn = read_table(need(path, "sample_prompts"), ["text"])["text"].unique()
        rng = stream(config.seed, "label_tasks", variant, label)
        texts.update(dict.fromkeys(rng.permutation(drawn)[: max(1, most // len(read))]))
    return list(texts)


def _labeller(context: Context, config: LabellerConfig) -> Labeller:
    settings = config if config.model is None else context.config.models[config.model]
    location = _location(context, config.model or "", settings)
    names = context.task.feature_values["task"]
    return Labeller(
        location.model(settings.dtype, settings.device_map),
        location.tokenizer(),
        config.instruction.format(labels=", ".join(names)),
        names,
        NULL,
        identity=f"{settings.path}@{settings.revision or identity({'sha256': hashes_of(location.path)})}",
        cache=context.data / "labels" / "cache.jsonl",
        batch_tokens=config.batch_tokens,
    )


def _location(context: Context, name: str, settings: LabellerConfig | ModelConfig) -> Location:
    """Where the chat model is: safetensors of any architecture, or what a GGUF file was turned into."""
    if isinstance(settings, ModelConfig) and settings.gguf:
        imported = context.root / paths.WEIGHTS.format(model=name, file="target.json")
        return locate(imported.parent, read_json(need(imported, "import_gguf")))
    remedy = "set labeller.source: local and labeller.path to a folder that holds it, or HF_HOME to a cache that does"
    return Location(str(settings.path), settings.revision if settings.source == "hub" else None, remedy)


def _agreement(label: str, group: pd.DataFrame, confidence: float) -> dict[str, Any]:
    """How often both agree on texts with a label by the rule."""
    same = int((group["rule"] == group["llm"]).sum())
    interval = binomtest(same, len(group)).proportion_ci(confidence, method="wilson")
    return {
        "rule": label,
        "agreement": same / len(group),
        "ci_low": interval.low,
        "ci_high": interval.high,
        "n_texts": len(group),
        "answered_null": int((group["llm"] == NULL).sum()),
    }
