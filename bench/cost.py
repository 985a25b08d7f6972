"""Operations of the stages: the formulas of docs/cost.md, by its symbols, and a counter of what is run.

tests/unit/test_cost.py compares them with the numbers of docs/cost.md. Memory has no function yet: docs/cost.md alone estimates it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Decoder:
    """A decoder-only model.

    Attributes:
        L, D, V: layers, width, vocabulary.
        P: parameters of the blocks' matrices.
    """

    L: int
    D: int
    V: int
    P: int

    @classmethod
    def gpt2(cls, L: int, D: int, V: int) -> Decoder:
        """A GPT-2."""
        return cls(L, D, V, 12 * L * D**2)

    @property
    def P_o(self) -> int:
        """Parameters of the output embedding."""
        return self.V * self.D


@dataclass(frozen=True)
class Control:
    """Control layers on a decoder: H heads, keys of width K, a latent space of width C."""

    on: Decoder
    H: int
    K: int
    C: int

    @property
    def P_c(self) -> int:
        """Parameters that an activation passes."""
        D, H, K, C = self.on.D, self.H, self.K, self.C
        return self.on.L * (D * H * K + C * H * K + C * H * D)


# ---------------------------------------------------------------------------------------------------------- operations
def run_target(tokens: float, P: float, s: float) -> float:
    """Tokens through the share s of the target's blocks: `extract_activations`, `run_mcmc`, activations of candidates."""
    return tokens * 2 * P * s


def check_target(T: int, eager: bool) -> float:
    """Tokens through all blocks before the first pass, where prompts have up to T tokens: faster ways of running are compared with
    plain attention, on prompts of up to 24 tokens, and on longer ones if there are any."""
    prompts = 7.5 if eager else 9.5
    return prompts * sum({min(T, 24), T})


def train_backbone(tokens: float, model: Decoder) -> float:
    """All tokens of all steps."""
    return tokens * 6 * (model.P + model.P_o)


def train_generator(sequences: float, T: float, model: Decoder, passed: float, frozen: bool) -> float:
    """A step on S B sequences of T positions, whose activations pass so many parameters: `Control.P_c`, or P_v of docs/cost.md."""
    return sequences * (T * (4 if frozen else 6) * (model.P + model.P_o) + 6 * passed)


def write_candidates(tokens: float, model: Decoder, H: int, told: float = 0, passed: float = 0) -> float:
    """Tokens that a generator writes, or whose probability it tells, with H control heads; and what activations pass before."""
    return tokens * 2 * (model.P + model.P_o + 2 * model.L * H * model.D) + told * 2 * passed


def search(Q: float, N: float, d: float) -> float:
    """Distances of Q activations to N others: `compute_exact`, neighbours of targets and of training examples."""
    return 2 * Q * N * d


# ------------------------------------------------------------------------------------------------------------- counter
def linear_operations(x: Sequence[int], weight: Sequence[int], *others: object, **options: object) -> int:
    """Operations of oneDNN's linear layer, which PyTorch's counter does not know: x (..., n_in), weight (n_out, n_in)."""
    return 2 * math.prod(x) * weight[0]


class Operations:
    """A context that counts operations of matrix products, and the tokens that were looked up in each embedding.

    Attributes:
        tokens: shape of an embedding (rows, width) -> how many of its rows were read.
    """

    def __init__(self) -> None:
        self.tokens: Counter[tuple[int, ...]] = Counter()
        ours = {
            torch.ops.mkldnn._linear_pointwise: linear_operations,
            torch.ops.aten.embedding: self._look_up,
        }
        self._counter = FlopCounterMode(display=False, custom_mapping=ours)

    def _look_up(self, table: Sequence[int], index: Sequence[int], *others: object, **options: object) -> int:
        self.tokens[tuple(table)] += math.prod(index)
        return 0

    def __enter__(self) -> Operations:
        self._counter.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._counter.__exit__(*error)

    @property
    def total(self) -> int:
        """Operations so far."""
        return int(self._counter.get_total_flops())
