"""The LLM labeller on a tiny chat model: greedy among the labels, batched, cached, resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from inversescope.config.targets import ArchitectureConfig
from inversescope.errors import InputError
from inversescope.studies.icl.labeller import Labeller
from inversescope.targets.models import build_model
from inversescope.targets.tokenizers import word_tokenizer

LABELS = ["red", "red green", "green", "blue blue red", "null"]
WORDS = "red green blue null name the colour of sky grass blood user model".split()
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} model{% endif %}"
TEXTS = [
    "the sky",
    "the grass",
    "blood",
    "sky sky",
    "the colour of blood",
    "of the grass",
    "grass grass",
    "the sky",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    made = word_tokenizer([*WORDS, *(f" {word}" for word in WORDS), "\n"], r" ?\w+|\n")
    made.chat_template = TEMPLATE
    return made


def labeller(tokenizer: PreTrainedTokenizerFast, cache: Path | None = None, **options: object) -> Labeller:
    shape = ArchitectureConfig(
        architecture="gemma2", n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, n_positions=64
    )
    model = build_model(shape, len(tokenizer), seed=int(str(options.pop("seed", 1))), initializer_range=0.6)
    values = {"instruction": "name the colour of", "labels": LABELS, "null": "null", "identity": "tiny@1"}
    return Labeller(model, tokenizer, cache=cache, **{**values, **options})  # type: ignore[arg-type]


def by_hand(one: Labeller, text: str) -> str:
    """Greedy decoding of a single text, each step a pass over all of it, among the labels that still fit."""
    asked = one.tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{one.instruction}\n\n{text}"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = one.tokenizer.encode(asked, add_special_tokens=False)
    answers = {label: one.tokenizer.encode(label, add_special_tokens=False) for label in one.labels}
    said: list[int] = []
    while True:
        fit = {a[len(said)] if len(a) > len(said) else 0 for a in answers.values() if a[: len(said)] == said}
        with torch.no_grad():
            logits = one.model(torch.tensor([ids + said])).logits[0, -1]
        best = max(fit, key=lambda token: float(logits[token]))
        if best == 0:
            return next(label for label, answer in answers.items() if answer == said)
        said.append(best)


def test_labels_are_greedy_among_the_allowed(tokenizer: PreTrainedTokenizerFast) -> None:
    seen = set()
    for seed in range(6):
        one = labeller(tokenizer, seed=seed)
        got = one(TEXTS)
        assert got.labels == [by_hand(one, text) for text in TEXTS]
        assert got.refused == 0 and got.cached == 0
        seen |= set(got.labels)
    assert len(seen) >= 3  # the models do differ


def test_batches_change_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    assert labeller(tokenizer)(TEXTS).labels == labeller(tokenizer, batch_tokens=1)(TEXTS).labels


def test_a_killed_run_goes_on_where_it_was(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    cache = tmp_path / "labels" / "cache.jsonl"
    expected = labeller(tokenizer)(TEXTS).labels
    first = labeller(tokenizer, cache, batch_tokens=1)

    class Killed(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done >= 3:
            raise Killed

    with pytest.raises(Killed):
        first(TEXTS, stop)
    cache.write_text(cache.read_text() + '{"key": "half a li')
    second = labeller(tokenizer, cache)
    got = second(TEXTS)
    assert got.labels == expected and got.cached >= 3
    lines = [line for line in cache.read_text().splitlines() if line]
    assert len([line for line in lines if line.endswith("}")]) == len(set(TEXTS))
    third = labeller(tokenizer, cache)
    third.model = None  # type: ignore[assignment]  # not asked again
    assert third(TEXTS).labels == expected and third(TEXTS).cached == len(TEXTS)


def test_another_model_or_question_is_asked_anew(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    labeller(tokenizer, cache)(TEXTS)
    for change in ({"identity": "tiny@2"}, {"instruction": "the colour of"}, {"labels": LABELS[1:]}):
        assert labeller(tokenizer, cache, **change)(TEXTS).cached == 0


def test_what_is_no_label_becomes_null_and_is_counted(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    cache = tmp_path / "cache.jsonl"
    one = labeller(tokenizer, cache)
    one(TEXTS)
    rows = [json.loads(line) for line in cache.read_text().splitlines()]
    broken = one.key("the sky")
    text = "\n".join(json.dumps(row | {"label": "purple"} if row["key"] == broken else row) for row in rows)
    cache.write_text(text + "\n")
    got = labeller(tokenizer, cache)(TEXTS)
    assert got.refused == 2 and got.labels[0] == got.labels[-1] == "null"
    assert got.labels[1:-1] == one(TEXTS).labels[1:-1]


def test_bad_models_and_labels_are_named(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="'null' is not among the labels"):
        labeller(tokenizer, labels=["red"])
    with pytest.raises(InputError, match="two labels the same tokens"):
        labeller(tokenizer, labels=["one", "two", "null"])  # both unknown words
    bare = word_tokenizer(["red"])
    with pytest.raises(InputError, match="no chat template"):
        labeller(bare)
