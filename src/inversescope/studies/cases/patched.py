"""Activation patching with counterfactual partners: what writing a partner's activation at a site does to the answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from inversescope.activations.patching import Inputs, Intervention, Patch, patch
from inversescope.activations.positions import named_positions
from inversescope.context import echo
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.sites import Site
from inversescope.targets.models import Target
from inversescope.tasks import Task

#: Positions in a prompt behind which an answer has begun: the prompt's last token, and where the answer goes on.
END, READ = "prompt_end", "answer_read"


@dataclass(frozen=True)
class Answered:
    """Questions with their answers as token ids.

    Attributes:
        ids: N arrays.
        starts: where each answer begins (N,).
    """

    ids: list[np.ndarray]
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each answer (N,)."""
        return np.array([len(one) for one in self.ids], np.int64) - self.starts

    def token(self, k: int) -> np.ndarray:
        """The k-th token of each answer (N,), k from 1."""
        return np.array([one[s + k - 1] for one, s in zip(self.ids, self.starts, strict=True)], np.int64)

    def before(self, k: int) -> list[np.ndarray]:
        """What is read before the k-th token of each answer."""
        return [one[: s + k - 1] for one, s in zip(self.ids, self.starts, strict=True)]

    @property
    def answers(self) -> list[np.ndarray]:
        """Tokens of each answer."""
        return [one[s:] for one, s in zip(self.ids, self.starts, strict=True)]

    def of(self, rows: np.ndarray) -> Answered:
        """Some of them."""
        return Answered([self.ids[row] for row in rows], self.starts[rows])


def answered(task: Task, target: Target, index: np.ndarray) -> Answered:
    """Questions of prompts (N,) with their answers.

    Raises:
        InputError: a question has other tokens with its answer than without, or the answer is none.
    """
    questions, whole = (target.encode(texts) for texts in (task.questions(index), task.completed(index)))
    for row, (question, ids) in enumerate(zip(questions, whole, strict=True)):
        if len(ids) <= len(question) or not np.array_equal(ids[: len(question)], question):
            raise InputError(
                f"the answer of '{task.questions(index[row : row + 1])[0]}' does not follow its tokens",
                "end the question where a token ends, and give it an answer",
            )
    return Answered(whole, np.array([len(ids) for ids in questions], np.int64))


def first_difference(a: np.ndarray, b: np.ndarray) -> int:
    """Which token of two answers, from 1, is the first that differs; 0 if none does, or one answer begins the other."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) + 1 if differ.size else 0


def placed(
    task: Task, target: Target, index: np.ndarray, sites: list[Site], begun: list[np.ndarray]
) -> Inputs:
    """Prompts (n,) as token ids, with the positions of sites, of the prompt's end (`END`) and of where the answer is read (`READ`).

    Args:
        begun: n beginnings of answers that stand behind the questions, and behind which the answer is read.
    """
    ids = target.encode(task.texts(index))
    end = Site(0, "resid_pre", None, task.question_end)
    texts = Inputs(ids, named_positions(task, target, index, ids, [*sites, end]))
    reads = texts.resolve(task.question_end)
    # Where a text holds its answer, what follows is never looked back at: the beginning takes its place.
    whole = [
        np.concatenate([text[: at + 1], some, text[at + 1 + len(some) :]])
        for text, at, some in zip(ids, reads, begun, strict=True)
    ]
    places = {END: texts.resolve("last"), READ: reads + np.array([len(some) for some in begun], np.int64)}
    return Inputs(whole, {**texts.positions, **places})


@dataclass(frozen=True)
class Pairs:
    """Runs whose answers are compared at the first token that differs.

    Attributes:
        own, partner: n prompts each, behind which stands what both answers begin with.
        tokens: what is compared, token ids (n, 2).
        sites: K sites as they stand in these runs.
        read_at: name of the position where it is read.
        stage: what lines of progress begin with.
    """

    own: Inputs
    partner: Inputs
    tokens: np.ndarray
    sites: list[Site]
    read_at: str


def pair_up(
    task: Task,
    target: Target,
    index: np.ndarray,
    other: np.ndarray,
    answers: list[tuple[np.ndarray, np.ndarray]],
    k: int,
    sites: list[Site],
) -> Pairs:
    """Pairs of prompts (n,) and their partners (n,), and of two answers each, as tokens, that differ first in the k-th, from 1."""
    begun, tokens = [a[: k - 1] for a, _ in answers], [(a[k - 1], b[k - 1]) for a, b in answers]
    own, partner = (placed(task, target, some, sites, begun) for some in (index, other))
    if k > 1:  # the last token is no longer the prompt's
        sites = [replace(site, position=END) if site.position == "last" else site for site in sites]
    return Pairs(own, partner, np.array(tokens, np.int64), sites, READ if k > 1 else task.question_end)


def patched_effects(target: Target, pairs: Pairs, stage: str) -> tuple[np.ndarray, np.ndarray]:
    """Effects (K, n) of writing the partners' activations at K sites, and total differences (n,), in logits.

    Args:
        stage: what lines of progress begin with.
    """
    plain = Intervention()
    # A head's output is replaced before W_O: the same as replacing its result.
    writes = [replace(site, kind="z" if site.kind == "result" else site.kind) for site in pairs.sites]
    runs = [plain, *(Intervention((Patch(site),)) for site in writes)]
    own, partner, tokens, read_at = pairs.own, pairs.partner, pairs.tokens, pairs.read_at
    progress = Progress(stage, len(runs) * len(tokens), echo)
    patched = patch(
        target, partner, own, runs, tokens, read_at, progress=lambda done, _: progress(done)
    ).logits
    swapped = patch(target, None, partner, [plain], tokens, read_at).logits
    difference = patched[..., 0] - patched[..., 1]
    total = difference[0] - (swapped[0, :, 0] - swapped[0, :, 1])
    return (difference[0] - difference[1:]).astype(np.float64), total.astype(np.float64)


def have_path(target: Target, pairs: Pairs) -> list[bool]:
    """Whether each site can reach what is read: what the last block writes at other positions nobody attends to any more."""
    early = [site.layer < target.n_layers - 1 or site.kind == "resid_pre" for site in pairs.sites]
    read = pairs.own.resolve(READ)
    at = [bool((pairs.own.resolve(site.position) == read).any()) for site in pairs.sites]
    return [one or other for one, other in zip(early, at, strict=True)]
