"""Stages `sample_prompts` and `run_mcmc`: candidates, re-computed activations, acceptance."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from inversescope.context import Context, echo
from inversescope.errors import InputError
from inversescope.generator.build import backbone_tokenizer, cached_prompts, load_generator
from inversescope.generator.condition import Prompts
from inversescope.kernel.kernel import kernel_values
from inversescope.kernel.neighbours import Cache
from inversescope.sampling.candidates import Recomputer, Run
from inversescope.sites import Site
from inversescope.store import write_json, write_table
from inversescope.streams import stream
from inversescope.targets.models import load_target
from inversescope.targets.tokenizers import tokenizer_hash
from inversescope.workflow import paths


def sample_prompts(context: Context, generator: str, variants: Sequence[str], sites: Sequence[str]) -> None:
    """Draw candidates for every target at each site from each variant, re-compute their activations, decide acceptance.

    Writes, a variant and site: results/.../samples/{generator}/{variant}/{site}.parquet (raw candidates, nothing dropped) and
    {site}.cache.parquet (log q of the cached neighbours of sparse targets, for the combined estimator).
    """
    target = load_target(context.made_target())
    tokenizer = backbone_tokenizer(context)
    models = {name: load_generator(context, generator, name) for name in variants}
    for name, (_, meta) in models.items():
        if meta["tokenizer_hash"] != tokenizer_hash(tokenizer):
            raise InputError(f"generator {name} was trained with another tokenizer", "rerun train_generator")
    rows_of = {name: context.cache_rows(context.config.variant(name)) for name in variants}
    prompts_of: dict[bytes, Prompts] = {}
    for rows in rows_of.values():
        if rows.tobytes() not in prompts_of:
            prompts_of[rows.tobytes()] = cached_prompts(context, tokenizer, rows)
    end = int(tokenizer.eos_token_id)
    for label in sites:
        site = context.site(label)
        z = np.array(context.activations("test", label))
        z_train = context.activations("train", label)
        recomputer = Recomputer(context, target, {site: z})
        caches: dict[bytes, Cache] = {}
        for name, (model, _) in models.items():
            if label not in model.shape.sites:
                continue
            rows = rows_of[name]
            key = rows.tobytes()
            if key not in caches:
                caches[key] = Cache(np.array(z_train[rows]), context.config.kernel.distance)
            start = time.monotonic()
            run = Run(
                context, name, model, site, z, caches[key], prompts_of[key], rows, recomputer, tokenizer, end
            )
            frames, log_qs = [], []
            for epsilon in context.config.epsilons_of(name):
                for decoding in context.config.decodings_of(name, epsilon, site.head is not None):
                    frames.append(run.candidates(epsilon, decoding))
                # The frontier compares generators alone: nobody asks for the q of cached prompts.
                some = len(z) if context.config.variant(name).study != "frontier" else 0
                log_qs.append(run.cached_log_q(epsilon, some))
            frame = pd.concat(frames, ignore_index=True)
            write_table(frame, context.samples_path(generator, name, label))
            write_table(
                pd.concat(log_qs, ignore_index=True),
                context.samples_path(generator, name, label, ".cache.parquet"),
            )
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


def run_mcmc(context: Context, sites: Sequence[str]) -> None:
    """Run one swap-move chain a target on the prior, from the target's own prompt, at the headline bandwidth.

    The honest competitor that needs no training: a stated number of target evaluations a chain. Writes
    results/.../mcmc/{site}.parquet with the chain's states: target_id, step, prompt_id, accepted.
    """
    kernel, budget = context.config.kernel, context.config.fcr.mcmc_evaluations
    target = load_target(context.made_target())
    seeds = context.prompts("test", columns=["prompt_id"])["prompt_id"].to_numpy()
    places = [context.site(label) for label in sites]
    recomputer = Recomputer(
        context, target, {site: np.array(context.activations("test", site.label)) for site in places}
    )
    owner = np.arange(len(seeds))
    rngs = {site: stream(context.config.seed, "run_mcmc", site.label) for site in places}

    def weights(prompts: dict[Site, np.ndarray]) -> dict[Site, np.ndarray]:
        # All chains' prompts in one forward, read at all sites.
        recomputer.activations(np.unique(np.concatenate(list(prompts.values()))), places[0])
        return {
            site: kernel_values(recomputer.distances(index, owner, site), kernel.epsilon, kernel.kind)
            for site, index in prompts.items()
        }

    state = dict.fromkeys(places, seeds)
    weight = weights(state)
    rows: dict[Site, list[pd.DataFrame]] = {site: [] for site in places}
    steps = context.config.scaled(budget) if budget else 0
    for step in range(steps):
        proposal = {site: context.task.moves(state[site], rngs[site]) for site in places}
        new = weights(proposal)
        for site in places:
            # Moves are symmetric: Metropolis on the kernel and, where prompts are not all alike, the prior.
            task = context.task
            ratio = np.exp(task.log_prior(proposal[site]) - task.log_prior(state[site]))
            accept = rngs[site].random(len(owner)) * weight[site] < new[site] * ratio
            state[site] = np.where(accept, proposal[site], state[site])
            weight[site] = np.where(accept, new[site], weight[site])
            rows[site].append(
                pd.DataFrame({"target_id": owner, "step": step, "prompt_id": state[site], "accepted": accept})
            )
    empty = pd.DataFrame({"target_id": [], "step": [], "prompt_id": [], "accepted": []}).astype(int)
    for site in places:
        frame = pd.concat(rows[site], ignore_index=True) if steps else empty
        write_table(frame.assign(epsilon=kernel.epsilon), context.path(paths.MCMC, site=site.label))
        echo(f"run_mcmc {site.label}: {len(seeds)} chains of {steps} evaluations")
