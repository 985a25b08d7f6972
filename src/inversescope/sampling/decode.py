"""Batched sampling with a key-value cache, cache mixing, grammar masks, and exact log q of what was drawn.

A target's draws that have begun alike are one row until they part: its prefix is computed once (between a third and half of the
work of a hundred draws). The row's folded control layers are shared by all of its target's rows, never copied. Each draw has its
own random stream, keyed by (seed, site, decoding, target, draw), so that what is drawn does not depend on the batch size or
the order of jobs. Nor do the last bits of log q, in float32 on a CPU: products have `ops.ENOUGH` rows at least, and tables of
neighbours a width that none of them notices.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inversescope.generator.base import Condition, ConditionalGenerator, Folded
from inversescope.generator.inversescope import PART, ByOwner, NeighbourWords
from inversescope.generator.pairs import Prompts, bandwidth_scalars, mean_embedding, scalar_inputs
from inversescope.kernel.kernel import support_radius
from inversescope.kernel.neighbours import Cache
from inversescope.ops import ENOUGH

if TYPE_CHECKING:
    from inversescope.tasks.base import Automaton

_PAGE = 64  # numbers of a draw that follow each other in a stream
MAX_MIXED = 4096  # neighbours of a target that cache mixing uses


def stream_uniforms(
    seed: int, name: str, target_ids: np.ndarray, draws: np.ndarray, length: int
) -> np.ndarray:
    """Uniforms (targets, draws, length): a stretch of a Philox stream a draw, found by seed, name, target and number of the draw.

    Args:
        draws: consecutive numbers.
    """
    key = [seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(name.encode())]
    first, count = int(draws[0]), len(draws)
    if not np.array_equal(draws, np.arange(first, first + count)):
        raise ValueError("draws must be consecutive numbers")
    result = np.empty((len(target_ids), count, length))
    for i, target in enumerate(target_ids):
        for page, start in enumerate(range(0, length, _PAGE)):
            # A value of Philox's counter gives four numbers.
            bits = np.random.Philox(key=key, counter=[first * _PAGE // 4, page, int(target), 0])
            numbers = np.random.Generator(bits).random((count, _PAGE))
            result[i, :, start : start + _PAGE] = numbers[:, : length - start]
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
        self.alpha, self.vocabulary, self.sequences = alpha, vocabulary, sequences
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

    def roots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Node, first row and number of rows of every target."""
        return np.arange(len(self.root_count)), self.root_start, self.root_count

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """The sequences as one table (targets, K, T), and which of its rows hold one, (targets, K) bool.

        K is a multiple of `PART`: what a target's neighbours say does not depend on how wide others make the table.
        """
        width = -(-max(1, int(self.root_count.max(initial=0))) // PART) * PART
        table = np.zeros((len(self.sequences), width, self.sequences[0].shape[1]), np.int64)
        for target, rows in enumerate(self.sequences):
            table[target, : len(rows)] = rows
        return table, np.arange(width) < self.root_count[:, None]

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
    model: ConditionalGenerator,
    condition: Condition,
    uniforms: np.ndarray,
    *,
    end: int,
    temperature: float | np.ndarray = 1.0,
    mixer: Mixer | None = None,
    grammar: Automaton | None = None,
    neighbours: Mixer | None = None,
    width: int = ENOUGH,
) -> Draws:
    """Draw sequences for B targets: uniforms (B, draws, T) give one token each.

    Args:
        temperature: divides the generator's logits; one for all targets, or one each (B,).
        mixer: mixes cached neighbours in (one root a target, in the same order).
        grammar: masks tokens that leave the prior's grammar.
        neighbours: what the generator attends to, if it attends to neighbours.
        width: rows of a target to compute with, at least. 1 does where each of several targets always has a single draw.
    """
    device = next(model.parameters()).device
    targets, draws, length = uniforms.shape
    u = uniforms.reshape(targets * draws, length)
    folded = model.fold(condition)
    out = np.full(u.shape, end, np.int64)
    log_q = np.zeros(len(u))
    tree = _Tree(model, folded, np.repeat(np.arange(targets), draws), length, end, width)
    state = np.full(targets, grammar.start if grammar is not None else 0, np.int64)
    mixed = mixer.roots() if mixer is not None else None
    attended = neighbours.roots() if neighbours is not None else None
    words = _WordScores.of(model, neighbours, device)
    for position in range(length):
        h, readout = tree.step(), None
        if neighbours is not None and attended is not None:
            counts = torch.from_numpy(neighbours.counts(position, attended[0], attended[2])).to(device)
            evidence = None
            if words is not None:
                words.read(tree.token, tree.owner)
                evidence = words.evidence(words.scores, tree.owner, tree.width)
            readout = model.readout(folded, counts, tree.owner, evidence)
        logits = model.backbone.logits(h, readout).double()
        if isinstance(temperature, np.ndarray):
            logits = logits / torch.from_numpy(temperature).to(device)[tree.owner, None]
        elif temperature != 1.0:
            logits = logits / temperature
        if grammar is not None:
            logits = logits + torch.from_numpy(_grammar_mask(grammar, state, logits.shape[-1])).to(device)
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


@dataclass
class _Children:
    """What a step leads to: distinct (row, token) pairs.

    Attributes:
        parent: (children,) row.
        token: (children,).
        of: (sequences,) child that each sequence goes on with.
    """

    parent: np.ndarray
    token: np.ndarray
    of: np.ndarray


class _Tree:
    """Distinct beginnings (target, prefix) of sequences that grow together, a row of the backbone's cache each.

    Attributes:
        alive: (m,) sequences that have not ended.
        row_of: (m,) their rows.
        owner: (rows,) whose beginning it is; a tensor on the generator's device.
        token: (rows,) its last token.
        width: rows of an owner to compute with, at least.
    """

    def __init__(
        self,
        model: ConditionalGenerator,
        folded: Folded,
        owner: np.ndarray,
        length: int,
        end: int,
        width: int = ENOUGH,
    ) -> None:
        """Every target's root: owner (sequences,) says whose each sequence is, `length` how many steps there may be."""
        self.width = width
        self.model, self.folded, self.end, self.position = model, folded, end, 0
        self.cache = model.backbone.take_cache(len(owner), length)
        self.alive, self.row_of = np.arange(len(owner)), owner
        self.owner = torch.arange(len(folded.latent), device=folded.latent.device)
        self.token = np.full(len(self.owner), end)

    def step(self) -> Tensor:
        """Final hidden states (rows, D) after each row's last token."""
        device = self.folded.latent.device
        token = torch.from_numpy(self.token).to(device)
        return self.model.step(token, self.position, self.cache, self.folded, self.owner, self.width)

    def children(self, following: np.ndarray) -> _Children:
        """Children by the token (m,) that each sequence goes on with."""
        vocabulary = self.model.shape.backbone.vocab_size
        key, of = np.unique(self.row_of * vocabulary + following, return_inverse=True)
        return _Children(*np.divmod(key, vocabulary), of)

    def grow(self, children: _Children) -> np.ndarray:
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


class _WordScores:
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

    @staticmethod
    def of(model: ConditionalGenerator, neighbours: Mixer | None, device: torch.device) -> _WordScores | None:
        """Scores before anything is written; None if the generator does not attend by words."""
        if model.neighbour_words is None or neighbours is None:
            return None
        return _WordScores(model.neighbour_words, neighbours, device)

    def read(self, token: np.ndarray, owner: Tensor) -> None:
        """Add what each row's last token says."""
        last = torch.from_numpy(token).to(self.scores.device)
        self.scores = self.scores + self.words.after(last, self.bags, owner)

    def follow(self, parent: np.ndarray) -> None:
        """Go on with rows that continue the rows `parent`."""
        self.scores = self.scores[torch.from_numpy(parent).to(self.scores.device)]

    def evidence(self, scores: Tensor, owner: Tensor, width: int, present: Tensor | None = None) -> Tensor:
        """Evidence (n, W) from scores (n, K) for the activations `owner` (n,); `present` (n, K) if it is each row's own."""
        rows = ByOwner(owner, len(self.bags), max(width, 4))  # a single one would be multiplied as a vector
        here = self.present[:, None] if present is None else rows.spread(present)
        return rows.gather(self.words.evidence(rows.spread(scores), here, self.bags))


def inverse_cdf(p: Tensor, row_of: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Token at which the cumulative probability of a draw's row passes u: p (rows, V), row_of and u (draws,) -> (draws,)."""
    # Draws of a row side by side, so that each row's sums are searched once for all of them.
    rows = ByOwner(torch.from_numpy(row_of).to(p.device), len(p))
    cdf = p.cumsum(-1)
    laid = rows.spread(torch.from_numpy(u).to(p.device))
    token = torch.searchsorted(cdf, laid * cdf[:, -1:], right=True).clamp_max(p.shape[-1] - 1)
    return rows.gather(token).cpu().numpy()


def _grammar_mask(grammar: Automaton, state: np.ndarray, vocabulary: int) -> np.ndarray:
    """Additive mask (rows, V): 0 for tokens that the grammar allows, -inf for the others; finished rows may only end."""
    mask = np.full((len(state), vocabulary), -np.inf)
    allowed = grammar.permitted(np.maximum(state, 0))
    mask[:, grammar.tokens] = np.where(allowed, 0.0, -np.inf)
    dead = (state < 0) | ~np.isfinite(mask).any(1)
    mask[dead] = -np.inf
    mask[dead, grammar.accept_token] = 0.0
    return mask


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
            masks.append(_grammar_mask(grammar, state, logits.shape[-1]))
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


def make_condition(
    model: ConditionalGenerator,
    label: str,
    z: np.ndarray,
    epsilon: float,
    cache: Cache | None,
    prompts: Prompts | None,
    kind: str = "hard",
    unit: int = 1,
) -> Condition:
    """The generator's inputs for target activations z (B, d) of one site at one bandwidth.

    Args:
        cache, prompts: what the mean embedding is taken from; needed if the generator was trained with one.
        kind: kernel, which says how far neighbours are looked for; as in training.
        unit: activations that neighbours are looked for together (`Cache.search_apart`).
    """
    width = model.shape.sites[label]
    padded = np.zeros((len(z), width), np.float32)
    padded[:, : z.shape[1]] = z
    scalars = embedding = None
    if model.shape.d_embedding:
        assert cache is not None and prompts is not None
        queries = cache.prepare(z)
        near = cache.search_apart(queries, support_radius(epsilon, kind), unit, model.shape.n_condition)
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
    unit: int = 1,
) -> Mixer:
    """Prefix tree of each target's cached neighbours: z (B, d), `unit` as in `make_condition`."""
    near = cache.search_apart(cache.prepare(z), epsilon, unit, limit)
    return Mixer([prompts.tokens[near.of(i), 1:] for i in range(len(z))], vocabulary, alpha)


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
            words = _WordScores.of(model, near, device)
        if words is not None:
            table, present = near.padded()
            others = present[of] & (table[of] != tokens[:, None, 1:]).any(-1)
        tree = _Tree(model, here, of, length - 1, int(tokens[0, 0]))
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
                    evidence = words.evidence(words.scores[row_of], whose, tree.width, besides)
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
