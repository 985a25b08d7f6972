"""Randomly initialised models of the paper's families and widths, with few layers, saved as others would find them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inversescope.config.targets import ArchitectureConfig
from inversescope.targets.models import build_model, save_trained

#: Widths of the published models, without their depth.
WIDTHS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_heads": 12, "d_model": 768, "n_positions": 1024},
    "gpt2-medium": {"n_heads": 16, "d_model": 1024, "n_positions": 1024},
    "gpt2-xl": {"n_heads": 25, "d_model": 1600, "n_positions": 1024},
    "gemma-2-2b": {
        "architecture": "gemma2",
        "n_heads": 8,
        "n_kv_heads": 4,
        "d_model": 2304,
        "d_mlp": 9216,
        "head_dim": 256,
    },
    "gemma-2-9b": {
        "architecture": "gemma2",
        "n_heads": 16,
        "n_kv_heads": 8,
        "d_model": 3584,
        "d_mlp": 14336,
        "head_dim": 256,
    },
    "gemma-2-27b": {
        "architecture": "gemma2",
        "n_heads": 32,
        "n_kv_heads": 16,
        "d_model": 4608,
        "d_mlp": 36864,
        "head_dim": 128,
    },
    "llama-2-7b": {
        "architecture": "llama",
        "n_heads": 32,
        "d_model": 4096,
        "d_mlp": 11008,
        "tied_embeddings": False,
    },
}
CHAT = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}?{% endif %}"


def byte_level_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's, learned on texts: their words are single tokens after a space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends)


def save_model(
    folder: str | Path,
    name: str,
    depth: int,
    tokenizer: PreTrainedTokenizerFast,
    vocabulary: int | None = None,
    dtype: str = "float32",
    chat: bool = False,
) -> None:
    """Save a model of a published width and of few layers; the vocabulary is the tokenizer's if no other is given."""
    shape = ArchitectureConfig(**{"n_positions": 1024} | WIDTHS[name] | {"n_layers": depth})
    model = build_model(shape, vocabulary or len(tokenizer), 0, initializer_range=0.02)
    tokenizer.chat_template = CHAT if chat else None
    save_trained(folder, model.to(getattr(torch, dtype)), tokenizer, name)
