"""Which prompts run together: distinct ones of one length, in the order of their tokens, as many as memory allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from inversescope.activations.inputs import Inputs, groups
from inversescope.activations.prefixes import COPY_COST, segments, sorted_prefixes
from inversescope.targets.models import Target

#: Bytes of keys and values that are kept for later positions, by kind of device: half each for a segment and the one before. What
#: is read from a batch's prompts takes about a quarter of this, at most.
KEPT = {"cpu": 1 << 29, "cuda": 1 << 33}


@dataclass(frozen=True)
class Batch:
    """Distinct prompts that run together.

    Attributes:
        low, high: their numbers, in the order in which all prompts are run, are low ... high - 1.
        shared: how many tokens each shares with the one before (high - low,); 0 for the first.
        cuts: positions where their beginnings branch, from 0 to their length.
        places: position name -> its token index, the same in each.
    """

    low: int
    high: int
    shared: np.ndarray
    cuts: tuple[int, ...]
    places: Mapping[str, int]


class Batches:
    """All prompts in the order in which they are run, cut into batches: these depend on the prompts and the model's shape alone.

    Args:
        target: the model.
        inputs: N prompts.
        places: position names (no token indices) that must be one and the same token index in all prompts of a batch.
        batch_tokens: how many tokens one forward pass computes, at most (one prompt at least).
        share: whether prompts share their beginnings.

    Attributes:
        rows: the prompts in order (N,); equal ones follow each other.
        starts: rows[starts[i] : starts[i + 1]] are prompt number i, int64 (distinct + 1,).
        batches: the batches, in order.

    Raises:
        InputError: a prompt is empty, too long, or has a token out of the vocabulary.
    """

    def __init__(
        self,
        target: Target,
        inputs: Inputs,
        places: Mapping[str, np.ndarray],
        batch_tokens: int,
        share: bool = True,
    ) -> None:
        self.inputs, self.batches = inputs, list[Batch]()
        rows, starts = [np.zeros(0, np.int64)], [np.zeros(1, np.int64)]
        done = distinct = 0
        for members in groups(np.stack([inputs.lengths, *places.values()], 1)):
            tokens = np.stack([inputs.token_ids[row] for row in members]).astype(np.int32)
            target.check_tokens(tokens, members)
            length = tokens.shape[1]
            order, shared = sorted_prefixes(tokens)
            first = np.flatnonzero(shared < length)
            shared = shared[first]
            cuts = segments(shared, length, COPY_COST / target.d_model) if share else [0, length]
            at = {name: int(where[members[0]]) for name, where in places.items()}
            for low, high in _cut(shared, cuts, _limits(target, cuts, batch_tokens)):
                fresh = shared[low:high].copy()
                fresh[0] = 0
                self.batches.append(Batch(distinct + low, distinct + high, fresh, tuple(cuts), at))
            rows.append(members[order])
            starts.append(done + np.append(first[1:], len(order)))
            done, distinct = done + len(order), distinct + len(first)
        self.rows, self.starts = np.concatenate(rows), np.concatenate(starts)

    def tokens(self, batch: Batch) -> np.ndarray:
        """Tokens of a batch's prompts, int64 (high - low, T)."""
        rows = self.rows[self.starts[batch.low : batch.high]]
        return np.stack([self.inputs.token_ids[row] for row in rows]).astype(np.int64)

    def members(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """Prompts (n,) that a batch runs, and which of its distinct ones each is."""
        starts = self.starts[batch.low : batch.high + 1]
        return self.rows[starts[0] : starts[-1]], np.repeat(np.arange(len(starts) - 1), np.diff(starts))

    @property
    def numbers(self) -> np.ndarray:
        """Number of each prompt in the order in which they are run, int64 (N,)."""
        found = np.empty(len(self.rows), np.int64)
        found[self.rows] = np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))
        return found


def _limits(target: Target, cuts: list[int], batch_tokens: int) -> list[int]:
    """How many distinct beginnings each segment may run at once: by the tokens of a pass, and by what is kept of each."""
    most = KEPT.get(target.model.device.type, KEPT["cpu"])
    heads = getattr(target.model.config, "num_key_value_heads", None) or target.n_heads
    states = 2 * target.n_layers * heads * target.head_dim * target.model.dtype.itemsize * cuts[-1]
    # All heads and the residual stream of all layers, as float32: whichever sites are read, batches are the same.
    read = 2 * target.n_layers * target.d_model * 4
    kept = [most // 2 // states] * (len(cuts) - 2) + [most // 4 // read]
    lengths = [end - begin for begin, end in zip(cuts, cuts[1:], strict=False)]
    return [max(1, min(batch_tokens // own, n)) for own, n in zip(lengths, kept, strict=True)]


def _cut(shared: np.ndarray, cuts: list[int], limits: list[int]) -> Iterator[tuple[int, int]]:
    """Cut sorted prompts, of which each shares some tokens with the one before, into runs within the limits of all segments."""
    # Prompts before each that begin a node (a distinct beginning) of a segment.
    nodes = [np.append(0, np.cumsum(shared < end)) for end in cuts[1:]]
    low = 0
    while low < len(shared):
        # The first prompt of a run begins a node of each segment, whatever it shares with the one before.
        ends = [
            int(np.searchsorted(before, before[low + 1] + limit - 1, side="right")) - 1
            for before, limit in zip(nodes, limits, strict=True)
        ]
        high = max(low + 1, min(ends))
        yield low, high
        low = high
