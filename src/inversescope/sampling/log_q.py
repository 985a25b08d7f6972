"""Exact log q of given sequences: under a decoding rule, and of cached prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from inversescope.generator.backbone import Readout
from inversescope.generator.base import ConditionalGenerator, Folded, Rows
from inversescope.generator.condition import Condition, Prompts
from inversescope.sampling.mixing import Mixer, Place
from inversescope.sampling.tree import Tree, WordScores, grammar_mask

if TYPE_CHECKING:
    from inversescope.tasks.automata import Automaton


@torch.inference_mode()
def log_q(
    model: ConditionalGenerator,
    folded: Folded,
    owner: np.ndarray,
    tokens: np.ndarray,
    *,
    end: int,
    temperature: np.ndarray | None = None,
    grammar: Automaton | None = None,
) -> np.ndarray:
    """log q(x | z) of given sequences under a decoding rule without cached neighbours, by full forwards.

    Args:
        folded: B activations.
        owner: (n,) which of them each sequence belongs to.
        tokens: (n, T) as in `Draws.tokens`.
        temperature: (B,) of each activation, or None for 1.
        grammar: masks tokens that leave the prior's grammar.

    Returns:
        (n,) float64, end token included.
    """
    device = folded.latent.device
    n, length = tokens.shape
    x = torch.from_numpy(np.concatenate([np.full((n, 1), end), tokens[:, :-1]], 1)).to(device)
    used, of = np.unique(owner, return_inverse=True)
    here, rows = folded.rows(torch.from_numpy(used).to(device)), torch.from_numpy(of).to(device)
    logits = model.logits(x, here, Rows(rows)).double()
    if temperature is not None:
        logits = logits / torch.from_numpy(temperature[owner]).to(device)[:, None, None]
    if grammar is not None:
        state = np.full(n, grammar.start, np.int64)
        masks = []
        for position in range(length):
            masks.append(grammar_mask(grammar, state, logits.shape[-1]))
            state = np.asarray(grammar.step(state, tokens[:, position]))
        logits = logits + torch.from_numpy(np.stack(masks, 1)).to(device)
    token = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(tokens).to(device)[..., None])[..., 0]
    ended = np.cumsum(tokens == end, 1) - (tokens == end) > 0  # after the first end token
    # Masked sums, not products: a token after the end may have probability zero.
    return token.masked_fill(torch.from_numpy(ended).to(device), 0.0).sum(-1).cpu().numpy()


def log_q_marginal(
    model: ConditionalGenerator,
    folded: Folded,
    tokens: np.ndarray,
    companions: np.ndarray,
    *,
    end: int,
    temperature: np.ndarray | None = None,
    grammar: Automaton | None = None,
) -> np.ndarray:
    """log q of sequences under a sampler that draws its activation too, as log of the mean over some of its activations.

    Each sequence's own activation is among them, so that this is high by at most log J: entropies from it are low by no more.

    Args:
        companions: (n, J) rows of `folded`, the sequence's own among them.
        tokens, end, temperature, grammar: as in `log_q`.

    Returns:
        (n,) float64.
    """
    n, J = companions.shape
    each = log_q(
        model,
        folded,
        companions.ravel(),
        np.repeat(tokens, J, 0),
        end=end,
        temperature=temperature,
        grammar=grammar,
    ).reshape(n, J)
    highest = each.max(1)
    result: np.ndarray = highest + np.log(np.exp(each - highest[:, None]).mean(1))
    return result


def _counts_along(neighbours: Mixer, owner: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, Place]:
    """Counts (E, T - 1, V) along cached prompts (E, T), each left out of its own counts if it is among the neighbours; and where
    each ends."""
    places = [neighbours.roots(owner)]
    for following in tokens.T[1:]:
        places.append(places[-1].descend(following))
    # Cached prompts are distinct: whoever is reached at the end is the prompt itself.
    own = np.minimum(places[-1].count, 1)
    result = np.stack([place.counts() for place in places[:-1]], 1)
    rows, positions = np.indices(result.shape[:2])
    result[rows, positions, tokens[:, 1:]] -= own[:, None]
    return result, places[-1]


@torch.inference_mode()
def log_prob_rows(
    model: ConditionalGenerator,
    condition: Condition,
    owner: np.ndarray,
    prompts: Prompts,
    rows: np.ndarray,
    batch: int,
    neighbours: Mixer | None = None,
) -> np.ndarray:
    """log q(x | z) of cached prompts `rows` (E,) under the targets `owner` (E,) of a condition: (E,) float64.

    A cached neighbour that the generator attends to is left out of its own counts, so that its q is what a prompt like it that is
    not cached would get.
    """
    folded = model.fold(condition)
    result = np.zeros(len(rows))
    order = np.argsort(owner, kind="stable")
    for low in range(0, len(rows), batch):
        part = order[low : low + batch]
        tokens = prompts.tokens[rows[part]].astype(np.int64)
        targets, of = np.unique(owner[part], return_inverse=True)
        here = folded.rows(torch.from_numpy(targets).to(folded.latent.device))
        near = None
        if neighbours is not None:
            near = Mixer([neighbours.sequences[target] for target in targets], neighbours.vocabulary, 1.0)
        result[part] = _along_tree(model, here, of, tokens, near)
    return result


def _along_tree(
    model: ConditionalGenerator, folded: Folded, of: np.ndarray, tokens: np.ndarray, neighbours: Mixer | None
) -> np.ndarray:
    """log q (E,) of prompts (E, T) under the activations `of` (E,), beginnings that they share computed once."""
    device, length = folded.latent.device, tokens.shape[1] - 1
    result = np.zeros(len(tokens))
    others = None if neighbours is None else _Others(model, neighbours, of, tokens, device)
    tree = Tree(model, folded, of, length, int(tokens[0, 0]))
    for position in range(length):
        h, alive, readout = tree.step(), tree.alive, None
        row_of = torch.from_numpy(tree.row_of).to(device)
        if others is not None:
            # What the others say is each sequence's own.
            readout = others.readout(folded, tree, position)
            h, row_of = h[row_of], torch.arange(len(alive), device=device)
        following = tokens[alive, position + 1]
        log_p = torch.log_softmax(model.backbone.logits(h, readout), -1)
        result[alive] += log_p[row_of, torch.from_numpy(following).to(device)].double().cpu().numpy()
        children = tree.children(following)
        kept = tree.grow(children)
        if not tree.alive.size:
            break
        if others is not None and others.words is not None:
            others.words.follow(children.parent[kept])
    return result


class _Others:
    """What the cached neighbours of each of E cached prompts say along it, itself left out."""

    def __init__(
        self,
        model: ConditionalGenerator,
        neighbours: Mixer,
        of: np.ndarray,
        tokens: np.ndarray,
        device: torch.device,
    ) -> None:
        self.model, self.of = model, of
        self.counts, end = _counts_along(neighbours, of, tokens)
        self.words: WordScores | None = None
        if model.neighbour_words is not None:
            self.words = WordScores(model.neighbour_words, neighbours, device)
            self.present = neighbours.padded()[1][of]
            own = np.flatnonzero(end.count)
            first = np.cumsum(neighbours.root_count) - neighbours.root_count
            self.present[own, neighbours.order[end.start[own]] - first[of[own]]] = False

    def readout(self, folded: Folded, tree: Tree, position: int) -> Readout | None:
        """The function that adds to the logits (m, V) of the sequences that have not ended what the others say."""
        device = tree.owner.device
        whose = torch.from_numpy(self.of[tree.alive]).to(device)
        counts = torch.from_numpy(np.ascontiguousarray(self.counts[tree.alive, position])).to(device)
        evidence = None
        if self.words is not None:
            self.words.read(tree)
            scores = self.words.scores[torch.from_numpy(tree.row_of).to(device)]
            present = torch.from_numpy(self.present[tree.alive]).to(device)
            evidence = self.words.evidence(scores, whose, present)
        return self.model.readout(folded, Rows(whose, counts, evidence))
