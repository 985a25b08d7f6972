"""Activations of prompts of a task's prior at sites of any position: last token, token index, a name of the task's, or all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from inversescope.activations.capture import capture
from inversescope.sites import Site
from inversescope.targets.models import Target
from inversescope.targets.tokenizers import encode
from inversescope.tasks import Task


def named_positions(
    task: Task, target: Target, index: np.ndarray, token_ids: Sequence[np.ndarray], sites: Sequence[Site]
) -> dict[str, np.ndarray]:
    """Token index (N,) of the named positions that sites ask for, in prompts of the prior; -1 where a prompt has none.

    Raises:
        InputError: the task has no position of that name.
    """
    names = sorted({site.position for site in sites if not site.position.isdecimal()} - {"last", "any"})
    if not names:
        return {}
    texts = task.texts(index)
    offsets = {name: task.offsets(name, index) for name in names}
    if all(len(text) == len(ids) for text, ids in zip(texts, token_ids, strict=True)):
        return offsets  # a token a character
    encodings = target.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    # A model with a begin token has it before the first of the text.
    ahead = 1 if target.bos else 0
    result = {}
    for name, characters in offsets.items():
        pairs = zip(encodings, characters.tolist(), strict=True)
        tokens = [-1 if at < 0 else encoding.char_to_token(at) for encoding, at in pairs]
        result[name] = np.array([-1 if t is None or t < 0 else t + ahead for t in tokens], np.int64)
    return result


def longest_prompt(task: Task, target: Target) -> int:
    """Tokens of the longest prompt of the prior."""
    index = task.extremes(lambda texts: [len(ids) for ids in encode(target.tokenizer, texts)])
    return max(len(ids) for ids in target.encode(task.texts(index)))


def capture_prompts(
    task: Task, target: Target, index: np.ndarray, sites: Sequence[Site], **options: Any
) -> dict[str, np.ndarray]:
    """`capture` for prompts of the prior, index (N,): site label -> (N, site_dim), at `any` (N, P, site_dim); its other options."""
    token_ids = target.encode(task.texts(index))
    positions = named_positions(task, target, index, token_ids, sites)
    width = longest_prompt(task, target) if any(site.position == "any" for site in sites) else 0
    return capture(target, token_ids, sites, positions=positions, width=width, **options)
