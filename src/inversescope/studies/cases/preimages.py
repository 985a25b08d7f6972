"""Stages `compare_distances` and `check_completeness`: what the choice of distance does, and what a generator leaves out.

Both are open questions of InversionView's authors: how the distance shapes the preimage and what is read from it, and how complete
the samples of a decoder of a given size are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from inversescope.activations.positions import capture_prompts
from inversescope.context import Context, echo, need
from inversescope.fcr.intervals import bootstrap_means
from inversescope.generator.build import backbone_tokenizer, cached_prompts, load_generator
from inversescope.generator.condition import Prompts, encode_prompts, make_condition
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.sampling.log_q import log_prob_rows
from inversescope.sampling.mixing import make_mixer
from inversescope.store import read_table, write_table
from inversescope.streams import stream
from inversescope.targets.models import load_target
from inversescope.targets.tokenizers import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from inversescope.generator.base import ConditionalGenerator

#: Name -> distance of `kernel` on activations; `standardised` divides each dimension by its standard deviation beforehand.
DISTANCES = {"cosine": "cosine", "normalised_euclidean": "normalised_euclidean", "standardised": "euclidean"}
TARGETS = 10  # prompts whose preimages are looked through for completeness
INSIDE, OUTSIDE = 200, 100  # prompts of the reference split in and out of each preimage, at most
DRAWS = (10, 100, 1000, 10_000, 100_000, 1_000_000)
MISSED = 0.1  # a prompt is missed if the generator gives it less than this share of its posterior probability
BLOCK = 1 << 16


def compare_distances(context: Context) -> None:
    """Read each site under three distances, at bandwidths that hold the same share of the prior on average.

    Writes results/{task}/{model}/distances.csv: a row a (site, distance, feature) with epsilon, share (of the prior in a ball),
    spread (standard deviation over targets of log10 of that share), empty (share of targets with none), overlap (Jaccard index
    with the ball of the configured distance), exact fcr with interval, fcr_matched with its own, over as many nearest prompts of
    each target as lie in its ball of the configured distance (balls of a target are of one size under every distance), and
    refusal_{variant} of the raw candidates, judged anew.
    """
    task, config = context.task, context.config
    target = load_target(context.made_target())
    sites = [site for site in context.plan.sites if site.position != "any"]
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    reference = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    own, labels = task.features_of(test), task.features_of(reference)
    rows = []
    for site in sites:
        queries, keys = (np.array(context.activations(split, site.label)) for split in ("test", "reference"))
        scale = np.array(context.activations("train", site.label)).std(0)
        candidates = _candidates(context, site.label)
        index = np.unique(np.concatenate([c["prompt_id"] for c in candidates.values()]))
        index = index[index >= 0]
        # Of generators none of whose candidates are prompts there is nothing to read.
        found = np.empty((0, *queries.shape[1:]), np.float32)
        if len(index):
            found = capture_prompts(task, target, index, [site])[site.label]
        level, first = 0.0, np.zeros(0, bool)
        for name in [config.kernel.distance, *(n for n in DISTANCES if n != config.kernel.distance)]:
            unit = np.maximum(scale, 1e-12) if name == "standardised" else np.ones_like(scale)
            metric = distance_of(DISTANCES[name])
            q = metric.prepare((queries / unit).astype(np.float32))
            d = np.concatenate(
                [
                    metric.between(q, metric.prepare((keys[low : low + BLOCK] / unit).astype(np.float32)))
                    for low in range(0, len(keys), BLOCK)
                ],
                axis=1,
            )
            if first.size == 0:
                epsilon = config.kernel.epsilon
                ball = first = matched = d < epsilon
                level = float(ball.mean())
            else:
                matched = nearest(d, first.sum(1))
                epsilon = float(np.quantile(d, level))
                ball = d < epsilon
            share = ball.mean(1)
            union = (ball | first).sum(1)
            overlap = float(
                np.nanmean(np.where(union > 0, (ball & first).sum(1) / np.maximum(union, 1), np.nan))
            )
            refused = {}
            for variant, table in candidates.items():
                parsed = np.flatnonzero(table["prompt_id"].to_numpy() >= 0)
                ids = table["prompt_id"].to_numpy()[parsed]
                z = found[np.searchsorted(index, ids)]
                near = (
                    metric.paired(queries[table["target_id"].to_numpy()[parsed]] / unit, z / unit) < epsilon
                )
                refused[f"refusal_{variant}"] = 1.0 - near.sum() / len(table)
            some = np.where(share > 0, share, np.nan)
            for feature in config.fcr.features:
                with np.errstate(invalid="ignore"):
                    same = labels[feature][None] == own[feature][:, None]
                    match = np.stack([(inside & same).sum(1) / inside.sum(1) for inside in (ball, matched)])
                mean, low_, high = bootstrap_means(
                    match, config.fcr.bootstrap, config.fcr.confidence, config.seed
                )
                rows.append(
                    {
                        "task": task.name,
                        "model": context.model_name,
                        "site": site.label,
                        "distance": name,
                        "epsilon": epsilon,
                        "share": share.mean(),
                        "spread": float(np.nanstd(np.log10(some))),
                        "empty": float((share == 0).mean()),
                        "overlap": overlap,
                        "feature": feature,
                        "fcr": mean[0],
                        "ci_low": low_[0],
                        "ci_high": high[0],
                        "fcr_matched": mean[1],
                        "matched_low": low_[1],
                        "matched_high": high[1],
                        "chance": task.chance(feature),
                        **refused,
                    }
                )
        echo(f"compare_distances {site.label}: {len(DISTANCES)} distances at a share of {level:.4f}")
    write_table(pd.DataFrame(rows), context.results / "distances.csv")


def nearest(d: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Which prompts (targets, prompts) are among each target's `count` (targets,) nearest; ties with the last one count too."""
    chosen = np.zeros(d.shape, bool)
    for row, (distance, n) in enumerate(zip(d, count, strict=True)):
        if n:
            chosen[row] = distance <= np.partition(distance, n - 1)[n - 1]
    return chosen


def _candidates(context: Context, label: str) -> dict[str, pd.DataFrame]:
    """Raw candidates of each variant at a site, at the headline bandwidth and the variant's first decoding."""
    config, result = context.config, {}
    for name in config.studied_variants:
        variant = config.variant(name)
        path = need(context.samples_path(variant.generator, name, label), "sample_prompts")
        table = read_table(path, ["target_id", "prompt_id", "epsilon", "decoding"])
        table = table[np.isclose(table["epsilon"], config.kernel.epsilon)]
        result[name] = table[table["decoding"] == table["decoding"].iloc[0]].reset_index(drop=True)
    return result


def check_completeness(context: Context) -> None:
    """Ask each generator for the probability of known members of preimages, and of prompts outside.

    Writes results/{task}/{model}/completeness.parquet (a row a target and prompt: variant, site, target_id, distance, inside,
    log_q, log_posterior = log of the prior's probability within the ball, NaN outside), completeness_recall.csv (variant, site,
    draws, recall: expected share of the preimage's probability that so many draws have found, ideal: that of draws from P(x; z))
    and completeness_sizes.csv (variant, n_parameters, train_seconds, recall_1000 and ideal_1000: at 1000 draws, missed: share of
    the preimage whose probability falls below a tenth of what it should be, spearman: rank correlation of log q and distance over
    members of the preimage and others, mean over sites and targets).

    Recall is exact in expectation: 1 - (1 - q(x))^n, averaged over members of the preimage; no sampling is needed.
    """
    task, config, kernel = context.task, context.config, context.config.kernel
    tokenizer = backbone_tokenizer(context)
    end = int(tokenizer.eos_token_id)
    test = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()[:TARGETS]
    reference = context.prompts("reference", columns=["prompt_id"])["prompt_id"].to_numpy()
    points, curves, sizes = [], [], []
    for variant in config.studied_variants:
        generator = config.variant(variant).generator
        model, meta = load_generator(context, generator, variant)
        cached = context.cache_rows(config.variant(variant))
        prompts = cached_prompts(context, tokenizer, cached)
        for label in meta["shape"]["sites"]:
            site = context.site(label)
            if site.position == "any":
                continue
            rng = stream(config.seed, "check_completeness", label)
            z, keys = (np.array(context.activations(split, label)) for split in ("test", "reference"))
            z = z[: len(test)]
            metric = distance_of(kernel.distance)
            d = metric.between(metric.prepare(z), metric.prepare(keys))
            radius = support_radius(kernel.epsilon, kernel.kind)
            owner, chosen, inside, mass = [], [], [], []
            for t in range(len(test)):
                ball, rest = np.flatnonzero(d[t] < radius), np.flatnonzero(d[t] >= radius)
                for rows, most, is_in in ((ball, INSIDE, True), (rest, OUTSIDE, False)):
                    some = rng.choice(rows, size=min(most, len(rows)), replace=False)
                    owner += [t] * len(some)
                    chosen += some.tolist()
                    inside += [is_in] * len(some)
                mass.append(kernel_values(d[t, ball], kernel.epsilon, kernel.kind).sum() / len(reference))
            o, c, flag = np.array(owner), np.array(chosen), np.array(inside)
            index = reference[c]
            log_q = _log_q(
                context,
                model,
                label,
                z,
                o,
                index,
                Cache(np.array(context.activations("train", label))[cached], kernel.distance),
                prompts,
                tokenizer,
                end,
            )
            with np.errstate(divide="ignore"):
                log_mass = np.log(np.array(mass))[o]
                k = kernel_values(d[o, c], kernel.epsilon, kernel.kind)
                posterior = np.where(
                    flag, task.log_prior(index) + np.log(np.maximum(k, 1e-300)) - log_mass, np.nan
                )
            frame = pd.DataFrame(
                {
                    "variant": variant, "site": label, "target_id": o, "distance": d[o, c], "inside": flag,
                    "log_q": log_q, "log_posterior": posterior,
                }
            )  # fmt: skip
            points.append(frame)
            members = frame[frame["inside"]]
            for n in DRAWS:
                # log1p and expm1: probabilities may be far below the rounding of 1.
                with np.errstate(divide="ignore"):
                    got, ideal = (
                        -np.expm1(n * np.log1p(-np.minimum(np.exp(members[column]), 1.0 - 1e-12)))
                        for column in ("log_q", "log_posterior")
                    )
                by = (
                    pd.DataFrame({"t": members["target_id"], "recall": got, "ideal": ideal})
                    .groupby("t")
                    .mean()
                )
                mean, low, high = bootstrap_means(
                    by.to_numpy().T, config.fcr.bootstrap, config.fcr.confidence, config.seed
                )
                curves.append(
                    {
                        "variant": variant, "site": label, "draws": n, "recall": mean[0], "low": low[0],
                        "high": high[0], "ideal": mean[1], "n_targets": len(by),
                    }
                )  # fmt: skip
        own = pd.concat([frame for frame in points if frame["variant"].iloc[0] == variant])
        ranked = own.groupby(["site", "target_id"])[["log_q", "distance"]].rank()
        spearman = ranked.groupby([own["site"], own["target_id"]]).apply(
            lambda r: r["log_q"].corr(r["distance"])
        )
        own = own[own["inside"]]
        thousand = pd.DataFrame([c for c in curves if c["variant"] == variant and c["draws"] == 1000])
        sizes.append(
            {
                "variant": variant,
                "n_parameters": meta["n_parameters"],
                "train_seconds": meta["train_seconds"],
                "recall_1000": thousand["recall"].mean(),
                "ideal_1000": thousand["ideal"].mean(),
                "missed": float((own["log_q"] < own["log_posterior"] + np.log(MISSED)).mean()),
                "spearman": float(spearman.mean()),
                "n_prompts": len(own),
            }
        )
        echo(
            f"check_completeness {variant}: {len(own)} members of preimages, missed {sizes[-1]['missed']:.3f}"
        )
    write_table(pd.concat(points, ignore_index=True), context.results / "completeness.parquet")
    write_table(pd.DataFrame(curves), context.results / "completeness_recall.csv")
    write_table(pd.DataFrame(sizes), context.results / "completeness_sizes.csv")


def _log_q(
    context: Context, model: ConditionalGenerator, label: str, z: np.ndarray, owner: np.ndarray, index: np.ndarray, cache: Cache,
    prompts: Prompts, tokenizer: PreTrainedTokenizerFast, end: int,
) -> np.ndarray:  # fmt: skip
    """log q (n,) of prompts `index` (n,) given the activations z[owner], under plain decoding at the headline bandwidth."""
    kernel = context.config.kernel
    ids = encode(tokenizer, context.task.texts(index))
    asked = encode_prompts(ids, end)
    tables = [asked.tokens, prompts.tokens]
    width = max(table.shape[1] for table in tables)
    asked.tokens, prompts.tokens = (
        np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=end) for table in tables
    )
    condition = make_condition(model, label, z, kernel.epsilon, cache, prompts, kernel.kind)
    mixer = None
    if model.shape.neighbour_logits or model.shape.words:
        radius = support_radius(kernel.epsilon, kernel.kind)
        vocabulary = model.shape.backbone.vocab_size
        mixer = make_mixer(cache, prompts, z, radius, vocabulary, 1.0, model.shape.n_condition)
    batch = context.config.sampling.batch
    return log_prob_rows(model, condition, owner, asked, np.arange(len(index)), batch, mixer)
