"""Operations and memory of the stages: the formulas of docs/cost.md, by its symbols, and a counter to check them with.

tests/study/test_paper_shape.py compares them with what each stage takes; tests/unit/test_cost.py with the numbers of docs/cost.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

#: Bytes of a float32.
FLOAT = 4


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
    """A step on S B sequences of T positions, whose activations pass so many parameters: `Control.P_c`, or `passed_in_blocks`."""
    return sequences * (T * (4 if frozen else 6) * (model.P + model.P_o) + 6 * passed)


def passed_in_blocks(model: Decoder, W: int, blocks: int) -> int:
    """Parameters that an activation passes in InversionView, in residual blocks of width W, then to the decoder's layers: P_v."""
    return blocks * 8 * W**2 + model.L * (W * model.D + 2 * model.D**2)


def write_candidates(tokens: float, model: Decoder, H: int, told: float = 0, passed: float = 0) -> float:
    """Tokens that a generator writes, or whose probability it tells, with H control heads; and what activations pass before."""
    return tokens * 2 * (model.P + model.P_o + 2 * model.L * H * model.D) + told * 2 * passed


def search(Q: float, N: float, d: float) -> float:
    """Distances of Q activations to N others: `compute_exact`, neighbours of targets and of training examples."""
    return 2 * Q * N * d


def train_sae(steps: float, batch: float, d: float, width: float) -> float:
    """One autoencoder."""
    return steps * batch * 10 * d * width


# ------------------------------------------------------------------------------------------------------ bytes of memory
def memory_of_pass(tokens: float, D: int, d_mlp: int, gated: bool, size: int = FLOAT) -> float:
    """Tokens that a target runs at a time, 8,192 at most: their states in a block of it, of numbers of so many bytes."""
    return min(tokens, 8192) * size * (5 * D + (3 if gated else 1) * d_mlp)


def memory_of_backbone(model: Decoder, tokens: float, texts: int) -> float:
    """Main memory of `train_backbone`: a step on so many tokens, texts that are written at a time, or the checkpoint."""
    whole = model.P + model.P_o
    step = 4 * whole + 3 * tokens * model.V
    written = 2 * whole + 7 * texts * model.V
    checkpoint = 2 * whole + 2 * (whole + model.P_o)
    return FLOAT * max(step, written, checkpoint)


def memory_of_generator(
    model: Decoder, own: float, sequences: float, T: float, control: float, frozen: bool
) -> float:
    """Main memory of `train_generator` on a processor: a step, or the checkpoint, when the moments are gone.

    Args:
        own: parameters beside the backbone's.
        sequences, T: of a step, and their positions.
        control: numbers that control layers keep of a sequence.
    """
    backbone = model.P + model.P_o
    trained = own if frozen else own + backbone
    step = 2 * trained + 3 * sequences * (T * model.V + control)
    checkpoint = 2 * (own + backbone + model.P_o)
    # The backbone that training begins with stays beside what is trained.
    return FLOAT * (own + 2 * backbone + trained + max(step, checkpoint))


def memory_of_candidates(
    model: Decoder, own: float, rows: float, T: float, targets: float, control: float
) -> float:
    """Main memory of `sample_prompts`: loading the generator, or writing so many rows of T tokens for so many targets."""
    whole = own + model.P + model.P_o
    loading = 2 * (whole + model.P_o)
    writing = rows * (2 * model.L * model.D * T + 9 * model.V) + targets * control
    return FLOAT * (whole + max(loading, writing))


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
