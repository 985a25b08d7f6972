"""InverseScope's conditional generator: backbone, control layers, site maps (paper, 3.1), in one file.

Shapes: B activations, T positions, D width of the backbone, H control heads, K width of a control head's key, C latent width,
S size of the mean embedding.

Since a control head's key and value depend on the activation alone, both sides of its attention are folded once an activation:
<Q h + q0, k> = <h, Q^T k> + <q0, k>. A token then costs one (D x H) product, a tanh and one (H x D) product, in training as in
sampling, and nothing is approximated.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope.generator.backbone import Backbone, BackboneShape, Control, KeyValues, Linear, Readout
from inversescope.generator.base import ConditionalGenerator, Materials, Rows
from inversescope.generator.condition import LOG_EPSILON, Condition
from inversescope.generator.neighbours import NeighbourLogits, NeighbourWords
from inversescope.ops import ByOwner, tanh

N_SCALARS = 4  # log eps, log share of neighbours, log count, mean distance / eps


@dataclass(frozen=True)
class GeneratorShape:
    """Everything that fixes the generator's parameters."""

    backbone: BackboneShape
    sites: dict[str, int]  # label -> dimension of what the site map takes
    scales: dict[str, float]  # label -> what the site's activations are divided by (`base.Materials`)
    n_heads: int = 32
    d_head: int = 16
    d_condition: int = 64
    site_map_blocks: int = 0
    see_norm: bool = True
    eps_input: bool = False
    d_embedding: int = 0  # S; 0 = no mean embedding
    neighbour_logits: bool = False
    n_condition: int = 128  # cached neighbours that condition, at most
    zero_values: bool = True  # V starts at zero
    words: tuple[int, ...] = ()  # W tokens by which neighbours are attended to; none = they are not
    log_epsilons: dict[str, float] = field(default_factory=dict)  # label -> what log eps is relative to
    normed_queries: bool = True
    scaled_scores: bool = True

    def log_epsilon(self, label: str) -> float:
        """What log eps of a site is relative to."""
        return self.log_epsilons.get(label, LOG_EPSILON)


@dataclass
class Folded:
    """Control layers folded for B activations: lists over layers of (B, H, D), (B, H), (B, H, D)."""

    keys: list[Tensor]
    offsets: list[Tensor]
    values: list[Tensor]
    latent: Tensor  # (B, C), what they were folded from

    def rows(self, index: Tensor) -> Folded:
        """The same for a selection of activations."""
        keys, offsets, values = (
            [layer[index] for layer in g] for g in (self.keys, self.offsets, self.values)
        )
        return Folded(keys, offsets, values, self.latent[index])


class ControlLayer(nn.Module):
    """One control layer (paper, 3.1): q = Q h + q0, k = K c + k0, v = V c + v0, output sum over heads of tanh(<q, k>) v.

    Where the paper's formula is not followed to the letter, h passes a layer norm first (`normed_queries`), and <q, k> is divided
    by the root of the head's width (`scaled_scores`).
    """

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.n_heads, self.d_head = shape.n_heads, shape.d_head
        n_heads, d_head, d_model = shape.n_heads, shape.d_head, shape.backbone.d_model
        self.scale = d_head**-0.5 if shape.scaled_scores else 1.0
        self.norm = nn.LayerNorm(d_model) if shape.normed_queries else nn.Identity()
        self.query = Linear(d_model, n_heads * d_head)
        self.key = Linear(shape.d_condition, n_heads * d_head)
        self.value = Linear(shape.d_condition, n_heads * d_model)
        drawn = [self.query, self.key] if shape.zero_values else [self.query, self.key, self.value]
        for layer in drawn:
            nn.init.kaiming_uniform_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)
        if shape.zero_values:
            # The untrained generator is the backbone, exactly (paper, C.2).
            nn.init.zeros_(self.value.weight)
            nn.init.zeros_(self.value.bias)

    def begin_as_pytorch(self, zero_values: bool = True) -> None:
        """Initial weights and biases of PyTorch's linear layers (Kaiming), but for a V of zeros (paper, C.2)."""
        for layer in (self.query, self.key, self.value):
            layer.reset_parameters()
        if zero_values:
            nn.init.zeros_(self.value.weight)

    def fold(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fold latent conditions (B, C) into keys (B, H, D), offsets (B, H) and values (B, H, D)."""
        B = c.shape[0]
        k = self.key(c).view(B, self.n_heads, self.d_head) * self.scale
        weight = self.query.weight.view(self.n_heads, self.d_head, -1)
        keys = torch.bmm(k.transpose(0, 1), weight).transpose(0, 1)
        offsets = torch.einsum("bhk,hk->bh", k, self.query.bias.view(self.n_heads, self.d_head))
        return keys, offsets, self.value(c).view(B, self.n_heads, -1)

    def forward(self, h: Tensor, keys: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        """Control signal (B, T, D) for hidden states (B, T, D)."""
        scores = torch.baddbmm(offsets[:, :, None], keys, self.norm(h).transpose(1, 2))  # (B, H, T)
        return torch.bmm(tanh(scores).transpose(1, 2), values)


class ResidualMLP(nn.Module):
    """x + W2 gelu(W1 norm(x)) on latent conditions (B, C), `expansion` times as wide inside."""

    def __init__(self, width: int, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = Linear(width, expansion * width)
        self.down = Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.down(F.gelu(self.up(self.norm(x))))


class InverseScope(ConditionalGenerator):
    """A backbone steered by control layers that read one activation of any known site."""

    shape_type = GeneratorShape

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        self.backbone = Backbone(shape.backbone)
        C = shape.d_condition
        self.site_maps = nn.ModuleDict({_key(label): Linear(d, C) for label, d in shape.sites.items()})
        self.scalar_map = Linear(N_SCALARS, C) if shape.eps_input else None
        self.embedding_map = Linear(shape.d_embedding, C) if shape.d_embedding else None
        self.blocks = nn.ModuleList(ResidualMLP(C) for _ in range(shape.site_map_blocks))
        self.final_norm = nn.LayerNorm(C) if shape.site_map_blocks else nn.Identity()
        self.neighbour_logits = NeighbourLogits(shape.backbone.d_model, C) if shape.neighbour_logits else None
        self.neighbour_words = (
            NeighbourWords(shape.backbone.d_model, shape.backbone.vocab_size, shape.words)
            if shape.words
            else None
        )
        self.control = nn.ModuleList(ControlLayer(shape) for _ in range(shape.backbone.n_layers))

    @classmethod
    def build(cls, materials: Materials) -> InverseScope:
        """Untrained control layers on a copy of the fine-tuned backbone."""
        variant, prompts = materials.variant, materials.prompts
        shape = GeneratorShape(
            backbone=materials.backbone.shape,
            sites=materials.sites,
            scales=materials.scales,
            n_heads=variant.n_heads,
            d_head=variant.d_head,
            d_condition=variant.d_condition or materials.target_width,
            site_map_blocks=variant.site_map_blocks,
            see_norm=variant.see_norm,
            eps_input=variant.eps_input or variant.mean_embedding,
            d_embedding=len(prompts.prior) if variant.mean_embedding else 0,
            neighbour_logits=variant.neighbour_logits,
            n_condition=variant.n_condition,
            zero_values=variant.zero_values,
            words=tuple(prompts.words()) if variant.neighbour_words else (),
            log_epsilons=materials.log_epsilons,
            normed_queries=variant.normed_queries,
            scaled_scores=variant.scaled_scores,
        )
        model = cls(shape)
        if not variant.zero_biases:
            for layer in model.control:
                assert isinstance(layer, ControlLayer)
                layer.begin_as_pytorch(shape.zero_values)
        model.backbone.load_state_dict(materials.backbone.state_dict())
        if model.neighbour_words is not None:
            model.neighbour_words.set_prior(torch.from_numpy(prompts.tokens.astype(np.int64)))
        model.backbone.requires_grad_(not variant.freeze_backbone)
        return model

    def encode(self, condition: Condition) -> Tensor:
        """Latent conditions (B, C). Raises `InputError` for a site that the generator was not trained on."""
        parts = []
        for label, z in condition.z.items():
            scaled = self.scaled(label, z)
            parts.append(self.site_maps[_key(label)](scaled))
        c = torch.cat(parts)
        if self.scalar_map is not None:
            assert condition.scalars is not None
            c = c + self.scalar_map(condition.scalars)
        if self.embedding_map is not None:
            assert condition.embedding is not None
            c = c + self.embedding_map(condition.embedding)
        for block in self.blocks:
            c = block(c)
        return self.final_norm(c)

    def fold(self, condition: Condition) -> Folded:
        """Fold all control layers for B activations."""
        c = self.encode(condition)
        keys, offsets, values = [], [], []
        for module in self.control:
            assert isinstance(module, ControlLayer)
            k, o, v = module.fold(c)
            keys.append(k)
            offsets.append(o)
            values.append(v)
        return Folded(keys, offsets, values, c)

    def controller(self, folded: Folded, owner: Tensor | None = None) -> Control:
        """The function that the backbone calls after each attention.

        Args:
            folded: control layers of B activations.
            owner: (n,) which activation each of the first n rows of hidden states, (n', D) or (n', T, D), belongs to; the others
                get no control. Without it hidden states are (B, T, D).
        """
        count = len(folded.latent)
        if owner is None:
            return lambda layer, h: self._control(layer, h, folded)
        rows = ByOwner(owner, count)

        def control(layer: int, h: Tensor) -> Tensor:
            laid = rows.spread(h[: len(owner)]).reshape(count, -1, h.shape[-1])
            signal = self._control(layer, laid, folded).view(count, rows.width, *h.shape[1:])
            return torch.cat([rows.gather(signal), h.new_zeros(len(h) - len(owner), *h.shape[1:])])

        return control

    def _control(self, layer: int, h: Tensor, folded: Folded) -> Tensor:
        signal: Tensor = self.control[layer](
            h, folded.keys[layer], folded.offsets[layer], folded.values[layer]
        )
        return signal

    def readout(self, folded: Folded, rows: Rows) -> Readout | None:
        """The function that adds what cached neighbours say to the logits."""
        by_prefix, by_words = self.neighbour_logits, self.neighbour_words
        if by_prefix is None and by_words is None:
            return None
        latent = folded.latent if rows.owner is None else folded.latent[rows.owner]

        def read(h: Tensor) -> Tensor:
            said = []
            if by_prefix is not None:
                assert rows.counts is not None
                said.append(by_prefix(h, latent[:, None] if h.dim() == 3 else latent, rows.counts))
            if by_words is not None:
                assert rows.evidence is not None
                said.append(by_words(h, rows.evidence))
            return sum(said[1:], said[0])

        return read

    def logits(self, tokens: Tensor, folded: Folded, rows: Rows) -> Tensor:
        """Logits (n, T, V) of the next token at each position of tokens (n, T)."""
        control, readout = self.controller(folded, rows.owner), self.readout(folded, rows)
        logits: Tensor = self.backbone(tokens, control, readout)
        return logits

    def step(
        self, tokens: Tensor, position: int, cache: list[KeyValues], folded: Folded, owner: Tensor
    ) -> Tensor:
        """Final hidden states (n, D) of one more token (n,) a row."""
        return self.backbone.step(tokens, position, cache, self.controller(folded, owner))


def _key(label: str) -> str:
    """A site label as a module name (PyTorch forbids dots there)."""
    return label.replace(".", "_")
