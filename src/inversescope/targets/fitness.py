"""What later stages need of a target and its tokenizer, looked at once, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from inversescope.errors import InputError, first_line
from inversescope.sites import Site, expand_sites
from inversescope.targets.models import Target
from inversescope.targets.tokenizers import check_single_tokens, encode, token_positions
from inversescope.tasks import Task

#: Prompts that are looked at, at most: all of a corpus, many of a prior whose slots combine.
MOST = 50_000


class Asked(NamedTuple):
    """A question, and with its answer; `ids` and `whole` are their tokens as the model reads them."""

    question: str
    ids: np.ndarray
    answered: str
    whole: np.ndarray


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
    def ids(self) -> list[np.ndarray]:
        """Their tokens as the model reads them."""
        return self.target.encode(self.texts)

    @cached_property
    def asked(self) -> list[Asked]:
        """All questions of these prompts; none if no answer is asked."""
        if not self.patched and not self.task.study_asks:
            return []
        questions, answered = self.task.questions(self.index), self.task.completed(self.index)
        ids = self.ids if questions == self.texts else self.target.encode(questions)
        return list(map(Asked, questions, ids, answered, self.target.encode(answered)))

    @cached_property
    def read(self) -> list[tuple[int, str, np.ndarray]]:
        """All that is tokenized: numbers of prompts, texts, and their tokens; with a question's answer stands the question."""
        answered = [(one.answered, one.whole) for one in self.asked]
        pairs = [*zip(self.texts, self.ids, strict=True), *answered]
        numbers = np.resize(self.index, len(pairs)).tolist()
        return [(number, *pair) for number, pair in zip(numbers, pairs, strict=True)]


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


def _kept(needed: Needed) -> None:
    begin = 1 if needed.target.bos else 0
    texts = [(number, text, ids[begin:]) for number, text, ids in needed.read]
    check_kept(needed.target.tokenizer, texts, needed.name)


def _embedded(needed: Needed) -> None:
    size = needed.target.model.get_input_embeddings().weight.shape[0]
    for _, text, ids in needed.read:
        if ids.max(initial=0) >= size:
            token = needed.target.tokenizer.convert_ids_to_tokens(int(ids.max()))
            raise InputError(
                f"{needed.name} has a token {ids.max()}, '{token}', in '{text}', but the model's embedding has {size}",
                "Use the tokenizer that the model was trained with, or enlarge the model's embedding and train it",
            )


def _short(needed: Needed) -> None:
    most = needed.target.model.config.max_position_embeddings
    for _, text, ids in needed.read:
        if not 0 < len(ids) <= most:
            raise InputError(
                f"'{text}' has {len(ids)} tokens, but {needed.target.name} takes 1 to {most}",
                "Shorten the prompts, or use a model with more positions",
            )


def _runs(needed: Needed) -> None:
    model, name = needed.target.model, needed.target.name
    longest = max((ids for *_, ids in needed.read), key=len)
    ids = torch.from_numpy(longest.astype(np.int64))[None].to(model.device)
    remedy = "Look at what its config.json says of positions, norms and attention"
    own = model.config._attn_implementation
    model.set_attn_implementation("eager")  # others may turn NaN into zero
    try:
        with torch.inference_mode():
            states = needed.target.body(input_ids=ids, use_cache=False).last_hidden_state
    except Exception as error:  # whatever a module raises that a configuration does not fit
        raise InputError(
            f"{name} cannot be run ({type(error).__name__}: {first_line(error)})", remedy
        ) from error
    finally:
        model.set_attn_implementation(own)
    if not torch.isfinite(states).all():
        raise InputError(
            f"Activations of {name} are NaN or infinite as {states.dtype}", f"{remedy}; or use a larger dtype"
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
    for one in needed.asked:
        if len(one.whole) <= len(one.ids) or not np.array_equal(one.whole[: len(one.ids)], one.ids):
            raise InputError(
                f"{needed.name} gives '{one.question}' other tokens with its answer than without, or it has no answer",
                "End the question where a token ends, give it an answer, or leave the experiment's 'patched' empty",
            )


#: Each raises `InputError` with what is wrong and the remedy; in this order: later ones need earlier ones.
CHECKS: tuple[Callable[[Needed], None], ...] = (
    _sites,
    _finite,
    _single_tokens,
    _kept,
    _embedded,
    _short,
    _runs,
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


def check_kept(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[tuple[int, str, np.ndarray]], name: str
) -> None:
    """Check that a tokenizer gives texts back as they were, and takes nothing in them for a token with a meaning of its own.

    Args:
        tokenizer: any fast tokenizer.
        texts: the number of a prompt, its text, and its tokens (`tokenizers.encode`).
        name: how messages call the tokenizer.

    Raises:
        InputError: naming the first one that does not stay what it is.
    """
    back = tokenizer.backend_tokenizer.decode_batch(
        [ids.tolist() for *_, ids in texts], skip_special_tokens=False
    )
    added = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    special = np.array([*tokenizer.all_special_ids, *added], np.int64)
    for (number, text, ids), found in zip(texts, back, strict=True):
        if text != found:
            at = next((n for n, (a, b) in enumerate(zip(text, found, strict=False)) if a != b), len(found))
            codes = [
                " ".join(f"U+{ord(c):04X}" for c in some[at : at + 2]) or "nothing" for some in (text, found)
            ]
            raise InputError(
                f"{name} turns '{text}' into '{found}' (character {at}: {codes[0]} becomes {codes[1]})",
                "Write prompts and answers as it gives them back, or use a model whose tokenizer keeps every character",
            )
        if (marks := np.isin(ids, special)).any():
            token = tokenizer.convert_ids_to_tokens(int(ids[marks.argmax()]))
            raise InputError(
                f"{name} takes {token} for a token of its own, and not for text: prompt {number}, '{text}'",
                "Remove it from prompts and answers, or from the special tokens of the tokenizer",
            )
