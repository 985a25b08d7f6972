"""InverseScope's conditional generator: backbone, control layers, site maps (paper, 3.1), in one file.

Shapes: B activations, T positions, D width of the backbone, H control heads, K width of a control head's key, C latent width,
S size of the mean embedding.

Since a control head's key and value depend on the activation alone, both sides of its attention are folded once an activation:
<Q h + q0, k> = <h, Q^T k> + <q0, k>. A token then costs one (D x H) product, a tanh and one (H x D) product, in training as in
sampling, and nothing is approximated.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope.generator.backbone import Backbone, BackboneShape, Control, KeyValues, Linear, Readout
from inversescope.generator.base import Condition, ConditionalGenerator
from inversescope.ops import tanh

N_SCALARS = 4  # log eps, log share of neighbours, log count, mean distance / eps


@dataclass(frozen=True)
class GeneratorShape:
    """Everything that fixes the generator's parameters."""

    backbone: BackboneShape
    sites: dict[str, int]  # label -> dimension of what the site map takes
    scales: dict[str, float]  # label -> root mean square norm of the site's activations, divided out
    n_heads: int = 32
    d_head: int = 16
    d_condition: int = 64
    site_map_blocks: int = 0
    see_norm: bool = True
    eps_input: bool = False
    d_embedding: int = 0  # S; 0 = no mean embedding
    neighbour_logits: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> GeneratorShape:
        """Inverse of `to_dict`."""
        return GeneratorShape(**{**values, "backbone": BackboneShape(**values["backbone"])})


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

    h passes a layer norm first (omitted in the paper's formula too); <q, k> is divided by the root of the head's width, which is
    a matter of K's scale alone.
    """

    def __init__(self, d_model: int, d_condition: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.n_heads, self.d_head = n_heads, d_head
        self.norm = nn.LayerNorm(d_model)
        self.query = Linear(d_model, n_heads * d_head)
        self.key = Linear(d_condition, n_heads * d_head)
        self.value = Linear(d_condition, n_heads * d_model)
        for linear in (self.query, self.key):
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")
            nn.init.zeros_(linear.bias)
        # V zero at the start: the untrained generator is the backbone, exactly (paper, C.2).
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def fold(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Fold latent conditions (B, C) into keys (B, H, D), offsets (B, H) and values (B, H, D)."""
        B = c.shape[0]
        k = self.key(c).view(B, self.n_heads, self.d_head) * self.d_head**-0.5
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


class InverseScope(ConditionalGenerator):
    """A backbone steered by control layers that read one activation of any known site."""

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
        self.control = nn.ModuleList(
            ControlLayer(shape.backbone.d_model, C, shape.n_heads, shape.d_head)
            for _ in range(shape.backbone.n_layers)
        )

    def controlled_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the backbone: site maps, conditions, control layers."""
        return [p for name, p in self.named_parameters() if not name.startswith("backbone.")]

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
        # Rows lie side by side by activation, so that each of these multiplies one matrix; the gaps hold zeros.
        order = torch.argsort(owner, stable=True)
        sizes = torch.bincount(owner, minlength=count)
        first = sizes.cumsum(0) - sizes
        place = torch.empty_like(owner)
        place[order] = torch.arange(len(owner), device=owner.device) - first[owner[order]]
        width = int(sizes.max())
        place += owner * width

        def control(layer: int, h: Tensor) -> Tensor:
            flat = h.flatten(1)
            rows = flat.new_zeros(count * width, flat.shape[1]).index_copy_(0, place, flat[: len(place)])
            signal = self._control(layer, rows.view(count, -1, h.shape[-1]), folded).view_as(rows)
            return F.pad(signal[place], (0, 0, 0, len(h) - len(place))).view_as(h)

        return control

    def _control(self, layer: int, h: Tensor, folded: Folded) -> Tensor:
        signal: Tensor = self.control[layer](
            h, folded.keys[layer], folded.offsets[layer], folded.values[layer]
        )
        return signal

    def readout(self, folded: Folded, counts: Tensor | None, owner: Tensor | None = None) -> Readout | None:
        """The function that adds cached neighbours' counts, (n, V) or (n, T, V), to the logits; `owner` as in `controller`."""
        if self.neighbour_logits is None:
            return None
        layer = self.neighbour_logits
        latent = folded.latent if owner is None else folded.latent[owner]

        def read(h: Tensor) -> Tensor:
            assert counts is not None
            return layer(h, latent[:, None] if h.dim() == 3 else latent, counts)

        return read

    def logits(
        self, tokens: Tensor, folded: Folded, counts: Tensor | None = None, owner: Tensor | None = None
    ) -> Tensor:
        """Logits (n, T, V) of the next token at each position of tokens (n, T)."""
        logits: Tensor = self.backbone(
            tokens, self.controller(folded, owner), self.readout(folded, counts, owner)
        )
        return logits

    def step(
        self, tokens: Tensor, position: int, cache: list[KeyValues], folded: Folded, owner: Tensor
    ) -> Tensor:
        """Final hidden states (n, D) of one more token (n,) a row."""
        return self.backbone.step(tokens, position, cache, self.controller(folded, owner))


def _key(label: str) -> str:
    """A site label as a module name (PyTorch forbids dots there)."""
    return label.replace(".", "_")
