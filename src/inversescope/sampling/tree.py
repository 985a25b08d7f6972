"""Draws of a target that have begun alike, grown as one tree: a prefix is computed once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inversescope.generator.backbone import Readout
from inversescope.generator.base import ConditionalGenerator, Folded, Rows
from inversescope.generator.neighbours import NeighbourWords
from inversescope.ops import ByOwner
from inversescope.sampling.mixing import Mixer

if TYPE_CHECKING:
    from inversescope.tasks.automata import Automaton


@dataclass
class Children:
    """What a step leads to: distinct (row, token) pairs.

    Attributes:
        parent: (children,) row.
        token: (children,).
        of: (sequences,) child that each sequence goes on with.
    """

    parent: np.ndarray
    token: np.ndarray
    of: np.ndarray


class Tree:
    """Distinct beginnings (target, prefix) of sequences that grow together, a row of the backbone's cache each.

    Attributes:
        alive: (m,) sequences that have not ended.
        row_of: (m,) their rows.
        owner: (rows,) whose beginning it is; a tensor on the generator's device.
        token: (rows,) its last token.
    """

    def __init__(
        self,
        model: ConditionalGenerator,
        folded: Folded,
        owner: np.ndarray,
        length: int,
        end: int,
    ) -> None:
        """Every target's root: owner (sequences,) says whose each sequence is, `length` how many steps there may be."""
        self.model, self.folded, self.end, self.position = model, folded, end, 0
        self.cache = model.backbone.take_cache(len(owner), length)
        self.alive, self.row_of = np.arange(len(owner)), owner
        self.owner = torch.arange(len(folded.latent), device=folded.latent.device)
        self.token = np.full(len(self.owner), end)

    def step(self) -> Tensor:
        """Final hidden states (rows, D) after each row's last token."""
        device = self.folded.latent.device
        token = torch.from_numpy(self.token).to(device)
        return self.model.step(token, self.position, self.cache, self.folded, self.owner)

    def children(self, following: np.ndarray) -> Children:
        """Children by the token (m,) that each sequence goes on with."""
        vocabulary = self.model.shape.backbone.vocab_size
        key, of = np.unique(self.row_of * vocabulary + following, return_inverse=True)
        return Children(*np.divmod(key, vocabulary), of)

    def grow(self, children: Children) -> np.ndarray:
        """Make the children that do not end the new rows; (rows,) which child each is.

        n children take places 0 ... n - 1 of the cache. A parent's first child stays where its parent was if that is among these;
        the others are copied to the places left. No such place holds what is still to be copied: its parent has no child here.
        """
        going = children.token != self.end
        some = np.flatnonzero(going)
        parent, n = children.parent[some], len(some)
        first = np.ones(n, bool)
        first[1:] = parent[1:] != parent[:-1]
        stays = first & (parent < n)
        free = np.ones(n, bool)
        free[parent[stays]] = False
        place = np.empty(n, np.int64)
        place[stays] = parent[stays]
        place[~stays] = np.flatnonzero(free)
        self.position += 1
        device = self.folded.latent.device
        source, target = (torch.from_numpy(a[~stays]).to(device) for a in (parent, place))
        if len(source):
            for layer in self.cache:
                for table in (layer.keys[: self.position], layer.values[: self.position]):
                    table.index_copy_(1, target, table.index_select(1, source))
        place_of = np.full(len(going), -1)
        place_of[some] = place
        lives = going[children.of]
        self.alive, self.row_of = self.alive[lives], place_of[children.of[lives]]
        kept = np.empty(n, np.int64)
        kept[place] = some
        self.owner = self.owner[torch.from_numpy(children.parent[kept]).to(device)]
        self.token = children.token[kept]
        return kept


class WordScores:
    """Scores of each row's neighbours by the words that they share with what has been written (`NeighbourWords`).

    Attributes:
        scores: (rows, K).
        present: (targets, K) bool.
    """

    def __init__(self, words: NeighbourWords, neighbours: Mixer, device: torch.device) -> None:
        table, present = neighbours.padded()
        self.words, self.present = words, torch.from_numpy(present).to(device)
        self.bags = words.bags(torch.from_numpy(table).to(device))
        self.scores = torch.zeros(self.present.shape, device=device)

    def read(self, tree: Tree) -> None:
        """Add what each row's last token says."""
        last = torch.from_numpy(tree.token).to(self.scores.device)
        self.scores = self.scores + self.words.after(last, self.bags, tree.owner)

    def follow(self, parent: np.ndarray) -> None:
        """Go on with rows that continue the rows `parent`."""
        self.scores = self.scores[torch.from_numpy(parent).to(self.scores.device)]

    def evidence(self, scores: Tensor, owner: Tensor, present: Tensor | None = None) -> Tensor:
        """Evidence (n, W) from scores (n, K) for the activations `owner` (n,); `present` (n, K) if it is each row's own."""
        rows = ByOwner(owner, len(self.bags))
        here = self.present[:, None] if present is None else rows.spread(present)
        return rows.gather(self.words.evidence(rows.spread(scores), here, self.bags))


class Attended:
    """What a generator that attends to cached neighbours reads of them, along a tree."""

    def __init__(self, model: ConditionalGenerator, neighbours: Mixer, device: torch.device) -> None:
        self.model, self.place = model, neighbours.roots()
        words = model.neighbour_words
        self.words = None if words is None else WordScores(words, neighbours, device)

    def readout(self, folded: Folded, tree: Tree) -> Readout | None:
        """The function that adds to the logits of the tree's rows what their neighbours say."""
        counts = torch.from_numpy(self.place.counts()).to(tree.owner.device)
        evidence = None
        if self.words is not None:
            self.words.read(tree)
            evidence = self.words.evidence(self.words.scores, tree.owner)
        return self.model.readout(folded, Rows(tree.owner, counts, evidence))

    def follow(self, parent: np.ndarray, token: np.ndarray) -> None:
        """Go on with rows that continue the rows `parent` by tokens, (n,) each."""
        self.place = self.place[parent].descend(token)
        if self.words is not None:
            self.words.follow(parent)


def grammar_mask(grammar: Automaton, state: np.ndarray, vocabulary: int) -> np.ndarray:
    """Additive mask (rows, V): 0 for tokens that the grammar allows, -inf for the others; finished rows may only end."""
    mask = np.full((len(state), vocabulary), -np.inf)
    allowed = grammar.permitted(np.maximum(state, 0))
    mask[:, grammar.tokens] = np.where(allowed, 0.0, -np.inf)
    dead = (state < 0) | ~np.isfinite(mask).any(1)
    mask[dead] = -np.inf
    mask[dead, grammar.accept_token] = 0.0
    return mask
