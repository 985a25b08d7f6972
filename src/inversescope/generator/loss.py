"""The loss of a conditional generator (paper, 3.2), with soft targets where there are any."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from inversescope.generator.base import ConditionalGenerator, Rows
from inversescope.generator.condition import Condition
from inversescope.generator.pairs import Batch, PairSource


class ExampleLoss:
    """One process's share of the loss on a source's examples, step by step, with their Bayes floor."""

    def __init__(
        self, model: ConditionalGenerator, source: PairSource, process: int = 0, of: int = 1
    ) -> None:
        self.model, self.source, self.process, self.of = model, source, process, of

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step. Raises `InputError` if there are fewer examples than processes."""
        batch = self.source.batch(step)
        part = batch.part(self.process, self.of)
        value = conditional_loss(self.model, part)
        if part is not batch:
            value = value * float(part.weight.sum() / batch.weight.sum())
        return value, {"bayes_floor": batch.floor}


def condition_of(batch: Batch) -> Condition:
    """The generator's inputs of a batch, as tensors."""
    return Condition(
        z={label: torch.from_numpy(z) for label, z in batch.z.items()},
        scalars=None if batch.scalars is None else torch.from_numpy(batch.scalars),
        embedding=None if batch.embedding is None else torch.from_numpy(batch.embedding),
    )


def conditional_loss(model: ConditionalGenerator, batch: Batch) -> Tensor:
    """Weighted mean over examples of the next-token loss in nats a sequence (paper, 3.2), with soft targets where there are any.

    With soft targets the label at position t is the weighted next-token distribution among the target sequences that share the
    path's first t tokens: the same expected gradient as one drawn neighbour, with far less variance.
    """
    device = model.device
    path = torch.from_numpy(batch.path.astype(np.int64)).to(device)
    length = int(batch.lengths.max())
    path = path[:, :length]
    counts = evidence = None
    if batch.neighbours is not None and batch.neighbour_weight is not None:
        weight = torch.from_numpy(batch.neighbour_weight).to(device)
        neighbours = torch.from_numpy(batch.neighbours.astype(np.int64)).to(device)
        if model.neighbour_logits is not None:
            counts = prefix_counts(path, neighbours, weight, model.shape.backbone.vocab_size)
        if model.neighbour_words is not None:
            bags = model.neighbour_words.bags(neighbours)
            scores = model.neighbour_words.along(path[:, :-1], bags)
            evidence = model.neighbour_words.evidence(scores, weight[:, None] > 0, bags)
    folded = model.fold(condition_of(batch).to(device))
    logp = model.log_probabilities(path[:, :-1], folded, Rows(None, counts, evidence))
    inside = (torch.arange(1, length)[None] < torch.from_numpy(batch.lengths)[:, None]).to(device)
    if batch.targets is None or batch.target_weight is None:
        token = logp.gather(-1, path[:, 1:, None])[..., 0]
    else:
        targets = torch.from_numpy(batch.targets[:, :, :length].astype(np.int64)).to(device)
        weight = torch.from_numpy(batch.target_weight).to(device)[:, None] * shared_prefixes(path, targets)
        weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-30)  # (B, T - 1, M)
        token = (logp.gather(-1, targets.transpose(1, 2)[:, 1:]) * weight).sum(-1)
    weights = torch.from_numpy(batch.weight).to(device)
    return -((token * inside).sum(-1) * weights).sum() / weights.sum().clamp_min(1e-9)


def shared_prefixes(path: Tensor, sequences: Tensor) -> Tensor:
    """Which sequences share each prefix of a path: path (B, T), sequences (B, M, at least T) -> (B, T - 1, M) bool."""
    length = path.shape[1] - 1
    narrow = torch.int32  # half the memory to go through
    same = sequences.to(narrow).transpose(1, 2)[:, :length] == path[:, :length, None].to(narrow)
    for position in range(1, length):
        same[:, position] &= same[:, position - 1]
    return same


def prefix_counts(path: Tensor, sequences: Tensor, weight: Tensor, vocabulary: int) -> Tensor:
    """How many sequences share each prefix of a path and go on with each token.

    path (B, T), sequences (B, K, at least T), weight (B, K) -> (B, T - 1, V).
    """
    shape = path.shape[0], path.shape[1] - 1, vocabulary
    # Few share more than a token or two: only these are looked at.
    row, position, which = shared_prefixes(path, sequences).nonzero(as_tuple=True)
    index = (row * shape[1] + position) * vocabulary + sequences[row, which, position + 1]
    counts = torch.zeros(math.prod(shape), device=path.device)
    return counts.index_add_(0, index, weight[row, which]).view(shape)
