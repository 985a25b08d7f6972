"""InversionView's generator (Huang et al., 2024): a decoder trained end to end that attends to the activation, in one file.

The activation, joined with a learned embedding of its site, passes residual MLP blocks. In each block of the decoder a linear map
and a LayerNorm of its own make of the result one more position, to which that block's self-attention attends as to a token before
the first one. There is no backbone that knows the prior beforehand, and as published no noise in training: noise of scale epsilon
on the activation comes at sampling only (InverseScope's paper, D.1.3).

Shapes: B activations, n sequences, T positions, D width of the decoder, W width of the activations, E of the site embedding,
C = W + E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope.generator.backbone import Attention, Backbone, BackboneShape, KeyValues, Linear, Prefix
from inversescope.generator.base import ConditionalGenerator, Materials, Rows
from inversescope.generator.condition import Condition
from inversescope.generator.inversescope import ResidualMLP
from inversescope.targets.speed import even_rows

EXPANSION = 4  # hidden width of an MLP block over its width


@dataclass(frozen=True)
class InversionViewShape:
    """Everything that fixes the parameters.

    Attributes:
        backbone: sizes of the decoder.
        sites: label -> width of its activations; narrower ones are filled up with zeros to the widest.
        scales: label -> root mean square norm of the site's activations, divided out.
        d_site: E, width of the site embedding.
        n_blocks: residual MLP blocks.
        see_norm: False takes z / |z|.
        std: standard deviation of the decoder's initial weights.
    """

    backbone: BackboneShape
    sites: dict[str, int]
    scales: dict[str, float]
    d_site: int = 64
    n_blocks: int = 6
    see_norm: bool = True
    std: float = 0.02
    # It has none of InverseScope's further inputs; whoever makes conditions asks.
    eps_input: ClassVar[bool] = False
    d_embedding: ClassVar[int] = 0
    neighbour_logits: ClassVar[bool] = False
    words: ClassVar[tuple[int, ...]] = ()
    n_condition: ClassVar[int] = 0

    @property
    def width(self) -> int:
        """W, width of the widest site's activations."""
        return max(self.sites.values())


@dataclass
class Injected:
    """One more position for each block's attention: key and value (B, D) a layer, of B activations."""

    prefix: Prefix
    latent: Tensor  # (B, C), what they were made from

    def rows(self, index: Tensor) -> Injected:
        """The same for a selection of activations."""
        return Injected([(key[index], value[index]) for key, value in self.prefix], self.latent[index])


class InversionView(ConditionalGenerator):
    """A decoder whose every block attends to one activation of any known site."""

    shape_type = InversionViewShape

    def __init__(self, shape: InversionViewShape) -> None:
        super().__init__()
        self.shape = shape
        self.neighbour_logits = self.neighbour_words = None
        self.backbone = Backbone(shape.backbone, shape.std)
        width, D = shape.width + shape.d_site, shape.backbone.d_model
        # Scaled activations have components of about one, and so has the embedding (its initial scale is the activations').
        self.site_embedding = nn.Embedding(len(shape.sites), shape.d_site)
        self.blocks = nn.ModuleList(ResidualMLP(width, EXPANSION) for _ in range(shape.n_blocks))
        self.injections = nn.ModuleList(Linear(width, D) for _ in range(shape.backbone.n_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(shape.backbone.n_layers))

    @classmethod
    def build(cls, materials: Materials) -> InversionView:
        """An untrained generator: of the backbone it takes the vocabulary and, unless told otherwise, the sizes."""
        variant, config, backbone = materials.variant, materials.config.backbone, materials.backbone
        decoder = variant.decoder
        scratch = decoder if decoder is not None else config.shape
        shape = InversionViewShape(
            backbone=backbone.shape
            if decoder is None
            else BackboneShape.of(decoder, backbone.shape.vocab_size),
            # One input for all sites: as wide as the residual stream, or as the widest site (MLP activations are wider).
            sites=dict.fromkeys(materials.sites, max(materials.target_width, *materials.sites.values())),
            scales=materials.scales,
            d_site=variant.d_condition or materials.target_width,
            n_blocks=variant.site_map_blocks,
            see_norm=variant.see_norm,
            std=scratch.initializer_range if config.init == "scratch" or decoder is not None else 0.02,
        )
        model = cls(shape)
        if variant.decoder_init == "backbone":
            model.backbone.load_state_dict(backbone.state_dict())
        return model

    def encode(self, condition: Condition) -> Tensor:
        """Latent conditions (B, C). Raises `InputError` for a site that the generator was not trained on."""
        index = {label: i for i, label in enumerate(self.shape.sites)}
        parts = []
        for label, z in condition.z.items():
            scaled = F.pad(self.scaled(label, z), (0, self.shape.width - z.shape[-1]))
            site = self.site_embedding.weight[index[label]].expand(len(z), -1)
            parts.append(torch.cat([scaled, site], -1))
        c = torch.cat(parts)
        for block in self.blocks:
            c = block(c)
        return c

    def fold(self, condition: Condition) -> Injected:
        """Keys and values of the further position, for B activations."""
        c = self.encode(condition)
        prefix: Prefix = []
        for block, injection, norm in zip(self.backbone.h, self.injections, self.norms, strict=True):
            attention = block.attn
            assert isinstance(attention, Attention)
            prefix.append(attention.key_value(norm(injection(c))))
        return Injected(prefix, c)

    def logits(self, tokens: Tensor, folded: Injected, rows: Rows) -> Tensor:
        """Logits (n, T, V) of the next token at each position of tokens (n, T). Of neighbours it knows nothing."""
        own = folded if rows.owner is None else folded.rows(rows.owner)
        logits: Tensor = self.backbone(tokens, prefix=own.prefix)
        return logits

    def step(
        self, tokens: Tensor, position: int, cache: list[KeyValues], folded: Injected, owner: Tensor
    ) -> Tensor:
        """Final hidden states (n, D) of one more token (n,) a row."""
        # Rows that fill up to an even number attend to whatever activation comes first; nobody reads them.
        owner = F.pad(owner, (0, even_rows(len(owner)) - len(owner)))
        return self.backbone.step(tokens, position, cache, prefix=folded.rows(owner).prefix)
