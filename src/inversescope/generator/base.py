"""What every generator offers to training and sampling, whatever it is made of.

Shapes: B activations, n sequences, T positions, D width of the decoder, V vocabulary, C latent width, S size of the mean embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inversescope.config import Config
from inversescope.config.methods import VariantConfig
from inversescope.errors import InputError
from inversescope.generator.backbone import Backbone, BackboneShape, KeyValues, Readout
from inversescope.generator.condition import Condition, Prompts


class Folded(Protocol):
    """What is computed once for each of B activations, before any token.

    Attributes:
        latent: (B, C), what the rest was computed from.
    """

    @property
    def latent(self) -> Tensor:
        """Latent conditions (B, C)."""

    def rows(self, index: Tensor) -> Any:
        """The same for a selection of activations."""


@dataclass(frozen=True)
class Materials:
    """What an untrained generator is made from.

    Attributes:
        backbone: the decoder that was fine-tuned on the prior.
        sites: label -> dimension of the activations that it will be given.
        scales: label -> root mean square norm of the site's activations; the root of their dimension if they stay as they are.
        prompts: those that are cached.
        log_epsilons: label -> log of the middle of its bandwidths, where each site has its own.
        target_width: width of the target's residual stream.
    """

    config: Config
    variant: VariantConfig
    backbone: Backbone
    sites: dict[str, int]
    scales: dict[str, float]
    prompts: Prompts
    target_width: int
    log_epsilons: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """What n sequences have beside their tokens.

    Attributes:
        owner: (n,) which of B activations each belongs to; without it n = B.
        counts: (n, [T,] V) cached neighbours that share the prefix and go on with each token, for `neighbour_logits`.
        evidence: (n, [T,] W) for `neighbour_words`.
    """

    owner: Tensor | None = None
    counts: Tensor | None = None
    evidence: Tensor | None = None


class ConditionalGenerator(nn.Module):
    """q(x | z): a decoder that writes prompts, told about activations by `fold`. It is made from its shape alone.

    Attributes:
        shape: everything that fixes the parameters: `backbone` (sizes of the decoder), `sites` (label -> dimension taken),
            `scales`, and which inputs there are beside z (`eps_input`, `d_embedding`, `neighbour_logits`, `words`, `n_condition`),
            and `log_epsilon` of each site, if it is told epsilon.
        shape_type: its class, a dataclass.
        backbone: the decoder.
        neighbour_logits, neighbour_words: how it attends to cached neighbours, by prefix or by words; None = not.
    """

    shape_type: ClassVar[Any]
    shape: Any
    backbone: Backbone
    neighbour_logits: Any
    neighbour_words: Any

    @classmethod
    def build(cls, materials: Materials) -> ConditionalGenerator:
        """An untrained generator of one variant."""
        raise NotImplementedError

    @classmethod
    def from_shape(cls, values: dict[str, Any]) -> ConditionalGenerator:
        """A generator of the shape that a checkpoint describes: `dataclasses.asdict` of it, from JSON."""
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(cls.shape_type(**{**values, "backbone": BackboneShape(**values["backbone"])}))

    @property
    def device(self) -> torch.device:
        """Where its parameters lie."""
        return self.backbone.wte.weight.device

    def fold(self, condition: Condition) -> Any:
        """Compute what B activations contribute to every token. Raises `InputError` for an unknown site."""
        raise NotImplementedError

    def logits(self, tokens: Tensor, folded: Any, rows: Rows) -> Tensor:
        """Logits (n, T, V) of the next token at each position of tokens (n, T)."""
        raise NotImplementedError

    def step(
        self, tokens: Tensor, position: int, cache: list[KeyValues], folded: Any, owner: Tensor
    ) -> Tensor:
        """Final hidden states (n, D) of one more token (n,) at `position`; the cache's first n rows hold the earlier ones.

        Args:
            owner: (n,) which of the B activations each row belongs to.
        """
        raise NotImplementedError

    def readout(self, folded: Any, rows: Rows) -> Readout | None:
        """The function that adds what cached neighbours say to the logits; None if the generator does not attend to any."""
        return None

    def log_probabilities(self, tokens: Tensor, folded: Any, rows: Rows | None = None) -> Tensor:
        """Log-probabilities (n, T, V) of the next token at each position of tokens (n, T)."""
        return F.log_softmax(self.logits(tokens, folded, rows or Rows()), dim=-1)

    def scaled(self, label: str, z: Tensor) -> Tensor:
        """Activations (b, d) of a site: over its scale, or each over its own norm, times the root of d.

        Raises:
            InputError: the generator was not trained on the site.
        """
        if label not in self.shape.sites:
            known = ", ".join(self.shape.sites)
            raise InputError(
                f"site {label} is unknown to this generator", f"train it on that site; it knows {known}"
            )
        z = z / self.shape.scales[label] if self.shape.see_norm else F.normalize(z, dim=-1)
        return z * z.shape[-1] ** 0.5
