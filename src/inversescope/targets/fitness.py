"""What later stages need of a target and its tokenizer, looked at once, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from inversescope.errors import InputError
from inversescope.sites import Site, expand_sites
from inversescope.targets.models import Target
from inversescope.targets.tokenizers import check_single_tokens, encode, token_positions
from inversescope.tasks import Task

#: Prompts that are looked at, at most: all of a corpus, many of a prior whose slots combine.
MOST = 50_000


@dataclass(frozen=True)
class Needed:
    """A target, and what is asked of it.

    Attributes:
        target: the model and its tokenizer.
        task: whose prompts it reads.
        index: prompts that are looked at (N,).
        sites: where it is read.
        patched: where it is patched; its answers are asked if there are any.
    """

    target: Target
    task: Task
    index: np.ndarray
    sites: Sequence[Site]
    patched: Sequence[Site]

    @property
    def name(self) -> str:
        """How messages call the tokenizer."""
        return f"The tokenizer of {self.target.name}"

    @cached_property
    def texts(self) -> list[str]:
        """Texts of these prompts."""
        return self.task.texts(self.index)

    @cached_property
    def plain(self) -> list[np.ndarray]:
        """Their tokens, without a begin token."""
        return encode(self.target.tokenizer, self.texts)

    @cached_property
    def ids(self) -> list[np.ndarray]:
        """Their tokens as the model reads them."""
        return self.target.begun(self.plain)

    @cached_property
    def asked(self) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """Each question, its tokens, and those with the answer; none if no answer is asked."""
        if not self.patched:
            return []
        questions, whole = self.task.questions(self.index), self.task.completed(self.index)
        ids = self.ids if questions == self.texts else self.target.encode(questions)
        return list(zip(questions, ids, self.target.encode(whole), strict=True))


def _sites(needed: Needed) -> None:
    needed.target.check_sites([*needed.sites, *needed.patched])


def _finite(needed: Needed) -> None:
    for name, weight in needed.target.model.named_parameters():
        if not weight.is_meta and not torch.isfinite(weight).all():
            raise InputError(
                f"The weight {name} of {needed.target.name} holds NaN or infinity as {weight.dtype}",
                "Use a dtype of a larger range, or weights that were trained to the end",
            )


def _single_tokens(needed: Needed) -> None:
    check_single_tokens(needed.target.tokenizer, needed.task.single_token_words())
    needed.task.check_tokenizer(lambda texts: encode(needed.target.tokenizer, texts))


def _round_trip(needed: Needed) -> None:
    check_round_trip(needed.target.tokenizer, needed.texts, needed.plain, needed.name)


def _embedded(needed: Needed) -> None:
    size = needed.target.model.get_input_embeddings().weight.shape[0]
    asked = [(question, whole) for question, _, whole in needed.asked]
    for text, ids in [*zip(needed.texts, needed.ids, strict=True), *asked]:
        if ids.max(initial=0) >= size:
            token = needed.target.tokenizer.convert_ids_to_tokens(int(ids.max()))
            raise InputError(
                f"{needed.name} has a token {ids.max()}, '{token}', in '{text}', but the model's embedding has {size}",
                "Use the tokenizer that the model was trained with, or enlarge the model's embedding and train it",
            )


def _short(needed: Needed) -> None:
    most = needed.target.model.config.max_position_embeddings
    asked = [(question, whole) for question, _, whole in needed.asked]
    for text, ids in [*zip(needed.texts, needed.ids, strict=True), *asked]:
        if not 0 < len(ids) <= most:
            raise InputError(
                f"'{text}' has {len(ids)} tokens, but {needed.target.name} takes 1 to {most}",
                "Shorten the prompts, or use a model with more positions",
            )


def _positions(needed: Needed) -> None:
    for site in dict.fromkeys([*needed.sites, *needed.patched]):
        position = site.position
        if position in ("last", "any"):
            continue
        if position.isdecimal():
            lacking = np.array([len(ids) for ids in needed.ids]) <= int(position)
        else:
            lacking = token_positions(needed.task, needed.target, needed.index, needed.ids, position) < 0
        if lacking.any():
            raise InputError(
                f"Site {site.label}: {lacking.sum()} of {len(lacking)} prompts have no position '{position}', "
                f"the first '{needed.texts[int(lacking.argmax())]}'",
                "Choose a position that every prompt has",
            )


def _answers(needed: Needed) -> None:
    for question, ids, whole in needed.asked:
        if len(whole) <= len(ids) or not np.array_equal(whole[: len(ids)], ids):
            raise InputError(
                f"{needed.name} gives '{question}' other tokens with its answer than without, or it has no answer",
                "End the question where a token ends, give it an answer, or leave the experiment's 'patched' empty",
            )


#: Each raises `InputError` with what is wrong and the remedy; in this order: later ones need earlier ones.
CHECKS: tuple[Callable[[Needed], None], ...] = (
    _sites,
    _finite,
    _single_tokens,
    _round_trip,
    _embedded,
    _short,
    _positions,
    _answers,
)


def check_target(
    target: Target, task: Task, sites: list[str], patched: list[str], rng: np.random.Generator
) -> None:
    """Check what any later stage would stumble over: sites, tokens, lengths, positions, answers.

    Args:
        target: the model and its tokenizer.
        task: whose prompts it is to read.
        sites: patterns of where it is read.
        patched: patterns of where it is patched.
        rng: draws the prompts that are looked at, where the prior is large.

    Raises:
        InputError: with what the first check finds.
    """
    read, written = (expand_sites(some, target.n_layers, target.n_heads) for some in (sites, patched))
    needed = Needed(target, task, some_of(task, rng), read, written)
    for check in CHECKS:
        check(needed)


def some_of(task: Task, rng: np.random.Generator) -> np.ndarray:
    """Prompts of a task (N,): all, or many."""
    n = task.universe
    return np.arange(n) if n <= MOST else rng.integers(n, size=MOST)


def check_round_trip(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], ids: Sequence[np.ndarray], name: str
) -> None:
    """Check that a tokenizer gives texts back as they were.

    Args:
        tokenizer: any fast tokenizer.
        texts: N texts.
        ids: their tokens (`tokenizers.encode`).
        name: how messages call the tokenizer.

    Raises:
        InputError: naming the first one that comes back otherwise.
    """
    back = tokenizer.backend_tokenizer.decode_batch([one.tolist() for one in ids], skip_special_tokens=False)
    for text, found in zip(texts, back, strict=True):
        if text != found:
            at = next((n for n, (a, b) in enumerate(zip(text, found, strict=False)) if a != b), len(found))
            codes = [
                " ".join(f"U+{ord(c):04X}" for c in some[at : at + 2]) or "nothing" for some in (text, found)
            ]
            raise InputError(
                f"{name} turns '{text}' into '{found}' (character {at}: {codes[0]} becomes {codes[1]})",
                "Write the prompts as it gives them back, or use a model whose tokenizer keeps every character",
            )
