"""The backbone learns the prior (paper, 3.2 and C.1): its loss, and what it writes without any activation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from inversescope.config.methods import BackboneConfig
from inversescope.generator.backbone import Backbone
from inversescope.generator.condition import decode_texts, encode_prompts
from inversescope.ops import inverse_cdf
from inversescope.streams import stream, stream_uniforms
from inversescope.targets.tokenizers import encode
from inversescope.tasks.base import Task
from inversescope.training import next_token_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GATE_SAMPLES = 2048


class PriorLoss:
    """Nats a token of drawn prompts, or of the prior's exact next-token distribution (`targets: grammar`)."""

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        tokenizer: PreTrainedTokenizerFast,
        settings: BackboneConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.backbone, self.task, self.tokenizer = backbone, task, tokenizer
        self.settings, self.seed, self.device = settings, seed, device
        self.exact = task.grammar(tokenizer) if settings.targets == "grammar" else None
        self.names = torch.zeros(backbone.shape.vocab_size, dtype=torch.bool, device=device)
        self.names[[int(ids[-1]) for ids in encode(tokenizer, [f" {name}" for name in task.names])]] = True

    def __call__(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """Loss of one step's prompts, a function of the seed and the step."""
        rng = stream(self.seed, "train_backbone", step)
        texts = self.task.texts(self.task.draw(self.settings.batch_size, None, rng))
        prompts = encode_prompts(encode(self.tokenizer, texts), int(self.tokenizer.eos_token_id))
        tokens = torch.from_numpy(prompts.tokens.astype(np.int64)).to(self.device)
        lengths = torch.from_numpy(prompts.lengths).to(self.device)
        logits = self.backbone(tokens)
        if self.exact is not None:
            target = torch.from_numpy(self.exact.along(prompts.tokens)).to(self.device)
            return self._exact_loss(logits, target, lengths), {}
        if self.settings.tilt:
            # Half of the batch: lift the prompt's own names, so that the loss is about which of the two comes, not about 1 / n.
            half = len(tokens) // 2
            own = torch.zeros(half, logits.shape[-1], device=self.device)
            own = own.scatter_(1, tokens[:half], 1.0) * self.names
            logits = torch.cat([logits[:half] + self.settings.tilt * own[:, None, :], logits[half:]])
        return next_token_loss(logits, tokens, lengths), {}

    def _exact_loss(self, logits: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
        """Cross-entropy to next-token distributions (B, T - 1, grammar's tokens) of logits (B, T, V)."""
        assert self.exact is not None
        columns = torch.from_numpy(np.asarray(self.exact.tokens, np.int64)).to(self.device)
        logp = F.log_softmax(logits[:, :-1], -1)[..., columns]
        value = -(target * logp).sum(-1)
        inside = torch.arange(1, logits.shape[1], device=self.device)[None] < lengths[:, None]
        if self.settings.support_weight:
            # The prior gives nothing to tokens that leave its grammar: at the optimum this term is zero.
            allowed = logp.masked_fill((target == 0) & inside[..., None], -torch.inf)
            value = value - self.settings.support_weight * torch.logsumexp(allowed, -1)
        return (value * inside).sum() / inside.sum()


def longest_prompt(task: Task, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of the longest prompt of the prior."""
    index = task.extremes(lambda texts: [len(ids) for ids in encode(tokenizer, texts)])
    return max(len(ids) for ids in encode(tokenizer, task.texts(index)))


@torch.inference_mode()
def unconditional_texts(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, length: int, seed: int
) -> list[str]:
    """What the backbone writes without any activation: `GATE_SAMPLES` texts of up to `length` tokens."""
    end, everyone = int(tokenizer.eos_token_id), np.arange(GATE_SAMPLES)
    uniforms = stream_uniforms(seed, "train_backbone", np.array([0]), everyone, length)[0]
    cache = backbone.take_cache(GATE_SAMPLES, length)
    device = backbone.wte.weight.device
    token = torch.full((GATE_SAMPLES,), end, device=device)
    rows = np.full((GATE_SAMPLES, length), end, np.int64)
    alive = np.ones(GATE_SAMPLES, bool)
    for position in range(length):
        p = torch.softmax(backbone.logits(backbone.step(token, position, cache)).double(), -1)
        drawn = inverse_cdf(p, everyone, uniforms[:, position])
        rows[alive, position] = drawn[alive]
        token = torch.from_numpy(rows[:, position].copy()).to(device)
        alive &= rows[:, position] != end
    return decode_texts(tokenizer, rows, end)


def table_of_texts(task: Task, texts: list[str]) -> pd.DataFrame:
    """Texts with their features: draw, text, parsed, feature_{name}."""
    frame = pd.DataFrame({"draw": np.arange(len(texts)), "text": texts, "parsed": task.parse(texts) >= 0})
    for feature, values in task.features_of_texts(texts).items():
        frame[f"feature_{feature}"] = [task.feature_values[feature][v] if v >= 0 else "" for v in values]
    return frame


def repeats_a_name(text: str, names: set[str]) -> bool:
    """Whether the second name of a text is the first one again."""
    words = [w for w in text.replace(",", " ").replace(".", " ").split() if w in names]
    return len(words) >= 2 and words[0] == words[1]
