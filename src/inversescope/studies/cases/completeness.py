"""Stage `check_completeness`: what a generator leaves out of the preimage (an open question of InversionView's authors)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from inversescope.context import Context, echo
from inversescope.fcr.intervals import bootstrap_means
from inversescope.generator.build import backbone_tokenizer, cached_prompts, load_generator
from inversescope.generator.condition import Prompts, encode_prompts, make_condition
from inversescope.kernel.distances import distance_of
from inversescope.kernel.kernel import kernel_values, support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.sampling.log_q import log_prob_rows
from inversescope.sampling.mixing import make_mixer
from inversescope.store import write_table
from inversescope.streams import stream
from inversescope.targets.tokenizers import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from inversescope.generator.base import ConditionalGenerator

TARGETS = 10  # prompts whose preimages are looked through
INSIDE, OUTSIDE = 200, 100  # prompts of the reference split in and out of each preimage, at most
DRAWS = (10, 100, 1000, 10_000, 100_000, 1_000_000)
MISSED = 0.1  # a prompt is missed if the generator gives it less than this share of its posterior probability


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
    config, tokenizer = context.config, backbone_tokenizer(context)
    points, curves, sizes = [], [], []
    for variant in config.studied_variants:
        model, meta = load_generator(context, config.variant(variant).generator, variant)
        cached = context.cache_rows(config.variant(variant))
        prompts = cached_prompts(context, tokenizer, cached)
        own, recalls = [], []
        for label in meta["shape"]["sites"]:
            if context.site(label).position == "any":
                continue
            epsilon = context.headline(label, variant)
            known = _members(context, label, epsilon)
            cache = Cache(np.array(context.activations("train", label))[cached], config.kernel.distance)
            index = known.pop("prompt_id").to_numpy()
            owner = known["target_id"].to_numpy()
            known["log_q"] = _log_q(context, model, label, epsilon, owner, index, cache, prompts, tokenizer)
            own.append(known.assign(variant=variant, site=label))
            recalls += [{"variant": variant, "site": label, **row} for row in _recall(context, own[-1])]
        asked = pd.concat(own, ignore_index=True)
        columns = ["variant", "site", "target_id", "distance", "inside", "log_q", "log_posterior"]
        points.append(asked[columns])
        curves += recalls
        size = {name: meta[name] for name in ("n_parameters", "train_seconds")}
        sizes.append({"variant": variant} | size | _summary(asked, pd.DataFrame(recalls)))
        missed = sizes[-1]["missed"]
        echo(
            f"check_completeness {variant}: {sizes[-1]['n_prompts']} members of preimages, missed {missed:.3f}"
        )
    write_table(pd.concat(points, ignore_index=True), context.results / "completeness.parquet")
    write_table(pd.DataFrame(curves), context.results / "completeness_recall.csv")
    write_table(pd.DataFrame(sizes), context.results / "completeness_sizes.csv")


def _members(context: Context, label: str, epsilon: float) -> pd.DataFrame:
    """Prompts of the reference split in and out of the preimages of the first targets at a site.

    Returns:
        target_id, prompt_id, distance, inside, log_posterior.
    """
    kernel, rng = context.config.kernel, stream(context.config.seed, "check_completeness", label)
    reference = context.prompt_ids("reference")
    z, keys = (np.array(context.activations(split, label)) for split in ("test", "reference"))
    metric, radius = distance_of(kernel.distance), support_radius(epsilon, kernel.kind)
    d = metric.between(metric.prepare(z[:TARGETS]), metric.prepare(keys))
    parts = []
    for target, distance in enumerate(d):
        ball = distance < radius
        # Probability of the ball under the prior; an empty one has no members that ask for it.
        mass = kernel_values(distance[ball], epsilon, kernel.kind).sum() / len(reference)
        for inside, most in ((True, INSIDE), (False, OUTSIDE)):
            rows = np.flatnonzero(ball == inside)
            some = rng.choice(rows, size=min(most, len(rows)), replace=False)
            about = {"target_id": target, "prompt_id": reference[some], "distance": distance[some]}
            part = pd.DataFrame(about).assign(inside=inside, log_posterior=np.nan)
            if inside:
                k = np.maximum(kernel_values(distance[some], epsilon, kernel.kind), 1e-300)
                part["log_posterior"] = (
                    context.task.log_prior(reference[some]) + np.log(k) - np.log(mass or 1.0)
                )
            parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _recall(context: Context, asked: pd.DataFrame) -> list[dict[str, Any]]:
    """Expected recall of the preimage by number of draws, means over targets."""
    settings, members, rows = context.config.fcr, asked[asked["inside"]], []
    for n in DRAWS:
        # log1p and expm1: probabilities may be far below the rounding of 1.
        with np.errstate(divide="ignore"):
            got, ideal = (
                -np.expm1(n * np.log1p(-np.minimum(np.exp(members[column]), 1.0 - 1e-12)))
                for column in ("log_q", "log_posterior")
            )
        by = pd.DataFrame({"t": members["target_id"], "recall": got, "ideal": ideal}).groupby("t").mean()
        found = bootstrap_means(by.to_numpy().T, settings.bootstrap, settings.confidence, context.config.seed)
        row = dict(zip(("recall", "low", "high"), (part[0] for part in found), strict=True))
        rows.append({"draws": n, **row, "ideal": found[0][1], "n_targets": len(by)})
    return rows


def _summary(asked: pd.DataFrame, recall: pd.DataFrame) -> dict[str, Any]:
    """One generator over all sites and targets."""
    by = [asked["site"], asked["target_id"]]
    ranked = asked.groupby(by)[["log_q", "distance"]].rank()
    spearman = ranked.groupby(by).apply(lambda r: r["log_q"].corr(r["distance"]))
    members, thousand = asked[asked["inside"]], recall[recall["draws"] == 1000]
    return {
        "recall_1000": thousand["recall"].mean(),
        "ideal_1000": thousand["ideal"].mean(),
        "missed": float((members["log_q"] < members["log_posterior"] + np.log(MISSED)).mean()),
        "spearman": float(spearman.mean()),
        "n_prompts": len(members),
    }


def _log_q(
    context: Context,
    model: ConditionalGenerator,
    label: str,
    epsilon: float,
    owner: np.ndarray,
    index: np.ndarray,
    cache: Cache,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerFast,
) -> np.ndarray:
    """log q (n,) of prompts `index` (n,) given the activations of targets `owner` (n,), plain decoding."""
    kernel, end = context.config.kernel, int(tokenizer.eos_token_id)
    z = np.array(context.activations("test", label))[:TARGETS]
    asked = encode_prompts(encode(tokenizer, context.task.texts(index)), end)
    tables = [asked.tokens, prompts.tokens]
    width = max(table.shape[1] for table in tables)
    asked.tokens, prompts.tokens = (
        np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=end) for table in tables
    )
    condition = make_condition(model, label, z, epsilon, cache, prompts, kernel.kind)
    mixer = None
    if model.shape.neighbour_logits or model.shape.words:
        radius, vocabulary = support_radius(epsilon, kernel.kind), model.shape.backbone.vocab_size
        mixer = make_mixer(cache, prompts, z, radius, vocabulary, 1.0, model.shape.n_condition)
    batch = context.config.sampling.batch
    return log_prob_rows(model, condition, owner, asked, np.arange(len(index)), batch, mixer)
