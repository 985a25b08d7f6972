"""The decoder-only backbone: GPT-2, in one file, with a key-value cache for sampling.

Weights load from and save to the names of Hugging Face's `GPT2LMHeadModel`, so GPT-2 small serves as it is (paper, C.1).
Shapes: B sequences, T positions, D width, N heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope.config.targets import ArchitectureConfig
from inversescope.targets.speed import causal_attention, even_rows, linear

Control = Callable[[int, Tensor], Tensor]  # (layer, hidden after attention (..., D)) -> what is added to it
Prefix = list[
    tuple[Tensor, Tensor]
]  # layer by layer, key and value (B, D) of a position before the first token
Readout = Callable[[Tensor], Tensor]  # final hidden states (..., D) -> what is added to the logits (..., V)


@dataclass(frozen=True)
class BackboneShape:
    """Sizes of a GPT-2 decoder."""

    vocab_size: int
    n_positions: int
    n_layers: int
    n_heads: int
    d_model: int
    d_mlp: int
    tied_embeddings: bool = True

    @staticmethod
    def of(config: ArchitectureConfig, vocab_size: int) -> BackboneShape:
        """Sizes of a decoder that is trained from scratch."""
        names = ("n_positions", "n_layers", "n_heads", "d_model", "tied_embeddings")
        sizes = {name: getattr(config, name) for name in names}
        return BackboneShape(vocab_size=vocab_size, d_mlp=config.d_mlp or 4 * config.d_model, **sizes)


class Linear(nn.Linear):
    """A linear layer, and GPT-2's activation behind it if asked, by `targets.speed.linear`."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Apply it: (..., n_in) -> (..., n_out)."""
        return linear(x, self.weight, self.bias, gelu)


@dataclass
class KeyValues:
    """One layer's keys and values of sequences that grow by a token at a time.

    Attributes:
        keys, values: (T, rows, D), position by position: a step reads what all rows have so far as one block.
    """

    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Causal self-attention, of whole sequences or of one more token."""

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.n_heads = shape.n_heads
        self.c_attn = Linear(shape.d_model, 3 * shape.d_model)
        self.c_proj = Linear(shape.d_model, shape.d_model)

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value (B, D) each of a position that is attended to, but attends to nothing: x (B, D)."""
        D = x.shape[-1]
        key, value = linear(x, self.c_attn.weight[D:], self.c_attn.bias[D:]).chunk(2, dim=-1)
        return key, value

    def forward(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Attend within sequences, and to one position before them if there is one: x (B, T, D) -> (B, T, D)."""
        B, T, D = x.shape
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        if prefix is not None:
            k, v = (torch.cat([own[:, None], t], 1) for own, t in zip(prefix, (k, v), strict=True))
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.c_proj(causal_attention(q, k, v).transpose(1, 2).reshape(B, T, D))

    def step(
        self, x: Tensor, cache: KeyValues, position: int, prefix: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Attend from one more token at `position`, whose key and value are written to the cache: x (B, D) -> (B, D).

        Every row has keys of its own, so the products are no matrix products; written as sums over whole blocks of rows
        they run at the speed of the memory.
        """
        B, D = x.shape
        q, cache.keys[position, :B], cache.values[position, :B] = self.c_attn(x).chunk(3, dim=-1)
        keys, values = (
            t[: position + 1, :B].unflatten(-1, (self.n_heads, -1)) for t in (cache.keys, cache.values)
        )
        q = q.unflatten(-1, (self.n_heads, -1)) * (D // self.n_heads) ** -0.5
        scores = (keys * q).sum(-1)  # (T, B, N)
        if prefix is None:
            return self.c_proj((torch.softmax(scores, dim=0)[..., None] * values).sum(0).view(B, D))
        key, value = (t.unflatten(-1, (self.n_heads, -1)) for t in prefix)
        pattern = torch.softmax(torch.cat([(key * q).sum(-1)[None], scores]), dim=0)
        mixed = (pattern[1:, ..., None] * values).sum(0) + pattern[0, ..., None] * value
        return self.c_proj(mixed.view(B, D))


class Block(nn.Module):
    """A pre-norm transformer block; control enters after the attention's residual (paper, 3.1)."""

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.d_model)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.d_model)
        self.c_fc = Linear(shape.d_model, shape.d_mlp)
        self.c_proj = Linear(shape.d_mlp, shape.d_model)

    def forward(self, h: Tensor, layer: int, control: Control | None, prefix: Prefix | None = None) -> Tensor:
        """Run the block on hidden states (B, T, D)."""
        own = None if prefix is None else prefix[layer]
        return self._rest(h + self.attn(self.ln_1(h), own), layer, control)

    def step(
        self,
        h: Tensor,
        layer: int,
        control: Control | None,
        cache: KeyValues,
        position: int,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Run the block on hidden states (B, D) of one more token."""
        own = None if prefix is None else prefix[layer]
        return self._rest(h + self.attn.step(self.ln_1(h), cache, position, own), layer, control)

    def _rest(self, h: Tensor, layer: int, control: Control | None) -> Tensor:
        if control is not None:
            h = h + control(layer, h)
        return h + self.c_proj(self.c_fc(self.ln_2(h), gelu=True))


class Backbone(nn.Module):
    """GPT-2: token and position embeddings, blocks, final norm, output projection."""

    def __init__(self, shape: BackboneShape, std: float = 0.02) -> None:
        super().__init__()
        self.shape = shape
        self._cache: list[KeyValues] = []
        self.wte = nn.Embedding(shape.vocab_size, shape.d_model)
        self.wpe = nn.Embedding(shape.n_positions, shape.d_model)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.n_layers))
        self.ln_f = nn.LayerNorm(shape.d_model)
        self.lm_head = Linear(shape.d_model, shape.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(
                    parameter, std=std if "c_proj" not in name else std / (2 * shape.n_layers) ** 0.5
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        if shape.tied_embeddings:
            self.lm_head.weight = self.wte.weight

    def forward(
        self,
        tokens: Tensor,
        control: Control | None = None,
        readout: Readout | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the next token at each position of tokens (B, T)."""
        h = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for layer, block in enumerate(self.h):
            h = block(h, layer, control, prefix)
        return self.logits(self.ln_f(h), readout)

    def logits(self, h: Tensor, readout: Readout | None = None) -> Tensor:
        """Logits (..., V) of final hidden states (..., D)."""
        logits: Tensor = self.lm_head(h)
        return logits if readout is None else logits + readout(h)

    def take_cache(self, rows: int, length: int) -> list[KeyValues]:
        """Room for the keys and values of `rows` sequences of up to `length` tokens, layer by layer.

        It is the same memory at each call that asks for the same, as fresh pages cost as much as filling them: who takes it ends
        the use of whoever took it before.
        """
        weight, size = self.wte.weight, (length, even_rows(rows), self.shape.d_model)
        if (
            not self._cache
            or self._cache[0].keys.shape != size
            or self._cache[0].keys.device != weight.device
        ):
            self._cache = [
                KeyValues(weight.new_empty(size), weight.new_empty(size)) for _ in range(self.shape.n_layers)
            ]
        return self._cache

    def step(
        self,
        tokens: Tensor,
        position: int,
        cache: list[KeyValues],
        control: Control | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Final hidden states (B, D) of one more token (B,) at `position`; the cache's first B rows hold the earlier ones.

        Rows are filled up to an even number, for the sake of speed: control sees hidden states (B', D) of which the first B count,
        and a prefix has B' rows.
        """
        rows = len(tokens)
        h = self.wte(tokens) + self.wpe.weight[position]
        h = F.pad(h, (0, 0, 0, even_rows(rows) - rows))
        for layer, block in enumerate(self.h):
            assert isinstance(block, Block)
            h = block.step(h, layer, control, cache[layer], position, prefix)
        final: Tensor = self.ln_f(h[:rows])
        return final


#: Module of a block here -> in Hugging Face's model.
_HF_MODULES = {
    "attn.c_attn": "attn.c_attn",
    "attn.c_proj": "attn.c_proj",
    "c_fc": "mlp.c_fc",
    "c_proj": "mlp.c_proj",
    "ln_1": "ln_1",
    "ln_2": "ln_2",
}


def hf_names(shape: BackboneShape) -> Iterator[tuple[str, str, bool]]:
    """Each parameter's name here, its name in `GPT2LMHeadModel`, and whether it is transposed there (weights of Conv1D)."""
    yield "lm_head.weight", "lm_head.weight", False
    for name in ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"):
        yield name, f"transformer.{name}", False
    for layer in range(shape.n_layers):
        for ours, theirs in _HF_MODULES.items():
            for part in ("weight", "bias"):
                transposed = part == "weight" and not ours.startswith("ln")
                yield f"h.{layer}.{ours}.{part}", f"transformer.h.{layer}.{theirs}.{part}", transposed


def from_hf(model: nn.Module) -> Backbone:
    """Copy a Hugging Face `GPT2LMHeadModel` into a `Backbone`."""
    config: Any = model.config
    shape = BackboneShape(
        vocab_size=config.vocab_size,
        n_positions=config.n_positions,
        n_layers=config.n_layer,
        n_heads=config.n_head,
        d_model=config.n_embd,
        d_mlp=config.n_inner or 4 * config.n_embd,
        tied_embeddings=bool(config.tie_word_embeddings),
    )
    backbone, state = Backbone(shape), model.state_dict()
    new = {o: state[t].T if transposed else state[t] for o, t, transposed in hf_names(shape)}
    backbone.load_state_dict({name: value.contiguous() for name, value in new.items()})
    return backbone
