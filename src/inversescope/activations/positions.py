"""Activations of prompts of a task's prior at sites of any position: last token, token index, a name of the task's, or all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inversescope.activations.capture import Progress, capture, unheard
from inversescope.activations.inputs import Inputs
from inversescope.sites import Site
from inversescope.targets.models import Target
from inversescope.targets.tokenizers import encode, token_positions
from inversescope.tasks import Task

#: Prompts that are read at a time.
BLOCK = 1 << 14


def named_positions(
    task: Task, target: Target, index: np.ndarray, token_ids: Sequence[np.ndarray], sites: Sequence[Site]
) -> dict[str, np.ndarray]:
    """Token index (N,) of the named positions that sites ask for, in prompts of the prior; -1 where a prompt has none.

    Raises:
        InputError: the task has no position of that name.
    """
    names = sorted({site.position for site in sites if not site.position.isdecimal()} - {"last", "any"})
    return {name: token_positions(task, target, index, token_ids, name) for name in names}


def longest_prompt(task: Task, target: Target) -> int:
    """Tokens of the longest prompt of the prior."""
    index = task.extremes(lambda texts: [len(ids) for ids in encode(target.tokenizer, texts)])
    return max(len(ids) for ids in target.encode(task.texts(index)))


def inputs_of(
    task: Task, target: Target, index: np.ndarray, sites: Sequence[Site], progress: Progress = unheard
) -> Inputs:
    """Tokens of prompts of the prior, index (N,), and the named positions that sites ask for."""
    ids: list[np.ndarray] = []
    positions: dict[str, list[np.ndarray]] = {}
    for low in range(0, len(index), BLOCK):
        some = index[low : low + BLOCK]
        tokens = target.encode(task.texts(some))
        for name, at in named_positions(task, target, some, tokens, sites).items():
            positions.setdefault(name, []).append(at)
        ids += tokens
        progress(len(ids), len(index))
    return Inputs(ids, {name: np.concatenate(parts) for name, parts in positions.items()})


def width_of(task: Task, target: Target, sites: Sequence[Site]) -> int:
    """How many positions sites at `any` have: the tokens of the longest prompt of the prior. 0 if there is none."""
    return longest_prompt(task, target) if any(site.position == "any" for site in sites) else 0


def capture_prompts(
    task: Task, target: Target, index: np.ndarray, sites: Sequence[Site]
) -> dict[str, np.ndarray]:
    """`capture` for prompts of the prior, index (N,): site label -> (N, site_dim), at `any` (N, P, site_dim)."""
    inputs = inputs_of(task, target, index, sites)
    width = width_of(task, target, sites)
    return capture(target, inputs.token_ids, sites, positions=inputs.positions, width=width)
