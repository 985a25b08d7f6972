"""Stage `check_causes`: what a site's activation does to the answer, beside what can be read from it.

For each feature, prompts get counterfactual partners in which this feature differs and as much as possible of the rest is kept. The
partner's activation at one site is written into the prompt's run (activation patching), and the change of the logit difference
between the prompt's answer and the partner's is the site's effect. Beside it stands the exact FCR of the feature at that site.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from inversescope.fcr import bootstrap_means, exact_reference
from inversescope.kernel import prepare
from inversescope.models import Target, encode, load_target
from inversescope.patching import Inputs, Intervention, Patch, patch
from inversescope.sites import Site
from inversescope.stages.common import Context, echo, need, stream
from inversescope.stages.positions import capture_prompts, named_positions
from inversescope.store import write_table

PAIRS = 200  # prompts with a partner, a feature
POOL = 20_000  # prior draws for the exact FCR
RESAMPLES = 2000


def check_causes(context: Context) -> None:
    """Patch every site of the experiment's `patched` and compare effects with exact FCRs.

    Writes results/{task}/{model}/causes.csv (task, model, site, layer, head, position, feature, fcr, fcr_low, fcr_high, chance,
    effect, effect_low, effect_high, share, total, answer_changes, path, n_pairs; effects in logits, means over prompts with
    bootstrap intervals, `total` = the difference between the two runs, `share` = effect / total, `path` = whether it can reach
    the answer) and causes_rank.csv (feature, sites, n_sites, spearman, low, high: rank correlation of FCR and effect over sites,
    bootstrap interval over sites).
    """
    task, config = context.task, context.config
    target = load_target(need(context.target_dir / "target.json", "select_target / import_checkpoint").parent)
    sites = context.sites(context.experiment.patched)
    rng = stream(config.seed, "check_causes")
    # Prompts of the prior that the target was not trained on, so that what it does is no memory.
    drawn = task.sample(min(PAIRS, task.split_size("test")), "test", rng)
    pool = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    pool = rng.permutation(pool)[:POOL]
    paths = have_path(context, target, drawn, sites)
    matches = _exact_matches(context, target, drawn, pool, sites)
    rows = []
    for feature in task.counterfactual_features:
        other = task.counterfactuals(feature, drawn, rng)
        keep = other >= 0
        effects, total, changes = patched_effects(context, target, drawn[keep], other[keep], sites, rng)
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
                    "share": mean[k] / total.mean() if changes > 0 else np.nan,
                    "total": total.mean(),
                    "answer_changes": changes,
                    "path": paths[site],
                    "n_pairs": int(keep.sum()),
                }
            )
        echo(
            f"check_causes {feature}: {int(keep.sum())} pairs, {len(sites)} sites, total {total.mean():.2f} logits"
        )
    table = pd.DataFrame(rows)
    write_table(table, context.results / "causes.csv")
    write_table(
        rank_agreement(table, config.fcr.confidence, config.seed), context.results / "causes_rank.csv"
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
        prepared = prepare(queries[site.label], kernel.distance)
        exact = exact_reference(
            prepared, keys[site.label], own, labels, [kernel.epsilon], kernel.distance, kernel.kind
        )
        result[site] = {name: exact.match[name][:, 0] for name in names}
    return result


def patched_effects(
    context: Context,
    target: Target,
    index: np.ndarray,
    other: np.ndarray,
    sites: list[Site],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Effects (K, n) of writing the partners' activations at K sites, total differences (n,), and the share of new answers.

    The logit difference is that of the prompt's answer and its partner's (first tokens); where both are the same, of the answer
    and another one, drawn at random.
    """
    task = context.task
    every = sorted(set(task.answers(task.draw(2000, None, stream(context.config.seed, "answers")))))
    first = {answer: _first_token(context, target, answer) for answer in every}
    own, partner = (
        [first[a] if a in first else _first_token(context, target, a) for a in task.answers(i)]
        for i in (index, other)
    )
    candidates = np.unique(list(first.values()))
    pairs = []
    for a, b in zip(own, partner, strict=True):
        pairs.append((a, b if a != b else int(rng.choice(candidates[candidates != a]))))
    tokens = np.array(pairs, np.int64)
    inputs = []
    for some in (index, other):
        ids = encode(target.tokenizer, task.texts(some))
        places = named_positions(
            task, target, some, ids, [*sites, Site(0, "resid_pre", None, task.question_end)]
        )
        inputs.append(Inputs(ids, places))
    plain = Intervention()
    # A head's output is replaced before W_O: the same as replacing its result.
    writes = [Site(s.layer, "z" if s.kind == "result" else s.kind, s.head, s.position) for s in sites]
    runs = [plain, *(Intervention((Patch(site),)) for site in writes)]
    patched = patch(target, inputs[1], inputs[0], runs, tokens, task.question_end).logits
    swapped = patch(target, None, inputs[1], [plain], tokens, task.question_end).logits
    difference = patched[..., 0] - patched[..., 1]
    total = difference[0] - (swapped[0, :, 0] - swapped[0, :, 1])
    changes = float(np.mean([a != b for a, b in zip(own, partner, strict=True)]))
    return (difference[0] - difference[1:]).astype(np.float64), total.astype(np.float64), changes


def _first_token(context: Context, target: Target, answer: str) -> int:
    space = " " if context.task.token_unit == "word" else ""
    return int(encode(target.tokenizer, [space + answer])[0][0])


def have_path(context: Context, target: Target, index: np.ndarray, sites: list[Site]) -> dict[Site, bool]:
    """Whether each site can reach the answer at all: what the last block writes at other positions nobody attends to any more."""
    ids = encode(target.tokenizer, context.task.texts(index))
    end = Site(0, "resid_pre", None, context.task.question_end)
    where = Inputs(ids, named_positions(context.task, target, index, ids, [*sites, end]))
    answers = where.resolve(end.position)
    early = {site: site.layer < target.n_layers - 1 or site.kind == "resid_pre" for site in sites}
    return {site: early[site] or bool((where.resolve(site.position) == answers).all()) for site in sites}


def rank_agreement(table: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of FCR and effect over sites, a feature each, with bootstrap intervals over sites.

    Over all sites, and over those with a path to the answer (`sites`: all, path): elsewhere the effect is zero whatever is told.
    Only features whose counterfactuals change the answer are asked: others have no effect to agree with.
    """
    rows = []
    changing = table[(table["answer_changes"] > 0) & table["fcr"].notna()]
    for (feature, which), part in [
        ((feature, which), part[part["path"]] if which == "path" else part)
        for feature, part in changing.groupby("feature", sort=False)
        for which in ("path", "all")
    ]:
        fcr, effect = part["fcr"].to_numpy(), part["effect"].to_numpy()
        rng = np.random.default_rng([seed, 31])
        drawn = rng.integers(len(part), size=(RESAMPLES, len(part)))
        values = [
            stats.spearmanr(fcr[d], effect[d]).statistic
            for d in drawn
            if np.ptp(fcr[d]) > 0 < np.ptp(effect[d])
        ]
        tail = (1.0 - confidence) / 2
        low, high = np.quantile(values, [tail, 1.0 - tail])
        rho = float(stats.spearmanr(fcr, effect).statistic)
        rows.append(
            {
                "feature": feature,
                "sites": which,
                "n_sites": len(part),
                "spearman": rho,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)
