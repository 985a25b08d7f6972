"""Stages `check_causes` and `trace_answers`: what a site's activation does to the answer, beside what can be read from it.

For each feature, prompts get counterfactual partners in which this feature differs and as much as possible of the rest is kept. The
partner's activation at one site is written into the prompt's run (activation patching), and the change of the logit difference
between the prompt's answer and the partner's is the site's effect. Beside it stands the exact FCR of the feature at that site.
`check_causes` does so where the answer begins, at sites of any position; `trace_answers` at each token of answers of several.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from inversescope.activations.capture import capture
from inversescope.activations.patching import Inputs
from inversescope.activations.positions import capture_prompts
from inversescope.config import Config
from inversescope.config.methods import KernelConfig
from inversescope.context import Context, centre_of, echo
from inversescope.errors import InputError
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.intervals import bootstrap_means
from inversescope.fcr.resampling import RESAMPLES
from inversescope.kernel.bandwidths import headline_at
from inversescope.kernel.distances import distance_of
from inversescope.sites import Site
from inversescope.store import write_table
from inversescope.streams import stream
from inversescope.studies.cases.agreement import rank_agreement, same_effects
from inversescope.studies.cases.patched import (
    Answered,
    Pairs,
    answered,
    first_difference,
    have_path,
    pair_up,
    patched_effects,
)
from inversescope.targets.models import Target, load_target
from inversescope.tasks import Task

POOL = 20_000  # prior draws for the exact FCR
FEWEST = 10  # pairs below which nothing is said about a feature
TRACED = 1000  # prompts whose partners' answers are traced: each pair tells of one token of the answer
#: Row of all pairs together, whatever was changed: its FCR is that of the answer's token itself.
ANSWER = "answer"
Labels = dict[str, np.ndarray]


def check_causes(context: Context) -> None:
    """Patch every site of the experiment's `patched` and compare effects with exact FCRs.

    The tokens whose logits are compared are the first ones of both answers, over pairs where these differ. Where too few do, as
    where all answers begin with one digit, they are the first token in which enough pairs differ first: what both answers begin
    with stands behind either prompt, and sites stay where they are. A feature that no answer depends on is asked by its own
    labels, if these are answers (`labels`: would the model name another subject?), or by the answer and another one, drawn at
    random (`other`).

    Writes results/{task}/{model}/causes.csv (task, model, site, layer, head, position, feature, fcr, fcr_low, fcr_high, chance,
    effect, effect_low, effect_high, share, total, answer_changes, compared, path, same_as, n_pairs; effects in logits, means over
    prompts with bootstrap intervals, `total` = the difference between the two runs, `share` = effect / total, `answer_changes` =
    share of partners whose answer differs first in the token that is compared, `path` = whether the site can reach the answer,
    `same_as` = the first site of the same effect on every pair) and causes_rank.csv (see `rank_agreement`).

    Raises:
        InputError: the task has no counterfactuals, or there are too few pairs for any feature.
    """
    task, config = context.task, context.config
    if not task.counterfactual_features:
        raise InputError(
            f"task {task.name} has no counterfactual prompts here", "leave the experiment's 'patched' empty"
        )
    target = load_target(context.made_target())
    sites = context.plan.expand(context.plan.settings.patched)
    rng = stream(config.seed, "check_causes")
    drawn, pool = _prompts(context, config.patching.n_partners, rng)
    matches = _exact_by_site(context, target, drawn, pool, sites)
    spelled, needed = spelled_answers(context, target), max(1, min(FEWEST, len(drawn)))
    tables, found = [], []
    for feature in task.counterfactual_features:
        other = task.counterfactuals(feature, drawn, rng)
        keep = np.flatnonzero(other >= 0)
        rows, pairs, compared = compared_pairs(
            task, target, feature, drawn[keep], other[keep], sites, spelled, needed, rng
        )
        if pairs is None:
            echo(f"check_causes {feature}: {len(rows)} pairs of different answers, too few")
            continue
        changes = len(rows) / len(keep) if compared == "answers" else 0.0
        keep = keep[rows]
        effects, total = patched_effects(target, pairs, f"check_causes {feature}")
        found.append(effects)
        table = _of_feature(
            context, sites, feature, effects, [matches[site][feature][keep] for site in sites]
        )
        share = table["effect"] / total.mean() if compared != "other" else np.nan
        table = table.assign(share=share, total=total.mean(), answer_changes=changes, compared=compared)
        tables.append(table.assign(path=have_path(target, pairs), n_pairs=len(keep)))
        echo(
            f"check_causes {feature}: {len(keep)} pairs, {len(sites)} sites, total {total.mean():.2f} logits"
        )
    if not tables:
        raise InputError(
            f"no feature of task {task.name} has {needed} counterfactual pairs of which answers differ in a token",
            "give a larger test split, or leave the experiment's 'patched' empty",
        )
    table = pd.concat(tables, ignore_index=True)
    same = same_effects(np.concatenate(found, axis=1), [site.label for site in sites])
    table.insert(table.columns.get_loc("path") + 1, "same_as", table["site"].map(same))
    write_table(table, context.results / "causes.csv")
    ranked = table[(table["compared"] != "other") & table["fcr"].notna()]
    ranks = rank_agreement(ranked, config.fcr.confidence, config.seed)
    write_table(ranks, context.results / "causes_rank.csv")


def _prompts(context: Context, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Prompts of the prior that the target was not trained on, so that what it does is no memory; and a pool of the reference."""
    task = context.task
    drawn = task.sample(min(n, task.split_size("test")), "test", rng)
    pool = context.prompt_ids("reference")
    return drawn, rng.permutation(pool)[:POOL]


def _site_table(context: Context, sites: list[Site]) -> pd.DataFrame:
    """A row a site: what tables say of it."""
    about = {"task": context.task_name, "model": context.model_name}
    rows = [(site.label, site.layer, site.head if site.head is not None else "") for site in sites]
    table = pd.DataFrame(rows, columns=["site", "layer", "head"]).assign(**about)
    return table[["task", "model", "site", "layer", "head"]]


def _of_feature(
    context: Context, sites: list[Site], feature: str, effects: np.ndarray, matches: list[np.ndarray]
) -> pd.DataFrame:
    """Exact FCR of a feature and effect at each site, means over pairs: effects (K, n), and K exact FCRs (n,) of the pairs."""
    done, told = np.split(_means(np.stack([*effects, *matches]), context.config), 2)
    table = _site_table(context, sites).assign(position=[site.position for site in sites], feature=feature)
    chance = context.task.chance(feature)
    return table.assign(**_named("fcr", told.T), chance=chance, **_named("effect", done.T))


def _means(values: np.ndarray, config: Config) -> np.ndarray:
    """Mean over pairs, low and high end of its interval (K, 3) of values (K, n)."""
    return np.stack(bootstrap_means(values, RESAMPLES, config.fcr.confidence, config.seed), 1)


def _named(name: str, values: np.ndarray) -> dict[str, Any]:
    """Columns of a mean and its interval."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _exact(
    kernel: KernelConfig, queries: np.ndarray, keys: np.ndarray, own: Labels, labels: Labels
) -> Labels:
    """Feature -> exact FCR (n,) at the headline bandwidth of activations (n, d), from those of a pool (N, d) of prior draws.

    The pool's mean is the centre of a centred kernel: sites that are patched need no cached activations.
    """
    if kernel.centred:
        queries, keys = queries - centre_of(keys), keys - centre_of(keys)
    prepared, epsilons = distance_of(kernel.distance).prepare(queries), [headline_at(kernel, keys)]
    found = exact_reference(prepared, keys, own, labels, epsilons, kernel.distance, kernel.kind)
    return {name: match[:, 0] for name, match in found.match.items()}


def _exact_by_site(
    context: Context, target: Target, drawn: np.ndarray, pool: np.ndarray, sites: list[Site]
) -> dict[Site, Labels]:
    """Site -> feature -> exact FCR (n,) of each prompt."""
    task, kernel, held = context.task, context.config.kernel, context.plan.patched_and_held
    captured = [site for site in sites if site.label not in held]
    computed = [capture_prompts(task, target, index, captured) if captured else {} for index in (drawn, pool)]
    names = task.counterfactual_features
    own, labels = ({n: task.features_of(index)[n] for n in names} for index in (drawn, pool))
    found = {}
    for site in sites:
        if site.label in held:
            known = context.known(site.label, "reference")
            queries, keys = known.of(drawn), known.of(pool)
        else:
            queries, keys = (activations[site.label] for activations in computed)
        found[site] = _exact(kernel, queries, keys, own, labels)
    return found


def spelled_answers(context: Context, target: Target) -> dict[str, np.ndarray]:
    """Tokens of each answer of the task that 2000 draws show."""
    index = context.task.draw(2000, None, stream(context.config.seed, "answers"))
    tokens = answered(context.task, target, index).answers
    return dict(sorted(zip(context.task.answers(index), tokens, strict=True), key=lambda pair: pair[0]))


def compared_pairs(
    task: Task,
    target: Target,
    feature: str,
    index: np.ndarray,
    other: np.ndarray,
    sites: list[Site],
    spelled: dict[str, np.ndarray],
    needed: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, Pairs | None, str]:
    """Which prompts (N,) and partners (N,) are compared, these pairs, and what is (`answers`, `labels` or `other`).

    Answers are compared at the first token in which at least `needed` pairs differ first; if there is none, the pairs are None, and
    the rows are all whose answers differ.
    """
    answers, compared = _compared(task, target, feature, index, other, spelled, rng)
    first = np.array([first_difference(*pair) for pair in answers], np.int64)
    k = next((k for k in range(1, first.max(initial=0) + 1) if (first == k).sum() >= needed), 0)
    if not k:
        return np.flatnonzero(first), None, compared
    rows = np.flatnonzero(first == k)
    some = [answers[row] for row in rows]
    return rows, pair_up(task, target, index[rows], other[rows], some, k, sites), compared


def _compared(
    task: Task,
    target: Target,
    feature: str,
    index: np.ndarray,
    other: np.ndarray,
    spelled: dict[str, np.ndarray],
    rng: np.random.Generator,
) -> tuple[list[tuple[np.ndarray, np.ndarray]], str]:
    """Two answers of each pair, as tokens, and what they are: both prompts' answers, both labels, or its own and another."""
    if not len(index):
        return [], "answers"
    own, partner = (answered(task, target, some).answers for some in (index, other))
    if any(first_difference(*pair) for pair in zip(own, partner, strict=True)):
        return list(zip(own, partner, strict=True)), "answers"
    labels = task.feature_values[feature]
    if all(label in spelled for label in labels):
        a, b = (
            [spelled[labels[code]] for code in task.features_of(some)[feature]] for some in (index, other)
        )
        return list(zip(a, b, strict=True)), "labels"
    # The first token in which any two answers differ.
    every = list(spelled.values())
    shared = next(
        (k for k, some in enumerate(zip(*every, strict=False)) if len(set(some)) > 1), min(map(len, every))
    )
    candidates = np.unique([one[shared] for one in every if len(one) > shared])
    pairs = []
    for one in own:
        others = candidates[candidates != one[shared]] if len(one) > shared else candidates[:0]
        drawn = rng.choice(others, size=1) if len(others) else one[shared : shared + 1]
        pairs.append((one, np.concatenate([one[:shared], drawn])))
    return pairs, "other"


# ------------------------------------------------------------------------------------------- answers of several tokens


def trace_answers(context: Context) -> None:
    """Which sites carry which token of an answer of several: patch where each token is predicted, behind the tokens before it.

    A pair of a prompt and its counterfactual partner tells of the first token in which their answers differ: up to there both runs
    read the same beginning of the answer (teacher-forced), so that only the question differs. Sites are those of the experiment's
    `patched` that stand where the answer begins, moved to where token k is predicted.

    Writes results/{task}/{model}/answers.csv: a row a (site, token k of the answer, feature), with the columns of causes.csv and
    `digit` (k from 1), `n_pool` (prior draws behind the exact FCRs, those whose answer has a k-th token), share_low and share_high.
    Its features are those that the partners differ in, and `answer`: all pairs together, beside the FCR of the k-th token itself.
    answers_rank.csv: `rank_agreement` over sites, of `answer` at each token (A1, A2, ...), and their mean.

    Raises:
        InputError: `patched` names no site where the answer begins, answers change the tokens of their questions, or no pair of
            answers differs.
    """
    task, config = context.task, context.config
    target = load_target(context.made_target())
    sites = [
        Site(site.layer, site.kind, site.head, "last")
        for site in context.plan.expand(context.plan.settings.patched)
        if site.position in (task.question_end, "last")
    ]
    if not sites:
        raise InputError(
            f"no patched site stands at @{task.question_end}, where answers of task {task.name} begin",
            f"add such sites to 'patched' of the experiment on {context.model_name}",
        )
    rng = stream(config.seed, "trace_answers")
    drawn, pool = _prompts(context, TRACED, rng)
    pairs = _traced_pairs(task, target, drawn, rng, config.patching.n_partners)
    if pairs.empty:
        raise InputError(f"no counterfactual partner of task {task.name} has another answer", "see 'patched'")
    texts, rows = answered(task, target, pool), []
    for k, of_token in pairs.groupby("digit"):
        there = np.flatnonzero(texts.lengths >= k)
        found = _of_token(context, target, sites, int(k), of_token, (pool[there], texts.of(there)))
        rows += [row for row in found if row["n_pairs"] >= min(FEWEST, len(drawn))]
        echo(f"trace_answers: {len(of_token)} pairs differ first in token {k}")
    if not rows:
        raise InputError(
            f"no token of the answers of task {task.name} has {FEWEST} counterfactual pairs",
            "give a larger test split",
        )
    table = pd.DataFrame(rows)
    write_table(table, context.results / "answers.csv")
    told = table[table["feature"] == ANSWER]
    told = told.assign(feature=[f"A{k}" for k in told["digit"]])
    ranks = rank_agreement(told, config.fcr.confidence, config.seed)
    write_table(ranks[ranks["sites"] == "path"].drop(columns="sites"), context.results / "answers_rank.csv")


def _of_token(
    context: Context,
    target: Target,
    sites: list[Site],
    k: int,
    pairs: pd.DataFrame,
    pool: tuple[np.ndarray, Answered],
) -> Iterator[dict[str, Any]]:
    """Rows of answers.csv about the k-th token: of pairs (own, partner) whose answers differ there first, and a pool of prior draws
    that have one."""
    task, config = context.task, context.config
    drawn, texts = pool
    own, partner = (answered(task, target, pairs[name].to_numpy()) for name in ("own", "partner"))
    tokens = np.stack([own.token(k), partner.token(k)], 1)
    inputs = (Inputs(own.before(k)), Inputs(partner.before(k)))
    pairs_at = Pairs(*inputs, tokens, sites, "last")
    effects, total = patched_effects(target, pairs_at, f"trace_answers token {k}")
    queries, keys = (capture(target, some.before(k), sites) for some in (own, texts))
    names = [*dict.fromkeys(pairs["feature"]), ANSWER]
    mine, labels = (
        {name: codes[name] for name in names}
        for codes in (
            {**task.features_of(pairs["own"].to_numpy()), ANSWER: tokens[:, 0]},
            {**task.features_of(drawn), ANSWER: texts.token(k)},
        )
    )
    same = same_effects(effects, [site.label for site in sites])
    for effect, about in zip(effects, _site_table(context, sites).to_dict("records"), strict=True):
        site = about["site"]
        match = _exact(config.kernel, queries[site], keys[site], mine, labels)
        for name in names:
            of = (pairs["feature"] == name).to_numpy() | (name == ANSWER)
            values = np.stack([effect[of], match[name][of]])
            done, told = _means(values, config)
            whole = float(total[of].mean())
            counts = np.unique(labels[name], return_counts=True)[1] / len(drawn)
            yield {
                **about,
                "digit": k,
                "feature": name,
                **_named("fcr", told),
                "chance": float((counts**2).sum()),
                **_named("effect", done),
                **_named("share", done / whole),
                "total": whole,
                "path": True,
                "same_as": same[site],
                "n_pairs": int(of.sum()),
                "n_pool": len(drawn),
            }


def _traced_pairs(
    task: Task, target: Target, drawn: np.ndarray, rng: np.random.Generator, most: int
) -> pd.DataFrame:
    """Prompts and partners (own, partner), the feature that differs, and the first token of the answer that does so too (digit).

    Of each token and feature `most` pairs, at most.
    """
    parts = []
    for feature in task.counterfactual_features:
        other = task.counterfactuals(feature, drawn, rng)
        index, other = drawn[other >= 0], other[other >= 0]
        if not len(index):
            continue
        own, partner = (answered(task, target, some) for some in (index, other))
        digit = [first_difference(*pair) for pair in zip(own.answers, partner.answers, strict=True)]
        parts.append(pd.DataFrame({"own": index, "partner": other, "feature": feature, "digit": digit}))
    pairs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["digit"])
    pairs = pairs[pairs["digit"] > 0]
    return pairs.groupby(["digit", "feature"], sort=False).head(most).sort_values("digit", kind="stable")
