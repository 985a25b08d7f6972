"""The tokens that a generator writes in: the prior's words, whatever the target's vocabulary."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inversescope.cli import run_stage
from inversescope.config import parse_config
from inversescope.context import Context
from inversescope.generator.build import backbone_tokenizer
from inversescope.generator.condition import decode_texts, encode_prompts
from inversescope.store import load_checkpoint
from inversescope.targets.tokenizers import encode, task_tokenizer, tokenizer_hash

CORPUS = [f"{a} क्षेत्र, co\u0302te\u0301 {b}." for a in ("São", "m²", "日本") for b in "abcdefgh"]

FEATURE = {"ioi": "object", "ravel": "attribute", "icl_translation": "task", "text": "last"}


@pytest.fixture(scope="module")
def large() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 3,000 tokens that was made from other words than the tasks'."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join("".join(rng.choice(letters, 6)) for _ in range(2000))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", bos_token="<end>")


def context_of(
    root: Path, tokenizer: PreTrainedTokenizerFast, task: str, backbone: dict[str, Any] | None = None
) -> Context:
    """An experiment on a local target of which nothing but the tokenizer is there."""
    tokenizer.save_pretrained(root / "model")
    (root / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    shape = {"n_layers": 1, "n_heads": 2, "d_model": 8, "n_positions": 64}
    gates = {"gate_in_prior": 0.0, "gate_repeated_name": 1.0}
    values = {
        "ioi": {"n_names": 6, "n_templates": 4, "n_places": 2, "n_items": 2},
        "ravel": {"types": ["country"], "n_entities": 40, "n_templates": 3},
        "icl_translation": {"n_concepts": 10},
        "text": {"path": "corpus.txt", "features": {"last": {"pattern": r"(?P<label>\w)\.$"}}},
        "fcr": {"features": [FEATURE[task]]},
        "backbone": backbone or {"shape": shape, "steps": 2, "targets": "grammar", **gates},
        "models": {"far": {"source": "local", "path": "model", "n_layers": 2, "n_heads": 2}},
        "experiments": {"one": {"task": task, "model": "far", "sites": ["L0H0"], "variants": [], "n_val": 2}},
    }
    return Context(root, parse_config(values).of(task, "far"), task, "far")


@pytest.mark.parametrize("task", FEATURE)
def test_a_generators_tokens_are_the_words_of_the_prior(
    tmp_path: Path, large: PreTrainedTokenizerFast, task: str
) -> None:
    context = context_of(tmp_path, large, task)
    prior, tokenizer = context.task, backbone_tokenizer(context)
    assert len(tokenizer) == len(set(prior.words())) + 2 < len(large) / 4
    texts = prior.texts(np.arange(0, prior.size, max(1, prior.size // 2000)))
    # Every prompt comes back as it was, although most of its words are several tokens of the target.
    ids = encode(tokenizer, texts)
    assert decode_texts(tokenizer, encode_prompts(ids, 0).tokens[:, 1:], 0) == texts
    lengths = [np.mean([len(one) for one in many]) for many in (encode(large, texts), ids)]
    assert lengths[0] > 1.5 * lengths[1]
    # What the backbone learns is the prior: each prompt has its probability, and they sum to one, so that nothing else has any.
    rows = encode_prompts(encode(tokenizer, prior.texts(np.arange(min(prior.size, 200)))), 0)
    grammar = prior.grammar(tokenizer)
    column = np.searchsorted(grammar.tokens, rows.tokens[:, 1:])
    p = np.take_along_axis(grammar.along(rows.tokens), column[..., None], 2)[..., 0]
    inside = np.arange(1, rows.tokens.shape[1]) < rows.lengths[:, None]
    assert np.where(inside, p, 1.0).prod(1) * prior.size == pytest.approx(1.0, rel=1e-4)


def test_a_word_with_a_mark_in_it_is_several_tokens() -> None:
    text = "It is n't five o'clock"
    task = SimpleNamespace(
        words=text.replace(" ", "# ").split("#").copy, token_unit="word", word_pattern=None
    )
    tokenizer = task_tokenizer(task)  # type: ignore[arg-type]
    (ids,) = encode(tokenizer, [text])
    assert tokenizer.decode(ids.tolist()) == text and len(ids) == 9


def test_checkpoint_of_a_backbone_has_these_tokens(tmp_path: Path, large: PreTrainedTokenizerFast) -> None:
    context = context_of(tmp_path, large, "ioi")
    run_stage(context, "train_backbone")
    tokenizer, (tensors, meta) = backbone_tokenizer(context), load_checkpoint(context.backbone_dir)
    assert tensors["wte.weight"].shape == (len(tokenizer), 8) and meta["shape"]["vocab_size"] < 100
    assert meta["tokenizer_hash"] == tokenizer_hash(tokenizer)


def test_a_pretrained_backbone_keeps_its_own_tokenizer(
    tmp_path: Path, large: PreTrainedTokenizerFast
) -> None:
    backbone = {"init": "local", "path": str(tmp_path / "model")}
    tokenizer = backbone_tokenizer(context_of(tmp_path, large, "ioi", backbone))
    assert tokenizer_hash(tokenizer) == tokenizer_hash(large)
