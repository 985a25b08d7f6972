"""Stages `sample_prompts` and `run_mcmc`: candidates, re-computed activations, acceptance; chains of swap moves."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from inversescope.config.methods import ALONE
from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.generator.build import backbone_tokenizer, cached_prompts, load_generator
from inversescope.kernel.neighbours import Cache
from inversescope.sampling.candidates import LOG_Q, Pool, Sampler, candidates
from inversescope.sampling.mcmc import run_chains
from inversescope.sampling.recompute import Recomputer, activations_of
from inversescope.store import write_json
from inversescope.streams import stream
from inversescope.targets.tokenizers import tokenizer_hash
from inversescope.workflow import paths


def sample_prompts(context: Context, generator: str, variants: Sequence[str], sites: Sequence[str]) -> None:
    """Draw candidates for every target at each site from each variant, re-compute their activations, decide acceptance.

    Writes, a variant and site: results/.../samples/{generator}/{variant}/{site}.parquet (raw candidates, nothing dropped) and
    {site}.cache.parquet (log q of the cached neighbours of sparse targets, for the combined estimator).
    """
    config = context.config
    activations = activations_of(context)
    tokenizer = backbone_tokenizer(context)
    models = {name: load_generator(context, generator, name) for name in variants}
    for name, (_, meta) in models.items():
        if meta["tokenizer_hash"] != tokenizer_hash(tokenizer):
            raise InputError(f"generator {name} was trained with another tokenizer", "rerun train_generator")
    rows_of = {name: context.cache_rows(config.variant(name)) for name in variants}
    # Variants that use the same cached prompts share them.
    distinct = {rows.tobytes(): rows for rows in rows_of.values()}
    prompts = {key: cached_prompts(context, tokenizer, rows) for key, rows in distinct.items()}
    for label in sites:
        site, z = context.site(label), np.array(context.activations("test", label))
        z_train = context.activations("train", label)
        recomputer = Recomputer(activations([site]), {site: z}, config.kernel.distance)
        pools: dict[bytes, Pool] = {}
        for name, (model, _) in models.items():
            if label not in model.shape.sites:
                continue
            key, rows = rows_of[name].tobytes(), rows_of[name]
            if key not in pools:
                cache = Cache(np.array(z_train[rows]), config.kernel.distance)
                pools[key] = Pool(rows, prompts[key], cache)
            start = time.monotonic()
            sampler = Sampler(context, name, model, tokenizer, site, z, pools[key])
            frame, log_q = _sampled(sampler, recomputer)
            context.write(frame, context.samples_path(generator, name, label))
            context.write(log_q, context.samples_path(generator, name, label, ".cache.parquet"))
            seconds = time.monotonic() - start
            write_json(
                {"sample_seconds": round(seconds, 2)},
                context.samples_path(generator, name, label).with_suffix(".json"),
            )
            shown = frame["decoding"] == frame["decoding"].iloc[0]
            rate = 1.0 - frame.loc[shown, "accepted"].mean()
            echo(
                f"sample_prompts {name} {label}: {len(frame)} candidates, refusal {rate:.3f}, {seconds:.1f} s"
            )


def _sampled(sampler: Sampler, recomputer: Recomputer) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Candidates at all bandwidths and decodings that a variant is read at, and log q of cached prompts."""
    context, name, label = sampler.context, sampler.variant, sampler.site.label
    config = context.config
    frames, log_qs = [], [pd.DataFrame(columns=list(LOG_Q)).astype(LOG_Q)]
    for epsilon in context.epsilons(label, name):
        own = epsilon == sampler.own
        for decoding in config.decodings_of(name, own, sampler.site.head is not None):
            frames.append(candidates(sampler, recomputer, epsilon, decoding))
        # Where generators are compared alone, nobody asks for the q of cached prompts.
        if config.variant(name).study not in ALONE:
            log_qs.append(sampler.cached_log_q(epsilon))
    return pd.concat(frames, ignore_index=True), pd.concat(log_qs, ignore_index=True)


def run_mcmc(context: Context, sites: Sequence[str]) -> None:
    """Run one swap-move chain a target on the prior, from the target's own prompt, at the headline bandwidth.

    The honest competitor that needs no training: a stated number of target evaluations a chain. Writes
    results/.../mcmc/{site}.parquet with the chain's states: target_id, step, prompt_id, accepted.
    """
    config, kernel = context.config, context.config.kernel
    if not context.plan.has_chains:
        raise InputError("chains of 0 evaluations are not run", "set fcr.mcmc_evaluations")
    seeds = context.prompt_ids("test")
    z = {context.site(label): np.array(context.activations("test", label)) for label in sites}
    recomputer = Recomputer(activations_of(context)(list(z)), z, kernel.distance)
    rngs = {site: stream(config.seed, "run_mcmc", site.label) for site in z}
    steps = config.scaled(config.fcr.mcmc_evaluations)
    epsilons = {site: context.headline(site.label) for site in z}
    chains = run_chains(context.task, recomputer, seeds, rngs, epsilons, kernel.kind, steps)
    for site, frame in chains.items():
        context.write(frame.assign(epsilon=epsilons[site]), context.path(paths.MCMC, site=site.label))
        echo(f"run_mcmc {site.label}: {len(seeds)} chains of {steps} evaluations")
