"""Exact log q of given sequences: under a decoding rule, and of cached prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from inversescope.generator.base import ConditionalGenerator, Folded
from inversescope.generator.condition import Condition, Prompts
from inversescope.sampling.mixing import Mixer
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
    logits = model.logits(x, here, owner=rows).double()
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


def _counts_along(neighbours: Mixer, owner: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Counts (E, T - 1, V) along cached prompts (E, T), each left out of its own counts if it is among the neighbours."""
    node, count = owner, neighbours.root_count[owner]
    for depth in range(tokens.shape[1] - 1):
        node, _, count = neighbours.descend(depth, node, count, tokens[:, depth + 1])
    own = np.minimum(
        count, 1
    )  # cached prompts are distinct: whoever is reached at the end is the prompt itself
    node, count = owner, neighbours.root_count[owner]
    result = []
    row = np.arange(len(owner))
    for depth in range(tokens.shape[1] - 1):
        here = neighbours.counts(depth, node, count)
        following = tokens[:, depth + 1]
        here[row, following] -= own
        result.append(here)
        node, _, count = neighbours.descend(depth, node, count, following)
    return np.stack(result, 1)


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
    device = next(model.parameters()).device
    folded = model.fold(condition)
    result = np.zeros(len(rows))
    order = np.argsort(owner, kind="stable")
    length = prompts.tokens.shape[1]
    for low in range(0, len(rows), batch):
        part = order[low : low + batch]
        targets, of = np.unique(owner[part], return_inverse=True)
        here = folded.rows(torch.from_numpy(targets).to(device))
        tokens = prompts.tokens[rows[part]].astype(np.int64)
        counts = words = others = None
        if neighbours is not None:
            counts = _counts_along(neighbours, owner[part], tokens)
            near = Mixer([neighbours.sequences[target] for target in targets], neighbours.vocabulary, 1.0)
            words = WordScores.of(model, near, device)
        if words is not None:
            table, present = near.padded()
            others = present[of] & (table[of] != tokens[:, None, 1:]).any(-1)
        tree = Tree(model, here, of, length - 1, int(tokens[0, 0]))
        for position in range(length - 1):
            h, alive = tree.step(), tree.alive
            row_of = torch.from_numpy(tree.row_of).to(device)
            following = tokens[alive, position + 1]
            readout = None
            if counts is not None:
                # What the others say is each sequence's own.
                whose = torch.from_numpy(of[alive]).to(device)
                evidence = None
                if words is not None and others is not None:
                    words.read(tree.token, tree.owner)
                    besides = torch.from_numpy(others[alive]).to(device)
                    evidence = words.evidence(words.scores[row_of], whose, besides)
                h, row_of = h[row_of], torch.arange(len(alive), device=device)
                own = torch.from_numpy(np.ascontiguousarray(counts[alive, position])).to(device)
                readout = model.readout(here, own, whose, evidence)
            log_p = torch.log_softmax(model.backbone.logits(h, readout), -1)
            log_p = log_p[row_of, torch.from_numpy(following).to(device)]
            result[part[alive]] += log_p.double().cpu().numpy()
            children = tree.children(following)
            kept = tree.grow(children)
            if not tree.alive.size:
                break
            if words is not None:
                words.follow(children.parent[kept])
    return result
