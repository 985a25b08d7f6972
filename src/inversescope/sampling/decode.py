"""Batched sampling with a key-value cache, cache mixing and grammar masks, and exact log q of what was drawn.

A target's draws that have begun alike are one row until they part: its prefix is computed once (between a third and half of the
work of a hundred draws). The row's folded control layers are shared by all of its target's rows, never copied. Each draw has its
own random stream, keyed by (seed, site, decoding, target, draw), so what is drawn does not depend on the order of jobs. Another
batch size moves log q by float32 rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inversescope.generator.base import ConditionalGenerator
from inversescope.generator.condition import Condition
from inversescope.ops import inverse_cdf
from inversescope.sampling.mixing import Mixer, Place
from inversescope.sampling.tree import Attended, Tree, grammar_mask

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
    targets, draws, length = uniforms.shape
    u = uniforms.reshape(targets * draws, length)
    folded = model.fold(condition)
    device = folded.latent.device
    divisor = torch.from_numpy(np.broadcast_to(np.float64(temperature), targets).copy()).to(device)
    tree = Tree(model, folded, np.repeat(np.arange(targets), draws), length, end)
    attended = None if neighbours is None else Attended(model, neighbours, device)
    mixed = None if mixer is None else mixer.roots()
    state = np.full(targets, grammar.start if grammar is not None else 0, np.int64)
    out, log_q = np.full(u.shape, end, np.int64), np.zeros(len(u))
    for position in range(length):
        readout = None if attended is None else attended.readout(folded, tree)
        logits = model.backbone.logits(tree.step(), readout).double() / divisor[tree.owner, None]
        if grammar is not None:
            logits = logits + torch.from_numpy(grammar_mask(grammar, state, logits.shape[-1])).to(device)
        alive, row_of = tree.alive, tree.row_of
        chosen, q = _choose(torch.softmax(logits, -1), row_of, u[alive, position], mixed)
        out[alive, position] = chosen
        children = tree.children(chosen)
        if mixed is not None:
            share, before = _share(mixed)[row_of], mixed.count[children.parent]
            mixed = mixed[children.parent].descend(children.token)
            q = share * (mixed.count / np.maximum(before, 1))[children.of] + (1.0 - share) * q
        log_q[alive] += np.log(q)
        kept = tree.grow(children)
        if not tree.alive.size:
            break
        if mixed is not None:
            mixed = mixed[kept]
        if attended is not None:
            attended.follow(children.parent[kept], tree.token)
        if grammar is not None:
            state = np.asarray(grammar.step(state[children.parent[kept]], tree.token))
    finished = np.ones(len(u), bool)
    finished[tree.alive] = False
    shape = (targets, draws)
    return Draws(out.reshape(*shape, length), finished.reshape(shape), log_q.reshape(shape))


def _share(mixed: Place) -> np.ndarray:
    """Weight (rows,) of cached neighbours in the next token's distribution."""
    return mixed.count / (mixed.count + mixed.mixer.alpha)


def _choose(
    p: Tensor, row_of: np.ndarray, u: np.ndarray, mixed: Place | None
) -> tuple[np.ndarray, np.ndarray]:
    """The next token of each draw by uniforms u (draws,), and what the generator gives it: p (rows, V), row_of (draws,)."""
    if mixed is None:
        chosen = inverse_cdf(p, row_of, u)
    else:
        # The lower part of the unit interval belongs to the neighbours.
        share = _share(mixed)[row_of]
        cached = u < share
        chosen = inverse_cdf(p, row_of, np.where(cached, 0.0, (u - share) / np.maximum(1.0 - share, 1e-300)))
        chosen[cached] = mixed[row_of[cached]].propose(u[cached] / share[cached])
    rows, tokens = (torch.from_numpy(a).to(p.device) for a in (row_of, chosen))
    return chosen, p[rows, tokens].cpu().numpy()
