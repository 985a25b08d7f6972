"""Prompts that begin with the same tokens share the keys and values of that beginning.

In a causal model these depend on nothing later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

#: Costs of a cut, in positions computed (measured on one core; see `segments`): copying one position of a
#: shared beginning, times d_model as it grows more slowly than computing one; and a further pass, for each
#: distinct prompt.
COPY_COST = 6.0
_PASS_COST = 0.05
#: Cuts are made only if they save this share of the work: a single causal pass has the faster attention.
_LEAST_GAIN = 0.15


def sorted_prefixes(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Order of the rows by their tokens, and for each in that order how many tokens it shares with the one
    before.

    The first row shares 0, a repeated row all T.
    """
    n, length = tokens.shape
    # Several tokens in one key: a sort by few keys is several times as fast as one by T.
    bits = max(1, int(tokens.max()).bit_length())
    per_key = 63 // bits
    keys = []
    for start in range(0, length, per_key):
        key = np.zeros(n, np.int64)
        for column in range(start, min(start + per_key, length)):
            key = (key << bits) | tokens[:, column]
        keys.append(key)
    order = np.lexsort(keys[::-1])
    ranked = tokens[order]
    differs = np.ones((n, length + 1), bool)
    np.not_equal(ranked[1:], ranked[:-1], out=differs[1:, :length])
    shared = differs.argmax(axis=1)
    return order, shared


def segments(shared: np.ndarray, length: int, copy_cost: float) -> list[int]:
    """Cut positions 0 ... length where prompts of a group branch, so that the whole work is least.

    A segment a ... b runs once for each distinct beginning of b tokens, and copies the keys and values of a
    shared beginning if a > 0. Returned are its ends [0, ..., length], found by dynamic programming over the
    last cut.
    """
    # distinct[p]: number of distinct beginnings of p tokens (of no tokens: 1).
    distinct = np.array([max(1, int((shared < p).sum())) for p in range(length + 1)])
    best = np.full(length + 1, np.inf)
    best[0] = 0.0
    cut = np.zeros(length + 1, int)
    for end in range(1, length + 1):
        for begin in range(end):
            work = distinct[end] * (end - begin + copy_cost * length * (begin > 0))
            cost = best[begin] + work + _PASS_COST * distinct[length] * (begin > 0)
            if cost < best[end]:
                best[end], cut[end] = cost, begin
    if best[length] > (1 - _LEAST_GAIN) * distinct[length] * length:
        return [0, length]
    ends = [length]
    while ends[-1] > 0:
        ends.append(int(cut[ends[-1]]))
    return ends[::-1]


class Buffers:
    """Memory that passes of one shape use again and again: fresh pages for each pass cost as much as
    filling them."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[Any, ...], Tensor] = {}

    def take(self, name: tuple[Any, ...], shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Lend an uninitialised tensor; the next one of that name takes its place."""
        key = (*name, shape[1:], like.dtype, like.device)
        block = self._blocks.get(key)
        if block is None or len(block) < shape[0]:
            block = self._blocks[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return block[: shape[0]]


class _PrefixLayer(DynamicLayer):
    """Keys and values of one layer: those of shared beginnings, then the pass's own.

    They lie head by head, (B, heads, capacity, d), with room for a whole prompt, so that one copy a
    row moves all of a beginning.
    """

    def __init__(self, cache: PrefixCache, layer: int) -> None:
        super().__init__()
        self.cache, self.layer = cache, layer
        self.blocks: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put each row's own keys and values after those of its beginning; (B, heads, S, d) -> (B, heads, P
        + S, d)."""
        cache = self.cache
        end = cache.length + key_states.shape[2]
        # What the next segment copies must outlive this layer; what it does not may be overwritten by the next
        # layer. The segment after that copies nothing from here.
        place = (cache.depth % 2, self.layer if cache.keep else None)
        blocks = []
        for which, own in enumerate((key_states, value_states)):
            rows, heads, _, width = own.shape
            block = cache.buffers.take((*place, which), (rows, heads, cache.capacity, width), own)
            if cache.past is not None:
                parents = cache.parents.to(own.device)
                torch.index_select(cache.past.layers[self.layer].blocks[which], 0, parents, out=block)
            block[:, :, cache.length : end] = own
            blocks.append(block)
        if cache.keep:
            self.blocks = blocks
        keys, values = (block[:, :, :end] for block in blocks)
        return keys, values

    def get_seq_length(self) -> int:
        """Number of positions before this pass."""
        return self.cache.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys, and the position of the first."""
        return self.cache.length + query_length, 0


class PrefixCache(Cache):
    """Keys and values of all layers for one segment.

    Args:
        n_layers: number of blocks.
        buffers: memory to use.
        past: the segment before.
        length: number of positions before this segment.
        capacity: number of positions of a whole prompt.
        parents: row of `past` that each row continues.
        keep: whether a further segment follows.
    """

    def __init__(
        self,
        n_layers: int,
        buffers: Buffers,
        past: PrefixCache | None,
        length: int,
        capacity: int,
        parents: Tensor,
        keep: bool,
    ) -> None:
        self.buffers, self.past, self.length, self.capacity = buffers, past, length, capacity
        self.parents, self.keep = parents, keep
        self.depth: int = 0 if past is None else past.depth + 1
        super().__init__(layers=[_PrefixLayer(self, layer) for layer in range(n_layers)])
