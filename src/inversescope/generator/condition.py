"""What a generator is told about an activation: itself, the bandwidth, and a summary of its cached neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inversescope.kernel.kernel import support_radius
from inversescope.kernel.neighbours import Cache, Neighbours

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from inversescope.generator.base import ConditionalGenerator

EMBEDDING_SMOOTHING = 2.0  # pseudo-count of the prior in a mean embedding
LOG_EPSILON = -3.0  # log eps that scalars are relative to, where a site has none of its own


@dataclass
class Condition:
    """What the generator is told about each of B activations of one site or of several.

    Attributes:
        z: site label -> activations (b, d) in the site map's space; the sites' rows follow each other in dict order.
        scalars: (B, N_SCALARS) or None; log eps, log share, log count, mean distance / eps.
        embedding: (B, S) or None; log ratio of the neighbours' marginals to the prior's.
    """

    z: dict[str, Tensor]
    scalars: Tensor | None = None
    embedding: Tensor | None = None

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        scalars, embedding = (x if x is None else x.to(device) for x in (self.scalars, self.embedding))
        return Condition({label: z.to(device) for label, z in self.z.items()}, scalars, embedding)


@dataclass
class Prompts:
    """The cached prompts as the generator and the mean embedding see them.

    Attributes:
        tokens: (N, T) int32: start token, text, end token, then end tokens.
        lengths: (N,) int32, tokens in use.
        codes: (N, P) int32 ids of the (position, token) and slot values that hold, -1 where a prompt is shorter.
        prior: (S,) share of cached prompts in which each code holds.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    codes: np.ndarray
    prior: np.ndarray

    @property
    def size(self) -> int:
        """Number of prompts."""
        return len(self.lengths)

    def words(self) -> list[int]:
        """Tokens that occur in the prompts, the start and end token left out."""
        return sorted(set(np.unique(self.tokens).tolist()) - {int(self.tokens[0, 0])})


def encode_prompts(tokens: list[np.ndarray], end: int, slots: np.ndarray | None = None) -> Prompts:
    """Lay out tokenised texts for training.

    Args:
        tokens: a text's token ids each, without special tokens.
        end: id of the token that starts and ends a sequence (paper, C.1).
        slots: (N, n_slots) integer codes of task slots and features that join the mean embedding.
    """
    lengths = np.array([len(t) + 2 for t in tokens], np.int32)
    table = np.full((len(tokens), int(lengths.max())), end, np.int32)
    for row, ids in enumerate(tokens):
        table[row, 1 : 1 + len(ids)] = ids
    columns = []
    offset = 0
    position = np.arange(table.shape[1])
    for column in range(1, table.shape[1]):
        inside = position[column] < lengths
        values, code = np.unique(table[:, column], return_inverse=True)
        columns.append(np.where(inside, code + offset, -1))
        offset += len(values)
    for slot in slots.T if slots is not None else ():
        values, code = np.unique(slot, return_inverse=True)
        columns.append(code + offset)
        offset += len(values)
    codes = np.stack(columns, 1).astype(np.int32)
    prior = np.bincount(codes[codes >= 0].ravel(), minlength=offset) / len(tokens)
    return Prompts(table, lengths, codes, prior)


def decode_texts(tokenizer: PreTrainedTokenizerFast, rows: np.ndarray, end: int) -> list[str]:
    """Texts of token rows (N, T), cut at the end token; each distinct row is decoded once."""
    unique, inverse = np.unique(rows, axis=0, return_inverse=True)
    lists = []
    for row in unique:
        stop = np.flatnonzero(row == end)
        lists.append(row[: stop[0]].tolist() if stop.size else row.tolist())
    texts = tokenizer.batch_decode(lists, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [texts[i] for i in inverse.ravel()]


def mean_embedding(prompts: Prompts, neighbours: Neighbours) -> np.ndarray:
    """Kernel mean embedding of neighbour lists: (Q, S) float32.

    Entry s is log((n p_s + c prior_s) / ((n + c) prior_s)), with p_s the share of the n neighbours in which code s holds and
    c pseudo-counts of the prior: 0 everywhere for a query without neighbours.
    """
    count = len(neighbours.counts)
    size = len(prompts.prior)
    owner = np.repeat(np.arange(count), neighbours.counts)
    codes = prompts.codes[neighbours.rows]
    flat = (codes + owner[:, None] * size)[codes >= 0]
    sums = np.bincount(flat, minlength=count * size).reshape(count, size)
    prior = np.maximum(prompts.prior, 1e-12)
    n = neighbours.counts[:, None]
    ratio = (sums + EMBEDDING_SMOOTHING * prior) / ((n + EMBEDDING_SMOOTHING) * prior)
    return np.log(ratio).astype(np.float32)


def scalar_inputs(
    neighbours: Neighbours, epsilon: np.ndarray, log_epsilon: float = LOG_EPSILON
) -> np.ndarray:
    """Scalars beside the mean embedding, (Q, 4) float32 of about unit scale: log eps, log share, log(1 + n), mean d / eps.

    Args:
        log_epsilon: what log eps is relative to: the middle of the site's bandwidths.
    """
    n = neighbours.counts
    share = (n + 0.5) / np.maximum(neighbours.scanned, 1)
    owner = np.repeat(np.arange(len(n)), n)
    mean = np.bincount(owner, weights=neighbours.distance, minlength=len(n)) / np.maximum(n, 1) / epsilon
    columns = [np.log(epsilon) - log_epsilon, np.log(share) / 3.0 + 1.5, np.log1p(n) / 3.0, mean]
    return np.stack(columns, 1).astype(np.float32)


def bandwidth_scalars(epsilon: np.ndarray, log_epsilon: float = LOG_EPSILON) -> np.ndarray:
    """The scalars of a generator that is told epsilon alone: log eps as in `scalar_inputs`, the rest 0: (Q, 4) float32."""
    scalars = np.zeros((len(epsilon), 4), np.float32)
    scalars[:, 0] = np.log(epsilon) - log_epsilon
    return scalars


def make_condition(
    model: ConditionalGenerator,
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
    told = np.full(len(z), epsilon)
    if model.shape.d_embedding:
        assert cache is not None and prompts is not None
        radius = support_radius(epsilon, kind)
        near = cache.search(cache.prepare(z), radius, limit=model.shape.n_condition)
        embedding = torch.from_numpy(mean_embedding(prompts, near))
        scalars = torch.from_numpy(scalar_inputs(near, told, model.shape.log_epsilon(label)))
    elif model.shape.eps_input:
        scalars = torch.from_numpy(bandwidth_scalars(told, model.shape.log_epsilon(label)))
    return Condition({label: torch.from_numpy(padded)}, scalars, embedding).to(model.device)
