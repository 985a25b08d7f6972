"""Stage `label_tasks`: tasks of prompts by a chat model (paper, D.3.3), compared with the rule's."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy.stats import binomtest

from inversescope.config.targets import LabellerConfig, ModelConfig
from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.store import identity, read_json, read_table, write_table
from inversescope.streams import stream
from inversescope.studies.icl.labeller import Labeller
from inversescope.targets.files import hashes_of
from inversescope.targets.sources import Location, locate
from inversescope.tasks.few_shot import NULL
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
