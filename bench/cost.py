"""Operations and memory of the stages: the formulas of docs/cost.md, by its symbols, and a counter to check them with.

tests/study/test_paper_jobs.py compares them with what each stage takes; tests/unit/test_cost.py with the numbers of docs/cost.md.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

#: Bytes of a float32; of a tensor whose memory goes back to the system once it is freed (the C library's limit).
FLOAT, SMALL = 4, 1 << 25
#: Bytes of a number -> bytes of the code that oneDNN generates and keeps for a model's products of so many rows (measured).
CODE = {FLOAT: 5 << 19, 2: 5 << 20}


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
        """Parameters of the control layers that an activation passes."""
        D, H, K, C = self.on.D, self.H, self.K, self.C
        return self.on.L * (D * H * K + C * H * K + C * H * D)

    def passed(self, d: int, blocks: int = 0) -> int:
        """All parameters that an activation of d numbers passes: P_m of its site map and the MLP blocks behind it, and P_c."""
        return d * self.C + 4 * blocks * self.C**2 + self.P_c


# ---------------------------------------------------------------------------------------------------------- operations
def run_target(tokens: float, P: float, s: float) -> float:
    """Tokens through the share s of the target's blocks: `extract_activations`, `run_mcmc`, activations of candidates."""
    return tokens * 2 * P * s


def check_target(T: int, eager: bool) -> float:
    """Tokens through all blocks before prompts of T tokens are run, if none as long were: faster ways are compared with plain
    attention. A family of `eager` attention has fewer of them."""
    return (7.5 if eager else 9.5) * T


def train_backbone(tokens: float, model: Decoder) -> float:
    """All tokens of all steps."""
    return tokens * 6 * (model.P + model.P_o)


def train_generator(sequences: float, T: float, model: Decoder, passed: float, frozen: bool) -> float:
    """A step on S B sequences of T positions; what an activation passes is `Control.passed`, or `passed_in_blocks`."""
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
@dataclass(frozen=True)
class Layers:
    """What the memory of a target's pass depends on.

    Attributes:
        L, D: layers, width.
        d_mlp, gated: width of an MLP, and whether it has a gate.
        heads, keys: width of all heads together, and of their keys.
        size: bytes of a number.
    """

    L: int
    D: int
    d_mlp: int
    gated: bool
    heads: int
    keys: int
    size: int = FLOAT


def memory_of_passes(
    target: Layers, tokens: float, attended: float, begun: float, ended: float, sizes: float
) -> float:
    """Main memory of passes that run prompts.

    States of a block; of float32 the largest matrix, which a processor lays out anew, of fewer bits two copies of the keys and
    values that are attended to, and one as float32; keys and values of shared beginnings, with room for a whole prompt each, which
    count to the end, as those that no pass needs any more go back late; and the code of products.

    Args:
        target: shape of the model.
        tokens: of the largest pass, 8,192 at most.
        attended: positions of the prompts that run together, at most.
        begun: positions of beginnings that a later pass goes on from: kept of all layers.
        ended: positions of prompts that go on from such beginnings: kept of one layer.
        sizes: different numbers of tokens that passes have.
    """
    states = tokens * (5 * target.D + (3 if target.gated else 1) * target.d_mlp)
    kept = 2 * target.keys * target.size * (target.L * begun + ended) + CODE[target.size] * sizes
    if target.size == FLOAT:
        return FLOAT * (states + target.D * target.d_mlp) + kept
    return target.size * states + kept + 2 * attended * target.heads * (2 * target.size + FLOAT)


@dataclass(frozen=True)
class Trained:
    """What a training holds.

    Attributes:
        trained: numbers that are trained.
        small: those of them in tensors under `SMALL` bytes.
        frozen: numbers that are not.
    """

    trained: float
    small: float = 0
    frozen: float = 0

    def memory(self, step: float, checkpoint: float, beside: float = 0) -> float:
        """Main memory of a training on a processor: a step, or the checkpoint, when the moments are gone.

        What is freed of small tensors need not go back to the system: it counts to the end.

        Args:
            step: numbers that a step holds beside parameters, gradients and moments.
            checkpoint: numbers of what is written.
            beside: numbers that stay in memory all the time.
        """
        moments = 2 * (self.trained - self.small)
        held = 2 * self.trained + 2 * self.small + self.frozen + beside
        return FLOAT * (held + max(moments + step, 2 * checkpoint))


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
        sizes: the same, the different numbers of rows that were read at a time.
    """

    def __init__(self) -> None:
        self.tokens: Counter[tuple[int, ...]] = Counter()
        self.sizes: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        ours = {
            torch.ops.mkldnn._linear_pointwise: linear_operations,
            torch.ops.aten.embedding: self._look_up,
        }
        self._counter = FlopCounterMode(display=False, custom_mapping=ours)

    def _look_up(self, table: Sequence[int], index: Sequence[int], *others: object, **options: object) -> int:
        shape, read = tuple(table), math.prod(index)
        self.tokens[shape] += read
        self.sizes[shape].add(read)
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
