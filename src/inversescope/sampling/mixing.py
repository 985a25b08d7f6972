"""Cache mixing: each target's cached neighbours as a prefix tree."""

from __future__ import annotations

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
        """The sequences as one table (targets, K, T), and which of its rows hold one, (targets, K) bool."""
        width = max(1, int(self.root_count.max(initial=0)))
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
