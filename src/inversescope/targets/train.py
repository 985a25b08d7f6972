"""Training of a target model on its task's answered prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inversescope.targets.tokenizers import encode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from inversescope.tasks import Task


def answer_tokens(task: Task, tokenizer: PreTrainedTokenizerFast, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Questions with their answers as tokens (N, T), and which of the tokens behind the first are answers, bool (N, T - 1)."""
    tokens, starts, lengths = padded(tokenizer, task.questions(index), task.completed(index))
    return tokens, answer_mask(tokens, starts, lengths)


def padded(
    tokenizer: PreTrainedTokenizerFast, questions: list[str], texts: list[str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Answered questions as tokens (B, T), padded with the end token, and the lengths of questions and of both (B,) each."""
    ids = encode(tokenizer, texts)
    starts = torch.tensor([len(i) for i in encode(tokenizer, questions)])
    lengths = torch.tensor([len(i) for i in ids])
    table = np.full((len(ids), int(lengths.max())), int(tokenizer.eos_token_id))
    for row, i in enumerate(ids):
        table[row, : len(i)] = i
    return torch.from_numpy(table), starts, lengths


def answer_mask(tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Which of the tokens (B, T) behind the first are answers, bool (B, T - 1); lengths as from `padded`."""
    place = torch.arange(1, tokens.shape[1])
    return (place >= starts[:, None]) & (place < lengths[:, None])


def answered_right(model: PreTrainedModel, tokens: Tensor, answered: Tensor) -> np.ndarray:
    """Whether the model gives each answer in all its tokens, each after the true ones, bool (N,); arguments as from
    `answer_tokens`. Leaves the model in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        right = model(tokens).logits[:, :-1].argmax(-1) == tokens[:, 1:]
    return np.asarray((right | ~answered).all(1))


def hidden_edges(edges: np.ndarray | None, tokens: Tensor, layers: int) -> dict[int, Tensor]:
    """Attention to be cut in the first blocks: those of the (query, key) pairs that lie within tokens (B, T)."""
    length = tokens.shape[1]
    removed = torch.zeros(1, 1, length, length, dtype=torch.bool)
    for query, key in edges if edges is not None else ():
        if query < length:
            removed[0, 0, query, key] = True
    return dict.fromkeys(range(layers), removed)
