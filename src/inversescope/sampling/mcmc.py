"""Chains of swap moves on the prior: the competitor that needs no training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from inversescope.kernel.kernel import kernel_values
from inversescope.sampling.recompute import Recomputer
from inversescope.sites import Site
from inversescope.tasks.base import Task


def run_chains(
    task: Task,
    recomputer: Recomputer,
    seeds: np.ndarray,
    rngs: Mapping[Site, np.random.Generator],
    epsilons: Mapping[Site, float],
    kind: str,
    steps: int,
) -> dict[Site, pd.DataFrame]:
    """Run a Metropolis chain a target and site on P(x; z), from the target's own prompt; all sites in the same forwards.

    A chain that begins outside the prior, as RAVEL's may, stays where it is until it is offered a prompt of the prior in the ball.

    Args:
        recomputer: knows the sites and the targets' activations.
        seeds: prompt (targets,) that each target's chains begin with.
        rngs: site -> its stream.
        epsilons: site -> bandwidth.
        kind: the kernel.

    Returns:
        Site -> the chains' states: target_id, step, prompt_id, accepted.
    """
    owner = np.arange(len(seeds))

    def weights(prompts: dict[Site, np.ndarray]) -> dict[Site, np.ndarray]:
        # All chains' prompts in one forward, read at all sites.
        recomputer.activations(np.unique(np.concatenate(list(prompts.values()))), next(iter(prompts)))
        return {
            site: kernel_values(recomputer.distances(index, owner, site), epsilons[site], kind)
            for site, index in prompts.items()
        }

    state = dict.fromkeys(rngs, seeds)
    weight = weights(state)
    rows: dict[Site, list[pd.DataFrame]] = {site: [] for site in rngs}
    for step in range(steps):
        proposal = {site: task.moves(state[site], rng) for site, rng in rngs.items()}
        new = weights(proposal)
        for site, rng in rngs.items():
            # Moves are symmetric: Metropolis on the kernel and, where prompts are not all alike, the prior.
            ratio = prior_ratio(task.log_prior(proposal[site]), task.log_prior(state[site]))
            accept = rng.random(len(owner)) * weight[site] < new[site] * ratio
            state[site] = np.where(accept, proposal[site], state[site])
            weight[site] = np.where(accept, new[site], weight[site])
            rows[site].append(
                pd.DataFrame({"target_id": owner, "step": step, "prompt_id": state[site], "accepted": accept})
            )
    return {site: pd.concat(frames, ignore_index=True) for site, frames in rows.items()}


def prior_ratio(proposed: np.ndarray, current: np.ndarray) -> np.ndarray:
    """P(x') / P(x) (N,) from log P of proposals and states (N,) in nats, -inf outside the prior.

    Returns:
        0 for a proposal outside the prior, whatever the state; a number that no chance undercuts for one that enters it.
    """
    gain = np.subtract(proposed, current, out=np.full(len(proposed), -np.inf), where=np.isfinite(proposed))
    # Not infinite, which times a kernel of 0 is no number.
    return np.exp(np.minimum(gain, 700.0))
