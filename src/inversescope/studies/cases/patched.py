"""Activation patching with counterfactual partners: what writing a partner's activation at a site does to the answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inversescope.activations.patching import Inputs, Intervention, Patch, patch
from inversescope.activations.positions import named_positions
from inversescope.context import echo
from inversescope.errors import InputError
from inversescope.progress import Progress
from inversescope.sites import Site
from inversescope.targets.models import Target
from inversescope.tasks import Task


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


def placed(task: Task, target: Target, index: np.ndarray, sites: list[Site]) -> Inputs:
    """Prompts (n,) as token ids, with the positions of sites and of the question's end."""
    ids = target.encode(task.texts(index))
    end = Site(0, "resid_pre", None, task.question_end)
    return Inputs(ids, named_positions(task, target, index, ids, [*sites, end]))


def patched_effects(
    target: Target,
    own: Inputs,
    partner: Inputs,
    sites: list[Site],
    tokens: np.ndarray,
    read_at: str,
    stage: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Effects (K, n) of writing the partners' activations at K sites, and total differences (n,), in logits.

    Args:
        own, partner: n prompts, and their partners.
        tokens: token ids (n, 2) whose logit difference is read.
        read_at: name of the position where it is read.
        stage: what lines of progress begin with.
    """
    plain = Intervention()
    # A head's output is replaced before W_O: the same as replacing its result.
    writes = [Site(s.layer, "z" if s.kind == "result" else s.kind, s.head, s.position) for s in sites]
    runs = [plain, *(Intervention((Patch(site),)) for site in writes)]
    progress = Progress(stage, len(runs) * len(tokens), echo)
    patched = patch(
        target, partner, own, runs, tokens, read_at, progress=lambda done, _: progress(done)
    ).logits
    swapped = patch(target, None, partner, [plain], tokens, read_at).logits
    difference = patched[..., 0] - patched[..., 1]
    total = difference[0] - (swapped[0, :, 0] - swapped[0, :, 1])
    return (difference[0] - difference[1:]).astype(np.float64), total.astype(np.float64)


def have_path(task: Task, target: Target, index: np.ndarray, sites: list[Site]) -> dict[Site, bool]:
    """Whether each site can reach the answer at all: what the last block writes at other positions nobody attends to any more."""
    where = placed(task, target, index, sites)
    answers = where.resolve(task.question_end)
    early = {site: site.layer < target.n_layers - 1 or site.kind == "resid_pre" for site in sites}
    return {site: early[site] or bool((where.resolve(site.position) == answers).all()) for site in sites}
