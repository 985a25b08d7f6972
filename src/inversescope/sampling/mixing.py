"""Cache mixing: each target's cached neighbours as a prefix tree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inversescope.generator.condition import Prompts
from inversescope.kernel.neighbours import Cache

MAX_MIXED = 4096  # neighbours of a target that cache mixing uses


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
        self.order = np.lexsort((*tokens.T[::-1], owner))  # (rows,) number of each row among all sequences
        tokens, node = tokens[self.order], owner[self.order]
        self.root_count = np.bincount(owner, minlength=len(sequences))
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

    def roots(self, owner: np.ndarray | None = None) -> Place:
        """Where sequences of all targets, or of the targets `owner` (n,), begin."""
        start = np.cumsum(self.root_count) - self.root_count
        roots = Place(self, 0, np.arange(len(start)), start, self.root_count)
        return roots if owner is None else roots[owner]

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """The sequences as one table (targets, K, T), and which of its rows hold one, (targets, K) bool."""
        width = max(1, int(self.root_count.max(initial=0)))
        table = np.zeros((len(self.sequences), width, self.sequences[0].shape[1]), np.int64)
        for target, rows in enumerate(self.sequences):
            table[target, : len(rows)] = rows
        return table, np.arange(width) < self.root_count[:, None]


@dataclass
class Place:
    """Where the prefixes of n rows stand in a mixer's tree.

    Attributes:
        depth: tokens of the prefixes.
        node: (n,).
        start: (n,) first of the neighbours that share the prefix.
        count: (n,) their number; 0 where there is none.
    """

    mixer: Mixer
    depth: int
    node: np.ndarray
    start: np.ndarray
    count: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Place:
        """A selection of rows."""
        return Place(self.mixer, self.depth, self.node[rows], self.start[rows], self.count[rows])

    def propose(self, u: np.ndarray) -> np.ndarray:
        """Next token (n,) of a random neighbour that shares the prefix, by uniforms u (n,)."""
        mixer = self.mixer
        row = self.start + np.minimum((u * self.count).astype(np.int64), np.maximum(self.count - 1, 0))
        child = np.searchsorted(mixer.starts[self.depth], row, side="right") - 1
        return mixer.keys[self.depth][child] % mixer.vocabulary

    def counts(self) -> np.ndarray:
        """How many neighbours go on with each token: (n, V) float32."""
        keys, vocabulary, node = self.mixer.keys[self.depth], self.mixer.vocabulary, self.node
        result = np.zeros((len(node), vocabulary), np.float32)
        if not len(keys):
            return result
        low = np.searchsorted(keys, node * vocabulary)
        high = np.where(self.count > 0, np.searchsorted(keys, (node + 1) * vocabulary), low)
        children = high - low
        owner = np.repeat(np.arange(len(node)), children)
        child = np.arange(len(owner)) + np.repeat(low - np.cumsum(children) + children, children)
        result[owner, keys[child] % vocabulary] = self.mixer.sizes[self.depth][child]
        return result

    def descend(self, token: np.ndarray) -> Place:
        """Where the prefixes stand with one more token (n,)."""
        keys, depth = self.mixer.keys[self.depth], self.depth + 1
        if not len(keys):
            nothing = np.zeros_like(self.node)
            return Place(self.mixer, depth, self.node, nothing, nothing)
        key = self.node * self.mixer.vocabulary + token
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        hit = (self.count > 0) & (keys[at] == key)
        sizes = np.where(hit, self.mixer.sizes[self.depth][at], 0)
        return Place(self.mixer, depth, at, self.mixer.starts[self.depth][at], sizes)


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
