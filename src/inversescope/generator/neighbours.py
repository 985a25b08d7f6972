"""Attention over cached neighbours (ours): what they say about the next token is added to the logits.

Shapes: B activations, n rows, T positions, D width of the backbone, C latent width, V vocabulary, K neighbours, W words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NeighbourLogits(nn.Module):
    """Attention over cached neighbours, by prefix: logits + gate * log(1 + count / kappa).

    `count` (B, T, V) is how many of the activation's cached neighbours share the prefix and go on with each token. The gate, a
    softplus of the final hidden state, the latent condition and log(1 + sum of counts), and kappa are learned: where there are
    no neighbours nothing is added, where there are many the distribution is theirs, corrected by the generator.
    """

    def __init__(self, d_model: int, d_condition: int) -> None:
        super().__init__()
        self.from_hidden = nn.Linear(d_model, 1)
        self.from_condition = nn.Linear(d_condition, 1, bias=False)
        self.from_count = nn.Parameter(torch.zeros(1))
        self.log_kappa = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.from_hidden.weight)
        nn.init.zeros_(self.from_condition.weight)
        nn.init.constant_(self.from_hidden.bias, -0.4)

    def forward(self, h: Tensor, c: Tensor, counts: Tensor) -> Tensor:
        """What is added to the logits: h (..., D), c (..., C), counts (..., V) -> (..., V)."""
        total = torch.log1p(counts.sum(-1, keepdim=True)) / 3.0
        gate = F.softplus(self.from_hidden(h) + self.from_condition(c) + self.from_count * total)
        return gate * torch.log1p(counts * torch.exp(-self.log_kappa))


class NeighbourWords(nn.Module):
    """Attention over cached neighbours, by words: logits + gate * log((n vote + kappa prior) / ((n + kappa) prior)).

    A neighbour weighs more for each token of the prefix that it holds too, wherever it holds it: its weight is a softmax over the
    sum of learned, positive weights of these tokens. `vote` is the share of the weighted neighbours that hold each word, n their
    effective number 1 / sum of squared weights, `prior` the share of all cached prompts that hold the word. So it knows, for
    instance, which second names go with the first one among the neighbours, whatever their templates. The gate depends on the
    final hidden state and the word; gate, weights and kappa are learned. Without neighbours nothing is added.

    Shapes: B activations, K neighbours, W words, n rows.
    """

    words: Tensor
    index: Tensor
    prior: Tensor

    def __init__(self, d_model: int, vocabulary: int, words: tuple[int, ...]) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        count = len(words)
        self.register_buffer("words", torch.tensor(words), persistent=False)
        index = torch.full((vocabulary,), count)
        index[list(words)] = torch.arange(count)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("prior", torch.ones(count))
        self.weight = nn.Parameter(torch.ones(count + 1))
        self.from_hidden = nn.Linear(d_model, 1)
        self.from_word = nn.Parameter(torch.full((count,), -1.0))
        self.log_kappa = nn.Parameter(torch.zeros(1))
        nn.init.zeros_(self.from_hidden.weight)
        nn.init.zeros_(self.from_hidden.bias)

    def set_prior(self, sequences: Tensor) -> None:
        """Take the words' shares among all cached prompts from their tokens (N, T)."""
        held = torch.zeros(len(sequences), len(self.words) + 1, dtype=torch.bool)
        held.scatter_(1, self.index.cpu()[sequences], True)
        self.prior.copy_(held[:, :-1].float().mean(0).clamp_min(1e-6))

    def bags(self, sequences: Tensor) -> Tensor:
        """Which words neighbours hold: tokens (B, K, T) -> (B, K, W + 1) of 0 and 1; the last column, any other token, is 0."""
        held = torch.zeros(
            *sequences.shape[:2], len(self.words) + 1, dtype=torch.uint8, device=sequences.device
        )
        held.scatter_(2, self.index[sequences], 1)
        held[..., -1] = 0
        return held.float()

    def along(self, path: Tensor, bags: Tensor) -> Tensor:
        """Neighbours' scores (B, T, K) after each token of a path (B, T)."""
        weight = F.softplus(self.weight)
        said = torch.zeros(*path.shape, len(weight), device=path.device)
        said = said.scatter(2, self.index[path][..., None], 1.0).cumsum(1) * weight
        return torch.bmm(said, bags.transpose(1, 2))

    def after(self, token: Tensor, bags: Tensor, owner: Tensor) -> Tensor:
        """What one more token (n,) adds to the scores (n, K) of the neighbours of the activations `owner` (n,)."""
        index = self.index[token]
        return bags[owner, :, index] * F.softplus(self.weight)[index][:, None]

    def evidence(self, scores: Tensor, present: Tensor, bags: Tensor) -> Tensor:
        """Smoothed log ratio (B, T, W) of votes to prior, from scores (B, T, K) and present (B, T or 1, K) bool."""
        some = present.any(-1, keepdim=True)
        a = (
            torch.softmax(scores.masked_fill(~present, -1e4), -1) * some
        )  # of one that is absent: 0 beside one that is present
        n = some / (a * a).sum(-1, keepdim=True).clamp_min(1e-9)
        vote, kappa = torch.bmm(a, bags)[..., :-1], torch.exp(self.log_kappa)
        return torch.log((n * vote + kappa * self.prior) / ((n + kappa) * self.prior))

    def forward(self, h: Tensor, evidence: Tensor) -> Tensor:
        """What is added to the logits: h (..., D), evidence (..., W) -> (..., V)."""
        gate = F.softplus(self.from_hidden(h) + self.from_word)
        return h.new_zeros(*h.shape[:-1], self.vocabulary).index_copy(-1, self.words, gate * evidence)
