"""Batched sampling with a key-value cache, cache mixing, grammar masks, and exact log q of what was drawn.

Rows are laid out (targets, draws): a target's folded control layers are shared by its draws, never copied. Each draw has its
own random stream, keyed by (seed, site, decoding, target, draw), so that what is drawn does not depend on the batch size or
the order of jobs.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inversescope.generator.inversescope import Condition, InverseScope
from inversescope.kernel import support_radius
from inversescope.neighbours import Cache
from inversescope.pairs import MAX_CONDITION, Prompts, bandwidth_scalars, mean_embedding, scalar_inputs

if TYPE_CHECKING:
    from inversescope.tasks.base import Grammar

SAMPLING_CONDITION = MAX_CONDITION  # neighbours that condition: as many as in training
MAX_MIXED = 4096  # neighbours of a target that cache mixing uses


def stream_uniforms(
    seed: int, name: str, target_ids: np.ndarray, draws: np.ndarray, length: int
) -> np.ndarray:
    """Uniforms (targets, draws, length): a Philox stream a draw, keyed by seed and name, counted by target and draw."""
    key = [seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(name.encode())]
    result = np.empty((len(target_ids), len(draws), length))
    for i, target in enumerate(target_ids):
        for j, draw in enumerate(draws):
            bits = np.random.Philox(key=key, counter=[0, int(draw), int(target), 0])
            result[i, j] = np.random.Generator(bits).random(length)
    return result


class Mixer:
    """Cached neighbours of each target as a prefix tree: the Dirichlet back-off of cache mixing.

    The next token is drawn from (n p_neighbours + alpha p_generator) / (n + alpha), where n counts the target's cached
    neighbours that share the prefix. Neighbours are sorted, so a prefix is a range of rows and a child is found by bisection.

    Args:
        sequences: a target's neighbours each, (n_i, T) token rows padded with the end token, start token excluded.
        vocabulary: number of token ids.
        alpha: weight of the generator, in cached prompts.
    """

    def __init__(self, sequences: list[np.ndarray], vocabulary: int, alpha: float) -> None:
        self.alpha, self.vocabulary = alpha, vocabulary
        owner = np.repeat(np.arange(len(sequences)), [len(s) for s in sequences])
        tokens = np.concatenate(sequences).astype(np.int64)
        order = np.lexsort((*tokens.T[::-1], owner))
        tokens, node = tokens[order], owner[order]
        self.root_count = np.bincount(owner, minlength=len(sequences))
        self.root_start = np.concatenate([[0], np.cumsum(self.root_count)])[:-1]
        # Per depth: sorted child keys (parent node, token), first row of each child, its number of rows.
        self.keys: list[np.ndarray] = []
        self.starts: list[np.ndarray] = []
        self.sizes: list[np.ndarray] = []
        for depth in range(tokens.shape[1]):
            key, start, inverse, size = np.unique(
                node * vocabulary + tokens[:, depth],
                return_index=True,
                return_inverse=True,
                return_counts=True,
            )
            self.keys.append(key)
            self.starts.append(start)
            self.sizes.append(size)
            node = inverse.ravel()

    def roots(self, draws: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Node, first row and number of rows of every (target, draw), flattened."""
        node = np.arange(len(self.root_count))
        return tuple(np.repeat(a, draws) for a in (node, self.root_start, self.root_count))  # type: ignore[return-value]

    def propose(self, depth: int, start: np.ndarray, count: np.ndarray, u: np.ndarray) -> np.ndarray:
        """Token of a random neighbour below each node, by uniforms `u`."""
        row = start + np.minimum((u * count).astype(np.int64), np.maximum(count - 1, 0))
        child = np.searchsorted(self.starts[depth], row, side="right") - 1
        return self.keys[depth][child] % self.vocabulary

    def counts(self, depth: int, node: np.ndarray, count: np.ndarray) -> np.ndarray:
        """How many neighbours go on with each token below each node: (rows, V) float32; zero rows where `count` is 0."""
        result = np.zeros((len(node), self.vocabulary), np.float32)
        if not len(self.keys[depth]):
            return result
        low = np.searchsorted(self.keys[depth], node * self.vocabulary)
        high = np.where(count > 0, np.searchsorted(self.keys[depth], (node + 1) * self.vocabulary), low)
        owner = np.repeat(np.arange(len(node)), high - low)
        child = (
            np.arange(len(owner)) - np.repeat(np.cumsum(high - low) - (high - low), high - low) + low[owner]
        )
        result[owner, self.keys[depth][child] % self.vocabulary] = self.sizes[depth][child]
        return result

    def descend(
        self, depth: int, node: np.ndarray, count: np.ndarray, token: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Child reached by each token: node, first row, number of rows (0 where no neighbour goes on like that)."""
        if not len(self.keys[depth]):
            return node, np.zeros_like(node), np.zeros_like(node)
        key = node * self.vocabulary + token
        at = np.minimum(np.searchsorted(self.keys[depth], key), len(self.keys[depth]) - 1)
        hit = (count > 0) & (self.keys[depth][at] == key)
        return at, self.starts[depth][at], np.where(hit, self.sizes[depth][at], 0)


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
    model: InverseScope,
    condition: Condition,
    uniforms: np.ndarray,
    *,
    end: int,
    temperature: float = 1.0,
    mixer: Mixer | None = None,
    grammar: Grammar | None = None,
    neighbours: Mixer | None = None,
) -> Draws:
    """Draw sequences for B targets: uniforms (B, draws, T) give one token each.

    Args:
        temperature: divides the generator's logits.
        mixer: mixes cached neighbours in (one root a target, in the same order).
        grammar: masks tokens that leave the prior's grammar.
        neighbours: what the generator attends to, if it was made with `neighbour_logits`.
    """
    device = next(model.parameters()).device
    targets, draws, length = uniforms.shape
    rows = targets * draws
    folded = model.fold(condition)
    control = model.controller(folded)
    cache = model.backbone.new_cache(rows, length + 1)
    token = torch.full((rows,), end, dtype=torch.long, device=device)
    u = torch.from_numpy(uniforms.reshape(rows, length)).to(device)
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    log_q = torch.zeros(rows, dtype=torch.float64, device=device)
    out = torch.full((rows, length), end, dtype=torch.long, device=device)
    nodes = mixer.roots(draws) if mixer is not None else None
    attended = neighbours.roots(draws) if neighbours is not None else None
    state = np.full(rows, grammar.start if grammar is not None else 0, np.int64)
    for position in range(length):
        readout = None
        if neighbours is not None and attended is not None:
            counts = neighbours.counts(position, attended[0], attended[2])
            readout = model.readout(folded, torch.from_numpy(counts).to(device)[:, None])
        logits = model.backbone.step(token, position, cache, control, readout).double()
        if temperature != 1.0:
            logits = logits / temperature
        if grammar is not None:
            logits = logits + torch.from_numpy(_grammar_mask(grammar, state, logits.shape[-1])).to(device)
        p = torch.softmax(logits, -1)
        at = u[:, position].contiguous()
        if mixer is not None and nodes is not None:
            token, chosen = _mixed_token(mixer, position, nodes, p, at)
            nodes = mixer.descend(position, nodes[0], nodes[2], token.cpu().numpy())
        else:
            token = _inverse_cdf(p, at)
            chosen = p.gather(-1, token[:, None])[:, 0]
        if neighbours is not None and attended is not None:
            attended = neighbours.descend(position, attended[0], attended[2], token.cpu().numpy())
        log_q += torch.where(alive, chosen.log(), 0.0)
        token = torch.where(alive, token, end)
        if grammar is not None:
            state = grammar.step(state, token.cpu().numpy())
        out[:, position] = token
        alive = alive & (token != end)
        if not bool(alive.any()):
            break
    shape = (targets, draws)
    return Draws(
        out.view(*shape, length).cpu().numpy(),
        (~alive).view(shape).cpu().numpy(),
        log_q.view(shape).cpu().numpy(),
    )


def _inverse_cdf(p: Tensor, u: Tensor) -> Tensor:
    """Token at which the cumulative probability passes u: p (rows, V), u (rows,)."""
    cdf = p.cumsum(-1)
    token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
    return token.clamp_max(p.shape[-1] - 1)


def _mixed_token(
    mixer: Mixer, depth: int, nodes: tuple[np.ndarray, np.ndarray, np.ndarray], p: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of cache mixing and its exact probability."""
    node, start, count = nodes
    share = count / (count + mixer.alpha)
    u_np = u.cpu().numpy()
    from_cache = u_np < share
    u_cache = np.where(from_cache, u_np / np.maximum(share, 1e-300), 0.0)
    u_model = np.where(from_cache, 0.0, (u_np - share) / np.maximum(1.0 - share, 1e-300))
    token = _inverse_cdf(p, torch.from_numpy(u_model).to(p.device)).cpu().numpy()
    if from_cache.any():
        token[from_cache] = mixer.propose(depth, start, count, u_cache)[from_cache]
    _, _, below = mixer.descend(depth, node, count, token)
    tokens = torch.from_numpy(token).to(p.device)
    model_p = p.gather(-1, tokens[:, None])[:, 0]
    cache_p = torch.from_numpy(below / np.maximum(count, 1)).to(p.device)
    weight = torch.from_numpy(share).to(p.device)
    return tokens, weight * cache_p + (1.0 - weight) * model_p


def _grammar_mask(grammar: Grammar, state: np.ndarray, vocabulary: int) -> np.ndarray:
    """Additive mask (rows, V): 0 for tokens that the grammar allows, -inf for the others; finished rows may only end."""
    mask = np.full((len(state), vocabulary), -np.inf)
    allowed = grammar.table[np.maximum(state, 0)] >= 0
    mask[:, grammar.tokens] = np.where(allowed, 0.0, -np.inf)
    dead = (state < 0) | ~np.isfinite(mask).any(1)
    mask[dead] = -np.inf
    mask[dead, grammar.accept_token] = 0.0
    return mask


def make_condition(
    model: InverseScope,
    label: str,
    z: np.ndarray,
    epsilon: float,
    cache: Cache | None,
    prompts: Prompts | None,
    kind: str = "hard",
) -> Condition:
    """The generator's inputs for target activations z (B, d) of one site at one bandwidth.

    Args:
        cache, prompts: what the mean embedding is taken from; needed if the generator was trained with one.
        kind: kernel, which says how far neighbours are looked for; as in training.
    """
    width = model.shape.sites[label]
    padded = np.zeros((len(z), width), np.float32)
    padded[:, : z.shape[1]] = z
    scalars = embedding = None
    if model.shape.d_embedding:
        assert cache is not None and prompts is not None
        queries = cache.prepare(z)
        near = cache.search(queries, support_radius(epsilon, kind), limit=SAMPLING_CONDITION)
        embedding = torch.from_numpy(mean_embedding(prompts, near))
        scalars = torch.from_numpy(scalar_inputs(near, np.full(len(z), epsilon)))
    elif model.shape.eps_input:
        scalars = torch.from_numpy(bandwidth_scalars(np.full(len(z), epsilon)))
    return Condition({label: torch.from_numpy(padded)}, scalars, embedding)


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


def make_mixer(
    cache: Cache,
    prompts: Prompts,
    z: np.ndarray,
    epsilon: float,
    vocabulary: int,
    alpha: float,
    limit: int = MAX_MIXED,
) -> Mixer:
    """Prefix tree of each target's cached neighbours: z (B, d)."""
    near = cache.search(cache.prepare(z), epsilon, limit=limit)
    return Mixer([prompts.tokens[near.of(i), 1:] for i in range(len(z))], vocabulary, alpha)


@torch.inference_mode()
def log_prob_rows(
    model: InverseScope,
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
    order = np.argsort(prompts.lengths[rows], kind="stable")
    for low in range(0, len(rows), batch):
        part = order[low : low + batch]
        here = folded.rows(torch.from_numpy(owner[part]))
        length = int(prompts.lengths[rows[part]].max())
        tokens = torch.from_numpy(prompts.tokens[rows[part], :length].astype(np.int64))
        counts = None
        if neighbours is not None:
            counts = torch.from_numpy(_counts_along(neighbours, owner[part], tokens.numpy()))
        lengths = torch.from_numpy(prompts.lengths[rows[part]])
        result[part] = model.log_prob(tokens, lengths, here, counts).double().numpy()
    return result
