"""Stages `fetch_word_lists`, `patch_task_vectors`, `label_tasks` of the translation task: lists, patching, LLM labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.context import Context, echo, need
from inversescope.errors import InputError
from inversescope.fcr.intervals import bootstrap_means
from inversescope.progress import Progress
from inversescope.store import read_table, write_table
from inversescope.streams import stream
from inversescope.tasks import word_lists
from inversescope.tasks.icl_translation import MIX, NULL, TASK_NAMES, TranslationTask

if TYPE_CHECKING:
    from inversescope.activations.patching import Cut, Inputs, Intervention
    from inversescope.config import Config
    from inversescope.sites import Site
    from inversescope.targets.models import Target

#: What a patched prediction is: the target's translation under the source's task, the source's own output, or neither.
OUTCOMES = ("task", "source", "other")
#: Kinds of patching -> what is done, in words.
KINDS = {
    "none": "the target's run alone",
    "residual": "residual stream after block l",
    "attention": "attention output of block l alone",
    "masked": "residual stream after block l, the query hidden from the source's run",
    "returned": "residual stream after block l of the source, written at the best layer",
    "returned_masked": "the same, the query hidden from the source's run",
    "forwarded": "residual stream after the best layer of the source, written after block l",
}
PATCHING_COLUMNS = "task model kind layer written outcome rate ci_low ci_high n_pairs excluded".split()
#: What masking.csv tells of block l: rates of patching the zero-shot target (`masking.states`), accuracies of probes
#: (`masking.probed`), and how much of the task vectors is left (`masking.remaining`).
MASKING_COLUMNS = (
    "task model kind layer written outcome rate ci_low ci_high chance n_queries n_prompts excluded".split()
)
_TAIL = ", Output:"


def fetch_word_lists(context: Context) -> None:
    """Write data/icl_translation/lists/*.json, from the mirror or from upstream at the pinned commit, checked by SHA-256."""
    config = context.config.icl_translation
    mirror = None if config.mirror is None else context.root / config.mirror
    word_lists.fetch(context.root / "data" / TranslationTask.name / "lists", mirror)
    task = TranslationTask(config, context.root)
    left_out = ", ".join(f"{why}: {number}" for why, number in task.dropped.items())
    echo(f"fetch_word_lists: {task.n} pairs a task; left out {left_out}")


# ------------------------------------------------------------------------------------------------------------------ patching


@dataclass(frozen=True)
class Pairs:
    """Source and target prompts of the task-vector experiment (D.3.1), ready to run.

    Attributes:
        sources: three shots and a query.
        targets: another query of the same language, without shots.
        expected: (N, 2) first tokens of the target's translation under the source's task, and of the source's own output.
        cuts: attention to the query from all later positions of a source, for hiding it.
        excluded: pairs left out because their two expected tokens are the same.
    """

    sources: Inputs
    targets: Inputs
    expected: np.ndarray
    cuts: tuple[Cut, ...]
    excluded: int


def draw_pairs(task: TranslationTask, target: Target, n: int, rng: np.random.Generator) -> Pairs:
    """Draw N pairs: sources from the test split, of the six tasks in equal parts, the target's query uniformly among the other
    words of its source language.

    Raises:
        InputError: fewer than half of the pairs can be told apart by their first tokens.
    """
    from inversescope.activations.patching import Cut, Inputs

    index = task.sample(n, "test", rng)
    texts = task.texts(index)
    ids = target.encode(texts)
    target_ids, expected = _asked(task, target, index, rng)
    keep = np.flatnonzero(expected[:, 0] != expected[:, 1])
    if len(keep) < n / 2:
        raise InputError(
            f"{n - len(keep)} of {n} pairs have answers that begin with the same token",
            "use another tokenizer's model, or other words",
        )
    ends = [len(one) for one in target.encode([texts[i].removesuffix(_TAIL) for i in keep])]
    words = [text.removesuffix(_TAIL).rsplit(" ", 1)[0] for text in (texts[i] for i in keep)]
    starts = [len(one) for one in target.encode(words)]
    lengths = [len(ids[i]) for i in keep]
    positions: dict[str, np.ndarray] = {}
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    tail = max(length - end for length, end in zip(lengths, ends, strict=True))
    for place in range(longest):
        positions[f"query_{place}"] = np.maximum(np.array(ends) - 1 - place, np.array(starts))
    for place in range(tail):
        positions[f"tail_{place}"] = np.maximum(np.array(lengths) - 1 - place, np.array(ends))
    cuts = tuple(
        Cut(key=f"query_{key}", query=f"tail_{late}") for key in range(longest) for late in range(tail)
    )
    return Pairs(
        sources=Inputs([ids[i] for i in keep], positions),
        targets=Inputs([target_ids[i] for i in keep]),
        expected=expected[keep],
        cuts=cuts,
        excluded=n - len(keep),
    )


def _asked(
    task: TranslationTask, target: Target, index: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Tokens of a zero-shot prompt for each source (N,), of another query of the same dictionary, and first tokens (N, 2) of its
    translation and of the source's own output. An answer stands for its first token behind the prompt's."""
    slots = task.slots(index).astype(np.int64)
    other = rng.integers(task.n - 1, size=len(slots))
    query = (other + (other >= slots[:, -1])).tolist()
    asked = [task.text(t, [], q) for t, q in zip(slots[:, 0].tolist(), query, strict=True)]
    wanted = [task.pairs[t][q][1] for t, q in zip(slots[:, 0].tolist(), query, strict=True)]
    first = []
    for texts, words in ((asked, wanted), (task.texts(index), task.answers(index))):
        whole = target.encode([f"{text} {word}" for text, word in zip(texts, words, strict=True)])
        first.append([long[len(ids)] for long, ids in zip(whole, target.encode(texts), strict=True)])
    return target.encode(asked), np.array(first, np.int64).T


def patch_task_vectors(context: Context) -> None:
    """Run the task-vector experiment (D.3.1) at every layer, with the controls that tell masked from gone.

    Writes results/{task}/{model}/patching.csv: rates of each outcome by kind of patching (`KINDS`) and layer, with intervals
    over pairs; patching_pairs.parquet, the outcome of every pair; and masking.csv (`MASKING_COLUMNS`), with intervals over queries.
    The best layer is the one with the highest rate of `task` under `residual`.
    """
    from inversescope.activations.patching import Intervention, Patch, patch
    from inversescope.sites import Site
    from inversescope.targets.models import load_target

    task = context.task
    if not isinstance(task, TranslationTask):
        raise InputError(
            f"task {context.task_name} has no task vectors", "run patch_task_vectors on task icl_translation"
        )
    target = load_target(context.made_target())
    settings = context.config.patching
    pairs = draw_pairs(task, target, settings.n_pairs, stream(context.config.seed, "patch_task_vectors"))
    layers = range(target.n_layers)
    progress = Progress("patch_task_vectors", (6 * len(layers) + 1) * len(pairs.expected), echo)
    done = 0

    def run(what: list[tuple[str, int, int, Intervention]]) -> list[tuple[str, int, int, np.ndarray]]:
        nonlocal done
        top = patch(target, pairs.sources, pairs.targets, [one[3] for one in what]).top
        done += top.size
        progress(done)
        outcome = np.where(top == pairs.expected[:, 0], 0, np.where(top == pairs.expected[:, 1], 1, 2))
        return [(kind, layer, written, outcome[k]) for k, (kind, layer, written, _) in enumerate(what)]

    post = [Site(layer, "resid_post") for layer in layers]
    found = run(
        [
            ("none", -1, -1, Intervention()),
            *(("residual", layer, layer, Intervention((Patch(post[layer]),))) for layer in layers),
            *(
                ("attention", layer, layer, Intervention((Patch(Site(layer, "attn_out")),)))
                for layer in layers
            ),
            *(
                ("masked", layer, layer, Intervention((Patch(post[layer]),), cut_source=pairs.cuts))
                for layer in layers
            ),
        ]
    )
    best = int(np.argmax([float((hit == 0).mean()) for kind, _, _, hit in found if kind == "residual"]))
    back = {layer: (Patch(post[layer], post[best]),) for layer in layers}
    found += run(
        [
            *(("returned", layer, best, Intervention(back[layer])) for layer in layers),
            *(
                ("returned_masked", layer, best, Intervention(back[layer], cut_source=pairs.cuts))
                for layer in layers
            ),
            *(
                ("forwarded", layer, layer, Intervention((Patch(post[best], post[layer]),)))
                for layer in layers
            ),
        ]
    )
    fcr = context.config.fcr
    rows = []
    for kind, layer, written, hit in found:
        each = np.stack([hit == place for place in range(len(OUTCOMES))]).astype(float)
        for place, (rate, low, high) in enumerate(
            zip(*bootstrap_means(each, fcr.bootstrap, fcr.confidence, context.config.seed), strict=True)
        ):
            rows.append(
                {
                    "task": context.task_name,
                    "model": context.model_name,
                    "kind": kind,
                    "layer": layer,
                    "written": written,
                    "outcome": OUTCOMES[place],
                    "rate": rate,
                    "ci_low": low,
                    "ci_high": high,
                    "n_pairs": len(hit),
                    "excluded": pairs.excluded,
                }
            )
    write_table(pd.DataFrame(rows)[PATCHING_COLUMNS], context.results / "patching.csv")
    raw = [
        pd.DataFrame(
            {"kind": kind, "layer": layer, "pair": np.arange(len(hit)), "outcome": np.array(OUTCOMES)[hit]}
        )
        for kind, layer, _, hit in found
    ]
    write_table(pd.concat(raw, ignore_index=True), context.results / "patching_pairs.parquet")
    echo(f"patch_task_vectors: {len(pairs.expected)} pairs, {pairs.excluded} left out, best layer {best}")
    table = measure_masking(task, target, context.config, best).assign(
        task=context.task_name, model=context.model_name
    )
    write_table(table[MASKING_COLUMNS], context.results / "masking.csv")


def measure_masking(task: TranslationTask, target: Target, config: Config, best: int) -> pd.DataFrame:
    """Ask whether the task is masked or overwritten in the residual streams of sources, block by block.

    Sources are those of `TranslationTask.crossed`; the zero-shot target of each asks another query of its dictionary.

    Args:
        best: the layer where patching works best, at which states are written and whose task vectors are looked for.

    Returns:
        `MASKING_COLUMNS` without task and model: a row a (kind, layer, outcome). Outcomes of patching are `task` and `source` as in
        patching.csv, their chance is the rate of the target's run alone (kind `none`); that of `own` and `carried` is `accuracy`,
        that of `remaining` is `share`. Means of queries; `excluded` prompts have two answers that begin alike.
    """
    from inversescope.activations.patching import Inputs, Intervention, Patch, patch, record
    from inversescope.sites import Site
    from inversescope.studies.icl.masking import parts, probed, remaining, states

    settings = config.patching
    rng = stream(config.seed, "measure_masking")
    index = task.crossed(settings.n_queries, settings.n_shots, rng)
    asked, expected = _asked(task, target, index.ravel(), rng)
    apart = (expected[:, 0] != expected[:, 1]).reshape(index.shape)
    layers = range(target.n_layers)
    post = {layer: Site(layer, "resid_post") for layer in layers}
    found = record(target, Inputs(target.encode(task.texts(index.ravel()))), list(post.values()))
    streams = {layer: found[post[layer]].reshape(*index.shape, -1).astype(np.float64) for layer in layers}
    vectors = parts(streams[best])
    progress = Progress("measure_masking", target.n_layers, echo)
    rows: list[tuple[str, int, int, str, np.ndarray, float]] = []

    def run(values: dict[Site, np.ndarray] | None, what: Intervention) -> dict[str, np.ndarray]:
        """Share of prompts with each outcome, a query (Q,)."""
        top = patch(target, values, Inputs(asked), [what]).top[0]
        hits = {
            name: (top == expected[:, place]).reshape(index.shape) for place, name in enumerate(OUTCOMES[:2])
        }
        with np.errstate(invalid="ignore"):
            return {name: (hit & apart).sum((1, 2)) / apart.sum((1, 2)) for name, hit in hits.items()}

    idle = run(None, Intervention())
    chance = {name: float(np.nanmean(rate)) for name, rate in idle.items()}
    rows += [("none", -1, -1, name, rate, chance[name]) for name, rate in idle.items()]
    write = Intervention((Patch(post[best]),))
    for layer in layers:
        for kind, state in states(streams[layer], vectors).items():
            values = {post[best]: state.reshape(len(expected), -1).astype(np.float32)}
            for name, rate in run(values, write).items():
                rows.append((kind, layer, best, name, rate, chance[name]))
        for kind, rate in probed(streams[layer], streams[best], config.probe.max_iter).items():
            rows.append((kind, layer, best, "accuracy", rate, 1 / index.shape[1]))
        rows.append(("remaining", layer, best, "share", remaining(streams[layer], vectors), 0.0))
        progress(layer + 1)
    rates = bootstrap_means(
        np.stack([row[4] for row in rows]), config.fcr.bootstrap, config.fcr.confidence, config.seed
    )
    table = pd.DataFrame(
        [(kind, layer, written, outcome) for kind, layer, written, outcome, *_ in rows],
        columns=["kind", "layer", "written", "outcome"],
    ).assign(chance=[row[5] for row in rows], n_queries=len(index), n_prompts=index.size)
    table[["rate", "ci_low", "ci_high"]] = np.stack(rates, axis=1)
    return table.assign(excluded=int((~apart).sum()))


# -------------------------------------------------------------------------------------------------------------------- labels


def label_tasks(context: Context) -> None:
    """Label the test prompts and distinct candidates by a chat model (D.3.3), and compare with the rule.

    Writes results/{task}/{model}/labels.parquet (text, rule, llm) and label_agreement.csv: the share of texts on which both
    agree, on all texts and by the rule's label, with a binomial interval, and how many answers were no label.

    Raises:
        InputError: no labeller is configured, or it cannot be loaded or has no chat template.
    """
    from scipy.stats import binomtest

    from inversescope.studies.icl.labeller import Labeller, load_chat_model

    config = context.config.labeller
    if config is None:
        raise InputError(
            "there is no labeller in the configuration",
            "set labeller.path to a local chat model or a hub one",
        )
    task = context.task
    texts = dict.fromkeys(context.prompts("test", columns=["text"])["text"])
    read = [
        (variant, site)
        for variant in context.config.studied_variants
        for site in context.plan.sites_of(variant)
    ]
    for variant, site in read:
        generator = context.config.variant(variant).generator
        path = need(context.samples_path(generator, variant, site.label), "sample_prompts")
        drawn = read_table(path, ["text"])["text"].unique()
        rng = stream(context.config.seed, "label_tasks", variant, site.label)
        texts.update(dict.fromkeys(rng.permutation(drawn)[: max(1, config.max_texts // len(read))]))
    unique = list(texts)
    model, tokenizer = load_chat_model(
        config.source, config.path, config.revision, config.dtype, config.device_map
    )
    names = [*TASK_NAMES, MIX, NULL]
    labeller = Labeller(
        model,
        tokenizer,
        config.instruction.format(labels=", ".join(names)),
        names,
        NULL,
        identity=f"{config.path}@{config.revision or 'local'}",
        cache=context.data / "labels" / "cache.jsonl",
        batch_tokens=config.batch_tokens,
    )
    progress = Progress("label_tasks", len(unique), echo)
    got = labeller(unique, lambda done, _: progress(done))
    rules = [task.feature_values["task"][code] for code in task.features_of_texts(unique)["task"]]
    frame = pd.DataFrame({"text": unique, "rule": rules, "llm": got.labels})
    write_table(frame, context.results / "labels.parquet")
    rows = []
    for label, group in [("all", frame), *frame.groupby("rule", sort=True)]:
        same = int((group["rule"] == group["llm"]).sum())
        interval = binomtest(same, len(group)).proportion_ci(context.config.fcr.confidence, method="wilson")
        rows.append(
            {
                "rule": label,
                "agreement": same / len(group),
                "ci_low": interval.low,
                "ci_high": interval.high,
                "n_texts": len(group),
                "answered_null": int((group["llm"] == NULL).sum()),
                "no_label": got.refused if label == "all" else "",
            }
        )
    write_table(pd.DataFrame(rows), context.results / "label_agreement.csv")
    echo(
        f"label_tasks: {len(unique)} texts ({got.cached} known), {got.refused} answers were no label, "
        f"agreement {rows[0]['agreement']:.3f}"
    )
