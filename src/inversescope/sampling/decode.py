"""Batched sampling with a key-value cache, cache mixing, grammar masks, and exact log q of what was drawn.

A target's draws that have begun alike are one row until they part: its prefix is computed once (between a third and half of the
work of a hundred draws). The row's folded control layers are shared by all of its target's rows, never copied. Each draw has its
own random stream, keyed by (seed, site, decoding, target, draw), so that what is drawn does not depend on the batch size or
the order of jobs. log q of a draw depends on the batch by float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.condition import Condition
from inversescope.ops import inverse_cdf
from inversescope.sampling.mixing import Mixer
from inversescope.sampling.tree import Tree, WordScores, grammar_mask

if TYPE_CHECKING:
    from inversescope.tasks.automata import Automaton


@dataclass
class Draws:
    """What was drawn for a block of targets.

    Attributes:
        tokens: (targets, draws, T) int64 without the start token; everything after the end token is the end token.
        finished: (targets, draws) bool, whether the end token came within T tokens.
        log_q: (targets, draws) float64 log-probability under the actual decoding rule, end token included.
    """

    tokens: np.ndarray
    finished: np.ndarray
    log_q: np.ndarray


@torch.inference_mode()
def decode(
    model: ConditionalGenerator,
    condition: Condition,
    uniforms: np.ndarray,
    *,
    end: int,
    temperature: float | np.ndarray = 1.0,
    mixer: Mixer | None = None,
    grammar: Automaton | None = None,
    neighbours: Mixer | None = None,
) -> Draws:
    """Draw sequences for B targets: uniforms (B, draws, T) give one token each.

    Args:
        temperature: divides the generator's logits; one for all targets, or one each (B,).
        mixer: mixes cached neighbours in (one root a target, in the same order).
        grammar: masks tokens that leave the prior's grammar.
        neighbours: what the generator attends to, if it attends to neighbours.
    """
    device = next(model.parameters()).device
    targets, draws, length = uniforms.shape
    u = uniforms.reshape(targets * draws, length)
    folded = model.fold(condition)
    out = np.full(u.shape, end, np.int64)
    log_q = np.zeros(len(u))
    tree = Tree(model, folded, np.repeat(np.arange(targets), draws), length, end)
    state = np.full(targets, grammar.start if grammar is not None else 0, np.int64)
    mixed = mixer.roots() if mixer is not None else None
    attended = neighbours.roots() if neighbours is not None else None
    words = WordScores.of(model, neighbours, device)
    for position in range(length):
        h, readout = tree.step(), None
        if neighbours is not None and attended is not None:
            counts = torch.from_numpy(neighbours.counts(position, attended[0], attended[2])).to(device)
            evidence = None
            if words is not None:
                words.read(tree.token, tree.owner)
                evidence = words.evidence(words.scores, tree.owner)
            readout = model.readout(folded, counts, tree.owner, evidence)
        logits = model.backbone.logits(h, readout).double()
        if isinstance(temperature, np.ndarray):
            logits = logits / torch.from_numpy(temperature).to(device)[tree.owner, None]
        elif temperature != 1.0:
            logits = logits / temperature
        if grammar is not None:
            logits = logits + torch.from_numpy(grammar_mask(grammar, state, logits.shape[-1])).to(device)
        p = torch.softmax(logits, -1)
        at, share = u[tree.alive, position], None
        if mixed is not None:
            assert mixer is not None
            share = (mixed[2] / (mixed[2] + mixer.alpha))[tree.row_of]
            from_cache = at < share
            rest = np.where(from_cache, 0.0, (at - share) / np.maximum(1.0 - share, 1e-300))
            chosen = inverse_cdf(p, tree.row_of, rest)
            rows = tree.row_of[from_cache]
            chosen[from_cache] = mixer.propose(
                position, mixed[1][rows], mixed[2][rows], at[from_cache] / share[from_cache]
            )
        else:
            chosen = inverse_cdf(p, tree.row_of, at)
        rows_t, chosen_t = (torch.from_numpy(a).to(device) for a in (tree.row_of, chosen))
        q = p[rows_t, chosen_t].cpu().numpy()
        alive = tree.alive
        out[alive, position] = chosen
        children = tree.children(chosen)
        if mixed is not None:
            assert mixer is not None and share is not None
            count = mixed[2][children.parent]
            mixed = mixer.descend(position, mixed[0][children.parent], count, children.token)
            q = share * (mixed[2] / np.maximum(count, 1))[children.of] + (1.0 - share) * q
        log_q[alive] += np.log(q)
        kept = tree.grow(children)
        if not tree.alive.size:
            break
        parent = children.parent[kept]
        if mixed is not None:
            mixed = (mixed[0][kept], mixed[1][kept], mixed[2][kept])
        if neighbours is not None and attended is not None:
            attended = neighbours.descend(position, attended[0][parent], attended[2][parent], tree.token)
        if words is not None:
            words.follow(parent)
        if grammar is not None:
            state = np.asarray(grammar.step(state[parent], tree.token))
    finished = np.ones(len(u), bool)
    finished[tree.alive] = False
    shape = (targets, draws)
    return Draws(out.reshape(*shape, length), finished.reshape(shape), log_q.reshape(shape))
