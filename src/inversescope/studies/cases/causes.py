"""Stages `check_causes` and `trace_answers`: what a site's activation does to the answer, beside what can be read from it.

For each feature, prompts get counterfactual partners in which this feature differs and as much as possible of the rest is kept. The
partner's activation at one site is written into the prompt's run (activation patching), and the change of the logit difference
between the prompt's answer and the partner's is the site's effect. Beside it stands the exact FCR of the feature at that site.
`check_causes` does so where the answer begins, at sites of any position; `trace_answers` at each token of answers of several.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from inversescope.activations.capture import capture
from inversescope.activations.patching import Inputs, Intervention, Patch, patch
from inversescope.activations.positions import capture_prompts, named_positions
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.fcr.exact import exact_reference
from inversescope.fcr.intervals import bootstrap_means
from inversescope.kernel.distances import distance_of
from inversescope.sites import Site
from inversescope.store import write_table
from inversescope.streams import stream
from inversescope.targets.models import Target, load_target
from inversescope.tasks import Task

PAIRS = 200  # prompts with a partner, a feature
POOL = 20_000  # prior draws for the exact FCR
RESAMPLES = 2000
FEWEST = 10  # pairs below which nothing is said about a feature
TRACED = 1000  # prompts whose partners' answers are traced: each pair tells of one token of the answer
SAME = 1e-3  # logits: effects that differ by less on every pair are one effect
#: Row of all pairs together, whatever was changed: its FCR is that of the answer's token itself.
ANSWER = "answer"


def check_causes(context: Context) -> None:
    """Patch every site of the experiment's `patched` and compare effects with exact FCRs.

    The tokens whose logits are compared are the first ones of both answers, over pairs where these differ. A feature that no
    answer depends on is asked by its own labels, if these are answers (`labels`: would the model name another subject?), or by the
    answer and another one, drawn at random (`other`).

    Writes results/{task}/{model}/causes.csv (task, model, site, layer, head, position, feature, fcr, fcr_low, fcr_high, chance,
    effect, effect_low, effect_high, share, total, answer_changes, compared, path, same_as, n_pairs; effects in logits, means over
    prompts with bootstrap intervals, `total` = the difference between the two runs, `share` = effect / total, `answer_changes` =
    share of partners whose answer begins otherwise, `path` = whether the site can reach the answer, `same_as` = the first site of
    the same effect on every pair) and causes_rank.csv (see `rank_agreement`).

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
    # Prompts of the prior that the target was not trained on, so that what it does is no memory.
    drawn = task.sample(min(PAIRS, task.split_size("test")), "test", rng)
    pool = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    pool = rng.permutation(pool)[:POOL]
    paths = have_path(context, target, drawn, sites)
    matches = _exact_matches(context, target, drawn, pool, sites)
    first = _first_tokens(context, target)
    rows: list[dict[str, Any]] = []
    found: list[np.ndarray] = []
    for feature in task.counterfactual_features:
        other = task.counterfactuals(feature, drawn, rng)
        keep = np.flatnonzero(other >= 0)
        tokens, changes, compared = _compared(task, target, feature, drawn[keep], other[keep], first, rng)
        if compared == "answers":
            keep, tokens = keep[tokens[:, 0] != tokens[:, 1]], tokens[tokens[:, 0] != tokens[:, 1]]
        if len(keep) < min(FEWEST, len(drawn)):
            echo(f"check_causes {feature}: {len(keep)} pairs, too few")
            continue
        effects, total = patched_effects(context, target, drawn[keep], other[keep], sites, tokens)
        found.append(effects)
        every = np.stack([*effects, *(matches[site][feature][keep] for site in sites)])
        mean, low, high = bootstrap_means(every, RESAMPLES, config.fcr.confidence, config.seed)
        for k, site in enumerate(sites):
            f = len(sites) + k
            rows.append(
                {
                    "task": task.name,
                    "model": context.model_name,
                    "site": site.label,
                    "layer": site.layer,
                    "head": site.head if site.head is not None else "",
                    "position": site.position,
                    "feature": feature,
                    "fcr": mean[f],
                    "fcr_low": low[f],
                    "fcr_high": high[f],
                    "chance": task.chance(feature),
                    "effect": mean[k],
                    "effect_low": low[k],
                    "effect_high": high[k],
                    "share": mean[k] / total.mean() if compared != "other" else np.nan,
                    "total": total.mean(),
                    "answer_changes": changes,
                    "compared": compared,
                    "path": paths[site],
                    "n_pairs": len(keep),
                }
            )
        echo(
            f"check_causes {feature}: {len(keep)} pairs, {len(sites)} sites, total {total.mean():.2f} logits"
        )
    if not rows:
        raise InputError(
            f"no feature of task {task.name} has {FEWEST} counterfactual pairs",
            "give a larger test split, or leave the experiment's 'patched' empty",
        )
    table = pd.DataFrame(rows)
    same = same_effects(np.concatenate(found, axis=1), [site.label for site in sites])
    table.insert(table.columns.get_loc("path") + 1, "same_as", table["site"].map(same))
    write_table(table, context.results / "causes.csv")
    ranked = table[(table["compared"] != "other") & table["fcr"].notna()]
    write_table(
        rank_agreement(ranked, config.fcr.confidence, config.seed), context.results / "causes_rank.csv"
    )


def _exact_matches(
    context: Context, target: Target, drawn: np.ndarray, pool: np.ndarray, sites: list[Site]
) -> dict[Site, dict[str, np.ndarray]]:
    """Site -> feature -> exact FCR (n,) of each prompt at the headline bandwidth, from a pool of prior draws."""
    task, kernel = context.task, context.config.kernel
    queries, keys = (capture_prompts(task, target, index, sites) for index in (drawn, pool))
    names = task.counterfactual_features
    own, labels = ({n: task.features_of(index)[n] for n in names} for index in (drawn, pool))
    result = {}
    for site in sites:
        prepared = distance_of(kernel.distance).prepare(queries[site.label])
        exact = exact_reference(
            prepared, keys[site.label], own, labels, [kernel.epsilon], kernel.distance, kernel.kind
        )
        result[site] = {name: exact.match[name][:, 0] for name in names}
    return result


def _first_tokens(context: Context, target: Target) -> dict[str, int]:
    """First token of each answer of the task that 2000 draws show."""
    task = context.task
    index = task.draw(2000, None, stream(context.config.seed, "answers"))
    ids, starts = answered(task, target, index)
    pairs = {a: int(i[s]) for a, i, s in zip(task.answers(index), ids, starts, strict=True)}
    return {answer: pairs[answer] for answer in sorted(pairs)}


def _compared(
    task: Task,
    target: Target,
    feature: str,
    index: np.ndarray,
    other: np.ndarray,
    first: dict[str, int],
    rng: np.random.Generator,
) -> tuple[np.ndarray, float, str]:
    """Tokens (n, 2) whose logits are compared, the share of partners whose answer begins otherwise, and what is compared."""
    begun = []
    for some in (index, other):
        ids, starts = answered(task, target, some)
        begun.append(np.array([int(i[s]) for i, s in zip(ids, starts, strict=True)], np.int64))
    changes = float((begun[0] != begun[1]).mean()) if len(index) else 0.0
    if changes > 0:
        return np.stack(begun, 1), changes, "answers"
    labels = task.feature_values[feature]
    if all(label in first for label in labels):
        codes = [task.features_of(some)[feature] for some in (index, other)]
        token = np.array([first[label] for label in labels])
        return np.stack([token[code] for code in codes], 1), changes, "labels"
    candidates = np.unique(list(first.values()))
    drawn = [int(rng.choice(candidates[candidates != a])) for a in begun[0]]
    return np.stack([begun[0], np.array(drawn, np.int64)], 1), changes, "other"


def patched_effects(
    context: Context,
    target: Target,
    index: np.ndarray,
    other: np.ndarray,
    sites: list[Site],
    tokens: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Effects (K, n) of writing the partners' activations at K sites, and total differences (n,), in logits.

    Args:
        index, other: prompts and their partners (n,).
        tokens: token ids (n, 2) whose logit difference is read.
    """
    task = context.task
    end = Site(0, "resid_pre", None, task.question_end)
    inputs = []
    for some in (index, other):
        ids = target.encode(task.texts(some))
        inputs.append(Inputs(ids, named_positions(task, target, some, ids, [*sites, end])))
    return _effects(target, inputs[0], inputs[1], sites, tokens, task.question_end)


def _effects(
    target: Target, own: Inputs, partner: Inputs, sites: list[Site], tokens: np.ndarray, read_at: str
) -> tuple[np.ndarray, np.ndarray]:
    """Effects (K, n) and total differences (n,) of `patched_effects`, for prompts as token ids."""
    plain = Intervention()
    # A head's output is replaced before W_O: the same as replacing its result.
    writes = [Site(s.layer, "z" if s.kind == "result" else s.kind, s.head, s.position) for s in sites]
    runs = [plain, *(Intervention((Patch(site),)) for site in writes)]
    patched = patch(target, partner, own, runs, tokens, read_at).logits
    swapped = patch(target, None, partner, [plain], tokens, read_at).logits
    difference = patched[..., 0] - patched[..., 1]
    total = difference[0] - (swapped[0, :, 0] - swapped[0, :, 1])
    return (difference[0] - difference[1:]).astype(np.float64), total.astype(np.float64)


def same_effects(effects: np.ndarray, labels: list[str]) -> dict[str, str]:
    """Each site's first site of the same effect on every pair; one that has no effect at all is on its own.

    Such sites are no independent evidence: one is computed from nothing but the other, or is the same stream a block later.

    Args:
        effects: logits (K, n).
        labels: of the K sites.
    """
    result: dict[str, str] = {}
    for k, label in enumerate(labels):
        equal = (j for j in range(k) if np.abs(effects[k] - effects[j]).max(initial=0.0) < SAME)
        twin = next(equal, k) if np.abs(effects[k]).max(initial=0.0) >= SAME else k
        result[label] = result.get(labels[twin], label)
    return result


def have_path(context: Context, target: Target, index: np.ndarray, sites: list[Site]) -> dict[Site, bool]:
    """Whether each site can reach the answer at all: what the last block writes at other positions nobody attends to any more."""
    ids = target.encode(context.task.texts(index))
    end = Site(0, "resid_pre", None, context.task.question_end)
    where = Inputs(ids, named_positions(context.task, target, index, ids, [*sites, end]))
    answers = where.resolve(end.position)
    early = {site: site.layer < target.n_layers - 1 or site.kind == "resid_pre" for site in sites}
    return {site: early[site] or bool((where.resolve(site.position) == answers).all()) for site in sites}


def rank_agreement(table: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of FCR and size of the effect over sites, of each feature and as the mean over features.

    A site that suppresses an answer uses what it holds like one that promotes it, so sizes count (`spearman`); `signed` is the
    correlation with the effect itself. Over all sites, and over those with a path to the answer (`sites`: all, path): elsewhere the
    effect is zero whatever is told. Bootstrap intervals over sites; sites of the same effect (`same_as`) are drawn together, and in
    all features alike.

    Args:
        table: site, feature, fcr, effect, path, same_as; a row a site and feature.

    Returns:
        feature (the last one, `mean`, is the mean over features, if there are several), sites, n_sites, n_distinct (groups of
        sites of different effects), spearman, low, high, signed.
    """
    rows = []
    features = list(dict.fromkeys(table["feature"]))
    for which in ("path", "all"):
        part = table[table["path"]] if which == "path" else table
        if part.empty:
            continue
        labels = list(dict.fromkeys(part["site"]))
        group = part.drop_duplicates("site").set_index("site")["same_as"].reindex(labels)
        code = pd.factorize(group)[0]
        members = [np.flatnonzero(code == c) for c in range(int(code.max()) + 1)]
        fcr, effect = (
            part.pivot(index="feature", columns="site", values=column)
            .reindex(features, columns=labels)
            .to_numpy()
            for column in ("fcr", "effect")
        )
        rng = np.random.default_rng([seed, 31])
        drawn = [
            np.concatenate([members[c] for c in rng.integers(len(members), size=len(members))])
            for _ in range(RESAMPLES)
        ]
        size = np.abs(effect)
        values = np.array([[_spearman(x[d], y[d]) for x, y in zip(fcr, size, strict=True)] for d in drawn])
        own, signed = (
            np.array([_spearman(x, y) for x, y in zip(fcr, many, strict=True)]) for many in (size, effect)
        )
        named = [(name, own[f], signed[f], values[:, f]) for f, name in enumerate(features)]
        if len(features) > 1:
            named.append(("mean", own.mean(), signed.mean(), values.mean(1)))
        tail = (1.0 - confidence) / 2
        for name, rho, with_sign, resampled in named:
            sound = resampled[np.isfinite(resampled)]
            low, high = np.quantile(sound, [tail, 1.0 - tail]) if len(sound) else (np.nan, np.nan)
            rows.append(
                {
                    "feature": name,
                    "sites": which,
                    "n_sites": len(labels),
                    "n_distinct": len(members),
                    "spearman": rho,
                    "low": low,
                    "high": high,
                    "signed": with_sign,
                }
            )
    columns = ["feature", "sites", "n_sites", "n_distinct", "spearman", "low", "high", "signed"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "feature", kind="stable", key=lambda names: names.map([*features, "mean"].index)
    )


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of two samples (n,); NaN where one of them is constant, or all are missing but one."""
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 2 or not np.ptp(x[known]) > 0 < np.ptp(y[known]):
        return float("nan")
    return float(np.corrcoef(stats.rankdata(x[known]), stats.rankdata(y[known]))[0, 1])


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
    drawn = task.sample(min(TRACED, task.split_size("test")), "test", rng)
    pool = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    pool = rng.permutation(pool)[:POOL]
    pairs = _traced_pairs(context, target, drawn, rng)
    if pairs.empty:
        raise InputError(f"no counterfactual partner of task {task.name} has another answer", "see 'patched'")
    pool_ids, pool_starts = answered(task, target, pool)
    length = np.array([len(ids) for ids in pool_ids]) - pool_starts
    rows = []
    for digit, of_digit in pairs.groupby("digit"):
        k = int(digit)
        there = np.flatnonzero(length >= k)
        keys = capture(target, [pool_ids[i][: pool_starts[i] + k - 1] for i in there], sites)
        told = np.array([pool_ids[i][pool_starts[i] + k - 1] for i in there])
        labels = {**task.features_of(pool[there]), ANSWER: told}
        own_index, partner_index = of_digit["own"].to_numpy(), of_digit["partner"].to_numpy()
        own_ids, own_starts = answered(task, target, own_index)
        partner_ids, partner_starts = answered(task, target, partner_index)
        own, partner = (
            Inputs([i[: s + k - 1] for i, s in zip(ids, starts, strict=True)])
            for ids, starts in ((own_ids, own_starts), (partner_ids, partner_starts))
        )
        tokens = np.array(
            [
                (a[s + k - 1], b[t + k - 1])
                for a, s, b, t in zip(own_ids, own_starts, partner_ids, partner_starts, strict=True)
            ],
            np.int64,
        )
        effects, total = _effects(target, own, partner, sites, tokens, "last")
        names = [*dict.fromkeys(of_digit["feature"]), ANSWER]
        own_labels = {**task.features_of(own_index), ANSWER: tokens[:, 0]}
        queries = capture(target, list(own.token_ids), sites)
        same = same_effects(effects, [site.label for site in sites])
        for s, site in enumerate(sites):
            kernel = config.kernel
            exact = exact_reference(
                distance_of(kernel.distance).prepare(queries[site.label]),
                keys[site.label],
                {n: own_labels[n] for n in names},
                {n: labels[n] for n in names},
                [kernel.epsilon],
                kernel.distance,
                kernel.kind,
            )
            for name in names:
                mine = (of_digit["feature"] == name).to_numpy() | (name == ANSWER)
                if mine.sum() < min(FEWEST, len(drawn)):
                    continue
                values = np.stack([effects[s, mine], exact.match[name][mine, 0]])
                mean, low, high = bootstrap_means(values, RESAMPLES, config.fcr.confidence, config.seed)
                whole = float(total[mine].mean())
                counts = np.unique(labels[name], return_counts=True)[1] / len(there)
                rows.append(
                    {
                        "task": task.name,
                        "model": context.model_name,
                        "site": site.label,
                        "layer": site.layer,
                        "head": site.head if site.head is not None else "",
                        "digit": k,
                        "feature": name,
                        "fcr": mean[1],
                        "fcr_low": low[1],
                        "fcr_high": high[1],
                        "chance": float((counts**2).sum()),
                        "effect": mean[0],
                        "effect_low": low[0],
                        "effect_high": high[0],
                        "share": mean[0] / whole,
                        "share_low": low[0] / whole,
                        "share_high": high[0] / whole,
                        "total": whole,
                        "path": True,
                        "same_as": same[site.label],
                        "n_pairs": int(mine.sum()),
                        "n_pool": len(there),
                    }
                )
        echo(
            f"trace_answers: {len(of_digit)} pairs differ first in token {k}, total {total.mean():.2f} logits"
        )
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


def answered(task: Task, target: Target, index: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Questions with their answers as the model's token ids, and where each answer begins (N,).

    Raises:
        InputError: a question has other tokens with its answer than without, or the answer is none.
    """
    questions, whole = (target.encode(texts) for texts in (task.questions(index), task.completed(index)))
    starts = np.array([len(ids) for ids in questions], np.int64)
    for row, (question, ids) in enumerate(zip(questions, whole, strict=True)):
        if len(ids) <= len(question) or not np.array_equal(ids[: len(question)], question):
            raise InputError(
                f"the answer of '{task.questions(index[row : row + 1])[0]}' does not follow its tokens",
                "end the question where a token ends, and give it an answer",
            )
    return whole, starts


def _traced_pairs(
    context: Context, target: Target, drawn: np.ndarray, rng: np.random.Generator
) -> pd.DataFrame:
    """Prompts and partners (own, partner), the feature that differs, and the first token of the answer that does so too (digit)."""
    task = context.task
    parts = []
    for feature in task.counterfactual_features:
        other = task.counterfactuals(feature, drawn, rng)
        index, other = drawn[other >= 0], other[other >= 0]
        if not len(index):
            continue
        (own, starts), (partner, places) = answered(task, target, index), answered(task, target, other)
        digit = np.zeros(len(index), np.int64)
        for row, (a, s, b, t) in enumerate(zip(own, starts, partner, places, strict=True)):
            n = min(len(a) - s, len(b) - t)
            differ = np.flatnonzero(a[s : s + n] != b[t : t + n])
            digit[row] = differ[0] + 1 if differ.size else 0
        parts.append(pd.DataFrame({"own": index, "partner": other, "feature": feature, "digit": digit}))
    pairs = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["digit"])
    pairs = pairs[pairs["digit"] > 0]
    return pairs.groupby(["digit", "feature"], sort=False).head(PAIRS).sort_values("digit", kind="stable")
