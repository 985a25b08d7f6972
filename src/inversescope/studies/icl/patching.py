"""Stage `patch_task_vectors`: does a task vector carry the task (paper, D.3.1), and is it masked by the query or overwritten?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from inversescope.activations.patching import (
    Cut,
    Inputs,
    Intervention,
    Patch,
    Recorded,
    patch,
    record,
    record_sources,
)
from inversescope.config import Config
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.fcr.intervals import bootstrap_means
from inversescope.progress import Progress
from inversescope.sites import Site
from inversescope.store import write_table
from inversescope.streams import stream
from inversescope.studies.icl.masking import parts, probed, remaining, states
from inversescope.targets.models import Target, load_target
from inversescope.tasks.few_shot import FewShotTask

#: What a patched prediction is: the target's answer under the source's task, the source's own output, or neither.
OUTCOMES = ("task", "source", "other")
PATCHING_COLUMNS = "task model kind layer written outcome rate ci_low ci_high n_pairs excluded".split()
#: What patching_by_task.csv tells of each task that is asked: these kinds of `Run`, and `few_shot`, the source's run alone.
BY_TASK_COLUMNS = "task model asked kind layer outcome rate ci_low ci_high n_pairs".split()
KINDS_BY_TASK = ("few_shot", "none", "residual")
#: What masking.csv tells of block l: rates of patching the zero-shot target (`masking.states`), accuracies of probes
#: (`masking.probed`), and how much of the task vectors is left (`masking.remaining`).
MASKING_COLUMNS = (
    "task model kind layer written outcome rate ci_low ci_high chance n_queries n_prompts excluded".split()
)
_TAIL = ", Output:"


def patch_task_vectors(context: Context) -> None:
    """Run the task-vector experiment (D.3.1) at every layer, with the controls that tell masked from gone.

    Writes results/{task}/{model}/patching.csv: rates of each outcome by kind of patching (`Run`) and layer, with intervals
    over pairs; patching_by_task.csv, some of them task by task (`BY_TASK_COLUMNS`); patching_pairs.parquet, the outcome of every
    pair; and masking.csv (`MASKING_COLUMNS`), with intervals over queries. The best layer is the one with the highest rate of
    `task` under `residual`.
    """
    task, config = context.task, context.config
    if not isinstance(task, FewShotTask):
        raise InputError(
            f"task {context.task_name} has no task vectors",
            "run patch_task_vectors on an in-context task, such as icl_words",
        )
    target = load_target(context.made_target())
    pairs = draw_pairs(task, target, config.patching.n_pairs, stream(config.seed, "patch_task_vectors"))
    runs = (6 * target.n_layers + 1) * len(pairs.expected)
    progress = Steps(Progress("patch_task_vectors", runs, echo))
    post = [Site(layer, "resid_post") for layer in range(target.n_layers)]
    ways = _layer_to_layer(post, pairs.cuts)
    sources = record_sources(
        target, pairs.sources, pairs.targets, list(ways.values()), progress=partial(progress, 0, 1)
    )
    found = _outcomes(target, pairs, sources, ways, progress)
    rates = {run.layer: float((hit == 0).mean()) for run, hit in found.items() if run.kind == "residual"}
    best = max(rates, key=rates.__getitem__)
    found |= _outcomes(target, pairs, sources, _by_best_layer(post, best, pairs.cuts), progress)
    about = {"task": context.task_name, "model": context.model_name}
    table = _rates(found, config).assign(**about, excluded=pairs.excluded)
    write_table(table[PATCHING_COLUMNS], context.results / "patching.csv")
    # What stands behind the last block is all that a prediction is made of: it is the source's own.
    last = target.n_layers - 1
    alone = {Run("few_shot", -1, -1): found[Run("residual", last, last)]}
    by_task = _rates_by_task(found | alone, task.task_names, pairs.asked, config).assign(**about)
    write_table(by_task[BY_TASK_COLUMNS], context.results / "patching_by_task.csv")
    asked = np.array(task.task_names)[pairs.asked]
    raw = [
        pd.DataFrame(
            {
                "kind": run.kind,
                "layer": run.layer,
                "pair": range(len(hit)),
                "asked": asked,
                "outcome": np.array(OUTCOMES)[hit],
            }
        )
        for run, hit in found.items()
    ]
    write_table(pd.concat(raw, ignore_index=True), context.results / "patching_pairs.parquet")
    echo(f"patch_task_vectors: {len(pairs.expected)} pairs, {pairs.excluded} left out, best layer {best}")
    masking = measure_masking(task, target, config, best).assign(**about)
    write_table(masking[MASKING_COLUMNS], context.results / "masking.csv")


@dataclass(frozen=True)
class Pairs:
    """Source and target prompts of the task-vector experiment (D.3.1), ready to run.

    Attributes:
        sources: shots and a query.
        targets: another query of the same task, without shots.
        asked: (N,) the task of each pair.
        expected: (N, 2) first tokens of the target's answer under the source's task, and of the source's own output.
        cuts: attention to the query from all later positions of a source, for hiding it.
        excluded: pairs left out because their two expected tokens are the same.
    """

    sources: Inputs
    targets: Inputs
    asked: np.ndarray
    expected: np.ndarray
    cuts: tuple[Cut, ...]
    excluded: int


def draw_pairs(task: FewShotTask, target: Target, n: int, rng: np.random.Generator) -> Pairs:
    """Draw N pairs: sources from the test split, of the tasks in equal parts, the target's query uniformly among the other words
    that the task asks.

    Raises:
        InputError: fewer than half of the pairs can be told apart by their first tokens.
    """
    index = task.sample(n, "test", rng)
    texts = task.texts(index)
    ids = target.encode(texts)
    target_ids, expected = asked_and_expected(task, target, index, rng)
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
        asked=task.labels(index)["task"][keep],
        expected=expected[keep],
        cuts=cuts,
        excluded=n - len(keep),
    )


def asked_and_expected(
    task: FewShotTask, target: Target, index: np.ndarray, rng: np.random.Generator
) -> tuple[list[np.ndarray], np.ndarray]:
    """Tokens of a zero-shot prompt for each source (N,), of another query of the same task, and first tokens (N, 2) of its
    answer and of the source's own output. An answer stands for its first token behind the prompt's."""
    asked, wanted = task.ask_another(index, rng)
    first = []
    for texts, words in ((asked, wanted), (task.texts(index), task.answers(index))):
        whole = target.encode([f"{text} {word}" for text, word in zip(texts, words, strict=True)])
        first.append([long[len(ids)] for long, ids in zip(whole, target.encode(texts), strict=True)])
    return target.encode(asked), np.array(first, np.int64).T


class Run(NamedTuple):
    """One way of patching.

    Attributes:
        kind: `none` (the target's run alone), `residual` (residual stream after block l), `attention` (attention output of block l
            alone), `masked` (as residual, the query hidden from the source's run), `returned` (residual stream after block l,
            written at the best layer), `returned_masked` (the same, the query hidden), `forwarded` (that of the best layer,
            written after block l).
        layer: l; -1 for none.
        written: the layer that is written.
    """

    kind: str
    layer: int
    written: int


def _layer_to_layer(post: list[Site], cuts: tuple[Cut, ...]) -> dict[Run, Intervention]:
    """Activations of every layer, written where they come from; and the target's run alone."""
    runs = {Run("none", -1, -1): Intervention()}
    kinds = {
        "residual": lambda site: Intervention((Patch(site),)),
        "attention": lambda site: Intervention((Patch(Site(site.layer, "attn_out")),)),
        "masked": lambda site: Intervention((Patch(site),), cut_source=cuts),
    }
    return runs | {Run(kind, s.layer, s.layer): make(s) for kind, make in kinds.items() for s in post}


def _by_best_layer(post: list[Site], best: int, cuts: tuple[Cut, ...]) -> dict[Run, Intervention]:
    """Activations of every layer written at the best one, and those of the best one written at every layer."""
    back = {site.layer: (Patch(site, post[best]),) for site in post}
    runs = {Run("returned", layer, best): Intervention(patches) for layer, patches in back.items()}
    runs |= {Run("returned_masked", i, best): Intervention(p, cut_source=cuts) for i, p in back.items()}
    forward = {site.layer: Intervention((Patch(post[best], site),)) for site in post}
    return runs | {Run("forwarded", layer, layer): what for layer, what in forward.items()}


class Steps:
    """Progress of several calls of `patch`, one after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._done = progress, 0

    def __call__(self, done: int, of: int) -> None:
        self._progress(self._done + done)
        self._done += of * (done == of)


def _outcomes(
    target: Target, pairs: Pairs, sources: Recorded, runs: dict[Run, Intervention], progress: Steps
) -> dict[Run, np.ndarray]:
    """Which of `OUTCOMES` each pair (N,) has under each way of patching."""
    top = patch(target, sources, pairs.targets, list(runs.values()), progress=progress).top
    hit = np.where(top == pairs.expected[:, 0], 0, np.where(top == pairs.expected[:, 1], 1, 2))
    return dict(zip(runs, hit, strict=True))


def _rates_by_task(
    found: dict[Run, np.ndarray], names: list[str], asked: np.ndarray, config: Config
) -> pd.DataFrame:
    """`_rates` of each task's own pairs."""
    kept = {run: hit for run, hit in found.items() if run.kind in KINDS_BY_TASK}
    parts = [
        _rates({run: hit[asked == code] for run, hit in kept.items()}, config).assign(asked=names[code])
        for code in np.unique(asked)
    ]
    return pd.concat(parts, ignore_index=True)


def _rates(found: dict[Run, np.ndarray], config: Config) -> pd.DataFrame:
    """Rates of each outcome, with intervals over pairs; a row a way of patching and outcome."""
    parts = []
    for run, hit in found.items():
        each = np.stack([hit == place for place in range(len(OUTCOMES))]).astype(float)
        rate, low, high = bootstrap_means(each, config.fcr.bootstrap, config.fcr.confidence, config.seed)
        part = pd.DataFrame({"outcome": OUTCOMES, "rate": rate, "ci_low": low, "ci_high": high})
        parts.append(part.assign(**run._asdict(), n_pairs=len(hit)))
    return pd.concat(parts, ignore_index=True)


def measure_masking(task: FewShotTask, target: Target, config: Config, best: int) -> pd.DataFrame:
    """Ask whether the task is masked or overwritten in the residual streams of sources, block by block.

    Sources are those of `FewShotTask.crossed`, each crossing by itself; the zero-shot target of each asks another query.

    Args:
        best: the layer where patching works best, at which states are written and whose task vectors are looked for.

    Returns:
        `MASKING_COLUMNS` without task and model: a row a (kind, layer, outcome). Outcomes of patching are `task` and `source` as in
        patching.csv, their chance is the rate of the target's run alone (kind `none`); that of `own` and `carried` is `accuracy`,
        that of `remaining` is `share`; that of `above_first` is `difference`, the task rate of `query_removed` less that at the
        first layer, whose state is little more than the best layer's mean. Means of the queries of all crossings; `excluded`
        prompts have two answers that begin alike.
    """
    settings = config.patching
    rng = stream(config.seed, "measure_masking")
    crossings = task.crossed(settings.n_queries, settings.n_shots, rng)
    found = [_mask(task, target, index, best, config, rng) for index in crossings]
    keys = list(found[0].values)
    values = np.concatenate([np.stack([one.values[key] for key in keys]) for one in found], axis=1)
    idle = {outcome: i for i, (kind, _, outcome) in enumerate(keys) if kind == "none"}
    chance = {outcome: float(np.nanmean(values[i])) for outcome, i in idle.items()}
    chance |= {"accuracy": float(np.mean([1 / index.shape[1] for index in crossings]))}
    chance |= {"share": 0.0, "difference": 0.0}
    rates = bootstrap_means(values, config.fcr.bootstrap, config.fcr.confidence, config.seed)
    table = pd.DataFrame(keys, columns=["kind", "layer", "outcome"])
    table[["rate", "ci_low", "ci_high"]] = np.stack(rates, axis=1)
    return table.assign(
        written=np.where(table["kind"] == "none", -1, best),
        chance=table["outcome"].map(chance),
        n_queries=values.shape[1],
        n_prompts=sum(index.size for index in crossings),
        excluded=sum(one.excluded for one in found),
    )


class _Masked(NamedTuple):
    """Means a query (Q,) of one crossing by (kind, layer, outcome), and prompts whose two answers begin alike."""

    values: dict[tuple[str, int, str], np.ndarray]
    excluded: int


def _mask(
    task: FewShotTask, target: Target, index: np.ndarray, best: int, config: Config, rng: np.random.Generator
) -> _Masked:
    """`measure_masking` of prompts (Q, T, K)."""
    asked, expected = asked_and_expected(task, target, index.ravel(), rng)
    apart = (expected[:, 0] != expected[:, 1]).reshape(index.shape)
    post = [Site(layer, "resid_post") for layer in range(target.n_layers)]
    found = record(target, Inputs(target.encode(task.texts(index.ravel()))), post)
    streams = [found[site].reshape(*index.shape, -1).astype(np.float64) for site in post]
    vectors = parts(streams[best])
    written: dict[str, dict[Site, np.ndarray]] = {}
    for site, one in zip(post, streams, strict=True):
        for kind, state in states(one, vectors).items():
            written.setdefault(kind, {})[site] = state.reshape(len(expected), -1).astype(np.float32)
    values: dict[tuple[str, int, str], np.ndarray] = {}
    runs = (len(written) * len(post) + 1) * len(expected)
    progress = Steps(Progress("measure_masking", runs, echo))

    def run(kind: str, runs: dict[int, Intervention], states: dict[Site, np.ndarray] | None) -> None:
        """Put down the share of prompts with each outcome, a query (Q,), under an intervention a layer."""
        done = patch(target, states, Inputs(asked), list(runs.values()), progress=progress)
        for layer, top in zip(runs, done.top, strict=True):
            for place, outcome in enumerate(OUTCOMES[:2]):
                hit = (top == expected[:, place]).reshape(index.shape)
                with np.errstate(invalid="ignore"):
                    share = (hit & apart).sum((1, 2)) / apart.sum((1, 2))
                values[kind, layer, outcome] = share

    run("none", {-1: Intervention()}, None)
    # Every layer's state is written at the best one.
    write = {site.layer: Intervention((Patch(site, post[best]),)) for site in post}
    for kind, values_of in written.items():
        run(kind, write, values_of)
    for layer, one in enumerate(streams):
        for kind, hits in probed(one, streams[best], config.probe.max_iter).items():
            values[kind, layer, "accuracy"] = hits
        values["remaining", layer, "share"] = remaining(one, vectors)
        first, own = (values["query_removed", at, "task"] for at in (0, layer))
        values["above_first", layer, "difference"] = own - first
    return _Masked(values, int((~apart).sum()))
